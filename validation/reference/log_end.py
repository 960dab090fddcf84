"""Until when the log of actions is complete, found without reading value by value more than the latest rows."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import polars as pl

from longbatch.schemas.spec.build_spec import BuildSpec
from longbatch.schemas.spec.columns import DURATION_US, TimeColumn

from .raw_files import Advance, chunks
from .raw_rows import keyed, rows_in
from .row_outcomes import source_rows
from .user_counts import made_columns
from .values import Unparsable, microseconds, value_reader

SLICE_ROWS = 500


def log_end(spec: BuildSpec, advance: Advance = lambda rows: None) -> int | None:
    """Return until when the actions are complete, in microseconds UTC; None without actions.

    The reference reads the rows of each chunk from the latest on, until one is sound. Times in ISO text are all read.
    """
    if spec.actions is None:
        return None
    if spec.actions.until is not None:
        return microseconds(spec.actions.until)
    source, column = spec.actions.source, spec.actions.event_time
    latest: int | None = None
    for chunk in chunks(spec, source, keyed(spec, source, [column.column]), advance):
        for rows in _latest_first(chunk.frame, column, column.column in made_columns(spec, source)):
            found = source_rows(spec, source, rows_in(spec, source, rows).frame).latest_action
            if found is not None:
                latest = found if latest is None else max(found, latest)
                break
    return latest


def _latest_first(frame: pl.DataFrame, column: TimeColumn, exploded: bool) -> Iterator[pl.DataFrame]:
    """Yield slices of a chunk: first those of unknown times with the latest known, then the others from the latest."""
    if exploded:
        yield frame
        return
    times = frame.with_columns(pl.Series("#time", _comparable(frame[column.column], column)))
    rows = times.sort("#time", descending=True, nulls_last=False)
    first = int(rows["#time"].null_count()) + SLICE_ROWS
    yield rows[:first].drop("#time")
    for start in range(first, rows.height, SLICE_ROWS):
        yield rows[start : start + SLICE_ROWS].drop("#time")


def _comparable(times: pl.Series, column: TimeColumn) -> Any:
    """Return numbers in the order of raw times, null where it takes the reference to tell."""
    if times.dtype != pl.String:
        return times
    if column.unit in DURATION_US:
        return times.cast(pl.Float64, strict=False)
    read = value_reader(column)

    def or_none(text: str) -> int | None:
        try:
            return int(read(text))
        except Unparsable:
            return None

    return [None if text is None else or_none(text) for text in times]
