"""`longbatch bench manifest`: what a dataset of very many shards costs before a single block is read.

    python -m longbatch.benchmarks.manifest write DATASET SHARDS    write the dataset
    python -m longbatch.benchmarks.manifest STEP DATASET OUT        one measured run of a step

The dataset has 200,000 shards of 1.5 million blocks. Its snapshot is real, and its 600,000 files are empty. Each step
is a process of its own, so that its peak memory is that of a command, with the imports of all steps. A process that
only imports is the baseline.
"""

from __future__ import annotations

import json
import multiprocessing
import os
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from longbatch.jobs.commit.attempt import DATASET_FOLDERS
from longbatch.jobs.commit.build_result import BuildResult
from longbatch.jobs.vacuum import vacuum
from longbatch.loaders.dataset import RequestDataset
from longbatch.loaders.dataset_index import DatasetIndex
from longbatch.schemas.accounting import Counts
from longbatch.schemas.arrow import int32_array
from longbatch.schemas.format.dataset import open_dataset
from longbatch.schemas.format.manifest import COUNT_NAMES, SHARD_TABLES
from longbatch.schemas.format.shards_table import BLOCK_FIELDS, SHARDS_SCHEMA, ShardsTable
from longbatch.schemas.format.snapshot import Snapshot, commit, fingerprint, read_snapshot
from longbatch.schemas.ragged import offsets_of
from longbatch.schemas.spec.build_spec import parse_spec
from longbatch.schemas.storage.local_store import LocalStore
from longbatch.schemas.types import ArrowArray, Int64Array, ProgressCallback
from longbatch.validation.audit.manifest_checks import shard_findings

from .checks import WORK_PREFIX, Check, Figure, Results, timed
from .loader_data import SPEC
from .processes import Run, run_module

FULL_SHARDS, QUICK_SHARDS = 200_000, 20_000
MOST_BLOCKS = 14  # of a shard; 7.5 on average
UNLISTED_FILES = 1_000  # files of a killed build, which vacuum removes, besides the shards table before the append
SECONDS_LIMIT, PEAK_LIMIT_GB, WORKER_LIMIT_MB = 10.0, 1.5, 50.0
LINEAR_LIMIT = 2.0


def bench_manifest(*, quick: bool = False, folder: Path | None = None, progress: ProgressCallback) -> Results:
    """Write a snapshot of very many shards with empty files, and run each step on it.

    Args:
        quick: Use a tenth of the shards.
        folder: Where the work folder is created; it needs 600,000 inodes.
        progress: Called after each step.

    Returns:
        Seconds and peak memory of each step, as checks and figures.
    """
    shards = QUICK_SHARDS if quick else FULL_SHARDS
    with tempfile.TemporaryDirectory(prefix=WORK_PREFIX, dir=folder) as temporary:
        root = Path(temporary) / "dataset"
        # In a process of its own, because a child process starts with the peak memory of its parent.
        run_module("longbatch.benchmarks.manifest", "write", str(root), str(shards))
        size = sum(path.stat().st_size for path in (root / "snapshots").iterdir())
        runs: dict[str, tuple[Run, dict[str, float]]] = {}
        for number, step in enumerate(STEPS):
            out = Path(temporary) / f"{step}.json"
            run = run_module("longbatch.benchmarks.manifest", step, str(root), str(out))
            runs[step] = run, json.loads(out.read_text())
            progress("manifest", number + 1, len(STEPS))
    return _judge(shards, size, runs)


