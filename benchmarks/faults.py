"""`longbatch bench faults`: builds, appends and vacuums killed at random moments; what a reader sees after each.

python -m longbatch.benchmarks.faults SPEC OUT UNTIL...    build and append again and again, until killed
"""

from __future__ import annotations

import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Mapping
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING

from longbatch.jobs.append import append
from longbatch.jobs.build import build
from longbatch.jobs.simulation.simulate import Simulation, simulate
from longbatch.jobs.vacuum import vacuum
from longbatch.pipelines.content_hash import content_hash
from longbatch.schemas.errors import DatasetError
from longbatch.schemas.format.dataset import open_dataset
from longbatch.schemas.format.snapshot import listed_paths, snapshot_numbers
from longbatch.schemas.spec.build_spec import load_spec
from longbatch.schemas.types import ProgressCallback

from .checks import Check, Figure

if TYPE_CHECKING:
    from .cluster import Cluster

LOCAL, DRIVER, EXECUTOR = "local build", "spark driver", "spark executor"
NONE, WHOLE, PARTIAL = "no dataset", "a whole one", "a partial or unreadable one"
LOCAL_SECONDS = 4.0  # over how long kills are spread: several builds and appends
EVENTS = 300_000
KILLS = {LOCAL: 30, DRIVER: 12, EXECUTOR: 8}  # how often each is killed


def bench_faults(
    *, quick: bool = False, spark: bool = True, folder: Path | None = None, progress: ProgressCallback
) -> tuple[list[Check], list[Figure]]:
    """Kill a process that builds, appends and vacuums, or a driver or executor of Spark, and look at the dataset."""
    kills = {victim: -(-count // (5 if quick else 1)) for victim, count in KILLS.items() if spark or victim == LOCAL}
    return kill_often(kills, EVENTS, folder, progress)


def kill_often(
    kills: Mapping[str, int], events: int, folder: Path | None, progress: ProgressCallback
) -> tuple[list[Check], list[Figure]]:
    """Kill each kind of process so often while it builds a log of so many events."""
    with tempfile.TemporaryDirectory(prefix="longbatch-bench-", dir=folder) as work, ExitStack() as stack:
        log, out = Path(work, "log"), Path(work, "out")
        simulate(log, Simulation(users=100, events=events, seed=1))
        moments = _moments(log)
        known = _expected(log / "spec.toml", Path(work, "expected"), moments)
        job = Job(log / "spec.toml", out, moments, known)
        cluster = _cluster(stack, Path(work)) if set(kills) - {LOCAL} else None
        lengths = {LOCAL: LOCAL_SECONDS, **(_lengths(job, cluster) if cluster else {})}
        seen: Counter[str] = Counter()
        for victim, count in kills.items():
            shutil.rmtree(out, ignore_errors=True)
            for number, share in enumerate(_shares(count)):
                progress(f"kills, {victim}", number, count)
                seen.update(_kill_and_look(job, victim, share * lengths[victim], cluster))
                if number % 3 == 2:  # the next one begins without a dataset
                    shutil.rmtree(out)
            progress(f"kills, {victim}", count, count)
    checks = [
        Check("kills after which a reader saw a partial or unreadable dataset", seen[PARTIAL], 0, "=="),
        Check("builds after a kill whose content differs", seen["unequal"], 0, "=="),
        Check("vacuums that left an orphan or took a listed file", seen["lost"], 0, "=="),
    ]
    figures = [Figure(f"kills of a {victim}", count, "") for victim, count in kills.items()]
    return checks, figures + [
        Figure(f"kills after which a reader saw: {what}", seen[what], "") for what in (NONE, WHOLE, PARTIAL)
    ]


@dataclass(frozen=True)
class Job:
    """What is built: a spec, its output, the ends of its days, and the content of the dataset after each."""

    spec: Path
    out: Path
    moments: list[datetime]
    known: list[str]


def _shares(count: int) -> list[float]:
    """Moments of kills, one in each of `count` equal parts of the time a job takes, in no order."""
    chance = random.Random(0)
    shares = [(number + chance.random()) / count for number in range(count)]
    chance.shuffle(shares)
    return shares


def _lengths(job: Job, cluster: Cluster) -> dict[str, float]:
    """Seconds that a job on the cluster takes, and that its executors live, of one that nobody disturbs."""
    started = time.monotonic()
    submitted = cluster.submit(*_arguments(job))
    while submitted.poll() is None and not cluster.executors():
        time.sleep(0.05)
    born = time.monotonic()
    _finish(submitted)
    ended = time.monotonic()
    return {DRIVER: ended - started, EXECUTOR: ended - born}


def _kill_and_look(job: Job, victim: str, seconds: float, cluster: Cluster | None) -> list[str]:
    """Kill, so long after a start, look, build again and vacuum; what was seen."""
    if cluster is None or victim == LOCAL:
        _kill_local(job, seconds)
    elif victim == DRIVER:
        _kill_driver(job, seconds, cluster)
    else:
        _kill_executor(job, seconds, cluster)
    seen = [_look(job)]
    if cluster is None or victim == LOCAL:
        build(load_spec(job.spec), job.out, overwrite=True, until=job.moments[0])
    else:
        _finish(cluster.submit(*_arguments(job)))
    if _content(job.out) != job.known[0]:
        seen.append("unequal")
    vacuum(job.out)
    return seen if _only_listed(job.out) else [*seen, "lost"]


def _arguments(job: Job) -> list[str]:
    return [str(job.spec), str(job.out), "--overwrite", "--until", job.moments[0].isoformat()]


def _finish(job: subprocess.Popen[str]) -> None:
    output, _ = job.communicate()
    if job.returncode:
        raise RuntimeError(f"a job on the cluster failed:\n{output}")


def _kill_driver(job: Job, seconds: float, cluster: Cluster) -> None:
    """Kill a job on the cluster, driver and all, so long after its start; its executors end by themselves."""
    submitted = cluster.submit(*_arguments(job))
    with suppress(subprocess.TimeoutExpired):
        submitted.wait(seconds)
    with suppress(ProcessLookupError):
        os.killpg(submitted.pid, signal.SIGKILL)
    submitted.communicate()
    while cluster.executors():
        time.sleep(0.1)


def _kill_executor(job: Job, seconds: float, cluster: Cluster) -> None:
    """Kill an executor so long after it has begun; the job goes on without it, and must end well."""
    submitted = cluster.submit(*_arguments(job))
    while submitted.poll() is None and not cluster.executors():
        time.sleep(0.05)
    time.sleep(seconds)
    for process in cluster.executors()[:1]:
        os.kill(process, signal.SIGKILL)
    _finish(submitted)


def _cluster(stack: ExitStack, work: Path) -> Cluster:
    from .cluster import cluster_in

    return stack.enter_context(cluster_in(work))


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


def _kill_local(job: Job, seconds: float) -> None:
    """Kill, so long after it has begun its work, a process that builds and appends without end."""
    arguments = [str(job.spec), str(job.out), *(moment.isoformat() for moment in job.moments)]
    command = [sys.executable, "-m", "longbatch.benchmarks.faults", *arguments]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        if process.stdout is None or process.stdout.readline() != "ready\n":
            raise RuntimeError("the process to be killed did not start")
        time.sleep(seconds)
        if process.poll() is not None:
            raise RuntimeError(f"the process to be killed ended by itself, with {process.returncode}")
        process.send_signal(signal.SIGKILL)


def _look(job: Job) -> str:
    try:
        return WHOLE if _content(job.out) in job.known else PARTIAL
    except DatasetError:
        return NONE if not snapshot_numbers(job.out) else PARTIAL


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
