"""`longbatch bench build`: each engine beside its floor, what libraries alone take to sort and write the log.

Each run is a process of its own, from start to end, as `longbatch build`; runs alternate; medians. The floors are in
`build_floors.py`. Without `quick`, the local engine and Polars also run at five times the size.
"""

from __future__ import annotations

import importlib.util
import shutil
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

from longbatch.jobs.simulation.simulate import Simulation, simulate
from longbatch.schemas.types import ProgressCallback

from . import build_baselines as build_floors
from .checks import Check, Figure, Run, median_seconds, run_command, run_process

if TYPE_CHECKING:
    from .cluster import Cluster

FULL_EVENTS, QUICK_EVENTS, LARGE = 20_000_000, 2_000_000, 5
FAT_EVENTS, QUICK_FAT_EVENTS = 300_000, 50_000
PEAK_LIMIT_GB, EXECUTOR_MEMORY = 4.0, "1g"
Runs = dict[str, list[Run]]


def bench_build(
    *, quick: bool = False, spark: bool = True, repeats: int = 3, folder: Path | None = None, progress: ProgressCallback
) -> tuple[list[Check], list[Figure]]:
    """Simulate a log, then run each engine and its floors `repeats` times in turn; medians.

    `folder` keeps the work (a log takes about 16 bytes per event); by default a temporary one.
    """
    events = QUICK_EVENTS if quick else FULL_EVENTS
    local = ["polars", "local", *(["duckdb"] if importlib.util.find_spec("duckdb") else [])]
    with tempfile.TemporaryDirectory(prefix="longbatch-bench-", dir=folder) as work:
        runs = _measured(Path(work), events, local, repeats, progress)
        checks, figures = _judge(runs, events)
        if not quick:
            large = _measured(Path(work), events * LARGE, local, repeats, progress)
            more, shown = _judge(large, events * LARGE)
            checks += [*more, _same_speed(runs["local"], large["local"])]
            figures += shown
        if spark:
            more, shown = _on_spark(Path(work), events, QUICK_FAT_EVENTS if quick else FAT_EVENTS, repeats, progress)
            checks += more
            figures += shown
    return checks, figures


def _on_spark(
    work: Path, events: int, fat_events: int, repeats: int, progress: ProgressCallback
) -> tuple[list[Check], list[Figure]]:
    from .cluster import cluster_in

    with cluster_in(work, EXECUTOR_MEMORY) as cluster:
        names = ["spark-floor", "spark", "cluster-floor", "cluster"]
        checks, figures = _judge(_measured(work, events, names, repeats, progress, cluster), events)
    fat = _measured(work, fat_events, ["spark-fat-rows", "local", "spark"], 1, progress)
    fat_checks, shown = _judge(fat, fat_events)
    return [*checks, *fat_checks], [*figures, *shown]


def _measured(
    work: Path, events: int, names: list[str], repeats: int, progress: ProgressCallback, cluster: Cluster | None = None
) -> Runs:
    log = work / f"log-{events}"
    simulate(log, Simulation(users=max(50, events // 6_500), events=events, seed=1))
    runs: Runs = {name: [] for name in names}
    for repeat in range(repeats):
        for number, name in enumerate(names):
            progress(f"runs, {events:,}", repeat * len(names) + number, repeats * len(names))
            runs[name].append(_run(name, log, work, cluster))
    progress(f"runs, {events:,}", 1, 1)
    shutil.rmtree(log)
    return runs


def _run(name: str, log: Path, work: Path, cluster: Cluster | None) -> Run:
    out, spec, floor = work / "out", str(log / "spec.toml"), name.removesuffix("-floor")
    if cluster and name == "cluster":
        run = run_command(cluster.build_command(spec, str(out)), cluster.environment)
    elif cluster and name == "cluster-floor":
        command = cluster.command(Path(build_floors.__file__), "spark", str(log / "log"), str(out))
        run = run_command(command, cluster.environment)
    elif name in ("local", "spark"):
        engine = ["--engine", "spark", "--master", "local[2]"] if name == "spark" else []
        run = run_process("longbatch.cli.main", "build", spec, str(out), *engine)
    else:
        run = run_process("longbatch.benchmarks.build_baselines", floor, str(log / "log"), str(out), "10000")
    shutil.rmtree(out) if out.is_dir() else out.unlink()
    return run


# what is judged: the engine, what it is measured beside, and the limit of its time
LIMITS = [
    ("local", "polars", "local / polars sort + zstd Parquet, time", 1.2),
    ("local", "duckdb", "local / duckdb sort, time", 1.6),
    ("spark", "spark-floor", "spark local[2] / spark sort + zstd Parquet, time", 1.5),
    ("cluster", "cluster-floor", "cluster / the same on the cluster, time", 1.5),
    ("local", "spark-fat-rows", "local / spark fat rows, time", 1 / 20),
]


def _judge(runs: Runs, events: int) -> tuple[list[Check], list[Figure]]:
    seconds = {name: median_seconds(of) for name, of in runs.items()}
    peaks = {name: max(run.peak_bytes for run in of) / 1e9 for name, of in runs.items()}
    size = f"{events / 1e6:,g}M"
    figures = [Figure(f"{size}, {name}: wall time", value, "s") for name, value in seconds.items()]
    figures += [Figure(f"{size}, {name}: processor time", _processor(of), "s") for name, of in runs.items()]
    figures += [Figure(f"{size}, {name}: largest Python process", peaks[name], "GB") for name in seconds]
    checks = [
        Check(f"{size}: {what}", seconds[engine] / seconds[beside], limit)
        for engine, beside, what, limit in LIMITS
        if engine in seconds and beside in seconds
    ]
    if "local" in peaks:
        checks.append(Check(f"{size}, local: peak memory (GB)", peaks["local"], PEAK_LIMIT_GB))
    return checks, figures


def _processor(runs: list[Run]) -> float:
    return sorted(run.processor_seconds for run in runs)[len(runs) // 2]


def _same_speed(small: list[Run], large: list[Run]) -> Check:
    """Events per second at the larger size, as a share of that at the smaller."""
    share = LARGE * median_seconds(small) / median_seconds(large)
    return Check(f"local: speed at {LARGE} times the events / speed", share, 0.8, ">=")
