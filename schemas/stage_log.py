"""The stages of a command: one log line for each, and a record of them for reports of the run."""

from __future__ import annotations

import logging
import time
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass


@dataclass
class Stage:
    """A stage of a command. Rows and bytes are filled in while it runs.

    Attributes:
        name: Name of the stage.
        rows: Rows that the stage read or wrote; None if it does not count them.
        size_bytes: Bytes that the stage read or wrote; None if it does not count them.
        seconds: Duration; None if the stage is a part of the tasks of another stage.
        failed: Whether an error ended the stage.
    """

    name: str
    rows: int | None = None
    size_bytes: int | None = None
    seconds: float | None = None
    failed: bool = False


_collected: ContextVar[list[Stage] | None] = ContextVar("_collected", default=None)


@contextmanager
def collect_stages() -> Iterator[list[Stage]]:
    """Collect the stages that end within the block, also those that fail.

    Yields:
        The stages, in the order in which they end.

    Example:
        >>> with collect_stages() as stages:
        ...     with logged_stage(logging.getLogger("example"), "scan") as stage:
        ...         stage.rows = 7
        >>> stages[0].name, stages[0].rows
        ('scan', 7)
    """
    stages: list[Stage] = []
    token = _collected.set(stages)
    try:
        yield stages
    finally:
        _collected.reset(token)


@contextmanager
def logged_stage(logger: logging.Logger, name: str) -> Iterator[Stage]:
    """Log a stage at its end, at level INFO: its name, rows and bytes if it counts them, and seconds.

    A stage that fails is collected but not logged: it has no totals worth a line, and its error is reported instead.

    Args:
        logger: Logger of the caller.
        name: Name of the stage.

    Yields:
        The stage, whose rows and bytes the block fills in.
    """
    stage, started = Stage(name), time.monotonic()
    try:
        yield stage
    except BaseException:
        stage.seconds, stage.failed = time.monotonic() - started, True
        _collect(stage)
        raise
    stage.seconds = time.monotonic() - started
    log_stage(logger, stage, f"{stage.seconds:.2f} seconds")


def log_stage(logger: logging.Logger, stage: Stage, duration: str) -> None:
    """Log and collect a stage that has ended.

    Args:
        logger: Logger of the caller.
        stage: The stage.
        duration: How long it took, in words.
    """
    _collect(stage)
    rows = [] if stage.rows is None else [f"{stage.rows} rows"]
    size = [] if stage.size_bytes is None else [f"{stage.size_bytes} bytes"]
    logger.info("stage %s: %s", stage.name, ", ".join([*rows, *size, duration]))


def _collect(stage: Stage) -> None:
    stages = _collected.get()
    if stages is not None:
        stages.append(stage)
