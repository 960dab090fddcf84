"""`longbatch bench loader`: the loader compared with a plain copy of the same bytes, and with other loaders."""

from __future__ import annotations

import statistics
import tempfile
import time
from collections.abc import Iterable
from functools import partial
from pathlib import Path

import torch

from longbatch.loaders import RequestBatch, RequestDataset, RequestLoader
from longbatch.loaders.batch import Histories
from longbatch.schemas.types import ProgressCallback

from . import loader_comparison, loader_data, loader_plans
from .checks import WORK_PREFIX, Check, Figure, Results, drain, medians, run_parts, timed
from .loader_data import Size
from .loader_plans import BATCH

STEP_SECONDS, EPOCHS = 0.05, 10
PASSES = 5  # per timing of shared timelines: a single pass takes a hundredth of a second
HISTORIES: tuple[Histories, ...] = ("per_request", "shared")


def bench_loader(*, quick: bool, repeats: int, progress: ProgressCallback) -> Results:
    """Measure throughput, shared timelines, waiting with workers, memory over epochs, planning, and peers.

    The page cache is warm.

    Args:
        quick: Use smaller datasets.
        repeats: Timings of each pass; medians are reported.
        progress: Called after each part.

    Returns:
        Throughput relative to the baselines as checks, absolute throughput as figures.
    """
    with tempfile.TemporaryDirectory(prefix=WORK_PREFIX) as folder:
        root = Path(folder)
        size = Size(users=24 if quick else 96, requests=16, targets=8)
        paths = {c: loader_data.write(root / c, size, c) for c in ("none", "zstd")}
        parts = (
            lambda: _against_copies(paths, repeats),
            lambda: _shared_timelines(paths["none"], repeats),
            lambda: _with_workers(paths["none"], repeats),
            lambda: _over_epochs(paths["zstd"]),
            loader_plans.planning,
            loader_plans.shuffling,
            lambda: loader_comparison.against_peers(root, quick, repeats),
        )
        return run_parts("loader", parts, progress)


def _history_bytes(batches: Iterable[RequestBatch]) -> int:
    return sum(values.nbytes for batch in batches for values in batch.history.values())


def _copy_to_new_memory(batches: list[RequestBatch]) -> None:
    """The baseline: torch copies each history column of each batch into new memory."""
    for batch in batches:
        _ = {name: torch.empty(v.shape, dtype=v.dtype).copy_(v) for name, v in batch.history.items()}


def _copy_to_reused_memory(batches: list[RequestBatch]) -> None:
    """The same copy into memory that is allocated once, each batch over the one before."""
    buffers = {name: torch.empty_like(values) for name, values in batches[0].history.items()}
    for batch in batches:
        for name, values in batch.history.items():
            buffers[name][: len(values)].copy_(values[: len(buffers[name])])


def _against_copies(paths: dict[str, Path], repeats: int) -> Results:
    """Throughput of per-request histories relative to plain copies of the same bytes."""
    checks, figures = [], []
    for compression, limit in (("none", 0.7), ("zstd", 0.25)):
        dataset = RequestDataset(paths[compression], batch_size=BATCH, shuffle=True)
        first_epoch = timed(partial(drain, dataset))
        batches = list(dataset)
        size = _history_bytes(batches)
        new_memory, reused_memory, loader = medians(
            [partial(_copy_to_new_memory, batches), partial(_copy_to_reused_memory, batches), partial(drain, dataset)],
            repeats,
        )
        name = f"{compression}: history GB/s"
        figures += [
            Figure(f"{name}, a plain copy", size / new_memory / 1e9, "GB/s"),
            Figure(f"{name}, a copy into reused memory", size / reused_memory / 1e9, "GB/s"),
            Figure(f"{name}, per-request histories", size / loader / 1e9, "GB/s"),
            Figure(f"{name}, first pass, with checksums", size / first_epoch / 1e9, "GB/s"),
        ]
        title = f"{compression}: per-request histories, share of a plain copy"
        checks.append(Check(title, new_memory / loader, limit, ">="))
    return Results(checks, figures)


def _shared_timelines(path: Path, repeats: int) -> Results:
    """Requests in the order of the dataset: 16 of a user are adjacent, at two batch sizes."""
    figures: list[Figure] = []
    seconds: dict[int, list[float]] = {}
    for size in (BATCH, 4 * BATCH):
        datasets = [RequestDataset(path, batch_size=size, histories=histories) for histories in HISTORIES]
        requests = sum(batch.num_requests for batch in datasets[1])
        seconds[size] = medians([partial(_drain_several, dataset) for dataset in datasets], repeats)
        figures += [
            Figure(f"histories {histories}, batches of {size}", PASSES * requests / each, "requests/s")
            for histories, each in zip(HISTORIES, seconds[size], strict=True)
        ]
    speedup = {size: per_request / shared for size, (per_request, shared) in seconds.items()}
    figures.append(Figure(f"shared timelines over per-request histories, batches of {BATCH}", speedup[BATCH], "x"))
    title = "shared timelines, requests/s over per-request histories"
    return Results([Check(title, speedup[4 * BATCH], 3, ">=")], figures)


def _drain_several(dataset: RequestDataset) -> None:
    for _ in range(PASSES):
        drain(dataset)


def _with_workers(path: Path, repeats: int) -> Results:
    """How long the main process waits for a batch, with steps of 50 ms and two workers: threads or processes."""
    checks, figures = [], []
    for workers in ("threads", "processes"):
        firsts, shares = [], []
        for _ in range(repeats):
            dataset = RequestDataset(path, batch_size=BATCH, shuffle=True)
            started = time.perf_counter()
            loader = RequestLoader(dataset, num_workers=2, workers=workers)
            waits = _waits(loader, started)
            firsts.append(waits[0])
            # the first two batches are waited for while the workers start
            shares.append(statistics.mean(waits[2:]) / (STEP_SECONDS + statistics.mean(waits[2:])))
        first, share = statistics.median(firsts), statistics.median(shares)
        figures.append(Figure(f"{workers}: first batch", first, "s"))
        checks.append(Check(f"2 {workers}: share of a 50 ms step spent waiting for the loader", share, 0.10))
        checks.append(Check(f"2 {workers}: seconds to the first batch", first, 1.0))
    return Results(checks, figures)


def _waits(loader: RequestLoader, started: float) -> list[float]:
    """Seconds until each batch, counted from the end of the previous step."""
    waits = []
    for _ in loader:
        waits.append(time.perf_counter() - started)
        time.sleep(STEP_SECONDS)
        started = time.perf_counter()
    return waits


def _over_epochs(path: Path) -> Results:
    """Growth of this process's anonymous memory (not backed by a file) from the second to the last epoch."""
    loader = RequestLoader(RequestDataset(path, batch_size=BATCH, shuffle=True), num_workers=2)
    after = []
    for _ in range(EPOCHS):
        drain(loader)
        after.append(_anonymous_bytes())
    return Results(
        [Check(f"resident memory after {EPOCHS} epochs, over that after 2", after[-1] / after[1], 1.05)],
        [Figure("resident memory after 2 epochs", after[1] / 1e6, "MB")],
    )


def _anonymous_bytes() -> int:
    status = Path("/proc/self/status").read_text()
    return int(status.split("RssAnon:")[1].split()[0]) * 1024
