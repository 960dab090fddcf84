"""Expectation suites made from a build spec: what must hold of any dataset that the spec describes, as plain data.

Each table ("events", "impressions", "requests") has two suites: one on the counters of all its rows, exact, and one
on a sample of its rows, which can also see types, order and combinations. One more is on the books of the sources.
Nothing here imports Great Expectations; `expectations.py` runs these.
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

Kind = Literal["counters", "sample"]
ColumnType = Literal["time"] | FeatureType
# What Great Expectations calls the types of pandas columns (the ints and floats are called the same).
PANDAS_TYPES: dict[ColumnType, str] = {"time": "Timestamp", "string": "str", "id": "int64"}
SHARE_OF_NULLS, SMALLEST, LARGEST, MEAN, SPREAD = "share of nulls", "smallest", "largest", "mean", "spread"
COUNT, TOTAL_MINUS_IMPRESSIONS = "count", "total minus impressions"
REJECTED, WITHOUT_OUTCOME = "share rejected", "rows without a outcome"
STATISTIC = "the statistic"  # no source can have this name
ROUNDING = 1 + 1e-9  # a share is divided here, and multiplied where the build checks it


@dataclass(frozen=True)
class Expectation:
    """One expectation: Great Expectations' type and arguments (as in JSON), and what it says in plain words.

    A warning is shown, but fails nothing: data can be sound and look like that.
    """

    type: str
    kwargs: Mapping[str, Any]
    says: str
    is_warning: bool = False

    @property
    def column(self) -> str | None:
        """The column it is about, None if it is about several or about the table."""
        return self.kwargs.get("column")

    @property
    def statistic(self) -> str | None:
        """The counter it looks at, None if it looks at rows."""
        condition = self.kwargs.get("row_condition", {})
        return condition["parameter"] if condition.get("column") == {"name": STATISTIC} else None


@dataclass(frozen=True)
class Suite:
    """The expectations of one table, or of the sources, that run on its counters or on its sample."""

    table: TableName | Literal["sources"]
    kind: Kind
    expectations: tuple[Expectation, ...]

    @property
    def name(self) -> str:
        """Its name for people, and of its page."""
        return f"{self.table}, {self.kind}"


@dataclass(frozen=True)
class Column:
    """A column of a table: its type, whether it may be null, the range (both ends allowed) or set of its values.

    A label of which `is_rate` holds is 0 or 1, so that its mean is a rate.
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
        """Whether it is a label that is 0 or 1."""
        return self.is_label and (self.type == "bool" or set(self.values or (None,)) <= {0, 1})


def generated_suites(spec: BuildSpec) -> tuple[Suite, ...]:
    """Return all suites that follow from a spec."""
    columns = table_columns(spec)
    counters = [Suite(table, "counters", tuple(_counter_expectations(table, columns[table]))) for table in TABLES]
    samples = [Suite(table, "sample", tuple(_sample_expectations(spec, table, columns[table]))) for table in TABLES]
    return (Suite("sources", "counters", tuple(_source_expectations(spec))), *counters, *samples)


# Columns


def table_columns(spec: BuildSpec) -> dict[TableName, list[Column]]:
    """Return the columns of the three tables that a build profiles and samples, and what must hold of them."""
    requests, begin, end = spec.requests, *(moment.astimezone(UTC) for moment in spec.time_range)
    id_type: ColumnType = "string" if requests.request_id and requests.request_id.type == "string" else "int64"
    context = [
        Column("request_id", id_type),
        Column("user_id", "int64"),
        Column("request_time", "time", low=begin, high=end),
    ]
    features = [_feature_column(f"request.{name}", feature) for name, feature in requests.features.items()]
    return {
        "events": [
            Column("user_id", "int64"),
            Column("item_id", "int64"),
            Column("event_time", "time", low=begin, high=end),
            Column("visible_time", "time", low=begin),
            *(_feature_column(f"history.{name}", feature) for name, feature in spec.history.features.items()),
        ],
        "impressions": [
            *context,
            Column("item_id", "int64"),
            *features,
            *(_feature_column(f"target.{name}", feature) for name, feature in requests.target_features.items()),
            *(_label_column(f"label.{name}", label) for name, label in requests.labels.items()),
        ],
        "requests": [
            *context,
            Column("targets", "int64", low=1, high=requests.max_targets),
            Column("history_length", "int64", low=0, high=spec.history_length),
            Column("newest_age_us", "int64", nullable=True, low=1),
            *features,
        ],
    }


