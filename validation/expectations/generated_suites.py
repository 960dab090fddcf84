"""Expectation suites generated from a build spec: what holds for every dataset of the spec, as plain data.

Each table ("events", "impressions", "requests") has two suites: an exact one on the counters of all its rows, and one
on a sample of its rows, which also sees types, order and combinations. One more suite checks the row accounting of
the sources. Nothing here imports Great Expectations; `runner.py` runs the suites.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from typing import Any, Literal

import numpy as np

from longbatch.schemas.profile import TABLES, Number, TableName
from longbatch.schemas.spec.build_spec import BuildSpec
from longbatch.schemas.spec.columns import Feature, FeatureType, Label
from longbatch.validation.reference.values import string_id

Basis = Literal["counters", "sample"]
ColumnType = Literal["time"] | FeatureType
# What Great Expectations calls the types of pandas columns; other types have the same name in both.
PANDAS_TYPES: dict[ColumnType, str] = {"time": "Timestamp", "string": "str", "id": "int64"}
SHARE_OF_NULLS, SMALLEST, LARGEST, MEAN, SPREAD = "share of nulls", "smallest", "largest", "mean", "spread"
COUNT, TOTAL_MINUS_IMPRESSIONS = "count", "total minus impressions"
REJECTED, WITHOUT_OUTCOME = "share rejected", "rows without an outcome"
STATISTIC = "the statistic"  # the column that names the statistic of a row; no source can have this name
ROUNDING = 1 + 1e-9  # a share is a quotient here, where the build compares products


@dataclass(frozen=True)
class Expectation:
    """One expectation.

    Attributes:
        type: Great Expectations' name of it, such as "expect_column_values_to_be_between".
        kwargs: Its arguments, as in JSON.
        statement: What is expected, as a sentence without capital and full stop.
        is_warning: Whether a dataset that does not meet it may still be valid, so that nothing fails.
    """

    type: str
    kwargs: Mapping[str, Any]
    statement: str
    is_warning: bool = False

    @property
    def column(self) -> str | None:
        """The column it is about, None if it is about several columns or the table."""
        return self.kwargs.get("column")

    @property
    def statistic(self) -> str | None:
        """The counter it looks at, None if it looks at rows."""
        condition = self.kwargs.get("row_condition", {})
        return condition["parameter"] if condition.get("column") == {"name": STATISTIC} else None


@dataclass(frozen=True)
class Suite:
    """Expectations that run together.

    Attributes:
        table: The table they are about, or "sources" for the row accounting.
        basis: Whether they run on counters of all rows or on a sample of rows.
        expectations: The expectations.
    """

    table: TableName | Literal["sources"]
    basis: Basis
    expectations: tuple[Expectation, ...]

    @property
    def name(self) -> str:
        """The name in results and in Data Docs."""
        return f"{self.table}, {self.basis}"


@dataclass(frozen=True)
class Column:
    """A column of a table, and what must hold for its values.

    Attributes:
        name: Its name in the profile and the sample.
        type: Its type.
        nullable: Whether it may contain nulls.
        low: The smallest allowed value.
        high: The largest allowed value.
        values: The allowed values.
    """

    name: str
    type: ColumnType
    nullable: bool = False
    low: Number | datetime | None = None
    high: Number | datetime | None = None
    values: tuple[int | str, ...] | None = None

    @property
    def is_label(self) -> bool:
        """Whether it is a label of a target."""
        return self.name.startswith("label.")

    @property
    def is_rate(self) -> bool:
        """Whether it is a label that is 0 or 1, so that its mean is a rate."""
        return self.is_label and (self.type == "bool" or set(self.values or (None,)) <= {0, 1})


def generated_suites(spec: BuildSpec) -> tuple[Suite, ...]:
    """Return all suites that follow from a spec.

    Args:
        spec: The build spec.
    """
    columns = table_columns(spec)
    counters = [Suite(table, "counters", tuple(_counter_expectations(table, columns[table]))) for table in TABLES]
    samples = [Suite(table, "sample", tuple(_sample_expectations(spec, table, columns[table]))) for table in TABLES]
    return (Suite("sources", "counters", tuple(_source_expectations(spec))), *counters, *samples)


# Columns


def table_columns(spec: BuildSpec) -> dict[TableName, list[Column]]:
    """Return the columns of the three tables that a build profiles and samples.

    Args:
        spec: The build spec.
    """
    requests = spec.requests
    earliest, latest = (moment.astimezone(UTC) for moment in spec.time_range)
    id_type: ColumnType = "string" if requests.request_id and requests.request_id.type == "string" else "int64"
    request_keys = [
        Column("request_id", id_type),
        Column("user_id", "int64"),
        Column("request_time", "time", low=earliest, high=latest),
    ]
    features = [_feature_column(f"request.{name}", feature) for name, feature in requests.features.items()]
    return {
        "events": [
            Column("user_id", "int64"),
            Column("item_id", "int64"),
            Column("event_time", "time", low=earliest, high=latest),
            Column("visible_time", "time", low=earliest),
            *(_feature_column(f"history.{name}", feature) for name, feature in spec.history.features.items()),
        ],
        "impressions": [
            *request_keys,
            Column("item_id", "int64"),
            *features,
            *(_feature_column(f"target.{name}", feature) for name, feature in requests.target_features.items()),
            *(_label_column(f"label.{name}", label) for name, label in requests.labels.items()),
        ],
        "requests": [
            *request_keys,
            Column("targets", "int64", low=1, high=requests.max_targets),
            Column("history_length", "int64", low=0, high=spec.history_length),
            Column("newest_age_us", "int64", nullable=True, low=1),
            *features,
        ],
    }


def _feature_column(name: str, feature: Feature) -> Column:
    column = Column(name, feature.type, nullable=feature.default is None)
    return _with_declared_values(column, feature, feature.default)


def _label_column(name: str, label: Label) -> Column:
    """Return a label's column; what is declared holds for raw values, and an aggregate of them may differ."""
    column = Column(name, label.type)
    if label.aggregate == "any" or label.contained_in:
        is_rate = label.type != "bool" and (label.default or 0) in (0, 1)
        return replace(column, values=(0, 1)) if is_rate else column
    if label.aggregate == "count":
        return replace(column, low=0)
    if label.aggregate == "sum":
        return column
    return _with_declared_values(column, label, (label.default or 0) if label.aggregate == "max" else label.default)


