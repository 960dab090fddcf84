"""The time up to which the log of actions is complete.

Reading every row with the plain-Python reference would take too long, so the latest rows of each chunk are read first.
"""

from __future__ import annotations

from collections.abc import Iterator

import polars as pl

from longbatch.schemas.spec.build_spec import BuildSpec
from longbatch.schemas.spec.columns import DURATION_US, TimeColumn
from longbatch.schemas.time import to_microseconds

from .raw_files import Advance, read_chunks
from .raw_rows import parse_chunk_rows, selection_columns
from .row_outcomes import classify_rows
from .user_counts import columns_of_exploded_rows
from .values import UnparsableError, value_reader

SLICE_ROWS = 500
_SORT_COLUMN = "#time"


def find_log_end(spec: BuildSpec, advance: Advance = lambda rows: None) -> int | None:
    """Return the time up to which the log of actions is complete.

    This is the spec's `until`, or else the latest time of an action without a reason of its own to be rejected. In
    each chunk rows are read from the latest on, until one is valid; times in ISO strings are all parsed first.

    Args:
        spec: The build spec.
        advance: Called with the number of rows of each chunk.

    Returns:
        Microseconds UTC; None without actions.
    """
    if spec.actions is None:
        return None
    if spec.actions.until is not None:
        return to_microseconds(spec.actions.until)
    source, time_column = spec.actions.source, spec.actions.event_time
    is_exploded = time_column.column in columns_of_exploded_rows(spec, source)
    latest: int | None = None
    for chunk in read_chunks(spec, source, selection_columns(spec, source, [time_column.column]), advance):
        for rows in [chunk.frame] if is_exploded else _latest_first(chunk.frame, time_column):
            latest_in_rows = classify_rows(spec, source, parse_chunk_rows(spec, source, rows).frame).latest_action
            if latest_in_rows is not None:
                latest = latest_in_rows if latest is None else max(latest_in_rows, latest)
                break
    return latest


def _latest_first(frame: pl.DataFrame, column: TimeColumn) -> Iterator[pl.DataFrame]:
    """Yield slices of a chunk: first the rows of unknown time and the latest ones, then the others, latest first."""
    times = frame.with_columns(_sortable(frame[column.column], column).alias(_SORT_COLUMN))
    rows = times.sort(_SORT_COLUMN, descending=True, nulls_last=False)
    first_slice = int(rows[_SORT_COLUMN].null_count()) + SLICE_ROWS
    yield rows[:first_slice].drop(_SORT_COLUMN)
    for start in range(first_slice, rows.height, SLICE_ROWS):
        yield rows[start : start + SLICE_ROWS].drop(_SORT_COLUMN)


def _sortable(times: pl.Series, column: TimeColumn) -> pl.Series:
    """Return values that sort as raw times do, null where only the reference can read the time."""
    if times.dtype != pl.String:
        return times
    if column.unit in DURATION_US:
        return times.cast(pl.Float64, strict=False)
    read = value_reader(column)

    def read_or_null(string: str) -> int | None:
        try:
            time_us = read(string)
        except UnparsableError:
            return None
        return int(time_us) if isinstance(time_us, int | float) else None

    return pl.Series([None if string is None else read_or_null(string) for string in times])
