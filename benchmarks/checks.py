"""What every benchmark ends with: a table of checks, each a measured value beside its limit."""

from __future__ import annotations

import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from threading import Event, Thread
from typing import Any, Literal

from longbatch.schemas.types import ProgressCallback


@dataclass(frozen=True)
class Check:
    """A measured value and the limit it must keep: at most, at least, or exactly."""

    name: str
    value: float
    limit: float
    sense: Literal["<=", ">=", "=="] = "<="

    @property
    def holds(self) -> bool:
        """Whether the limit is kept."""
        if self.sense == "==":
            return self.value == self.limit
        return self.value <= self.limit if self.sense == "<=" else self.value >= self.limit

    def as_dict(self) -> dict[str, Any]:
        """Plain values for JSON."""
        return {"name": self.name, "value": self.value, "limit": self.limit, "holds": self.holds}


@dataclass(frozen=True)
class Figure:
    """A measured value that is shown but not judged."""

    name: str
    value: float
    unit: str


def document(checks: Sequence[Check], figures: Sequence[Figure]) -> dict[str, Any]:
    """The JSON of a benchmark."""
    return {
        "checks": [check.as_dict() for check in checks],
        "figures": [{"name": f.name, "value": f.value, "unit": f.unit} for f in figures],
    }


@dataclass(frozen=True)
class Run:
    """One process and those it started: wall seconds, peak resident bytes of the largest Python process and of the
    largest Java one, processor seconds (of the processes it waited for)."""

    seconds: float
    peak_bytes: int
    java_peak_bytes: int = 0
    processor_seconds: float = 0.0


def run_process(*arguments: str) -> Run:
    """Run `python -m ...` in a process of its own and measure it whole; RuntimeError with its output if it fails."""
    return run_command([sys.executable, "-m", *arguments], kept_bytecode())


def run_command(command: list[str], environment: dict[str, str]) -> Run:
    """Run a command and measure it whole; RuntimeError with its output if it fails."""
    started = time.monotonic()
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, env=environment)
    watch = PeakWatch(process.pid)
    watch.start()
    output = process.stdout.read() if process.stdout else ""
    _, status, usage = os.wait4(process.pid, 0)
    seconds = time.monotonic() - started
    watch.end()
    process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode:
        raise RuntimeError(f"{' '.join(command)} failed:\n{output}")
    peak = watch.peaks.get("python", 0) if watch.peaks.get("java") else usage.ru_maxrss * 1024
    return Run(seconds, peak, watch.peaks.get("java", 0), usage.ru_utime + usage.ru_stime)


class PeakWatch(Thread):
    """Looks, ten times a second, at the peak memory of a process and of all below it.

    peaks: the largest peak in bytes by program, "python" or "java". The system keeps each process's peak itself, so only what a
    process takes within the last tenth of a second of its life can be missed.
    """

    def __init__(self, root: int) -> None:
        super().__init__(daemon=True)
        self.peaks: dict[str, int] = {}
        self._root, self._over = root, Event()

    def run(self) -> None:
        """Look until the end."""
        while not self._over.wait(0.1):
            for process in _descendants(self._root):
                self._look(process)

    def end(self) -> None:
        """Stop looking."""
        self._over.set()
        self.join()

    def _look(self, process: int) -> None:
        with suppress(OSError):
            told = dict(line.split(":", 1) for line in Path(f"/proc/{process}/status").read_text().splitlines())
            program = "java" if told["Name"].strip() == "java" else "python"
            if "VmHWM" in told:
                self.peaks[program] = max(self.peaks.get(program, 0), int(told["VmHWM"].split()[0]) * 1024)


def _descendants(root: int) -> list[int]:
    below: dict[int, list[int]] = {}
    for folder in Path("/proc").glob("[0-9]*"):
        with suppress(OSError):
            parent = int((folder / "stat").read_text().rpartition(")")[2].split()[1])
            below.setdefault(parent, []).append(int(folder.name))
    found = [root]
    for process in found:
        found += below.get(process, [])
    return found


def kept_bytecode() -> dict[str, str]:
    """The environment, as where packages are installed with their bytecode: kept in a folder of its own, if nobody else keeps it."""
    kept = {name: value for name, value in os.environ.items() if name != "PYTHONDONTWRITEBYTECODE"}
    return {"PYTHONPYCACHEPREFIX": str(Path(tempfile.gettempdir(), "longbatch-bench-bytecode")), **kept}


def timed(run: Callable[[], object]) -> float:
    """Wall seconds of a call."""
    started = time.perf_counter()
    run()
    return time.perf_counter() - started


def medians(runs: Sequence[Callable[[], object]], repeats: int) -> list[float]:
    """Median wall seconds of several calls, made in turn so that all see the same machine."""
    rounds = [[timed(run) for run in runs] for _ in range(repeats)]
    return [statistics.median(each) for each in zip(*rounds, strict=True)]


def drain(batches: Iterable[object]) -> None:
    """Take every batch and keep none."""
    for _ in batches:
        pass


def all_of(
    name: str,
    steps: Sequence[Callable[[], tuple[list[Check], list[Figure]]]],
    progress: ProgressCallback,
) -> tuple[list[Check], list[Figure]]:
    """The checks and figures of all steps, in order, telling progress after each."""
    checks: list[Check] = []
    figures: list[Figure] = []
    for done, step in enumerate(steps, start=1):
        found, shown = step()
        checks += found
        figures += shown
        progress(name, done, len(steps))
    return checks, figures


def median_seconds(runs: Sequence[Run]) -> float:
    """Median wall seconds of several runs."""
    return statistics.median(run.seconds for run in runs)