def _with_declared_values(column: Column, declared: Feature | Label, default: float | str | None) -> Column:
    """Add the declared range or set, extended by the default, which need not be in it."""
    numbers = [] if default is None or isinstance(default, str) else [default]
    if not all(map(math.isfinite, numbers)):
        return column
    low = None if declared.min is None else min([declared.min, *numbers])
    high = None if declared.max is None else max([declared.max, *numbers])
    if column.type == "float32":  # the float32 nearest to 0.1 is a little more than 0.1
        low, high = (None if bound is None else float(np.float32(bound)) for bound in (low, high))
    defaults = [] if default is None else [default]
    values = None if declared.values is None else _stored_values([*declared.values, *defaults], column.type)
    return replace(column, low=low, high=high, values=values)


def _stored_values(values: list[Any], column_type: ColumnType) -> tuple[int | str, ...]:
    """Return values as they are stored; an id is stored as a number, or as the hash of its string."""
    if column_type == "id":
        # A declared number may be a string in the log, so both forms are allowed.
        values = [value for value in values if not isinstance(value, str)] + [string_id(str(value)) for value in values]
    return tuple(dict.fromkeys(values))


# Expectations


def _counter_expectations(table: TableName, columns: list[Column]) -> Iterator[Expectation]:
    """Yield what holds for the counters of all rows."""
    yield _at_least("rows", COUNT, 1, f"the number of {table} is at least 1", is_warning=table == "events")
    for column in columns:
        yield from _null_expectations(column)
        low, high = _range(column)
        if low is not None:
            yield _at_least(column.name, SMALLEST, low, f"the smallest {column.name} is at least {_format(low)}")
        if high is not None:
            yield _at_most(column.name, LARGEST, high, f"the largest {column.name} is at most {_format(high)}")
        if column.is_rate:
            statement = f"the mean of {column.name}, a rate, is between 0 and 1"
            yield _at_least(column.name, MEAN, 0, statement, max_value=1)
        if column.is_label:
            statement = f"{column.name} has more than one value: the largest minus the smallest is above 0"
            yield _at_least(column.name, SPREAD, 0, statement, is_warning=True, strict_min=True)
    if table == "requests":
        statement = "the number of targets of all requests minus the number of impressions is 0"
        yield _at_least("targets", TOTAL_MINUS_IMPRESSIONS, 0, statement, max_value=0)


def _null_expectations(column: Column) -> Iterator[Expectation]:
    share = f"the share of nulls in {column.name} is"
    if not column.nullable:
        yield _at_most(column.name, SHARE_OF_NULLS, 0, f"{share} 0")
    elif column.name != "newest_age_us":
        yield _at_most(column.name, SHARE_OF_NULLS, 1, f"{share} below 1", is_warning=True, strict_max=True)


def _range(column: Column) -> tuple[Number | datetime | None, Number | datetime | None]:
    """Return the smallest and largest allowed value; for a set of numbers, its extremes."""
    numbers = [value for value in column.values or () if not isinstance(value, str)]
    return (min(numbers), max(numbers)) if numbers and column.type != "id" else (column.low, column.high)


