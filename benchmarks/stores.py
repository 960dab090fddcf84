"""`longbatch bench stores`: requests to an object store, and how fast a loader reads from its cache.

The store is a server of S3 on this machine, behind a proxy that counts requests. So the figures are numbers of
requests, and ratios of two runs on the same machine; the latency of a real store is not in them.
"""

from __future__ import annotations

import io
import os
import tempfile
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from functools import partial
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from longbatch.jobs.append import append
from longbatch.jobs.build import build
from longbatch.jobs.readers.sources import plan_pieces, read_piece
from longbatch.jobs.simulation.simulate import Simulation, simulate
from longbatch.jobs.vacuum import vacuum
from longbatch.loaders import RequestDataset, make_dataloader
from longbatch.schemas.accounting import Counts
from longbatch.schemas.format.remote_cache import RemoteRoot
from longbatch.schemas.format.snapshot import Snapshot, commit, fingerprint, read_snapshot
from longbatch.schemas.spec.build_spec import load_spec, parse_spec
from longbatch.schemas.storage.local_store import LocalStore
from longbatch.schemas.storage.store import Store
from longbatch.schemas.types import ProgressCallback

from .checks import WORK_PREFIX, Check, Figure, Results, drain, medians, run_parts
from .loader_data import SPEC, Size, write
from .manifest import synthetic_shards
from .object_servers import Bucket, s3_server

SHARDS, OPEN_LIMIT = 10_000, 5
FILES, QUICK_FILES, FILE_LIMIT = 1_000, 100, 1.2
LOADER_SIZE, QUICK_LOADER_SIZE = Size(120, 20, 8), Size(60, 20, 8)
WORKERS, EPOCHS, REPEATS, THROUGHPUT_LIMIT = 2, 4, 3, 0.8


def bench_stores(*, quick: bool = False, folder: Path | None = None, progress: ProgressCallback) -> Results:
    """Count the requests of opening, planning and building, and compare a loader with one of local files.

    Args:
        quick: Use fewer files and a smaller dataset.
        folder: Where the work folder is created.
        progress: Called after each part.

    Returns:
        Numbers of requests and the ratio of throughputs, as checks and figures.
    """
    with tempfile.TemporaryDirectory(prefix=WORK_PREFIX, dir=folder) as work, _bucket() as bucket:
        parts = [
            partial(_open, bucket, Path(work)),
            partial(_plan, bucket, QUICK_FILES if quick else FILES),
            partial(_write, bucket, Path(work)),
            partial(_load, bucket, Path(work), QUICK_LOADER_SIZE if quick else LOADER_SIZE),
        ]
        return run_parts("stores", parts, progress)


@contextmanager
def _bucket() -> Iterator[Bucket]:
    """Run a server of S3, to which the environment of this process gives access."""
    before = dict(os.environ)
    try:
        with s3_server() as bucket:
            os.environ.update(bucket.environment)
            yield bucket
    finally:
        os.environ.clear()
        os.environ.update(before)


def _open(bucket: Bucket, work: Path) -> Results:
    """Open a dataset of very many shards and plan an epoch."""
    shards, spec = synthetic_shards(SHARDS), parse_spec(SPEC.replace("COMPRESSION", "zstd"))
    commit(bucket.open("open"), Snapshot(1, spec, Counts(), {}, 0, shards, (), (), fingerprint(spec, shards)))
    bucket.proxy.reset()
    dataset = RequestDataset(RemoteRoot(f"{bucket.url}/open", work / "cache"), batch_size=64, shuffle=True)
    dataset.open()
    dataset.planned(0).locator().rows(0)
    name = f"requests before the first block of a dataset of {SHARDS:,} shards"
    return Results([Check(name, len(bucket.proxy.requests), OPEN_LIMIT)], [])


def _plan(bucket: Bucket, files: int) -> Results:
    """Plan and read the Parquet files of a log, each of one row."""
    log, names = bucket.open("log"), [f"{number:05d}.parquet" for number in range(files)]
    sink = io.BytesIO()
    columns = ("user_id", "item_id", "event_time", "author_id", "duration_ms", "watched_ms", "ratio", "action")
    pq.write_table(pa.table({name: [1] for name in (*columns, "request_time", "request_id", "click")}), sink)
    with ThreadPoolExecutor(8) as threads:
        list(threads.map(lambda name: log.write(name, sink.getvalue()), names))
    spec = parse_spec(SPEC.replace("COMPRESSION", "zstd").replace("log.parquet", f"{bucket.url}/log/*.parquet"))
    bucket.proxy.reset()
    pieces = plan_pieces(spec, "log")
    planned = Counter((request.method, request.path) for request in bucket.proxy.requests)
    bucket.proxy.reset()
    for piece in pieces:
        drain(read_piece(spec, piece))
    checks = [
        Check(f"requests per file to plan {files:,} Parquet files", planned.total() / files, FILE_LIMIT),
        Check("requests for one file at most, to plan it", max(planned.values()), 1, "=="),
    ]
    return Results(checks, [Figure("requests per file to read it", len(bucket.proxy.requests) / files)])


def _write(bucket: Bucket, work: Path) -> Results:
    """Build, append and vacuum a small log; count the requests besides one for each file."""
    from .faults import end_times

    simulate(work / "log", Simulation(users=100, events=20_000, seed=1))
    spec, store = load_spec(work / "log" / "spec.toml"), bucket.open("written")
    first, second, _ = end_times(work / "log")
    figures = []
    for name, run in (
        ("build", lambda: build(spec, store, until=first)),
        ("append", lambda: append(spec, store, second)),
        ("vacuum", lambda: vacuum(store)),
    ):
        bucket.proxy.reset()
        run()
        methods = Counter(request.method for request in bucket.proxy.requests)
        figures.append(Figure(f"requests to {name}", methods.total(), _counts(methods)))
    figures.append(Figure("files of the dataset", read_snapshot(store).file_count))
    return Results([], figures)


def _counts(methods: Counter[str]) -> str:
    return ", ".join(f"{count} {method}" for method, count in sorted(methods.items()))


def _load(bucket: Bucket, work: Path, size: Size) -> Results:
    """Read a dataset from the store once, then compare epochs from the cache with epochs of local files."""
    local = write(work / "loaded", size, "zstd")
    _upload(LocalStore(local), bucket.open("loaded"))
    remote = RemoteRoot(f"{bucket.url}/loaded", work / "cache")

    def load(location: Path | RemoteRoot, epochs: int) -> None:
        loader = make_dataloader(RequestDataset(location, batch_size=16, shuffle=True), num_workers=WORKERS)
        for _ in range(epochs):
            drain(loader)

    bucket.proxy.reset()
    load(remote, 1)
    first = len(bucket.proxy.requests)
    bucket.proxy.reset()
    seconds = medians([partial(load, local, EPOCHS), partial(load, remote, EPOCHS)], REPEATS)
    figures = [
        Figure("requests of the first epoch", first),
        Figure(f"requests of {EPOCHS} epochs from the cache", len(bucket.proxy.requests) / REPEATS),
        Figure(f"{EPOCHS} epochs of local files", seconds[0], "s"),
        Figure(f"{EPOCHS} epochs from the cache", seconds[1], "s"),
    ]
    name = f"throughput from the cache over that of local files, {WORKERS} workers"
    return Results([Check(name, seconds[0] / seconds[1], THROUGHPUT_LIMIT, ">=")], figures)


def _upload(source: Store, target: Store) -> None:
    for file in source.list_files():
        target.write(file.path, source.read(file.path).to_pybytes())