def synthetic_shards(shards: int) -> ShardsTable:
    """Create the entries of shards without files, of 1 to MOST_BLOCKS blocks.

    Args:
        shards: Number of shards.

    Returns:
        The table, with random counts, lengths and checksums.
    """
    rng = np.random.default_rng(0)
    sizes = rng.integers(1, MOST_BLOCKS, shards, endpoint=True)
    offsets = offsets_of(sizes)
    blocks = {name: rng.integers(1, 100_000, offsets[-1]) for name in BLOCK_FIELDS}
    blocks["last_request_time"] += blocks["first_request_time"]
    columns: dict[str, ArrowArray] = {"bucket": int32_array(np.arange(shards))}
    for table in SHARD_TABLES:
        digits = rng.bytes(32 * shards).hex()
        checksums = [digits[start : start + 64] for start in range(0, 64 * shards, 64)]
        paths = [f"{table}/{number:05d}-0123456789ab.arrow" for number in range(shards)]
        files: list[ArrowArray] = [pa.array(paths), pa.array(np.zeros(shards, dtype=np.int64)), pa.array(checksums)]
        columns[table] = pa.StructArray.from_arrays(files, fields=list(SHARDS_SCHEMA.field(table).type))
    for name in COUNT_NAMES:
        columns[f"total_{name}"] = pa.array(np.add.reduceat(blocks[name], offsets[:-1]))
    for key, extreme in (("first_request_time", np.minimum), ("last_request_time", np.maximum)):
        columns[key] = _typed(extreme.reduceat(blocks[key], offsets[:-1]), SHARDS_SCHEMA.field(key).type)
    structs = pa.StructArray.from_arrays(
        [_typed(blocks[name], arrow_type) for name, arrow_type in BLOCK_FIELDS.items()],
        fields=list(SHARDS_SCHEMA.field("blocks").type.value_type),
    )
    columns["blocks"] = pa.ListArray.from_arrays(int32_array(offsets), structs)
    return ShardsTable(pa.table([columns[name] for name in SHARDS_SCHEMA.names], schema=SHARDS_SCHEMA))


def _typed(values: Int64Array, arrow_type: pa.DataType) -> ArrowArray:
    array: ArrowArray = pa.array(values).cast(arrow_type)
    return array


def _write_dataset(root: Path, shards: ShardsTable) -> None:
    for folder in DATASET_FOLDERS:
        (root / folder).mkdir(parents=True)
    for path in shards.paths().to_pylist():
        os.mknod(root / str(path))
    for number in range(UNLISTED_FILES):
        os.mknod(root / "timelines" / f"{number:05d}-fedcba987654.arrow")
    spec = parse_spec(SPEC.replace("COMPRESSION", "zstd"))
    commit(LocalStore(root), Snapshot(1, spec, Counts(), {}, 0, shards, (), (), fingerprint(spec, shards)))


# Steps: each prepares what it does not measure, and returns its figures


def _measured(run: Callable[[], object]) -> dict[str, float]:
    started = time.process_time()
    return {"seconds": timed(run), "processor_seconds": time.process_time() - started}


def _imports(root: Path) -> dict[str, float]:
    return _measured(root.exists)


def _open(root: Path) -> dict[str, float]:
    return _measured(lambda: open_dataset(root))


def _plan(root: Path) -> dict[str, float]:
    dataset = RequestDataset(root, batch_size=64, shuffle=True)
    dataset.open()
    return _measured(lambda: dataset.planned(0).locator().rows(0))


def _check(root: Path) -> dict[str, float]:
    shards = read_snapshot(LocalStore(root)).shards
    return _measured(lambda: list(shard_findings(shards)))


