"""Typed readings of raw columns: a Polars expression for the value, and one for each fault it may have.

A value that is there but cannot be read is never turned into a null or a zero in silence: the fault says so.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta

import polars as pl

from longbatch.schemas.columns import Feature, IdColumn, Label, TimeColumn
from longbatch.schemas.errors import SourceError
from longbatch.schemas.spec import BuildSpec, Role
from longbatch.schemas.tables import ActionValue, Mapped, RequestIdColumn
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
    """How one canonical column comes out of the raw columns.

    `value` is the expression; `hashed` says that the value is text yet to be hashed; `faults` maps a reason to
    an expression that is true where the row has that fault.
    """

    value: pl.Expr
    faults: dict[str, pl.Expr]
    hashed: bool = False


def read_column(mapped: Mapped, role: Role, name: str, schema: pl.Schema, spec: BuildSpec) -> Reading:
    """Return the reading of the column `name` ("user_id", "label.click", ...) of a role.

    Raises SourceError when the raw column is missing or of a type that cannot be read as declared.
    """
    if isinstance(mapped, ActionValue) and mapped.column is None:
        return Reading(pl.lit(1, dtype=pl.Int8), {})
    if isinstance(mapped, Label) and mapped.contained_in:
        column, reading = mapped.contained_in, _read_contained(mapped, schema, spec)
    else:
        column, reading = str(mapped.column), _read_value(mapped, schema, spec)
    reason = missing(role, name)
    if reason is None or getattr(mapped, "default", None) is not None:
        return reading
    return replace(reading, faults={reason: pl.col(column).is_null(), **reading.faults})


def _read_value(mapped: Mapped, schema: pl.Schema, spec: BuildSpec) -> Reading:
    dtype = _dtype_of(str(mapped.column), schema)
    if isinstance(mapped, TimeColumn):
        return _read_time(mapped, dtype, spec)
    if isinstance(mapped, Label) and mapped.at_least is not None:
        return _read_threshold(mapped, mapped.at_least)
    return _read_id(mapped, dtype) if isinstance(mapped, IdColumn) else _read_feature(mapped, dtype)


def _dtype_of(column: str, schema: pl.Schema) -> pl.DataType:
    if column not in schema:
        raise SourceError(f"column {column!r} is not in the source; its columns are {', '.join(schema)}")
    dtype = schema[column]
    if dtype.is_nested():
        raise SourceError(
            f"column {column!r} holds {dtype}, one value a row is needed; name it in the source's `explode.lists`"
        )
    return dtype


def _faults(column: str, value: pl.Expr) -> dict[str, pl.Expr]:
    return {unparsable(column): pl.col(column).is_not_null() & value.is_null()}


def _read_id(mapped: IdColumn, dtype: pl.DataType) -> Reading:
    if mapped.type == "string":
        text = pl.col(mapped.column).cast(pl.String)
        return Reading(text, {}, hashed=not isinstance(mapped, RequestIdColumn))
    value = _as_integer(mapped.column, dtype, pl.Int64())
    return Reading(value, _faults(mapped.column, value))


def _read_feature(mapped: Feature | Label, dtype: pl.DataType) -> Reading:
    column = str(mapped.column)
    value, hashed = _as_type(column, dtype, mapped.type)
    as_text = hashed or mapped.type == "string"
    if mapped.values and not as_text and isinstance(mapped.values[0], str):
        raise SourceError(f"values {list(mapped.values)} are text, but column {column!r} holds numbers")
    faults = _faults(column, value) | declared_faults(mapped, column, value, as_text=as_text)
    if mapped.default is not None:
        value = value.fill_null(_default(mapped, as_text=as_text))
    return Reading(value, faults, hashed)


def _read_threshold(mapped: Label, least: float) -> Reading:
    column = str(mapped.column)
    number = as_number(column)
    value = (number >= least).cast(_dtype(mapped.type))
    faults = _faults(column, value)
    return Reading(value if mapped.default is None else value.fill_null(_default(mapped, as_text=False)), faults)


def as_number(column: str) -> pl.Expr:
    """Return a column as float64; null where it is no number, or NaN."""
    return pl.col(column).cast(pl.Float64, strict=False).fill_nan(None)


def _default(mapped: Feature | Label, *, as_text: bool) -> pl.Expr:
    if as_text:
        return pl.lit(str(mapped.default))
    if isinstance(mapped.default, str):
        raise SourceError(f"default {mapped.default!r} is text, but column {mapped.column!r} holds numbers")
    return pl.lit(mapped.default, dtype=_dtype(mapped.type))


def _as_type(column: str, dtype: pl.DataType, type_name: str) -> tuple[pl.Expr, bool]:
    if type_name == "string" or (type_name == "id" and not dtype.is_numeric() and dtype != pl.Boolean):
        return pl.col(column).cast(pl.String), type_name == "id"
    if type_name == "bool":
        return _as_bool(column, dtype), False
    if type_name in ("float32", "float64"):
        return _as_float(column, NUMERIC[type_name]), False
    return _as_integer(column, dtype, NUMERIC[type_name]), False


def _as_integer(column: str, dtype: pl.DataType, wanted: pl.DataType) -> pl.Expr:
    """Integers of the wanted width; null where the value has a fraction, is no number, or does not fit."""
    value = pl.col(column)
    if dtype == wanted:
        return value
    if dtype.is_float() or dtype.is_decimal():
        return pl.when(value == value.floor()).then(value.cast(wanted, strict=False))
    if dtype == pl.String:  # 11.0 is how integers beside a missing one are often written
        value = pl.when(value.str.ends_with("0")).then(value.str.replace(r"\.0+$", "")).otherwise(value)
    return value.cast(wanted, strict=False)


def _as_float(column: str, wanted: pl.DataType) -> pl.Expr:
    """Floats of the wanted width; null where the value is no number, or finite but beyond what the width holds."""
    wide = pl.col(column).cast(pl.Float64, strict=False)
    value = wide.cast(wanted)
    return pl.when(value.is_infinite() & wide.is_finite()).then(None).otherwise(value)


def _as_bool(column: str, dtype: pl.DataType) -> pl.Expr:
    value = pl.col(column)
    if dtype == pl.Boolean:
        return value
    if dtype == pl.String:
        lower = value.str.to_lowercase()
        return pl.when(lower.is_in(["true", "1"])).then(True).when(lower.is_in(["false", "0"])).then(False)
    return pl.when(value == 1).then(True).when(value == 0).then(False)


def _read_contained(mapped: Label, schema: pl.Schema, spec: BuildSpec) -> Reading:
    lists, item = str(mapped.contained_in), spec.requests.item_id.column
    if lists not in schema:
        raise SourceError(f"column {lists!r} is not in the source; its columns are {', '.join(schema)}")
    held = schema[lists]
    if not isinstance(held, pl.List):
        raise SourceError(f"`contained_in` needs a list column, but {lists!r} holds {held}")
    if (held.inner == pl.String) != (_dtype_of(item, schema) == pl.String):
        raise SourceError(
            f"`contained_in` compares {item!r} with the elements of {lists!r}, but they hold {schema[item]} and "
            f"{held.inner}; make both text or both numbers"
        )
    inside = pl.when(pl.col(lists).is_not_null()).then(pl.col(lists).list.contains(pl.col(item)).fill_null(False))
    value = inside.cast(_dtype(mapped.type))
    if mapped.default is not None:
        value = value.fill_null(_default(mapped, as_text=False))
    return Reading(value, {})


def _dtype(type_name: str) -> pl.DataType:
    return pl.Boolean() if type_name == "bool" else NUMERIC[type_name]


def _read_time(mapped: TimeColumn, dtype: pl.DataType, spec: BuildSpec) -> Reading:
    """Microseconds UTC; the faults unparsable:<column> and time_out_of_range."""
    raw = pl.col(mapped.column)
    low, high = (microseconds(limit) for limit in spec.time_range)
    value, inside = _time_value(mapped, dtype, low, high)
    return Reading(
        pl.when(inside).then(value),
        {
            unparsable(mapped.column): raw.is_not_null() & value.is_null(),
            TIME_OUT_OF_RANGE: value.is_not_null() & ~inside,
        },
    )


def microseconds(moment: datetime) -> int:
    """Microseconds UTC since 1970 of a moment with a time zone."""
    return (moment - datetime(1970, 1, 1, tzinfo=UTC)) // timedelta(microseconds=1)


def _time_value(mapped: TimeColumn, dtype: pl.DataType, low: int, high: int) -> tuple[pl.Expr, pl.Expr]:
    """Return (microseconds or null, whether within range); products cannot overflow where within range."""
    raw = pl.col(mapped.column)
    if dtype == pl.Date or isinstance(dtype, pl.Datetime):
        value = _to_utc(raw.cast(pl.Datetime("us", getattr(dtype, "time_zone", None))), dtype, mapped.timezone)
        return value, value.is_between(low, high)
    if dtype == pl.String and (mapped.unit == "iso" or mapped.format):
        value = _from_text(raw, mapped)
        return value, value.is_between(low, high)
    if mapped.unit is None or mapped.unit == "iso":
        raise SourceError(
            f"time column {mapped.column!r} holds {dtype}; declare its unit: "
            'unit = "s", "ms" or "us" for numbers, "iso" for text'
        )
    return _from_number(raw, dtype, UNIT_US[mapped.unit], low, high)


def _from_number(raw: pl.Expr, dtype: pl.DataType, unit_us: int, low: int, high: int) -> tuple[pl.Expr, pl.Expr]:
    whole = raw.cast(pl.Int64, strict=False)
    if dtype.is_decimal():
        whole = pl.when(raw == raw.floor()).then(whole)
    whole_inside = whole.is_between(-(-low // unit_us), high // unit_us)
    if dtype.is_integer():
        return whole * unit_us, whole_inside
    scaled = raw.cast(pl.Float64, strict=False) * unit_us
    scaled_inside = scaled.is_between(low, high)
    rounded = pl.when(scaled.is_nan()).then(None).otherwise(scaled.clip(-9e18, 9e18).round().cast(pl.Int64))
    if dtype.is_float() or dtype.is_decimal():
        return rounded, scaled_inside
    return (
        pl.when(whole.is_not_null()).then(whole * unit_us).otherwise(rounded),
        pl.when(whole.is_not_null()).then(whole_inside).otherwise(scaled_inside),
    )


def _to_utc(value: pl.Expr, dtype: pl.DataType, timezone: str) -> pl.Expr:
    """Microseconds UTC of a datetime expression; naive ones are local to `timezone`, the earlier if twice."""
    if getattr(dtype, "time_zone", None) is None:
        value = value.dt.replace_time_zone(timezone, ambiguous="earliest", non_existent="null")
    return value.dt.convert_time_zone("UTC").to_physical()


def _from_text(raw: pl.Expr, mapped: TimeColumn) -> pl.Expr:
    naive = pl.Datetime("us")
    if mapped.format:
        if "%z" in mapped.format or "%:z" in mapped.format:
            return raw.str.strptime(pl.Datetime("us", "UTC"), mapped.format, strict=False).to_physical()
        return _to_utc(raw.str.strptime(naive, mapped.format, strict=False), naive, mapped.timezone)
    text = raw.str.replace(" ", "T", literal=True, n=1)
    aware = pl.Datetime("us", "UTC")
    with_offset = [text.str.strptime(aware, form, strict=False).to_physical() for form in ("%+", "%Y-%m-%dT%H:%M%:z")]
    with_offset.append(text.str.strptime(naive, "%Y-%m-%dT%H:%MZ", strict=False).to_physical())
    local = [
        text.str.strptime(naive, "%Y-%m-%dT%H:%M:%S%.f", strict=False),
        text.str.strptime(naive, "%Y-%m-%dT%H:%M", strict=False),
        text.str.strptime(pl.Date, "%Y-%m-%d", strict=False).cast(naive),
    ]
    return pl.coalesce(*with_offset, _to_utc(pl.coalesce(local), naive, mapped.timezone))
