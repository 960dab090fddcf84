"""A real Spark cluster on this machine: a master and two workers as processes, to which jobs are submitted.

The benchmarks and the tests use it.
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

from .processes import environment_with_bytecode

HOME = Path(pyspark.__file__).parent
MAIN = Path(longbatch.__file__).parent / "__main__.py"
WORKERS = 2


@dataclass(frozen=True)
class Cluster:
    """A running cluster.

    Attributes:
        url: Address of the master.
        environment: Environment variables of its programs.
        folder: Where its files are.
        executor_memory: Memory of an executor, such as "512m".
    """

    url: str
    environment: dict[str, str]
    folder: Path
    executor_memory: str

    def command(self, script: Path, *arguments: str, options: Sequence[str] = ()) -> list[str]:
        """Return the command `spark-submit OPTIONS SCRIPT ARGUMENTS` for this cluster.

        Workers start the Python interpreter of this process.

        Args:
            script: The program to run on the driver.
            arguments: Its arguments.
            options: Further options of spark-submit.
        """
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
        """Return the command that runs `longbatch build ARGUMENTS` by spark-submit.

        Args:
            arguments: Arguments of the build.
            options: Further options of spark-submit.
        """
        return self.command(MAIN, "build", *arguments, options=options)

    def submit(self, *arguments: str, options: Sequence[str] = ()) -> subprocess.Popen[str]:
        """Start `longbatch build ARGUMENTS` on the cluster, in a process group of its own.

        Args:
            arguments: Arguments of the build.
            options: Further options of spark-submit.
        """
        return subprocess.Popen(
            self.build_command(*arguments, options=options),
            env=self.environment,
            text=True,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )

    def executors(self) -> list[int]:
        """Return the process ids of the executors that are running in the folders of this cluster's workers."""
        executors = []
        for process in Path("/proc").glob("[0-9]*"):
            with suppress(OSError):
                folder, command = os.readlink(process / "cwd"), (process / "cmdline").read_bytes()
                if folder.startswith(str(self.folder / "work")) and b"CoarseGrainedExecutorBackend" in command:
                    executors.append(int(process.name))
        return executors


@contextmanager
def cluster_in(work: Path, executor_memory: str = "512m") -> Iterator[Cluster]:
    """Run a cluster on the installed Java, with its files in a new folder of `work`.

    Args:
        work: An existing folder.
        executor_memory: Memory of an executor.

    Yields:
        The cluster; it is stopped at the end.
    """
    provide_java()
    (work / "cluster").mkdir()
    with running_cluster(work / "cluster", environment_with_bytecode(), executor_memory) as cluster:
        yield cluster


@contextmanager
def running_cluster(folder: Path, environment: dict[str, str], executor_memory: str = "512m") -> Iterator[Cluster]:
    """Start a master and two workers of one core each.

    Args:
        folder: Where the files of the cluster are written.
        environment: Environment variables of its programs.
        executor_memory: Memory of an executor.

    Yields:
        The cluster; at the end it is stopped, with every process it started.
    """
    port = _free_port()
    environment = {**environment, "SPARK_HOME": str(HOME), "SPARK_LOCAL_IP": "127.0.0.1"}
    environment.pop("PYTHONDONTWRITEBYTECODE", None)  # else every Python worker compiles what it imports
    environment |= {
        "PYTHONPYCACHEPREFIX": str(folder / "bytecode"),
        "SPARK_WORKER_DIR": str(folder / "work"),
        "SPARK_LOCAL_DIRS": str(folder / "local"),
    }
    url = f"spark://127.0.0.1:{port}"
    started: list[subprocess.Popen[bytes]] = []

    def start(program: str, *arguments: str) -> None:
        command = [str(HOME / "bin" / "spark-class"), f"org.apache.spark.deploy.{program}", *arguments]
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


def _wait_for(log: Path, line: str, times: int, seconds: float = 60) -> None:
    end = time.monotonic() + seconds
    while log.read_text(errors="replace").count(line) < times:
        if time.monotonic() > end:
            raise TimeoutError(f"the cluster did not start within {seconds:.0f} s:\n{log.read_text(errors='replace')}")
        time.sleep(0.1)
