"""`longbatch bench validate`: the time of the audit, compared with only reading and checksumming the dataset.

    python -m longbatch.benchmarks.validate DATASET     one measured run of the baseline

A simulated log is built. Then `longbatch validate` runs as a process of its own: without the raw log (checksums,
structure, semantics), and with 20 users compared with the log as Parquet and as CSV. The baseline is a lower bound: it
reads every byte for its SHA-256 and decodes every block, as any check of them must.
"""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path

from longbatch.schemas.format.dataset import open_dataset
from longbatch.schemas.format.disk import read_file
from longbatch.schemas.types import ProgressCallback

from .checks import WORK_PREFIX, Check, Figure, Results
from .processes import Run, median_seconds, peak_gigabytes, run_longbatch, run_module

FULL_EVENTS, QUICK_EVENTS = 20_000_000, 2_000_000
SECONDS_LIMIT, PEAK_LIMIT_GB, BASELINE_LIMIT = 60.0, 2.0, 4.0
BASELINE = "read and checksum"
STRUCTURE = "structure and semantics"
PARQUET, CSV = "20 users, Parquet", "20 users, CSV"


def bench_validate(
    *, quick: bool = False, repeats: int = 3, folder: Path | None = None, progress: ProgressCallback
) -> Results:
    """Simulate a log in both formats, build it, and run the audits and the baseline in turn.

    Args:
        quick: Use a smaller log.
        repeats: Runs of each command.
        folder: Where the work folder is created; the work takes about 100 bytes per event.
        progress: Called after each run.

    Returns:
        Times and peak memory as checks and figures.
    """
    events = QUICK_EVENTS if quick else FULL_EVENTS
    with tempfile.TemporaryDirectory(prefix=WORK_PREFIX, dir=folder) as temporary:
        work = Path(temporary)
        _prepare(work, events, progress)
        counts = open_dataset(work / "dataset").counts
        audit = ("validate", str(work / "dataset"), "--no-expectations")
        audits = {
            STRUCTURE: audit,
            PARQUET: (*audit, "--against", str(work / "moved" / "spec.toml")),
            CSV: (*audit, "--against", str(work / "csv" / "spec.toml")),
        }
        runs: dict[str, list[Run]] = {name: [] for name in (BASELINE, *audits)}
        for number in range(repeats):
            runs[BASELINE].append(run_module("longbatch.benchmarks.validate", str(work / "dataset")))
            for name, arguments in audits.items():
                runs[name].append(run_longbatch(*arguments))
            progress("runs", number + 1, repeats)
    sizes = {"rows of the log": events, "events stored": counts.stored, "requests": counts.requests}
    checks, figures = _judge(runs)
    return Results(checks, [*(Figure(name, size) for name, size in sizes.items()), *figures])


def _prepare(work: Path, events: int, progress: ProgressCallback) -> None:
    """Simulate and build in processes of their own: a child process starts with the peak memory of its parent."""
    sizes = ("--users", str(max(50, events // 6_500)), "--events", str(events), "--seed", "1")
    for number, log_format in enumerate(("parquet", "csv")):
        progress("simulate and build", number, 3)
        run_longbatch("simulate", str(work / log_format), *sizes, "--format", log_format)
    progress("simulate and build", 2, 3)
    run_longbatch("build", str(work / "parquet" / "spec.toml"), str(work / "dataset"))
    (work / "parquet").rename(work / "moved")  # so that the audit of the structure does not find the raw log
    progress("simulate and build", 1, 1)


def _judge(runs: dict[str, list[Run]]) -> Results:
    seconds = {name: median_seconds(of) for name, of in runs.items()}
    peaks = {name: peak_gigabytes(of) for name, of in runs.items()}
    figures = [Figure(f"{name}: wall time", value, "s") for name, value in seconds.items()]
    figures.append(Figure(f"{BASELINE}: peak memory", peaks.pop(BASELINE), "GB"))
    checks = [
        Check(f"{STRUCTURE}: wall time (s)", seconds[STRUCTURE], SECONDS_LIMIT),
        Check(f"{STRUCTURE} / {BASELINE}, time", seconds[STRUCTURE] / seconds[BASELINE], BASELINE_LIMIT),
        *(Check(f"{name}: peak memory (GB)", peak, PEAK_LIMIT_GB) for name, peak in peaks.items()),
    ]
    return Results(checks, figures)


def main() -> None:
    """Run the baseline: read and checksum every file, decode every block."""
    dataset = open_dataset(sys.argv[1])
    for shard in dataset.shards:
        for entry in (shard.timelines, shard.requests):
            read_file(dataset.store, entry)
    for _ in dataset.blocks():
        pass


if __name__ == "__main__":
    main()
