"""`longbatch bench faults`: commands that write datasets are killed at random moments; what readers see is checked.

python -m longbatch.benchmarks.faults SPEC OUT UNTIL...     build, append, forget and vacuum repeatedly, until killed
"""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Mapping
from contextlib import ExitStack, suppress
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING

from longbatch.jobs.append import append
from longbatch.jobs.build import build
from longbatch.jobs.forget import forget
from longbatch.jobs.simulation.simulate import Simulation, simulate
from longbatch.jobs.vacuum import vacuum
from longbatch.schemas.errors import DatasetError
from longbatch.schemas.format.snapshot import listed_paths, snapshot_numbers
from longbatch.schemas.spec.build_spec import load_spec
from longbatch.schemas.storage.local_store import LocalStore
from longbatch.schemas.storage.store import TEMPORARY_FOLDER, Store
from longbatch.schemas.types import ProgressCallback

from .checks import WORK_PREFIX, Check, Figure, Results, hash_of
from .object_servers import s3_server

if TYPE_CHECKING:
    from .cluster import Cluster

LOCAL, STORE = "process that writes to a disk", "process that writes to S3"
DRIVER, EXECUTOR = "spark driver", "spark executor"
ABSENT, COMPLETE, PARTIAL = "no dataset", "a complete dataset", "a partial or unreadable dataset"
LOOP_SECONDS = {LOCAL: 6.0, STORE: 20.0}  # kills are spread over this time, in which all commands run more than once
UNEQUAL, UNLISTED = "unequal content", "files that are not listed, or missing"
ORPHANS = "files that are not listed"
EVENTS = 300_000
KILLS = {LOCAL: 50, STORE: 50, DRIVER: 12, EXECUTOR: 8}
FORGOTTEN = ["3", "5", "8"]


