"""What every benchmark ends with: a table of checks, each a measured value beside its limit."""

from __future__ import annotations

import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal


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


def text(checks: Sequence[Check], figures: Sequence[Figure]) -> str:
    """The table that people read."""
    lines = [f"{figure.name:<58} {_number(figure.value):>12} {figure.unit}" for figure in figures]
    lines += ["", f"{'check':<58} {'value':>12} {'limit':>12}  holds"]
    lines += [
        f"{check.name:<58} {_number(check.value):>12} {check.sense} {_number(check.limit):>9}  {'yes' if check.holds else 'NO'}"
        for check in checks
    ]
    return "\n".join(lines)


def _number(value: float) -> str:
    return f"{value:,}" if isinstance(value, int) else f"{value:,.3f}"


@dataclass(frozen=True)
class Run:
    """One process: wall seconds, peak resident bytes, processor seconds (with those of processes it waited for)."""

    seconds: float
    peak_bytes: int
    processor_seconds: float = 0.0


def run_process(*arguments: str) -> Run:
    """Run `python -m ...` in a process of its own and measure it whole; RuntimeError with its output if it fails."""
    started = time.monotonic()
    process = subprocess.Popen(
        [sys.executable, "-m", *arguments],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        env=_environment(),
    )
    output = process.stdout.read() if process.stdout else ""
    _, status, usage = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode:
        raise RuntimeError(f"{' '.join(arguments)} failed:\n{output}")
    return Run(time.monotonic() - started, usage.ru_maxrss * 1024, usage.ru_utime + usage.ru_stime)


def _environment() -> dict[str, str]:
    """As where packages are installed with their bytecode: kept in a folder of its own, if nobody else keeps it."""
    kept = {name: value for name, value in os.environ.items() if name != "PYTHONDONTWRITEBYTECODE"}
    return {"PYTHONPYCACHEPREFIX": str(Path(tempfile.gettempdir(), "longbatch-bench-bytecode")), **kept}


def median_seconds(runs: Sequence[Run]) -> float:
    """Median wall seconds of several runs."""
    return statistics.median(run.seconds for run in runs)