def _append(root: Path) -> dict[str, float]:
    before = read_snapshot(LocalStore(root))
    new = ShardsTable.from_entries(before.shards[: len(before.shards) // 100])

    def commit_both() -> None:
        shards = before.shards.sorted_with(new)
        commit(LocalStore(root), replace(before, number=2, shards=shards, fingerprint=fingerprint(before.spec, shards)))

    return _measured(commit_both)


def _vacuum(root: Path) -> dict[str, float]:
    removed: list[int] = []
    return {**_measured(lambda: removed.append(vacuum(root).files)), "removed": removed[0]}


def _results(root: Path) -> dict[str, float]:
    """Add up the results of all shards and make their table, as the driver of a build does."""
    shards = read_snapshot(LocalStore(root)).shards
    entries = list(shards)

    def table_of(count: int) -> None:
        ShardsTable.from_entries(BuildResult.total(BuildResult(shards=(entry,)) for entry in entries[:count]).shards)

    tenth, whole = _measured(lambda: table_of(len(entries) // 10)), _measured(lambda: table_of(len(entries)))
    return {**whole, "over_linear": whole["processor_seconds"] / tenth["processor_seconds"] / 10}


def _worker(root: Path) -> dict[str, float]:
    """Start worker processes with an opened dataset and without one, and compare the memory that is theirs alone."""
    dataset = RequestDataset(root, batch_size=64, shuffle=True)
    index, context = dataset.open(), multiprocessing.get_context("spawn")
    receiver, sender = context.Pipe(duplex=False)
    allocated: list[float] = []

    def start(sent: DatasetIndex | None) -> None:
        context.Process(target=_report_memory, args=(sent, sender)).start()
        allocated.append(receiver.recv())

    start(None)
    return {**_measured(lambda: start(index)), "allocated_mb": (allocated[1] - allocated[0]) / 1e6}


def _report_memory(index: DatasetIndex | None, sender: Any) -> None:  # noqa: ANN401
    if index is not None:
        index.dataset.shards[0]
        index.block_rows.sum()
    # Memory that the process allocated itself. Mapped files are not in it, even where no other process has read a page.
    lines = Path("/proc/self/smaps_rollup").read_text().splitlines()
    sender.send(sum(int(line.split()[1]) * 1024 for line in lines if line.startswith("Anonymous:")))


STEPS: dict[str, Callable[[Path], dict[str, float]]] = {
    "imports": _imports,
    "open": _open,
    "plan": _plan,
    "check": _check,
    "worker": _worker,
    "results": _results,
    "append": _append,
    "vacuum": _vacuum,
}
NAMES = {
    "imports": "only import",
    "open": "open the dataset",
    "plan": "plan an epoch and its first batch",
    "check": "check the totals of all shards",
    "worker": "start a worker with the opened dataset",
    "results": "table of the results of a build",
    "append": "commit an append",
    "vacuum": "vacuum",
}


def _judge(shards: int, size: int, runs: dict[str, tuple[Run, dict[str, float]]]) -> Results:
    figures = [Figure("shards", shards), Figure("bytes of the snapshot", size / 1e6, "MB")]
    checks = []
    for step, (run, measured) in runs.items():
        if step == "imports":
            figures.append(Figure(f"{NAMES[step]}: peak memory", run.peak_bytes / 1e9, "GB"))
            continue
        figures.append(Figure(f"{NAMES[step]}: wall time", measured["seconds"], "s"))
        # The results of a build are objects, one per block, until the last task has ended; vacuum lists the length of
        # every file.
        factor = 3 if step in ("results", "vacuum") else 1
        seconds = measured["processor_seconds"]
        checks.append(Check(f"{NAMES[step]}: processor seconds", seconds, factor * SECONDS_LIMIT))
        checks.append(Check(f"{NAMES[step]}: peak memory (GB)", run.peak_bytes / 1e9, factor * PEAK_LIMIT_GB))
    checks.append(Check("memory of a worker for the dataset (MB)", runs["worker"][1]["allocated_mb"], WORKER_LIMIT_MB))
    checks.append(Check("table of the results: time over linear", runs["results"][1]["over_linear"], LINEAR_LIMIT))
    checks.append(Check("vacuum: removed files", runs["vacuum"][1]["removed"], UNLISTED_FILES + 1, "=="))
    return Results(checks, figures)


def main() -> None:
    """Write the dataset, or run one step and write its figures."""
    step, root, argument = sys.argv[1:]
    if step == "write":
        _write_dataset(Path(root), synthetic_shards(int(argument)))
    else:
        Path(argument).write_text(json.dumps(STEPS[step](Path(root))))


if __name__ == "__main__":
    main()