def bench_faults(
    *, quick: bool = False, spark: bool = True, folder: Path | None = None, progress: ProgressCallback
) -> Results:
    """Kill processes that build, append, forget and vacuum, and drivers and executors of Spark; check the dataset.

    Args:
        quick: Kill a fifth as often.
        spark: Include Spark, on a cluster of processes on this machine.
        folder: Where the work folder is created.
        progress: Called before each kill.

    Returns:
        Partial datasets, different contents and orphaned files as checks; what readers saw as figures.
    """
    kills = {
        victim: -(-count // (5 if quick else 1)) for victim, count in KILLS.items() if spark or victim in LOOP_SECONDS
    }
    return kill_often(kills, EVENTS, folder, progress)


def kill_often(kills: Mapping[str, int], events: int, folder: Path | None, progress: ProgressCallback) -> Results:
    """Kill processes while they build a log.

    Args:
        kills: How often to kill each of LOCAL, STORE, DRIVER and EXECUTOR.
        events: Events of the log.
        folder: Where the work folder is created.
        progress: Called before each kill.

    Returns:
        See `bench_faults`.
    """
    with tempfile.TemporaryDirectory(prefix=WORK_PREFIX, dir=folder) as work, ExitStack() as stack:
        log = Path(work, "log")
        simulate(log, Simulation(users=100, events=events, seed=1))
        moments = end_times(log)
        contents = _expected(log / "spec.toml", Path(work, "expected"), moments)
        job = _Job(log / "spec.toml", LocalStore(Path(work, "out")), moments, contents)
        cluster = _cluster(stack, Path(work)) if {DRIVER, EXECUTOR} & set(kills) else None
        durations = {**LOOP_SECONDS, **(_durations(job, cluster) if cluster else {})}
        jobs = dict.fromkeys(kills, job)
        if STORE in kills:
            bucket = stack.enter_context(s3_server())
            jobs[STORE] = replace(job, out=bucket.open("out"), environment=bucket.environment)
        seen: Counter[str] = Counter()
        for victim, count in kills.items():
            _delete_all(jobs[victim].out)
            for number, share in enumerate(_shares(count)):
                progress(f"kills of a {victim}", number, count)
                seen.update(_kill_and_look(jobs[victim], victim, share * durations[victim], cluster))
                if number % 3 == 2:  # the next one starts without a dataset
                    _delete_all(jobs[victim].out)
            progress(f"kills of a {victim}", count, count)
    checks = [
        Check("kills after which a reader saw a partial or unreadable dataset", seen[PARTIAL], 0, "=="),
        Check("builds after a kill whose content differs", seen[UNEQUAL], 0, "=="),
        Check("vacuums that left an orphan or removed a listed file", seen[UNLISTED], 0, "=="),
    ]
    figures = [Figure(f"kills of a {victim}", count) for victim, count in kills.items()]
    figures.append(Figure("vacuums after a kill that removed files", seen[ORPHANS]))
    figures += [Figure(f"kills after which a reader saw: {what}", seen[what]) for what in (ABSENT, COMPLETE, PARTIAL)]
    return Results(checks, figures)


@dataclass(frozen=True)
class _Job:
    """What is built.

    Attributes:
        spec: The build spec.
        out: The dataset.
        moments: Ends of the days that are built and appended.
        contents: Content hash of the dataset after each of them, and after users are forgotten.
        environment: Variables that give access to the dataset.
    """

    spec: Path
    out: Store
    moments: list[datetime]
    contents: list[str]
    environment: Mapping[str, str] = field(default_factory=dict)


def _shares(count: int) -> list[float]:
    """Times of kills as shares of the duration of a job: one in each of `count` equal parts, in random order."""
    rng = random.Random(0)
    shares = [(number + rng.random()) / count for number in range(count)]
    rng.shuffle(shares)
    return shares


def _durations(job: _Job, cluster: Cluster) -> dict[str, float]:
    """Seconds that an undisturbed job on the cluster takes, and that its executors run."""
    started = time.monotonic()
    submitted = cluster.submit(*_arguments(job))
    while submitted.poll() is None and not cluster.executors():
        time.sleep(0.05)
    executors_started = time.monotonic()
    _finish(submitted)
    ended = time.monotonic()
    return {DRIVER: ended - started, EXECUTOR: ended - executors_started}


def _kill_and_look(job: _Job, victim: str, seconds: float, cluster: Cluster | None) -> list[str]:
    """Kill a process some seconds after its start, read the dataset, vacuum, build again; return what was seen."""
    if cluster is None or victim in LOOP_SECONDS:
        _kill_loop(job, seconds)
    elif victim == DRIVER:
        _kill_driver(job, seconds, cluster)
    else:
        _kill_executor(job, seconds, cluster)
    seen = [_read(job)]
    if seen != [ABSENT]:
        seen += _vacuum(job.out)
    if cluster is None or victim in LOOP_SECONDS:
        build(load_spec(job.spec), job.out, overwrite=True, until=job.moments[0])
    else:
        _finish(cluster.submit(*_arguments(job)))
    if hash_of(job.out) != job.contents[0]:
        seen.append(UNEQUAL)
    return seen + _vacuum(job.out)


def _vacuum(out: Store) -> list[str]:
    """Vacuum, and compare the files before and after with those that the newest snapshot lists."""
    listed, before = listed_paths(out, snapshot_numbers(out)[-1]), _data_files(out)
    vacuum(out)
    seen = [ORPHANS] if before - listed else []
    return seen if listed <= before and _data_files(out) == listed else [*seen, UNLISTED]


def _data_files(out: Store) -> set[str]:
    """All files but the temporary ones, such as that of a probe that was killed, which vacuum leaves for minutes."""
    return {file.path for file in out.list_files() if not file.path.startswith(TEMPORARY_FOLDER)}


def _delete_all(out: Store) -> None:
    out.delete([file.path for file in out.list_files()])


def _arguments(job: _Job) -> list[str]:
    return [str(job.spec), job.out.location, "--overwrite", "--until", job.moments[0].isoformat()]


def _finish(job: subprocess.Popen[str]) -> None:
    output, _ = job.communicate()
    if job.returncode:
        raise RuntimeError(f"a job on the cluster failed:\n{output}")


def _kill_driver(job: _Job, seconds: float, cluster: Cluster) -> None:
    """Kill the driver of a job some seconds after its start; its executors end by themselves."""
    submitted = cluster.submit(*_arguments(job))
    with suppress(subprocess.TimeoutExpired):
        submitted.wait(seconds)
    with suppress(ProcessLookupError):
        os.killpg(submitted.pid, signal.SIGKILL)
    submitted.communicate()
    while cluster.executors():
        time.sleep(0.1)


def _kill_executor(job: _Job, seconds: float, cluster: Cluster) -> None:
    """Kill an executor some seconds after its start; the job continues without it and must succeed."""
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


def end_times(log: Path) -> list[datetime]:
    """Choose three ends of days among the times of requests."""
    import polars as pl

    targets = pl.scan_parquet(log / "log" / "*.parquet").filter(pl.col("tab") > 0)
    times = targets.select(pl.col("request_time").quantile(share).alias(str(share)) for share in (0.7, 0.8, 0.9))
    return [datetime.fromtimestamp(int(moment) / 1000, UTC) for moment in times.collect().row(0)]


def _expected(spec: Path, out: Path, moments: list[datetime]) -> list[str]:
    build(load_spec(spec), out, until=moments[0])
    hashes = [hash_of(out)]
    for moment in moments[1:]:
        append(load_spec(spec), out, moment)
        hashes.append(hash_of(out))
    forget(out, FORGOTTEN)
    return [*hashes, hash_of(out)]


def _kill_loop(job: _Job, seconds: float) -> None:
    """Kill a process that builds, appends, forgets and vacuums in a loop, some seconds after it is ready."""
    arguments = [str(job.spec), job.out.location, *(moment.isoformat() for moment in job.moments)]
    command = [sys.executable, "-m", "longbatch.benchmarks.faults", *arguments]
    environment = {**os.environ, **job.environment}
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment) as process:
        if process.stdout is None or process.stdout.readline() != "ready\n":
            raise RuntimeError("the process to kill did not start")
        time.sleep(seconds)
        if process.poll() is not None:
            raise RuntimeError(f"the process to kill ended by itself with exit status {process.returncode}")
        process.send_signal(signal.SIGKILL)


def _read(job: _Job) -> str:
    try:
        return COMPLETE if hash_of(job.out) in job.contents else PARTIAL
    except DatasetError:
        return ABSENT if not snapshot_numbers(job.out) else PARTIAL


def main() -> None:
    """Build, append, forget and vacuum in a loop."""
    spec, out, moments = load_spec(sys.argv[1]), sys.argv[2], [datetime.fromisoformat(t) for t in sys.argv[3:]]
    print("ready", flush=True)
    while True:
        build(spec, out, overwrite=True, until=moments[0])
        for moment in moments[1:]:
            append(spec, out, moment)
        forget(out, FORGOTTEN)
        vacuum(out)


if __name__ == "__main__":
    main()