def _source_expectations(spec: BuildSpec) -> Iterator[Expectation]:
    """Yield what holds for the row accounting; statistics are numbered, because a reason may contain any string."""
    for source in spec.sources:
        statement = f"the number of rows of {source} without an outcome is 0"
        yield _at_least(source, WITHOUT_OUTCOME, 0, statement, max_value=0)
        for number, (reason, share) in enumerate([("", spec.max_rejected), *spec.max_rejected_for.items()]):
            rejected = f"rejected for {reason}" if reason else "rejected"
            statement = f"the share of rows of {source} {rejected} is at most {share:g}"
            yield _at_most(source, f"{REJECTED} {number}", share * ROUNDING, statement)


def _sample_expectations(spec: BuildSpec, table: TableName, columns: list[Column]) -> Iterator[Expectation]:
    """Yield what holds for rows: types, sets, ranges, order; `sample_frame` adds `step_us` and `lag_us`."""
    yield Expectation(
        "expect_table_columns_to_match_set",
        {"column_set": [column.name for column in columns], "exact_match": False},
        "all columns of the spec are present",
    )
    for column in columns:
        statement = f"{column.name} is of type {column.type}"
        kwargs: dict[str, Any] = {"column": column.name, "type_": PANDAS_TYPES.get(column.type, column.type)}
        yield Expectation("expect_column_values_to_be_of_type", kwargs, statement)
        if column.low is not None or column.high is not None:
            yield _between(column.name, column.low, column.high)
        if column.values is not None:
            statement = f"{column.name} is {_format_set(column.values)}"
            kwargs = {"column": column.name, "value_set": list(column.values)}
            yield Expectation("expect_column_values_to_be_in_set", kwargs, statement)
    time = "visible_time" if table == "events" else "request_time"
    yield replace(_between("step_us", 0, None), statement=f"{time} never decreases within a user's rows")
    if table == "events":
        delay = spec.history.delay_us
        lag = _between("lag_us", delay, None if spec.history.arrival_time else delay)
        yield replace(
            lag, statement=lag.statement.replace("lag_us", "the time from event_time to visible_time") + " us"
        )
    if table == "requests":
        yield from _request_expectations()


def _request_expectations() -> Iterator[Expectation]:
    yield Expectation(
        "expect_compound_columns_to_be_unique",
        {"column_list": ["user_id", "request_id"]},
        "each request of a user occurs once",
    )
    yield Expectation(
        "expect_column_values_to_not_be_null",
        {"column": "newest_age_us", "row_condition": _row_condition("history_length", ">", 0)},
        "newest_age_us is not null where history_length is above 0",
    )


def _between(column: str, low: Number | datetime | None, high: Number | datetime | None) -> Expectation:
    if low is None or high is None:
        statement = f"at most {_format(high)}" if low is None else f"at least {_format(low)}"
    else:
        statement = f"between {_format(low)} and {_format(high)}" if low != high else f"always {_format(low)}"
    kwargs = {"column": column, "min_value": _widened(low, -math.inf), "max_value": _widened(high, math.inf)}
    return Expectation("expect_column_values_to_be_between", kwargs, f"{column} is {statement}")


def _at_least(
    column: str, statistic: str, low: Number | datetime, statement: str, *, is_warning: bool = False, **kwargs: float
) -> Expectation:
    """Expect a statistic to be at least `low`; its row has one value, so the column's minimum is that value."""
    bounds = {"min_value": _widened(low, -math.inf), "row_condition": _row_condition(STATISTIC, "==", statistic)}
    return Expectation("expect_column_min_to_be_between", {"column": column, **kwargs, **bounds}, statement, is_warning)


def _at_most(
    column: str, statistic: str, high: Number | datetime, statement: str, *, is_warning: bool = False, **kwargs: float
) -> Expectation:
    bounds = {"max_value": _widened(high, math.inf), "row_condition": _row_condition(STATISTIC, "==", statistic)}
    return Expectation("expect_column_max_to_be_between", {"column": column, **kwargs, **bounds}, statement, is_warning)


def _widened(bound: Number | datetime | None, towards: float) -> Number | datetime | None:
    """Move a bound that is not a float to the next float outwards, because Great Expectations converts bounds."""
    if isinstance(bound, int) and abs(bound) > 2**53:
        return math.nextafter(bound, towards)
    return bound


def _row_condition(column: str, operator: str, value: str | int) -> dict[str, Any]:
    """Return a row condition in Great Expectations' own form."""
    return {"type": "comparison", "column": {"name": column}, "operator": operator, "parameter": value}


def _format(value: Number | datetime | None) -> str:
    return f"{value:%Y-%m-%d %H:%M:%S} UTC" if isinstance(value, datetime) else f"{value:,}"


def _format_set(values: tuple[int | str, ...]) -> str:
    if len(values) > 5:
        return f"one of the {len(values)} declared values"
    return " or ".join(str(value) if isinstance(value, int) else f"{value!r}" for value in values)
