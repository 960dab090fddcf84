"""`longbatch bench validate`: what the audit takes, beside what it takes only to read and checksum the dataset.

    python -m longbatch.benchmarks.validate DATASET     the floor: one measured run

A simulated log is built, then `longbatch validate` runs as a process of its own, its start included: with the raw
log out of reach (checksums, structure, meaning), and with 20 users compared with the log as Parquet and as CSV.
The floor reads every byte for its SHA-256 and decodes every block, as any check of them must.
"""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path

from longbatch.schemas.format.dataset import open_dataset
from longbatch.schemas.format.disk import check_file
from longbatch.schemas.types import ProgressCallback

from .checks import Check, Figure, Run, median_seconds, run_process

FULL_EVENTS, QUICK_EVENTS = 20_000_000, 2_000_000
SECONDS_LIMIT, PEAK_LIMIT_GB, FLOOR_LIMIT = 60.0, 2.0, 4.0
FLOOR, STRUCTURE, PARQUET, CSV = "read and checksum", "structure and meaning", "20 users, Parquet", "20 users, CSV"


def bench_validate(
    *, quick: bool = False, repeats: int = 3, folder: Path | None = None, progress: ProgressCallback
) -> tuple[list[Check], list[Figure]]:
    """Simulate a log in both formats, build it, and audit it `repeats` times each way, in turn; medians.

    `folder` keeps the work while it lasts (about 100 bytes per event); by default a temporary one.
    """
    events = QUICK_EVENTS if quick else FULL_EVENTS
    with tempfile.TemporaryDirectory(prefix="longbatch-bench-", dir=folder) as temporary:
        work = Path(temporary)
        _prepare(work, events, progress)
        counts = open_dataset(work / "dataset").counts
        audit = ("longbatch.cli.main", "validate", str(work / "dataset"), "--no-expectations")
        ways = {
            FLOOR: ("longbatch.benchmarks.validate", str(work / "dataset")),
            STRUCTURE: audit,
            PARQUET: (*audit, "--against", str(work / "moved" / "spec.toml")),
            CSV: (*audit, "--against", str(work / "csv" / "spec.toml")),
        }
        runs: dict[str, list[Run]] = {name: [] for name in ways}
        for number in range(repeats * len(ways)):
            progress("runs", number, repeats * len(ways))
            name = list(ways)[number % len(ways)]
            runs[name].append(run_process(*ways[name]))
        progress("runs", 1, 1)
    return _judge(runs, {"rows of the log": events, "events stored": counts.stored, "requests": counts.requests})


def _prepare(work: Path, events: int, progress: ProgressCallback) -> None:
    """Simulate and build in processes of their own: a process begins with the peak memory of the one that starts it."""
    sizes = ("--users", str(max(50, events // 6_500)), "--events", str(events), "--seed", "1")
    for number, log_format in enumerate(("parquet", "csv")):
        progress("simulate and build", number, 3)
        run_process("longbatch.cli.main", "simulate", str(work / log_format), *sizes, "--format", log_format)
    progress("simulate and build", 2, 3)
    run_process("longbatch.cli.main", "build", str(work / "parquet" / "spec.toml"), str(work / "dataset"))
    (work / "parquet").rename(work / "moved")
    progress("simulate and build", 1, 1)


def _judge(runs: dict[str, list[Run]], sizes: dict[str, int]) -> tuple[list[Check], list[Figure]]:
    seconds = {name: median_seconds(of) for name, of in runs.items()}
    peaks = {name: max(run.peak_bytes for run in of) / 1e9 for name, of in runs.items()}
    figures = [Figure(name, size, "") for name, size in sizes.items()]
    figures += [Figure(f"{name}: wall time", value, "s") for name, value in seconds.items()]
    figures.append(Figure(f"{FLOOR}: peak memory", peaks.pop(FLOOR), "GB"))
    checks = [
        Check(f"{STRUCTURE}: wall time (s)", seconds[STRUCTURE], SECONDS_LIMIT),
        Check(f"{STRUCTURE} / {FLOOR}, time", seconds[STRUCTURE] / seconds[FLOOR], FLOOR_LIMIT),
    ]
    return [
        *checks,
        *(Check(f"{name}: peak memory (GB)", peak, PEAK_LIMIT_GB) for name, peak in peaks.items()),
    ], figures


def main() -> None:
    """The floor, in a process of its own."""
    dataset = open_dataset(sys.argv[1])
    for shard in dataset.shards:
        for entry in (shard.timelines, shard.requests):
            check_file(dataset.path, entry, checksum=True)
    for _ in dataset.blocks():
        pass


if __name__ == "__main__":
    main()
