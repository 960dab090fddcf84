"""Typed readings of raw columns: a Polars expression for the value, and one for each fault it may have.

A value that is there but cannot be read is never turned into a null or a zero in silence: the fault says so.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from datetime import UTC, datetime
from functools import partial

import polars as pl

from longbatch.schemas.errors import SourceError, SpecError
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
    """How one canonical column comes out of the raw columns, in two steps, so that text is parsed once.

    `typed` are columns to add to the raw ones, by name; on the frame with them, `value` is the expression of the
    canonical column, and `faults` maps a reason to an expression that is true where the row has that fault.
    `hashed` says that the value is text yet to be hashed.
    """

    typed: dict[str, pl.Expr]
    value: pl.Expr
    faults: dict[str, pl.Expr]
    hashed: bool = False


def read_column(mapped: MappedColumn, role: Role, name: str, schema: pl.Schema, spec: BuildSpec) -> Reading:
    """Return the reading of the column `name` ("user_id", "label.click", ...) of a role.

    Raises SourceError when the raw column is missing or of a type that cannot be read as declared.
    """
    if isinstance(mapped, ActionValue) and mapped.column is None:
        return Reading({}, pl.lit(1, dtype=pl.Int8), {})
    if isinstance(mapped, Label) and mapped.contained_in:
        column, reading = mapped.contained_in, _read_contained(mapped, schema, spec)
    else:
        column, reading = str(mapped.column), _read_value(mapped, schema, spec)
    reason = missing(role, name)
    if reason is None or getattr(mapped, "default", None) is not None:
        return reading
    return replace(reading, faults={reason: pl.col(column).is_null(), **reading.faults})


def _read_value(mapped: MappedColumn, schema: pl.Schema, spec: BuildSpec) -> Reading:
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


def typed_name(column: str, kind: str) -> str:
    """Return the name of a raw column's values once they are typed; no raw column begins like this."""
    return f"#{kind} {column}"


def _typed(column: str, kind: str, expression: pl.Expr) -> tuple[dict[str, pl.Expr], pl.Expr, dict[str, pl.Expr]]:
    """Return the column to add, how it is called from there on, and the fault of values that are not of the type."""
    name = typed_name(column, kind)
    value = pl.col(name)
    return {name: expression}, value, {unparsable(column): pl.col(column).is_not_null() & value.is_null()}


def _read_id(mapped: IdColumn, dtype: pl.DataType) -> Reading:
    if mapped.type == "string":
        return Reading({}, pl.col(mapped.column).cast(pl.String), {}, hashed=not isinstance(mapped, RequestIdColumn))
    return Reading(*_typed(mapped.column, "int64", _as_integer(mapped.column, dtype, pl.Int64())))


def _read_feature(mapped: Feature | Label, dtype: pl.DataType) -> Reading:
    column = str(mapped.column)
    expression, hashed = _as_type(column, dtype, mapped.type)
    as_string = hashed or mapped.type == "string"
    if mapped.values and not as_string and isinstance(mapped.values[0], str):
        raise SourceError(f"values {list(mapped.values)} are text, but column {column!r} holds numbers")
    typed, value, faults = _typed(column, mapped.type, expression)
    faults |= declared_faults(mapped, column, value, as_string=as_string)
    return Reading(typed, _with_default(mapped, value, as_string=as_string), faults, hashed)


def _read_threshold(mapped: Label, least: float) -> Reading:
    number = pl.col(str(mapped.column)).cast(pl.Float64, strict=False).fill_nan(None)
    typed, value, faults = _typed(str(mapped.column), "number", number)
    return Reading(typed, _with_default(mapped, (value >= least).cast(polars_type(mapped.type))), faults)


def _with_default(mapped: Feature | Label, value: pl.Expr, *, as_string: bool = False) -> pl.Expr:
    return value if mapped.default is None else value.fill_null(_default(mapped, as_string=as_string))


def _default(mapped: Feature | Label, *, as_string: bool) -> pl.Expr:
    if as_string:
        return pl.lit(str(mapped.default))
    if isinstance(mapped.default, str):
        raise SourceError(f"default {mapped.default!r} is text, but column {mapped.column!r} holds numbers")
    return pl.lit(mapped.default, dtype=polars_type(mapped.type))


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
    if dtype == pl.String:
        return value.map_batches(partial(_integers_of_string, wanted=wanted), return_dtype=wanted)
    return value.cast(wanted, strict=False)


def _integers_of_string(text: pl.Series, wanted: pl.DataType) -> pl.Series:
    """Integers, null where there is none; 11.0 is one, as integers beside a missing one are often written."""
    found = text.cast(wanted, strict=False)
    odd = (found.is_null() & text.is_not_null()).arg_true()
    if not len(odd):
        return found
    return found.scatter(odd, text.gather(odd).str.replace(r"\.0+$", "").cast(wanted, strict=False))


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
    return Reading({}, _with_default(mapped, inside.cast(polars_type(mapped.type))), {})


def polars_type(type_name: str) -> pl.DataType:
    """Return the Polars type of a feature or label that is a number, an id or a bool."""
    return pl.Boolean() if type_name == "bool" else NUMERIC[type_name]


def _read_time(mapped: TimeColumn, dtype: pl.DataType, spec: BuildSpec) -> Reading:
    """Microseconds UTC; the faults unparsable:<column> and time_out_of_range."""
    low, high = (to_microseconds(limit) for limit in spec.time_range)
    expression, is_inside = _time_value(mapped, dtype, low, high)
    kind = f"time({mapped.unit},{mapped.format},{mapped.timezone})"
    typed, value, faults = _typed(mapped.column, kind, expression)
    inside_name = typed_name(mapped.column, f"inside {kind}")
    inside = pl.col(inside_name)
    faults[TIME_OUT_OF_RANGE] = value.is_not_null() & ~inside
    return Reading({**typed, inside_name: is_inside}, pl.when(inside).then(value), faults)


def parse_moment(text: str) -> datetime:
    """Read an ISO time, in UTC where it has no offset."""
    try:
        moment = datetime.fromisoformat(text)
    except ValueError:
        raise SpecError(f"--until {text!r} is no ISO time; write one such as 2026-03-01 or 2026-03-01T06:00Z") from None
    return moment if moment.tzinfo else moment.replace(tzinfo=UTC)


def _time_value(mapped: TimeColumn, dtype: pl.DataType, low: int, high: int) -> tuple[pl.Expr, pl.Expr]:
    """Return (microseconds or null, whether within range); products cannot overflow where within range."""
    raw = pl.col(mapped.column)
    if dtype == pl.Date or isinstance(dtype, pl.Datetime):
        value = _to_utc(raw.cast(pl.Datetime("us", getattr(dtype, "time_zone", None))), dtype, mapped.timezone)
        return value, value.is_between(low, high)
    if dtype == pl.String and (mapped.unit == "iso" or mapped.format):
        value = _from_string(raw, mapped)
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


def _from_string(raw: pl.Expr, mapped: TimeColumn) -> pl.Expr:
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
