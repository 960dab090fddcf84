"""`longbatch bench faults`: builds, appends and vacuums killed at random moments; what a reader sees after each.

python -m longbatch.benchmarks.faults SPEC OUT UNTIL...    build and append again and again, until killed
"""

from __future__ import annotations

import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path

from longbatch.benchmarks.checks import Check, Figure
from longbatch.jobs.append import append
from longbatch.jobs.build import build
from longbatch.jobs.simulate import Simulation, simulate
from longbatch.jobs.vacuum import vacuum
from longbatch.pipelines.content import content_hash
from longbatch.schemas.dataset import open_dataset
from longbatch.schemas.errors import DatasetError
from longbatch.schemas.snapshot import listed_paths, snapshot_numbers
from longbatch.schemas.spec import load_spec

Report = Callable[[str, float, float], None]
KILLS, QUICK_KILLS = 50, 10
EVENTS = 300_000


def bench_faults(
    *, quick: bool = False, folder: Path | None = None, progress: Report
) -> tuple[list[Check], list[Figure]]:
    """Kill a process that builds, appends and vacuums, at a random moment each time, and look at the dataset."""
    return kill_often(QUICK_KILLS if quick else KILLS, EVENTS, folder, progress)


def kill_often(kills: int, events: int, folder: Path | None, progress: Report) -> tuple[list[Check], list[Figure]]:
    """Kill so many processes that build a log of so many events."""
    chance = random.Random(0)
    with tempfile.TemporaryDirectory(prefix="longbatch-bench-", dir=folder) as work:
        log, out = Path(work, "log"), Path(work, "out")
        simulate(log, Simulation(users=100, events=events, seed=1))
        moments = _moments(log)
        known = _expected(log / "spec.toml", Path(work, "expected"), moments)
        seen = {"none": 0, "whole": 0, "partial or unreadable": 0}
        unequal = lost = 0
        for number in range(kills):
            progress("kills", number, kills)
            _run_and_kill(log / "spec.toml", out, moments, chance.uniform(0.0, 4.0))
            seen[_look(out, known)] += 1
            build(load_spec(log / "spec.toml"), out, overwrite=True, until=moments[0])
            unequal += _content(out) != known[0]
            vacuum(out)
            lost += not _only_listed(out)
            if chance.random() < 0.3:
                shutil.rmtree(out)
        progress("kills", kills, kills)
    checks = [
        Check("kills after which a reader saw a partial or unreadable dataset", seen["partial or unreadable"], 0, "=="),
        Check("builds after a kill whose content differs", unequal, 0, "=="),
        Check("vacuums that left an orphan or took a listed file", lost, 0, "=="),
        Check("kills", kills, kills, ">="),
    ]
    return checks, [Figure(f"kills after which a reader saw: {what}", count, "") for what, count in seen.items()]


def _moments(log: Path) -> list[datetime]:
    """Three ends of days among the requests."""
    import polars as pl

    targets = pl.scan_parquet(log / "log" / "*.parquet").filter(pl.col("tab") > 0)
    times = targets.select(pl.col("request_time").quantile(share).alias(str(share)) for share in (0.7, 0.8, 0.9))
    return [datetime.fromtimestamp(int(moment) / 1000, UTC) for moment in times.collect().row(0)]


def _expected(spec: Path, out: Path, moments: list[datetime]) -> list[str]:
    build(load_spec(spec), out, until=moments[0])
    hashes = [_content(out)]
    for moment in moments[1:]:
        append(load_spec(spec), out, moment)
        hashes.append(_content(out))
    return hashes


def _content(out: Path) -> str:
    opened = open_dataset(out)
    return content_hash(opened.blocks(), opened.spec.history_length)


def _run_and_kill(spec: Path, out: Path, moments: list[datetime], seconds: float) -> None:
    """Kill, `seconds` after it has begun its work, a process that builds and appends without end."""
    arguments = [str(spec), str(out), *(moment.isoformat() for moment in moments)]
    command = [sys.executable, "-m", "longbatch.benchmarks.faults", *arguments]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        if process.stdout is None or process.stdout.readline() != "ready\n":
            raise RuntimeError("the process to be killed did not start")
        time.sleep(seconds)
        if process.poll() is not None:
            raise RuntimeError(f"the process to be killed ended by itself, with {process.returncode}")
        process.send_signal(signal.SIGKILL)


def _look(out: Path, known: list[str]) -> str:
    try:
        return "whole" if _content(out) in known else "partial or unreadable"
    except DatasetError:
        return "none" if not snapshot_numbers(out) else "partial or unreadable"


def _only_listed(out: Path) -> bool:
    """Whether the files there are exactly those that the newest snapshot lists."""
    files = {path.relative_to(out).as_posix() for path in out.rglob("*") if path.is_file()}
    return files == listed_paths(out, snapshot_numbers(out)[-1])


def main() -> None:
    """Build and append, over and over."""
    spec, out, moments = load_spec(sys.argv[1]), Path(sys.argv[2]), [datetime.fromisoformat(t) for t in sys.argv[3:]]
    print("ready", flush=True)
    while True:
        build(spec, out, overwrite=True, until=moments[0])
        for moment in moments[1:]:
            append(spec, out, moment)
        vacuum(out)


if __name__ == "__main__":
    main()
