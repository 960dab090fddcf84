"""The frames that expectations run on: counters and books with a row per statistic, samples with their order made visible.

A frame of counters has the columns of the table it is about, so that Data Docs speaks of them by name. Frames are of
pandas, which Great Expectations computes with.
"""

from __future__ import annotations

from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any

import numpy as np
import polars as pl

from longbatch.schemas.accounting import RowAccounting
from longbatch.schemas.profile import ColumnProfile, Number, Profile, TableName, TableProfile
from longbatch.schemas.spec.build_spec import BuildSpec
from longbatch.schemas.time import from_microseconds, to_microseconds

from .generated_suites import (
    COUNT,
    LARGEST,
    MEAN,
    REJECTED,
    SHARE_OF_NULLS,
    SMALLEST,
    SPREAD,
    STATISTIC,
    TOTAL_MINUS_IMPRESSIONS,
    WITHOUT_OUTCOME,
    table_columns,
)

Statistics = dict[str, Number | datetime | None]
_LATEST_US = to_microseconds(datetime.max.replace(tzinfo=UTC))
_EARLIEST_US = to_microseconds(datetime.min.replace(tzinfo=UTC))
_NULLABLE = {pl.Int8: "Int8", pl.Int16: "Int16", pl.Int32: "Int32", pl.Int64: "Int64", pl.Boolean: "boolean"}


def profile_frame(spec: BuildSpec, table: TableName, profile: Profile) -> Any:
    """Return the counters of a table: its columns, and `rows`; a row per statistic; times as times."""
    found = profile.tables.get(table, TableProfile())
    times = {column.name for column in table_columns(spec)[table] if column.type == "time"}
    statistics = {name: _statistics(counters, found.rows) for name, counters in found.columns.items()}
    for name in times & set(statistics):
        for bound in (SMALLEST, LARGEST):
            statistics[name][bound] = _moment(statistics[name][bound])
    if "targets" in statistics:
        impressions = profile.tables.get("impressions", TableProfile()).rows
        statistics["targets"][TOTAL_MINUS_IMPRESSIONS] = (found.columns["targets"].total or 0) - impressions
    return _statistics_frame({"rows": {COUNT: found.rows}, **statistics})


def sources_frame(spec: BuildSpec, row_accounting: Mapping[str, RowAccounting]) -> Any:
    """Return the books: a column per source; shares are of the rows that no `where` filtered out."""
    books: dict[str, Statistics] = {}
    for source, accounting in row_accounting.items():
        outcomes = (
            accounting.filtered
            + accounting.rejected
            + accounting.duplicate
            + accounting.accepted
            + sum(accounting.policies.values())
        )
        rejected = [accounting.rejected, *(accounting.reasons.get(reason, 0) for reason in spec.max_rejected_for)]
        asked = max(1, accounting.rows - accounting.filtered)
        shares = {f"{REJECTED} {number}": count / asked for number, count in enumerate(rejected)}
        books[source] = {WITHOUT_OUTCOME: accounting.rows - outcomes, **shares}
    return _statistics_frame(books)


def sample_frame(table: TableName, sample: pl.DataFrame) -> Any:
    """Return a sample with `step_us`, the time since the row before of the same user, and for events `lag_us`.

    Integers and booleans that are null somewhere keep their type, where pandas would make floats or objects of them.
    """
    time = "visible_time" if table == "events" else "request_time"
    sample = sample.with_columns(step_us=pl.col(time).diff().over("user_id").dt.total_microseconds())
    if table == "events":
        sample = sample.with_columns(lag_us=(pl.col(time) - pl.col("event_time")).dt.total_microseconds())
    frame = sample.to_pandas()
    for column in sample.iter_columns():
        nullable = _NULLABLE.get(column.dtype.base_type())
        if nullable and column.null_count():
            frame[column.name] = column.to_pandas(use_pyarrow_extension_array=True).astype(nullable)
    return frame


def _statistics(column: ColumnProfile, rows: int) -> Statistics:
    valued = rows - column.nulls
    return {
        SHARE_OF_NULLS: column.nulls / rows if rows else 0,
        SMALLEST: column.min,
        LARGEST: column.max,
        MEAN: None if column.total is None or not valued else column.total / valued,
        SPREAD: None if column.min is None or column.max is None else column.max - column.min,
    }


def _moment(time_us: Any) -> datetime | None:
    """Return the time of a number of microseconds, the nearest there is if it is out of all calendars."""
    if time_us is None:
        return None
    return from_microseconds(min(max(int(time_us), _EARLIEST_US), _LATEST_US))


def _statistics_frame(columns: Mapping[str, Statistics]) -> Any:
    """Return a row per statistic; values of one column differ in type, so that integers stay exact."""
    names = list(dict.fromkeys(name for statistics in columns.values() for name in statistics))
    frame = pl.DataFrame({STATISTIC: names}).to_pandas()
    for column, statistics in columns.items():
        values = np.empty(len(names), dtype=object)
        values[:] = [statistics.get(name) for name in names]
        frame[column] = values
    return frame