def _feature_column(name: str, feature: Feature) -> Column:
    column = Column(name, feature.type, nullable=feature.default is None)
    return _as_declared(column, feature, feature.default)


def _label_column(name: str, label: Label) -> Column:
    """Return a label's column. What it declares is of raw values: an aggregate may be something else."""
    column = Column(name, label.type)
    if label.aggregate == "any" or label.contained_in:
        is_rate = label.type != "bool" and (label.default or 0) in (0, 1)
        return replace(column, values=(0, 1)) if is_rate else column
    if label.aggregate == "count":
        return replace(column, low=0)
    if label.aggregate == "sum":
        return column
    return _as_declared(column, label, (label.default or 0) if label.aggregate == "max" else label.default)


def _as_declared(column: Column, declared: Feature | Label, default: float | str | None) -> Column:
    """Add the declared range or values, widened by the default, which need not be among them."""
    numbers = [] if default is None or isinstance(default, str) else [default]
    if not all(map(math.isfinite, numbers)):
        return column
    low = None if declared.min is None else min([declared.min, *numbers])
    high = None if declared.max is None else max([declared.max, *numbers])
    if column.type == "float32":  # where 0.1 is a little more than 0.1
        low, high = (None if bound is None else float(np.float32(bound)) for bound in (low, high))
    known = [] if default is None else [default]
    values = None if declared.values is None else _stored([*declared.values, *known], column.type)
    return replace(column, low=low, high=high, values=values)


def _stored(values: list[Any], type: ColumnType) -> tuple[int | str, ...]:
    """Return values as they are stored. An id is a number, or the hash of a text; the log says which."""
    if type == "id":
        values = [v for v in values if not isinstance(v, str)] + [string_id(str(v)) for v in values]
    return tuple(dict.fromkeys(values))


# Expectations


def _counter_expectations(table: TableName, columns: list[Column]) -> Iterator[Expectation]:
    """What holds of the counters of all rows."""
    yield _at_least("rows", COUNT, 1, f"the number of {table} is at least 1", is_warning=table == "events")
    for column in columns:
        yield from _null_expectations(column)
        low, high = _range(column)
        if low is not None:
            yield _at_least(column.name, SMALLEST, low, f"the smallest {column.name} is at least {_text(low)}")
        if high is not None:
            yield _at_most(column.name, LARGEST, high, f"the largest {column.name} is at most {_text(high)}")
        if column.is_rate:
            says = f"the mean of {column.name}, a rate, is between 0 and 1"
            yield _at_least(column.name, MEAN, 0, says, max_value=1)
        if column.is_label:
            says = f"the largest {column.name} less the smallest is above 0"
            yield _at_least(column.name, SPREAD, 0, says, is_warning=True, strict_min=True)
    if table == "requests":
        says = "the targets of all requests less the impressions are 0"
        yield _at_least("targets", TOTAL_MINUS_IMPRESSIONS, 0, says, max_value=0)


def _null_expectations(column: Column) -> Iterator[Expectation]:
    share = f"the share of nulls of {column.name} is"
    if not column.nullable:
        yield _at_most(column.name, SHARE_OF_NULLS, 0, f"{share} 0")
    elif column.name != "newest_age_us":
        yield _at_most(column.name, SHARE_OF_NULLS, 1, f"{share} below 1", is_warning=True, strict_max=True)


def _range(column: Column) -> tuple[Number | datetime | None, Number | datetime | None]:
    """Return the smallest and largest value that the column can have; of a set of numbers, its ends."""
    numbers = [value for value in column.values or () if not isinstance(value, str)]
    return (min(numbers), max(numbers)) if numbers and column.type != "id" else (column.low, column.high)


def _source_expectations(spec: BuildSpec) -> Iterator[Expectation]:
    """What holds of the books of every source; statistics of reasons are numbered, for a reason may be any text."""
    for source in spec.sources:
        yield _at_least(
            source, WITHOUT_OUTCOME, 0, f"the number of rows of {source} without a outcome is 0", max_value=0
        )
        for number, (reason, share) in enumerate([("", spec.max_rejected), *spec.max_rejected_for.items()]):
            says = f"the share of rows of {source} rejected{f' for {reason}' if reason else ''} is at most {share:g}"
            yield _at_most(source, f"{REJECTED} {number}", share * ROUNDING, says)


