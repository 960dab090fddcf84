"""The results of a benchmark: checks, each a measured value with its limit, and figures without one."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal, NamedTuple

from longbatch.pipelines.content_hash import content_hash
from longbatch.schemas.format.dataset import Dataset, open_dataset
from longbatch.schemas.storage.store import Store
from longbatch.schemas.types import ProgressCallback

WORK_PREFIX = "longbatch-bench-"  # of temporary folders


@dataclass(frozen=True)
class Check:
    """A measured value and its limit.

    Attributes:
        name: What was measured.
        value: The measured value.
        limit: The limit.
        comparison: Relation in which the value must be to the limit.
    """

    name: str
    value: float
    limit: float
    comparison: Literal["<=", ">=", "=="] = "<="

    @property
    def holds(self) -> bool:
        """Whether the value is within the limit."""
        if self.comparison == "==":
            return self.value == self.limit
        return self.value <= self.limit if self.comparison == "<=" else self.value >= self.limit

    def as_dict(self) -> dict[str, Any]:
        """Plain values for JSON."""
        return {"name": self.name, "value": self.value, "limit": self.limit, "holds": self.holds}


@dataclass(frozen=True)
class Figure:
    """A measured value without a limit.

    Attributes:
        name: What was measured.
        value: The measured value.
        unit: Its unit, or a note.
    """

    name: str
    value: float
    unit: str = ""


class Results(NamedTuple):
    """What a benchmark measured.

    Attributes:
        checks: Values with a limit.
        figures: Values without one.
    """

    checks: list[Check]
    figures: list[Figure]


def combined(parts: Iterable[Results]) -> Results:
    """Concatenate the results of several parts of a benchmark."""
    results = Results([], [])
    for part in parts:
        results.checks.extend(part.checks)
        results.figures.extend(part.figures)
    return results


def run_parts(name: str, parts: Sequence[Callable[[], Results]], progress: ProgressCallback) -> Results:
    """Run the parts of a benchmark in order.

    Args:
        name: Stage that is reported to `progress`.
        parts: Functions that measure and return results.
        progress: Called after each part.

    Returns:
        The results of all parts.
    """
    results = []
    for done, part in enumerate(parts, start=1):
        results.append(part())
        progress(name, done, len(parts))
    return combined(results)


def document(checks: Sequence[Check], figures: Sequence[Figure]) -> dict[str, Any]:
    """Return the results as plain values for JSON."""
    return {"checks": [check.as_dict() for check in checks], "figures": [asdict(figure) for figure in figures]}


def timed(run: Callable[[], object]) -> float:
    """Return the wall seconds of a call."""
    started = time.perf_counter()
    run()
    return time.perf_counter() - started


def medians(runs: Sequence[Callable[[], object]], repeats: int) -> list[float]:
    """Measure several calls, alternating between them so that all see the same state of the machine.

    Args:
        runs: The calls to measure.
        repeats: How often each call is repeated.

    Returns:
        The median wall seconds of each.
    """
    rounds = [[timed(run) for run in runs] for _ in range(repeats)]
    return [statistics.median(each) for each in zip(*rounds, strict=True)]


def drain(batches: Iterable[object]) -> None:
    """Iterate over all batches without keeping them."""
    for _ in batches:
        pass


def hash_of(dataset: Dataset | Path | Store) -> str:
    """Return the content hash of a dataset, or of the newest snapshot in a folder or store."""
    opened = dataset if isinstance(dataset, Dataset) else open_dataset(dataset)
    return content_hash(opened.blocks(), opened.spec.history_length)
