"""One log line per stage of a build."""

from __future__ import annotations

import logging
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass


@dataclass
class StageTotals:
    """Amounts of a stage, filled in while it runs.

    Attributes:
        rows: Rows that the stage read or wrote; None if it does not count them.
        size: Bytes that the stage read or wrote; None if it does not count them.
    """

    rows: int | None = None
    size: int | None = None


@contextmanager
def logged_stage(logger: logging.Logger, stage: str) -> Iterator[StageTotals]:
    """Log a stage at its end, at level INFO: its name, rows and bytes if it counts them, and seconds.

    Args:
        logger: Logger of the engine.
        stage: Name of the stage.

    Yields:
        Totals for the block to fill in.
    """
    # Without `finally`: a stage that failed has no totals worth a line, and its error is reported instead.
    totals, started = StageTotals(), time.monotonic()
    yield totals
    log_stage(logger, stage, totals, f"{time.monotonic() - started:.2f} seconds")


def log_stage(logger: logging.Logger, stage: str, totals: StageTotals, duration: str) -> None:
    """Log a stage that has ended.

    Args:
        logger: Logger of the engine.
        stage: Name of the stage.
        totals: Its rows and bytes.
        duration: How long it took.
    """
    rows = [] if totals.rows is None else [f"{totals.rows} rows"]
    size = [] if totals.size is None else [f"{totals.size} bytes"]
    logger.info("stage %s: %s", stage, ", ".join([*rows, *size, duration]))
