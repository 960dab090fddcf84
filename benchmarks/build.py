"""`longbatch bench build`: each engine beside its floor, what that engine's own library takes to sort the log.

    python -m longbatch.benchmarks.build polars|local|spark-floor|spark SPEC OUT     one measured run

Floors: Polars `scan_parquet(log).sort(user, time).sink_parquet`; Spark read + repartition by user +
sortWithinPartitions + write Parquet. Each run is a process of its own, its start included; runs alternate.
"""

from __future__ import annotations

import shutil
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

from longbatch.benchmarks.checks import Check, Figure, Run, median_seconds, run_process
from longbatch.jobs.build import build
from longbatch.jobs.java import provide_java
from longbatch.jobs.local import LocalEngine
from longbatch.jobs.simulate import Simulation, simulate
from longbatch.jobs.spark import SparkEngine
from longbatch.schemas.spec import load_spec

Report = Callable[[str, float, float], None]
FULL_EVENTS, QUICK_EVENTS = 20_000_000, 2_000_000
PEAK_LIMIT_GB = 4.0


def bench_build(
    *, quick: bool = False, spark: bool = True, repeats: int = 3, folder: Path | None = None, progress: Report
) -> tuple[list[Check], list[Figure]]:
    """Simulate a log, then run each engine and its floor `repeats` times in turn; medians.

    `folder` keeps the work (the log takes about 16 bytes per event); by default a temporary one.
    """
    events = QUICK_EVENTS if quick else FULL_EVENTS
    with tempfile.TemporaryDirectory(prefix="longbatch-bench-", dir=folder) as work:
        log = Path(work, "log")
        progress("simulate", 0, 1)
        simulate(log, Simulation(users=max(50, events // 6_500), events=events, seed=1))
        progress("simulate", 1, 1)
        names = ["polars", "local", *(["spark-floor", "spark"] if spark else [])]
        runs: dict[str, list[Run]] = {name: [] for name in names}
        for repeat in range(repeats):
            for number, name in enumerate(names):
                progress("runs", repeat * len(names) + number, repeats * len(names))
                runs[name].append(_run(name, log, Path(work)))
        progress("runs", 1, 1)
    return _judge(runs, events)


def _run(name: str, log: Path, work: Path) -> Run:
    out = work / "out"
    run = run_process("longbatch.benchmarks.build", name, str(log / "spec.toml"), str(out))
    shutil.rmtree(out) if out.is_dir() else out.unlink()
    return run


def _judge(runs: dict[str, list[Run]], events: int) -> tuple[list[Check], list[Figure]]:
    seconds = {name: median_seconds(of) for name, of in runs.items()}
    peak = max(run.peak_bytes for run in runs["local"]) / 1e9
    figures = [Figure("events", events, "")]
    figures += [Figure(f"{name}: wall time", value, "s") for name, value in seconds.items()]
    figures += [Figure("local: events per second", events / seconds["local"], "1/s")]
    figures += [Figure("polars: peak memory", max(run.peak_bytes for run in runs["polars"]) / 1e9, "GB")]
    checks = [
        Check("local / polars scan + sort + sink_parquet, time", seconds["local"] / seconds["polars"], 1.5),
        Check("local: peak memory (GB)", peak, PEAK_LIMIT_GB),
    ]
    if "spark" in seconds:
        ratio = seconds["spark"] / seconds["spark-floor"]
        checks.append(Check("spark / spark read + repartition + sort + write, time", ratio, 2.0))
    return checks, figures


def _polars_floor(spec: Path, out: Path) -> None:
    import polars as pl

    log = load_spec(spec).sources["log"].path[0]
    pl.scan_parquet(log).sort("user_id", "event_time").sink_parquet(out)


def _spark_floor(spec: Path, out: Path) -> None:
    from pyspark.sql import SparkSession

    provide_java()
    settings = {"spark.ui.enabled": "false", "spark.driver.memory": "4g", "spark.local.dir": str(out.parent)}
    builder = SparkSession.builder.master("local[2]")
    for key, value in settings.items():
        builder = builder.config(key, value)
    session = builder.getOrCreate()
    log = load_spec(spec).sources["log"].path[0]
    frame = session.read.parquet(str(Path(log).parent))
    frame.repartition("user_id").sortWithinPartitions("user_id", "event_time").write.parquet(str(out))
    session.stop()


def main() -> None:
    """One measured run, in a process of its own."""
    name, spec, out = sys.argv[1], Path(sys.argv[2]), Path(sys.argv[3])
    if name == "polars":
        _polars_floor(spec, out)
    elif name == "spark-floor":
        _spark_floor(spec, out)
    else:
        build(load_spec(spec), out, engine=LocalEngine() if name == "local" else SparkEngine("local[2]"))


if __name__ == "__main__":
    main()
