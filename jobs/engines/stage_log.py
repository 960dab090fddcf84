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
        rows: Rows that the stage read or wrote.
        size: Bytes that the stage read or wrote.
    """

    rows: int = 0
    size: int = 0


@contextmanager
def logged_stage(logger: logging.Logger, stage: str) -> Iterator[StageTotals]:
    """Log a stage at its end, at level INFO: its name, rows, bytes and seconds.

    Args:
        logger: Logger of the engine.
        stage: Name of the stage.

    Yields:
        Totals for the block to fill in.
    """
    # Without `finally`: a stage that failed has no totals worth a line, and its error is reported instead.
    totals, started = StageTotals(), time.monotonic()
    yield totals
    seconds = time.monotonic() - started
    logger.info("stage %s: %d rows, %d bytes, %.2f seconds", stage, totals.rows, totals.size, seconds)
