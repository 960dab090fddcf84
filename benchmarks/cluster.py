"""A real Spark cluster on this machine: a master and two workers as processes, and jobs submitted as users do.

The benchmarks and the tests build on it.
"""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

import pyspark

import longbatch
from longbatch.jobs.engines.java import provide_java

from .checks import kept_bytecode

HOME = Path(pyspark.__file__).parent
MAIN = Path(longbatch.__file__).parent / "__main__.py"
WORKERS = 2


@dataclass(frozen=True)
class Cluster:
    """Where a running cluster is, the environment its programs need, its folder, and the memory of an executor."""

    url: str
    environment: dict[str, str]
    folder: Path
    executor_memory: str

    def command(self, script: Path, *arguments: str, options: Sequence[str] = ()) -> list[str]:
        """`spark-submit OPTIONS SCRIPT ARGUMENTS` to this cluster; workers start the interpreter of this process."""
        settings = {
            "spark.pyspark.driver.python": sys.executable,
            "spark.pyspark.python": sys.executable,
            "spark.ui.enabled": "false",
            "spark.driver.host": "127.0.0.1",
            "spark.driver.bindAddress": "127.0.0.1",
            "spark.executor.memory": self.executor_memory,
            "spark.driver.memory": "512m",
            "spark.log.level": "ERROR",
        }
        configured = [part for key, value in settings.items() for part in ("--conf", f"{key}={value}")]
        submit = str(HOME / "bin" / "spark-submit")
        return [submit, "--master", self.url, *configured, *options, str(script), *arguments]

    def build_command(self, *arguments: str, options: Sequence[str] = ()) -> list[str]:
        """`spark-submit OPTIONS src/longbatch/__main__.py build ARGUMENTS`."""
        return self.command(MAIN, "build", *arguments, options=options)

    def submit(self, *arguments: str, options: Sequence[str] = ()) -> subprocess.Popen[str]:
        """Start `longbatch build ARGUMENTS` on it with spark-submit, in a process group of its own."""
        return subprocess.Popen(
            self.build_command(*arguments, options=options),
            env=self.environment,
            text=True,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )

    def executors(self) -> list[int]:
        """Process numbers of the executors that run now: those whose folder is one of the workers'."""
        found = []
        for process in Path("/proc").glob("[0-9]*"):
            with suppress(OSError):
                folder, command = os.readlink(process / "cwd"), (process / "cmdline").read_bytes()
                if folder.startswith(str(self.folder / "work")) and b"CoarseGrainedExecutorBackend" in command:
                    found.append(int(process.name))
        return found


@contextmanager
def cluster_in(work: Path, executor_memory: str = "512m") -> Iterator[Cluster]:
    """A running cluster whose files lie in a new folder of `work`, on the Java that is there."""
    provide_java()
    (work / "cluster").mkdir()
    with running_cluster(work / "cluster", kept_bytecode(), executor_memory) as cluster:
        yield cluster


@contextmanager
def running_cluster(folder: Path, environment: dict[str, str], executor_memory: str = "512m") -> Iterator[Cluster]:
    """Start a master and two workers of one core each; stop them and what they started at the end."""
    port = _free_port()
    environment = {**environment, "SPARK_HOME": str(HOME), "SPARK_LOCAL_IP": "127.0.0.1"}
    environment.pop("PYTHONDONTWRITEBYTECODE", None)  # every Python worker would compile what it imports
    environment |= {
        "PYTHONPYCACHEPREFIX": str(folder / "bytecode"),
        "SPARK_WORKER_DIR": str(folder / "work"),
        "SPARK_LOCAL_DIRS": str(folder / "local"),
    }
    url = f"spark://127.0.0.1:{port}"
    started: list[subprocess.Popen[bytes]] = []

    def start(kind: str, *arguments: str) -> None:
        command = [str(HOME / "bin" / "spark-class"), f"org.apache.spark.deploy.{kind}", *arguments]
        with (folder / f"{len(started)}.log").open("wb") as log:
            started.append(subprocess.Popen(command, env=environment, stdout=log, stderr=log, start_new_session=True))

    try:
        start("master.Master", "--host", "127.0.0.1", "--port", str(port), "--webui-port", "0")
        for _ in range(WORKERS):
            start("worker.Worker", "--host", "127.0.0.1", "--webui-port", "0", "--cores", "1", "--memory", "3g", url)
        _wait_for(folder / "0.log", "Registering worker", WORKERS)
        yield Cluster(url, environment, folder, executor_memory)
    finally:
        for process in reversed(started):
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def _wait_for(log: Path, text: str, times: int, seconds: float = 60) -> None:
    end = time.monotonic() + seconds
    while log.read_text(errors="replace").count(text) < times:
        if time.monotonic() > end:
            raise TimeoutError(f"the cluster did not start:\n{log.read_text(errors='replace')}")
        time.sleep(0.1)
