"""`longbatch bench build`: each engine beside its floor, what libraries alone take to sort and write the log.

Each run is a process of its own, from start to end, as `longbatch build`; runs alternate; medians. The floors are in
`build_floors.py`. Without `quick`, the local engine and Polars also run at five times the size.
"""

from __future__ import annotations

import importlib.util
import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path

from longbatch.benchmarks.checks import Check, Figure, Run, median_seconds, run_process
from longbatch.jobs.simulate import Simulation, simulate

Report = Callable[[str, float, float], None]
FULL_EVENTS, QUICK_EVENTS, LARGE = 20_000_000, 2_000_000, 5
FAT_EVENTS, QUICK_FAT_EVENTS = 100_000, 50_000
PEAK_LIMIT_GB = 4.0
Runs = dict[str, list[Run]]


def bench_build(
    *, quick: bool = False, spark: bool = True, repeats: int = 3, folder: Path | None = None, progress: Report
) -> tuple[list[Check], list[Figure]]:
    """Simulate a log, then run each engine and its floors `repeats` times in turn; medians.

    `folder` keeps the work (a log takes about 16 bytes per event); by default a temporary one.
    """
    events = QUICK_EVENTS if quick else FULL_EVENTS
    local = ["polars", "local", *(["duckdb"] if importlib.util.find_spec("duckdb") else [])]
    with tempfile.TemporaryDirectory(prefix="longbatch-bench-", dir=folder) as work:
        runs = _measured(Path(work), events, [*local, *(["spark-floor", "spark"] if spark else [])], repeats, progress)
        checks, figures = _judge(runs, events)
        if not quick:
            large = _measured(Path(work), events * LARGE, local, repeats, progress)
            more, shown = _judge(large, events * LARGE)
            checks += [*more, _same_speed(runs["local"], large["local"])]
            figures += shown
        if spark:
            fat = _measured(
                Path(work), QUICK_FAT_EVENTS if quick else FAT_EVENTS, ["spark-fat-rows", "local"], 1, progress
            )
            times = fat["spark-fat-rows"][0].seconds / fat["local"][0].seconds
            checks.append(Check("spark fat rows / local, time", times, 20.0, ">="))
    return checks, figures


def _measured(work: Path, events: int, names: list[str], repeats: int, progress: Report) -> Runs:
    log = work / f"log-{events}"
    simulate(log, Simulation(users=max(50, events // 6_500), events=events, seed=1))
    runs: Runs = {name: [] for name in names}
    for repeat in range(repeats):
        for number, name in enumerate(names):
            progress(f"runs, {events:,}", repeat * len(names) + number, repeats * len(names))
            runs[name].append(_run(name, log, work))
    progress(f"runs, {events:,}", 1, 1)
    shutil.rmtree(log)
    return runs


def _run(name: str, log: Path, work: Path) -> Run:
    out = work / "out"
    if name in ("local", "spark"):
        engine = ["--engine", "spark", "--master", "local[2]"] if name == "spark" else []
        run = run_process("longbatch.cli", "build", str(log / "spec.toml"), str(out), *engine)
    else:
        floor = name.removesuffix("-floor")
        run = run_process("longbatch.benchmarks.build_floors", floor, str(log / "log"), str(out), "10000")
    shutil.rmtree(out) if out.is_dir() else out.unlink()
    return run


def _judge(runs: Runs, events: int) -> tuple[list[Check], list[Figure]]:
    seconds = {name: median_seconds(of) for name, of in runs.items()}
    peaks = {name: max(run.peak_bytes for run in of) / 1e9 for name, of in runs.items()}
    size = f"{events / 1e6:,.0f}M"
    figures = [Figure(f"{size}, {name}: wall time", value, "s") for name, value in seconds.items()]
    figures += [Figure(f"{size}, {name}: processor time", _processor(of), "s") for name, of in runs.items()]
    figures += [Figure(f"{size}, {name}: peak memory", peaks[name], "GB") for name in seconds if "spark" not in name]
    checks = [
        Check(f"{size}: local / polars sort + zstd Parquet, time", seconds["local"] / seconds["polars"], 1.2),
        Check(f"{size}, local: peak memory (GB)", peaks["local"], PEAK_LIMIT_GB),
    ]
    if "duckdb" in seconds:
        checks.append(Check(f"{size}: local / duckdb sort, time", seconds["local"] / seconds["duckdb"], 1.6))
    if "spark" in seconds:
        ratio = seconds["spark"] / seconds["spark-floor"]
        checks.append(Check(f"{size}: spark / spark sort + zstd Parquet, time", ratio, 1.5))
    return checks, figures


def _processor(runs: list[Run]) -> float:
    return sorted(run.processor_seconds for run in runs)[len(runs) // 2]


def _same_speed(small: list[Run], large: list[Run]) -> Check:
    """Events per second at the larger size, as a share of that at the smaller."""
    share = LARGE * median_seconds(small) / median_seconds(large)
    return Check(f"local: speed at {LARGE} times the events / speed", share, 0.8, ">=")
