"""The pandas frames that expectations run on: counters with one row per statistic, and samples.

A frame of counters has the columns of the table that it is about, so that Data Docs shows them by name.
"""

from __future__ import annotations

from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any, TypeAlias

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

PandasFrame: TypeAlias = Any  # pandas has no types that mypy could read
Statistics = dict[str, Number | datetime | None]
_LATEST_US = to_microseconds(datetime.max.replace(tzinfo=UTC))
_EARLIEST_US = to_microseconds(datetime.min.replace(tzinfo=UTC))
_NULLABLE = {pl.Int8: "Int8", pl.Int16: "Int16", pl.Int32: "Int32", pl.Int64: "Int64", pl.Boolean: "boolean"}


def profile_frame(spec: BuildSpec, table: TableName, profile: Profile) -> PandasFrame:
    """Return the counters of a table.

    Args:
        spec: The build spec.
        table: The table.
        profile: The profile of the build.

    Returns:
        A row per statistic; the columns are those of the table, and `rows`. Times are datetimes.
    """
    counters = profile.tables.get(table, TableProfile())
    times = {column.name for column in table_columns(spec)[table] if column.type == "time"}
    statistics = {name: _statistics(column, counters.rows) for name, column in counters.columns.items()}
    for name in times & set(statistics):
        for bound in (SMALLEST, LARGEST):
            statistics[name][bound] = _datetime(counters.columns[name], bound)
    if "targets" in statistics:
        impressions = profile.tables.get("impressions", TableProfile()).rows
        statistics["targets"][TOTAL_MINUS_IMPRESSIONS] = (counters.columns["targets"].total or 0) - impressions
    return _statistics_frame({"rows": {COUNT: counters.rows}, **statistics})


def sources_frame(spec: BuildSpec, row_accounting: Mapping[str, RowAccounting]) -> PandasFrame:
    """Return the row accounting of a build.

    Args:
        spec: The build spec.
        row_accounting: Row counts by source.

    Returns:
        A row per statistic and a column per source. Shares are of the rows that some `where` selects.
    """
    statistics: dict[str, Statistics] = {}
    for source, counts in row_accounting.items():
        policies = sum(counts.policies.values())
        with_outcome = counts.filtered + counts.rejected + counts.duplicate + counts.accepted + policies
        rejected = [counts.rejected, *(counts.reasons.get(reason, 0) for reason in spec.max_rejected_for)]
        selected = max(1, counts.rows - counts.filtered)
        shares = {f"{REJECTED} {number}": count / selected for number, count in enumerate(rejected)}
        statistics[source] = {WITHOUT_OUTCOME: counts.rows - with_outcome, **shares}
    return _statistics_frame(statistics)


def sample_frame(table: TableName, sample: pl.DataFrame) -> PandasFrame:
    """Return a sample with columns that make its order visible to expectations.

    Args:
        table: The table.
        sample: The sampled rows, those of a user in order.

    Returns:
        The sample with `step_us`, the time since the previous row of the same user, and for events `lag_us`, the time
        from `event_time` to `visible_time`. Integers and booleans with nulls keep their type as nullable pandas types;
        pandas would otherwise convert them to floats or objects.
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
    not_null = rows - column.nulls
    return {
        SHARE_OF_NULLS: column.nulls / rows if rows else 0,
        SMALLEST: column.min,
        LARGEST: column.max,
        MEAN: None if column.total is None or not not_null else column.total / not_null,
        SPREAD: None if column.min is None or column.max is None else column.max - column.min,
    }


def _datetime(column: ColumnProfile, bound: str) -> datetime | None:
    """Return the smallest or largest time of a column; one that datetime cannot represent becomes its limit."""
    time_us = column.min if bound == SMALLEST else column.max
    return None if time_us is None else from_microseconds(min(max(int(time_us), _EARLIEST_US), _LATEST_US))


def _statistics_frame(columns: Mapping[str, Statistics]) -> PandasFrame:
    """Return a row per statistic; columns have dtype object, so that integers stay exact next to floats."""
    names = list(dict.fromkeys(name for statistics in columns.values() for name in statistics))
    frame = pl.DataFrame({STATISTIC: names}).to_pandas()
    for column, statistics in columns.items():
        values = np.empty(len(names), dtype=object)
        values[:] = [statistics.get(name) for name in names]
        frame[column] = values
    return frame