def _sample_expectations(spec: BuildSpec, table: TableName, columns: list[Column]) -> Iterator[Expectation]:
    """What holds of rows: types, sets, ranges, order; `step_us` and `lag_us` are added to the sample."""
    names = [column.name for column in columns]
    yield Expectation(
        "expect_table_columns_to_match_set",
        {"column_set": names, "exact_match": False},
        "all columns of the spec are there",
    )
    for column in columns:
        says = f"{column.name} is of type {column.type}"
        kwargs = {"column": column.name, "type_": PANDAS_TYPES.get(column.type, column.type)}
        yield Expectation("expect_column_values_to_be_of_type", kwargs, says)
        if column.low is not None or column.high is not None:
            yield _between(column.name, column.low, column.high)
        if column.values is not None:
            known = {"column": column.name, "value_set": list(column.values)}
            yield Expectation("expect_column_values_to_be_in_set", known, f"{column.name} is {_one_of(column.values)}")
    time = "visible_time" if table == "events" else "request_time"
    yield replace(_between("step_us", 0, None), says=f"{time} never goes back within a user's rows")
    if table == "events":
        delay = spec.history.delay_us
        lag = _between("lag_us", delay, None if spec.history.arrival_time else delay)
        yield replace(lag, says=lag.says.replace("lag_us", "the time from event_time to visible_time") + " us")
    if table == "requests":
        yield from _request_expectations()


def _request_expectations() -> Iterator[Expectation]:
    yield Expectation(
        "expect_compound_columns_to_be_unique",
        {"column_list": ["user_id", "request_id"]},
        "a user's request is there once",
    )
    yield Expectation(
        "expect_column_values_to_not_be_null",
        {"column": "newest_age_us", "row_condition": _where("history_length", ">", 0)},
        "newest_age_us is there wherever history_length is not 0",
    )


def _between(column: str, low: Number | datetime | None, high: Number | datetime | None) -> Expectation:
    if low is None or high is None:
        says = f"at most {_text(high)}" if low is None else f"at least {_text(low)}"
    else:
        says = f"between {_text(low)} and {_text(high)}" if low != high else f"always {_text(low)}"
    kwargs = {"column": column, "min_value": _loose(low, -math.inf), "max_value": _loose(high, math.inf)}
    return Expectation("expect_column_values_to_be_between", kwargs, f"{column} is {says}")


def _at_least(
    column: str, statistic: str, low: Number | datetime, says: str, *, is_warning: bool = False, **kwargs: Any
) -> Expectation:
    kwargs |= {"min_value": _loose(low, -math.inf), "row_condition": _where(STATISTIC, "==", statistic)}
    return Expectation("expect_column_min_to_be_between", {"column": column, **kwargs}, says, is_warning)


def _at_most(
    column: str, statistic: str, high: Number | datetime, says: str, *, is_warning: bool = False, **kwargs: Any
) -> Expectation:
    kwargs |= {"max_value": _loose(high, math.inf), "row_condition": _where(STATISTIC, "==", statistic)}
    return Expectation("expect_column_max_to_be_between", {"column": column, **kwargs}, says, is_warning)


def _loose(bound: Number | datetime | None, towards: float) -> Number | datetime | None:
    """Move a bound that no float holds to the next one outwards: Great Expectations makes floats of them."""
    if isinstance(bound, int) and abs(bound) > 2**53:
        return math.nextafter(bound, towards)
    return bound


def _where(column: str, operator: str, value: str | int) -> dict[str, Any]:
    """Return a row condition in Great Expectations' own form."""
    return {"type": "comparison", "column": {"name": column}, "operator": operator, "parameter": value}


def _text(value: Number | datetime | None) -> str:
    return f"{value:%Y-%m-%d %H:%M:%S} UTC" if isinstance(value, datetime) else f"{value:,}"


def _one_of(values: tuple[int | str, ...]) -> str:
    if len(values) > 5:
        return f"one of the {len(values)} values that are declared"
    return " or ".join(str(value) if isinstance(value, int) else f"{value!r}" for value in values)
