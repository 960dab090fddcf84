"""Typed readings of raw columns: a Polars expression for the value, and one for each fault that it may have.

A value that is present but not readable never becomes a null or a zero silently: it is a fault of the row.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import partial

import polars as pl

from longbatch.schemas.errors import SourceError
from longbatch.schemas.source_schema import ActionValue, MappedColumn, RequestIdColumn
from longbatch.schemas.spec.build_spec import BuildSpec, Role
from longbatch.schemas.spec.columns import Feature, IdColumn, Label, TimeColumn
from longbatch.schemas.time import to_microseconds
from longbatch.validation.rules import TIME_OUT_OF_RANGE, declared_faults, missing, unparsable

UNIT_US = {"s": 1_000_000, "ms": 1_000, "us": 1}
NUMERIC = {
    "int8": pl.Int8(),
    "int16": pl.Int16(),
    "int32": pl.Int32(),
    "int64": pl.Int64(),
    "float32": pl.Float32(),
    "float64": pl.Float64(),
    "id": pl.Int64(),
}


@dataclass(frozen=True)
class Reading:
    """How to compute one canonical column from raw columns, in two steps, so that a string is parsed once.

    Attributes:
        typed: Columns to add to the raw ones first, by name.
        value: Expression of the canonical column, on the frame with the typed columns.
        faults: Reason -> expression that is true where the row has the fault.
        is_hashed: Whether `value` is a string that has yet to be hashed to an id.
    """

    typed: dict[str, pl.Expr]
    value: pl.Expr
    faults: dict[str, pl.Expr]
    is_hashed: bool = False


def read_column(mapped: MappedColumn, role: Role, name: str, raw_schema: pl.Schema, spec: BuildSpec) -> Reading:
    """Return the reading of one column of a role.

    Args:
        mapped: The mapped column of the spec.
        role: The role.
        name: The role's name of the column: "user_id", "label.click", ...
        raw_schema: Columns and types of the raw rows.
        spec: The build spec.

    Returns:
        The reading.

    Raises:
        SourceError: The raw column is missing or has a type that cannot be read as declared.
    """
    # An action that is only counted adds 1, whatever its columns hold.
    if isinstance(mapped, ActionValue) and mapped.column is None:
        return Reading({}, pl.lit(1, dtype=pl.Int8), {})
    if isinstance(mapped, Label) and mapped.contained_in:
        column, reading = mapped.contained_in, _read_contained(mapped, raw_schema, spec)
    else:
        column, reading = str(mapped.column), _read_value(mapped, raw_schema, spec)
    reason = missing(role, name)
    if reason is None or getattr(mapped, "default", None) is not None:
        return reading
    return replace(reading, faults={reason: pl.col(column).is_null(), **reading.faults})


def polars_type(type_name: str) -> pl.DataType:
    """Return the Polars type of a feature or label that is a number, an id or a bool."""
    return pl.Boolean() if type_name == "bool" else NUMERIC[type_name]


def _read_value(mapped: MappedColumn, raw_schema: pl.Schema, spec: BuildSpec) -> Reading:
    dtype = _dtype_of(str(mapped.column), raw_schema)
    if isinstance(mapped, TimeColumn):
        return _read_time(mapped, dtype, spec)
    if isinstance(mapped, Label) and mapped.at_least is not None:
        return _read_threshold(mapped, mapped.at_least)
    return _read_id(mapped, dtype) if isinstance(mapped, IdColumn) else _read_feature(mapped, dtype)


def _dtype_of(column: str, raw_schema: pl.Schema) -> pl.DataType:
    if column not in raw_schema:
        raise SourceError(f"column {column!r} is not in the source; its columns are {', '.join(raw_schema)}")
    dtype = raw_schema[column]
    if dtype.is_nested():
        raise SourceError(
            f"column {column!r} has type {dtype}, but one value per row is needed. Add it to the source's "
            "`explode.lists`."
        )
    return dtype


def _typed_name(column: str, reading: str) -> str:
    """Return the name of a typed column; the reading comes first, so that no raw column has the same name."""
    return f"#{reading} {column}"


def _typed(column: str, reading: str, expression: pl.Expr) -> tuple[dict[str, pl.Expr], pl.Expr, dict[str, pl.Expr]]:
    """Return the typed column to add, the expression that refers to it, and the fault of unreadable values."""
    # Equal readings have equal names, so a column that two roles share is parsed once.
    name = _typed_name(column, reading)
    value = pl.col(name)
    return {name: expression}, value, {unparsable(column): pl.col(column).is_not_null() & value.is_null()}


# Ids, features and labels


def _read_id(mapped: IdColumn, dtype: pl.DataType) -> Reading:
    if mapped.type == "string":
        value = pl.col(mapped.column).cast(pl.String)
        return Reading({}, value, {}, is_hashed=not isinstance(mapped, RequestIdColumn))
    return Reading(*_typed(mapped.column, "int64", _as_integer(mapped.column, dtype, pl.Int64())))


def _read_feature(mapped: Feature | Label, dtype: pl.DataType) -> Reading:
    column = str(mapped.column)
    expression, is_hashed = _as_type(column, dtype, mapped.type)
    as_string = is_hashed or mapped.type == "string"
    if mapped.values and not as_string and isinstance(mapped.values[0], str):
        raise SourceError(f"`values` {list(mapped.values)} are strings, but column {column!r} has numbers")
    typed, value, faults = _typed(column, mapped.type, expression)
    faults |= declared_faults(mapped, column, value, as_string=as_string)
    return Reading(typed, _with_default(mapped, value, as_string=as_string), faults, is_hashed)


def _read_threshold(mapped: Label, at_least: float) -> Reading:
    # Polars orders NaN above all numbers, so NaN would reach every threshold and become a positive label.
    number = pl.col(str(mapped.column)).cast(pl.Float64, strict=False).fill_nan(None)
    typed, value, faults = _typed(str(mapped.column), "number", number)
    return Reading(typed, _with_default(mapped, (value >= at_least).cast(polars_type(mapped.type))), faults)


def _read_contained(mapped: Label, raw_schema: pl.Schema, spec: BuildSpec) -> Reading:
    lists, item = str(mapped.contained_in), spec.requests.item_id.column
    if lists not in raw_schema:
        raise SourceError(f"column {lists!r} is not in the source; its columns are {', '.join(raw_schema)}")
    list_type = raw_schema[lists]
    if not isinstance(list_type, pl.List):
        raise SourceError(f"`contained_in` needs a list column, but {lists!r} has type {list_type}")
    if (list_type.inner == pl.String) != (_dtype_of(item, raw_schema) == pl.String):
        raise SourceError(
            f"`contained_in` compares {item!r} with the elements of {lists!r}, but their types are "
            f"{raw_schema[item]} and {list_type.inner}. Both must be strings or both numbers."
        )
    # A null list has no label, but an empty one is 0: nothing was clicked.
    inside = pl.when(pl.col(lists).is_not_null()).then(pl.col(lists).list.contains(pl.col(item)).fill_null(False))
    return Reading({}, _with_default(mapped, inside.cast(polars_type(mapped.type))), {})


def _with_default(mapped: Feature | Label, value: pl.Expr, *, as_string: bool = False) -> pl.Expr:
    return value if mapped.default is None else value.fill_null(_default(mapped, as_string=as_string))


def _default(mapped: Feature | Label, *, as_string: bool) -> pl.Expr:
    if as_string:
        return pl.lit(str(mapped.default))
    if isinstance(mapped.default, str):
        raise SourceError(f"default {mapped.default!r} is a string, but column {mapped.column!r} has numbers")
    return pl.lit(mapped.default, dtype=polars_type(mapped.type))


def _as_type(column: str, dtype: pl.DataType, type_name: str) -> tuple[pl.Expr, bool]:
    """Return the expression of a value in its declared type, and whether it is a string that has yet to be hashed."""
    if type_name == "string" or (type_name == "id" and not dtype.is_numeric() and dtype != pl.Boolean):
        return pl.col(column).cast(pl.String), type_name == "id"
    if type_name == "bool":
        return _as_bool(column, dtype), False
    if type_name in ("float32", "float64"):
        return _as_float(column, NUMERIC[type_name]), False
    return _as_integer(column, dtype, NUMERIC[type_name]), False


def _as_integer(column: str, dtype: pl.DataType, target_type: pl.DataType) -> pl.Expr:
    """Convert to integers; null where the value has a fraction, is not a number, or does not fit."""
    value = pl.col(column)
    if dtype == target_type:
        return value
    if dtype.is_float() or dtype.is_decimal():
        # A float with a fraction is a fault, never truncated.
        return pl.when(value == value.floor()).then(value.cast(target_type, strict=False))
    if dtype == pl.String:
        return value.map_batches(partial(_integers_of_string, target_type=target_type), return_dtype=target_type)
    return value.cast(target_type, strict=False)


def _integers_of_string(strings: pl.Series, target_type: pl.DataType) -> pl.Series:
    """Parse integers, null where a string is not one; "11.0" is one, as pandas writes integers next to a null."""
    integers = strings.cast(target_type, strict=False)
    # The slow path is only for strings that did not parse.
    unparsed = (integers.is_null() & strings.is_not_null()).arg_true()
    if not len(unparsed):
        return integers
    without_zeros = strings.gather(unparsed).str.replace(r"\.0+$", "")
    return integers.scatter(unparsed, without_zeros.cast(target_type, strict=False))


def _as_float(column: str, target_type: pl.DataType) -> pl.Expr:
    """Convert to floats; null where the value is not a number, or is finite but too large for the type."""
    # A cast to float32 turns 1e39 into infinity without an error, so it is compared with the double.
    wide = pl.col(column).cast(pl.Float64, strict=False)
    value = wide.cast(target_type)
    return pl.when(value.is_infinite() & wide.is_finite()).then(None).otherwise(value)


def _as_bool(column: str, dtype: pl.DataType) -> pl.Expr:
    value = pl.col(column)
    if dtype == pl.Boolean:
        return value
    if dtype == pl.String:
        lower = value.str.to_lowercase()
        return pl.when(lower.is_in(["true", "1"])).then(True).when(lower.is_in(["false", "0"])).then(False)
    return pl.when(value == 1).then(True).when(value == 0).then(False)


# Times


def _read_time(mapped: TimeColumn, dtype: pl.DataType, spec: BuildSpec) -> Reading:
    """Return the reading of microseconds UTC, with the faults unparsable:<column> and time_out_of_range."""
    low, high = (to_microseconds(limit) for limit in spec.time_range)
    expression, is_inside = _time_value(mapped, dtype, low, high)
    reading = f"time({mapped.unit},{mapped.format},{mapped.timezone})"
    typed, value, faults = _typed(mapped.column, reading, expression)
    inside_name = _typed_name(mapped.column, f"inside {reading}")
    inside = pl.col(inside_name)
    # Null in `value` is unparsable or missing, which are reasons of their own.
    faults[TIME_OUT_OF_RANGE] = value.is_not_null() & ~inside
    return Reading({**typed, inside_name: is_inside}, pl.when(inside).then(value), faults)


def _time_value(mapped: TimeColumn, dtype: pl.DataType, low: int, high: int) -> tuple[pl.Expr, pl.Expr]:
    """Return microseconds (null where unreadable), and whether they are within [low, high]."""
    raw = pl.col(mapped.column)
    if dtype == pl.Date or isinstance(dtype, pl.Datetime):
        value = _to_utc(raw.cast(pl.Datetime("us", getattr(dtype, "time_zone", None))), dtype, mapped.timezone)
        return value, value.is_between(low, high)
    if dtype == pl.String and (mapped.unit == "iso" or mapped.format):
        value = _from_string(raw, mapped)
        return value, value.is_between(low, high)
    if mapped.unit is None or mapped.unit == "iso":
        raise SourceError(
            f"time column {mapped.column!r} has type {dtype}. Declare its unit: "
            'unit = "s", "ms" or "us" for numbers, "iso" for strings.'
        )
    return _from_number(raw, dtype, UNIT_US[mapped.unit], low, high)


def _from_number(raw: pl.Expr, dtype: pl.DataType, unit_us: int, low: int, high: int) -> tuple[pl.Expr, pl.Expr]:
    """Return microseconds of numbers of a unit, and whether they are within [low, high].

    Unit 1,000 us, low 1,500, high 4,200: integers in [2, 4] are inside, which needs no product, so none can overflow.
    A float 1.7 is 1,700 us, rounded; a float beyond 64 bits is clipped first, and is outside anyway.
    """
    integers = raw.cast(pl.Int64, strict=False)
    if dtype.is_decimal():
        integers = pl.when(raw == raw.floor()).then(integers)
    integers_inside = integers.is_between(-(-low // unit_us), high // unit_us)
    if dtype.is_integer():
        return integers * unit_us, integers_inside
    floats = raw.cast(pl.Float64, strict=False) * unit_us
    floats_inside = floats.is_between(low, high)
    rounded = floats.clip(-9e18, 9e18).round().cast(pl.Int64, strict=False)  # NaN becomes null
    if dtype.is_float() or dtype.is_decimal():
        return rounded, floats_inside
    # Strings: exact where they are integers, else by way of a float.
    return (
        pl.when(integers.is_not_null()).then(integers * unit_us).otherwise(rounded),
        pl.when(integers.is_not_null()).then(integers_inside).otherwise(floats_inside),
    )


def _to_utc(value: pl.Expr, dtype: pl.DataType, timezone: str) -> pl.Expr:
    """Convert datetimes to microseconds UTC; naive ones are local to `timezone`, the earlier of two if ambiguous."""
    # Daylight saving skips some local times. They become null, so that the row is rejected and counted.
    if getattr(dtype, "time_zone", None) is None:
        value = value.dt.replace_time_zone(timezone, ambiguous="earliest", non_existent="null")
    return value.dt.convert_time_zone("UTC").to_physical()


def _from_string(raw: pl.Expr, mapped: TimeColumn) -> pl.Expr:
    naive = pl.Datetime("us")
    if mapped.format:
        if "%z" in mapped.format or "%:z" in mapped.format:
            return raw.str.strptime(pl.Datetime("us", "UTC"), mapped.format, strict=False).to_physical()
        return _to_utc(raw.str.strptime(naive, mapped.format, strict=False), naive, mapped.timezone)
    # ISO 8601: the first of these formats that parses.
    iso = raw.str.replace(" ", "T", literal=True, n=1)
    aware = pl.Datetime("us", "UTC")
    formats = ("%+", "%Y-%m-%dT%H:%M%:z")
    with_offset = [iso.str.strptime(aware, pattern, strict=False).to_physical() for pattern in formats]
    with_offset.append(iso.str.strptime(naive, "%Y-%m-%dT%H:%MZ", strict=False).to_physical())
    local = [
        iso.str.strptime(naive, "%Y-%m-%dT%H:%M:%S%.f", strict=False),
        iso.str.strptime(naive, "%Y-%m-%dT%H:%M", strict=False),
        iso.str.strptime(pl.Date, "%Y-%m-%d", strict=False).cast(naive),
    ]
    return pl.coalesce(*with_offset, _to_utc(pl.coalesce(local), naive, mapped.timezone))
