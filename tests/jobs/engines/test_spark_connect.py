"""The Spark engine through Spark Connect: a server of its own process, whose Python has no longbatch."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

pytest.importorskip("pyspark")
pytest.importorskip("grpc_status", reason="pyspark[connect] is not installed")
import pyspark
from days import content

from longbatch.jobs.build import build
from longbatch.schemas.spec.build_spec import load_spec

pytestmark = [pytest.mark.spark, pytest.mark.slow]
HANG_SECONDS = 300
SERVER = "org.apache.spark.sql.connect.service.SparkConnectServer"
NOTEBOOK = r"""
import sys
from pathlib import Path
from pyspark.sql import SparkSession
from longbatch.jobs.build import build
from longbatch.jobs.engines.spark import SparkEngine
from longbatch.jobs.engines.spark_session import zip_package
from longbatch.schemas.errors import SourceError
from longbatch.schemas.spec.build_spec import load_spec

url, folder = sys.argv[1], Path(sys.argv[2])
session = SparkSession.builder.remote(url).getOrCreate()
session.addArtifacts(str(zip_package(folder / "longbatch.zip")), pyfile=True)
key = "spark.sql.execution.arrow.maxRecordsPerBatch"
before = session.conf.get(key)
spec = folder / "in" / "spec.toml"
spec.write_text(spec.read_text().replace('"log/*.parquet"', '"corrupt"\nformat = "table"'))
try:
    build(load_spec(spec), folder / "spark", engine=SparkEngine())
except SourceError as error:
    assert "source log: Spark has no table corrupt: [TABLE_OR_VIEW_NOT_FOUND]" in str(error), error
session.read.parquet(str(folder / "in" / "log")).createOrReplaceTempView("corrupt")
build(load_spec(spec), folder / "spark", engine=SparkEngine())
assert session.conf.get(key) == before
assert session.range(3).count() == 3, "a session that was active before is not stopped"
session.stop()
"""


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The address of a server whose workers have the dependencies of longbatch only."""
    folder, port = tmp_path_factory.mktemp("server"), free_port()
    settings = {
        "spark.connect.grpc.binding.port": str(port),
        "spark.driver.host": "127.0.0.1",
        "spark.driver.bindAddress": "127.0.0.1",
        "spark.local.dir": str(folder),
        "spark.ui.enabled": "false",
    }
    environment = {
        **os.environ,
        "PYSPARK_PYTHON": getattr(sys, "_base_executable", sys.executable),
        "PYTHONPATH": str(Path(pyspark.__file__).parents[1]),
        "SPARK_HOME": str(Path(pyspark.__file__).parent),
    }
    options = [part for key, value in settings.items() for part in ("--conf", f"{key}={value}")]
    submit = str(Path(pyspark.__file__).parent / "bin" / "spark-submit")
    command = [submit, "--master", "local[2]", "--class", SERVER, *options, "spark-internal"]
    with (folder / "log").open("wb") as log:
        process = subprocess.Popen(command, env=environment, stdout=log, stderr=log, cwd=folder, start_new_session=True)
    try:
        wait_until_listening(process, port, folder / "log")
        yield f"sc://127.0.0.1:{port}"
    finally:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def wait_until_listening(process: subprocess.Popen[bytes], port: int, log: Path) -> None:
    end = time.monotonic() + HANG_SECONDS
    while True:
        assert process.poll() is None, log.read_text()
        assert time.monotonic() < end, log.read_text()
        try:
            socket.create_connection(("127.0.0.1", port)).close()
            return
        except ConnectionRefusedError:
            time.sleep(0.1)


def run(*command: str) -> None:
    process = subprocess.run(command, capture_output=True, text=True, timeout=HANG_SECONDS, check=False)
    assert process.returncode == 0, process.stdout + process.stderr


def test_a_session_of_our_own_sends_the_package_to_the_server(server: str, corrupt_log: Path, tmp_path: Path) -> None:
    arguments = ["build", str(corrupt_log), str(tmp_path / "spark"), "--engine", "spark", "--master", server]
    run(sys.executable, "-m", "longbatch", *arguments)
    build(load_spec(corrupt_log), tmp_path / "local")
    assert content(tmp_path / "spark") == content(tmp_path / "local")


def test_an_active_session_is_used_and_left_as_it_was(server: str, corrupt_log: Path, tmp_path: Path) -> None:
    build(load_spec(corrupt_log), tmp_path / "local")
    run(sys.executable, "-c", NOTEBOOK, server, str(tmp_path))
    assert content(tmp_path / "spark") == content(tmp_path / "local")
