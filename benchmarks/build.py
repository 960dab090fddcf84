"""`longbatch bench build`: each engine compared with what libraries alone take to sort and write the same log.

Each run is a process of its own, measured from start to end; runs alternate and medians are reported. The baselines are
in `build_baselines.py`. Without `quick`, the local engine and Polars also run at five times the size.
"""

from __future__ import annotations

import importlib.util
import shutil
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from longbatch.jobs.simulation.simulate import Simulation, simulate
from longbatch.schemas.types import ProgressCallback

from . import build_baselines
from .checks import WORK_PREFIX, Check, Figure, Results, combined
from .processes import (
    Run,
    median_processor_seconds,
    median_seconds,
    peak_gigabytes,
    run_command,
    run_longbatch,
    run_module,
)

if TYPE_CHECKING:
    from .cluster import Cluster

FULL_EVENTS, QUICK_EVENTS, LARGE = 20_000_000, 2_000_000, 5
FAT_EVENTS, QUICK_FAT_EVENTS = 300_000, 50_000
PEAK_LIMIT_GB, EXECUTOR_MEMORY = 4.0, "1g"
HISTORY_LENGTH = "10000"
Runs = dict[str, list[Run]]

# engine, its baseline, name of the check, limit of the ratio of their times
LIMITS = [
    ("local", "polars", "local / polars sort + zstd Parquet, time", 1.2),
    ("local", "duckdb", "local / duckdb sort, time", 1.6),
    ("spark", "spark-baseline", "spark local[2] / spark sort + zstd Parquet, time", 1.5),
    ("cluster", "cluster-baseline", "cluster / the same on the cluster, time", 1.5),
    ("local", "spark-fat-rows", "local / spark fat rows, time", 1 / 20),
]


@dataclass(frozen=True)
class _Bench:
    """What all runs of the benchmark share: a work folder, how often each command runs, and where progress goes."""

    work: Path
    repeats: int
    progress: ProgressCallback


def bench_build(
    *,
    quick: bool = False,
    spark: bool = True,
    repeats: int = 3,
    folder: Path | None = None,
    progress: ProgressCallback,
) -> Results:
    """Simulate a log, then run each engine and its baselines in turn.

    Args:
        quick: Use a smaller log.
        spark: Include Spark, locally and on a cluster of processes on this machine.
        repeats: Runs of each command.
        folder: Where the work folder is created; a log takes about 16 bytes per event.
        progress: Called after each run.

    Returns:
        Times relative to the baselines and peak memory as checks, medians as figures.
    """
    events = QUICK_EVENTS if quick else FULL_EVENTS
    local = ["polars", "local", *(["duckdb"] if importlib.util.find_spec("duckdb") else [])]
    with tempfile.TemporaryDirectory(prefix=WORK_PREFIX, dir=folder) as work:
        bench = _Bench(Path(work), repeats, progress)
        runs = _run_all(bench, events, local)
        results = [_judge(runs, events)]
        if not quick:
            large = _run_all(bench, events * LARGE, local)
            results += [_judge(large, events * LARGE), Results([_same_speed(runs["local"], large["local"])], [])]
        if spark:
            results.append(_on_spark(bench, events, QUICK_FAT_EVENTS if quick else FAT_EVENTS))
    return combined(results)


def _on_spark(bench: _Bench, events: int, fat_events: int) -> Results:
    from .cluster import cluster_in

    with cluster_in(bench.work, EXECUTOR_MEMORY) as cluster:
        names = ["spark-baseline", "spark", "cluster-baseline", "cluster"]
        sorted_logs = _judge(_run_all(bench, events, names, cluster), events)
    once = _Bench(bench.work, 1, bench.progress)  # fat rows take minutes
    fat_rows = _judge(_run_all(once, fat_events, ["spark-fat-rows", "local", "spark"]), fat_events)
    return combined([sorted_logs, fat_rows])


def _run_all(bench: _Bench, events: int, names: list[str], cluster: Cluster | None = None) -> Runs:
    """Simulate a log and run each command on it, alternating between them."""
    log = bench.work / f"log-{events}"
    simulate(log, Simulation(users=max(50, events // 6_500), events=events, seed=1))
    runs: Runs = {name: [] for name in names}
    for repeat in range(bench.repeats):
        for number, name in enumerate(names):
            bench.progress(f"runs, {events:,}", repeat * len(names) + number, bench.repeats * len(names))
            runs[name].append(_run(name, log, bench.work / "out", cluster))
    bench.progress(f"runs, {events:,}", 1, 1)
    shutil.rmtree(log)
    return runs


def _run(name: str, log: Path, out: Path, cluster: Cluster | None) -> Run:
    """Run an engine or a baseline, and remove what it wrote."""
    spec, rows, baseline = str(log / "spec.toml"), str(log / "log"), name.removesuffix("-baseline")
    if cluster and name == "cluster":
        run = run_command(cluster.build_command(spec, str(out)), cluster.environment)
    elif cluster and name == "cluster-baseline":
        command = cluster.command(Path(build_baselines.__file__), "spark", rows, str(out))
        run = run_command(command, cluster.environment)
    elif name in ("local", "spark"):
        engine = ["--engine", "spark", "--master", "local[2]"] if name == "spark" else []
        run = run_longbatch("build", spec, str(out), *engine)
    else:
        run = run_module("longbatch.benchmarks.build_baselines", baseline, rows, str(out), HISTORY_LENGTH)
    shutil.rmtree(out) if out.is_dir() else out.unlink()
    return run


def _judge(runs: Runs, events: int) -> Results:
    seconds = {name: median_seconds(of) for name, of in runs.items()}
    peaks = {name: peak_gigabytes(of) for name, of in runs.items()}
    size = f"{events / 1e6:,g}M"
    figures = [Figure(f"{size}, {name}: wall time", value, "s") for name, value in seconds.items()]
    figures += [
        Figure(f"{size}, {name}: processor time", median_processor_seconds(of), "s") for name, of in runs.items()
    ]
    figures += [Figure(f"{size}, {name}: largest Python process", peak, "GB") for name, peak in peaks.items()]
    checks = [
        Check(f"{size}: {title}", seconds[engine] / seconds[baseline], limit)
        for engine, baseline, title, limit in LIMITS
        if engine in seconds and baseline in seconds
    ]
    if "local" in peaks:
        checks.append(Check(f"{size}, local: peak memory (GB)", peaks["local"], PEAK_LIMIT_GB))
    return Results(checks, figures)


def _same_speed(small: list[Run], large: list[Run]) -> Check:
    """Events per second at the larger size, relative to the smaller size."""
    ratio = LARGE * median_seconds(small) / median_seconds(large)
    return Check(f"local: speed at {LARGE} times the events / speed", ratio, 0.8, ">=")
