"""Measured runs of commands in processes of their own: wall time, processor time, peak memory."""

from __future__ import annotations

import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from threading import Event, Thread

POLL_SECONDS = 0.1


@dataclass(frozen=True)
class Run:
    """A process and its descendants.

    Attributes:
        seconds: Wall time.
        peak_bytes: Peak resident memory of the largest Python process.
        java_peak_bytes: Peak resident memory of the largest Java process, 0 without one.
        processor_seconds: Processor time of the process and of the descendants that it waited for.
    """

    seconds: float
    peak_bytes: int
    java_peak_bytes: int = 0
    processor_seconds: float = 0.0


def run_module(module: str, *arguments: str) -> Run:
    """Run `python -m module arguments` and measure it from start to end.

    Args:
        module: Full name of the module.
        arguments: Command line arguments.

    Raises:
        RuntimeError: The command failed; the message contains its output.
    """
    return run_command([sys.executable, "-m", module, *arguments], environment_with_bytecode())


def run_longbatch(*arguments: str) -> Run:
    """Run `longbatch arguments` and measure it from start to end.

    Args:
        arguments: Command line arguments.

    Raises:
        RuntimeError: The command failed; the message contains its output.
    """
    return run_module("longbatch.cli.main", *arguments)


def run_command(command: Sequence[str], environment: dict[str, str]) -> Run:
    """Run a command and measure it from start to end.

    Args:
        command: Program and arguments.
        environment: Environment variables.

    Raises:
        RuntimeError: The command failed; the message contains its output.
    """
    started = time.monotonic()
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, env=environment)
    memory = PeakMemory(process.pid)
    memory.start()
    output = process.stdout.read() if process.stdout else ""
    _, status, usage = os.wait4(process.pid, 0)
    seconds = time.monotonic() - started
    memory.stop()
    process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode:
        raise RuntimeError(f"{' '.join(command)} failed:\n{output}")
    # the kernel's own figure covers the last moments, but does not distinguish Java from Python
    peak = memory.peaks.get("python", 0) if memory.peaks.get("java") else usage.ru_maxrss * 1024
    return Run(seconds, peak, memory.peaks.get("java", 0), usage.ru_utime + usage.ru_stime)


class PeakMemory(Thread):
    """Polls the peak memory of a process and its descendants, ten times a second.

    The kernel records the peak of each process, so a poll misses only what a process allocates in the last tenth of a
    second of its life.

    Attributes:
        peaks: Largest peak in bytes by program, "python" or "java".
    """

    def __init__(self, root: int) -> None:
        super().__init__(daemon=True)
        self.peaks: dict[str, int] = {}
        self._root, self._stopped = root, Event()

    def run(self) -> None:
        """Poll until `stop` is called."""
        while not self._stopped.wait(POLL_SECONDS):
            for process in _descendants(self._root):
                self._poll(process)

    def stop(self) -> None:
        """Stop polling and wait for the thread."""
        self._stopped.set()
        self.join()

    def _poll(self, process: int) -> None:
        with suppress(OSError):  # the process may have ended
            status = dict(line.split(":", 1) for line in Path(f"/proc/{process}/status").read_text().splitlines())
            program = "java" if status["Name"].strip() == "java" else "python"
            if "VmHWM" in status:
                self.peaks[program] = max(self.peaks.get(program, 0), int(status["VmHWM"].split()[0]) * 1024)


def _descendants(root: int) -> list[int]:
    """The process and all processes below it, breadth first."""
    children: dict[int, list[int]] = {}
    for folder in Path("/proc").glob("[0-9]*"):
        with suppress(OSError):
            # the name of a process, in parentheses, may contain spaces: fields are counted from the last parenthesis
            parent = int((folder / "stat").read_text().rpartition(")")[2].split()[1])
            children.setdefault(parent, []).append(int(folder.name))
    processes = [root]
    for process in processes:  # grows while it is iterated
        processes += children.get(process, [])
    return processes


def environment_with_bytecode() -> dict[str, str]:
    """Return this process's environment with bytecode caching on, as on machines where packages are installed.

    Bytecode goes to a folder of its own, unless the environment names one.
    """
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONDONTWRITEBYTECODE"}
    return {"PYTHONPYCACHEPREFIX": str(Path(tempfile.gettempdir(), "longbatch-bench-bytecode")), **environment}


def median_seconds(runs: Sequence[Run]) -> float:
    """Median wall time of several runs."""
    return statistics.median(run.seconds for run in runs)


def median_processor_seconds(runs: Sequence[Run]) -> float:
    """Median processor time of several runs."""
    return statistics.median(run.processor_seconds for run in runs)


def peak_gigabytes(runs: Sequence[Run]) -> float:
    """Largest peak memory of a Python process in several runs, in GB."""
    return max(run.peak_bytes for run in runs) / 1e9
