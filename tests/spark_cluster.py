"""A real Spark cluster on this machine: a master and two workers as processes, and jobs submitted as users do."""

from __future__ import annotations

import os
import re
import signal
import socket
import subprocess
import sys
import tarfile
import time
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

import pyspark

ROOT = Path(__file__).parents[1]
HOME = Path(pyspark.__file__).parent
FOLDERS = ("schemas", "validation", "pipelines", "jobs")
NEEDED = ("numpy", "polars", "pyarrow", "pydantic", "typing_inspection", "annotated_types", "typing_extensions")


@dataclass(frozen=True)
class Cluster:
    """Where a running cluster is, the environment its programs need, and a folder for archives of code to send along."""

    url: str
    environment: dict[str, str]
    folder: Path
    archives: Path | None = None

    def submit(self, *arguments: str, conf: dict[str, str] | None = None) -> subprocess.Popen[str]:
        """Start `spark-submit jobs/build.py ARGUMENTS`.

        Where there are archives, executors start a bare interpreter with what is sent along, else the one of the tests.
        """
        settings = {
            "spark.pyspark.driver.python": sys.executable,
            "spark.pyspark.python": sys.executable,
            "spark.ui.enabled": "false",
            "spark.driver.host": "127.0.0.1",
            "spark.driver.bindAddress": "127.0.0.1",
            "spark.executor.memory": "512m",
            "spark.driver.memory": "512m",
            **(conf or {}),
        }
        command = [str(HOME / "bin" / "spark-submit"), "--master", self.url]
        if self.archives:
            settings["spark.executorEnv.PYTHONPATH"] = "./dependencies"
            settings["spark.pyspark.python"] = str(getattr(sys, "_base_executable", sys.executable))
            command += ["--py-files", str(pack_code(self.archives / "longbatch.zip"))]
            command += ["--archives", f"{pack_dependencies(self.archives / 'dependencies.tar')}#dependencies"]
        command += [part for key, value in settings.items() for part in ("--conf", f"{key}={value}")]
        command += [str(ROOT / "jobs" / "build.py"), *arguments]
        return subprocess.Popen(
            command,
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


def pack_code(path: Path) -> Path:
    """The package as a zip, in the layout of the wheel."""
    with zipfile.ZipFile(path, "w") as archive:
        for file in (ROOT / "src" / "longbatch").glob("*.py"):
            archive.write(file, f"longbatch/{file.name}")
        for folder in FOLDERS:
            for file in (ROOT / folder).glob("*.py"):
                archive.write(file, f"longbatch/{folder}/{file.name}")
    return path


def pack_dependencies(path: Path) -> Path:
    """What longbatch needs on a worker, as installed here."""
    site = Path(pyspark.__file__).parents[1]

    def wanted(info: tarfile.TarInfo) -> tarfile.TarInfo | None:
        return None if re.search(r"/(tests?|include|__pycache__)(/|$)", info.name) else info

    with tarfile.open(path, "w") as archive:
        for name in sorted(os.listdir(site)):
            if name.split("-")[0].split(".")[0].lstrip("_").startswith(tuple(NEEDED)) and "dist-info" not in name:
                archive.add(site / name, name, filter=wanted)
    return path


@contextmanager
def running_cluster(
    folder: Path, environment: dict[str, str], archives: Path | None = None, workers: int = 2
) -> Iterator[Cluster]:
    """Start a master and workers of one core each; stop them and what they started at the end."""
    port = _free_port()
    environment = {**environment, "SPARK_HOME": str(HOME), "SPARK_LOCAL_IP": "127.0.0.1"}
    environment.pop("PYTHONDONTWRITEBYTECODE", None)  # every Python worker would compile what it imports
    environment |= {
        "PYTHONPYCACHEPREFIX": str(folder / "bytecode"),
        "SPARK_WORKER_DIR": str(folder / "work"),
        "SPARK_LOCAL_DIRS": str(folder / "local"),
    }
    environment["JAVA_TOOL_OPTIONS"] = "-XX:TieredStopAtLevel=1 -XX:+UseSerialGC"  # short lives: compile little
    url, started = f"spark://127.0.0.1:{port}", []

    def start(kind: str, *arguments: str) -> None:
        command = [str(HOME / "bin" / "spark-class"), f"org.apache.spark.deploy.{kind}", *arguments]
        with (folder / f"{len(started)}.log").open("wb") as log:
            started.append(subprocess.Popen(command, env=environment, stdout=log, stderr=log, start_new_session=True))

    try:
        start("master.Master", "--host", "127.0.0.1", "--port", str(port), "--webui-port", "0")
        for _ in range(workers):
            start("worker.Worker", "--host", "127.0.0.1", "--webui-port", "0", "--cores", "1", "--memory", "1g", url)
        _wait_for(folder / "0.log", "Registering worker", workers)
        yield Cluster(url, environment, folder, archives)
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
