"""Values and ids of the naive reference: how one raw value is read as its declared type, in plain Python.

Everything here handles one value at a time. `docs/semantics.md` lists the rules (row outcomes, time, ids); the
pipelines implement the same rules on whole columns and share no code with this file.
"""

from __future__ import annotations

import math
import re
import struct
from collections.abc import Callable
from datetime import date, datetime, time
from decimal import Decimal
from functools import lru_cache
from typing import Any
from zoneinfo import ZoneInfo

from longbatch.schemas.errors import DataError, SourceError
from longbatch.schemas.source_schema import MappedColumn, RequestIdColumn
from longbatch.schemas.spec.build_spec import BuildSpec
from longbatch.schemas.spec.columns import DURATION_US, Declared, Feature, FeatureType, IdColumn, Label, TimeColumn
from longbatch.schemas.time import to_microseconds

_TWO_TO_64 = 2**64
_INTEGER = re.compile(r"([+-]?[0-9]+)(\.0+)?")
_NUMBER = re.compile(r"[+-]?([0-9]+\.?[0-9]*|\.[0-9]+)(e[+-]?[0-9]+)?|[+-]?(nan|inf|infinity)", re.IGNORECASE)

Row = dict[str, Any]  # a raw or a canonical row: its values by column name
Value = bool | int | float | str | None  # a canonical value; times are microseconds UTC
Reader = Callable[[object], Value]
Faults = tuple[str, ...]  # reasons to reject a row
RowReader = Callable[[Row], tuple[Value, Faults]]


class UnparsableError(Exception):
    """A value cannot be read as the declared type."""


# Order and ids


def sort_key(value: object) -> tuple[object, ...]:
    """Return a key that sorts values of one column as the semantics require.

    Args:
        value: A canonical value. Strings compare by code point, which is the order of their UTF-8 bytes.

    Returns:
        A tuple that sorts nulls first, then False before True and numbers ascending, then NaN.
    """
    if value is None:
        return (0,)
    if isinstance(value, float) and math.isnan(value):
        return (2,)
    return (1, value)


def mix(word: int) -> int:
    """Scramble a 64-bit word.

    Source: the finalizer of SplitMix64, in Steele, Lea and Flood, "Fast Splittable Pseudorandom Number Generators",
    OOPSLA 2014.

    Args:
        word: An unsigned 64-bit integer.

    Returns:
        Another unsigned 64-bit integer; different words have different results.
    """
    word ^= word >> 30
    word = word * 0xBF58476D1CE4E5B9 % _TWO_TO_64
    word ^= word >> 27
    word = word * 0x94D049BB133111EB % _TWO_TO_64
    return word ^ word >> 31


def hash_utf8(string: str) -> int:
    """Return the id of a string: a hash of its UTF-8 bytes, 8 bytes at a time, below 2**63.

    Args:
        string: The raw id.
    """
    data = string.encode()
    state = len(data) * 0x9E3779B97F4A7C15 % _TWO_TO_64
    for start in range(0, len(data), 8):
        state = mix(state ^ int.from_bytes(data[start : start + 8].ljust(8, b"\0"), "little"))
    return mix(state) >> 1


@lru_cache(maxsize=1 << 20)
def string_id(string: str) -> int:
    """Return `hash_utf8` of a string, cached because the same ids occur in many rows.

    Args:
        string: The raw id.
    """
    return hash_utf8(string)


def generated_request_id(user_id: int, request_time_us: int, index: int = 0) -> int:
    """Return the id of a request from a log without request ids.

    Args:
        user_id: The user.
        request_time_us: The request's time, in microseconds UTC.
        index: Position among the user's requests with exactly this time, from 0.

    Returns:
        An integer below 2**63.
    """
    state = mix(user_id % _TWO_TO_64) ^ request_time_us % _TWO_TO_64
    return mix((mix(state) + index) % _TWO_TO_64 if index else state) >> 1


# From a raw row to a canonical value


def row_reader(spec: BuildSpec, mapped: MappedColumn) -> RowReader:
    """Return a function that reads one canonical value from a raw row.

    Args:
        spec: The build spec.
        mapped: The mapped column to read.

    Returns:
        A function from a raw row to the canonical value and every reason why the value cannot be used. A value that
        cannot be parsed and a time out of range count as missing: the value is then the default, or null.
    """
    read, find_faults = _column_reader(spec, mapped), _fault_finder(spec, mapped)
    is_hashed = isinstance(mapped, Feature) and mapped.type == "id"
    missing = value_reader(mapped)(getattr(mapped, "default", None))
    missing = string_id(missing) if is_hashed and isinstance(missing, str) else missing

    def read_row(raw: Row) -> tuple[Value, Faults]:
        try:
            value = read(raw)
        except UnparsableError:
            return missing, (f"unparsable:{_raw_name(mapped)}",)
        faults = () if value is None else find_faults(value)
        if value is None or (faults and isinstance(mapped, TimeColumn)):
            return missing, faults
        return string_id(value) if is_hashed and isinstance(value, str) else value, faults

    return read_row


def _raw_name(mapped: MappedColumn) -> str:
    """Return the raw column that reasons name; for a `contained_in` label this is the list column."""
    return str(mapped.contained_in if isinstance(mapped, Label) and mapped.contained_in else mapped.column)


def _column_reader(spec: BuildSpec, mapped: MappedColumn) -> Callable[[Row], Value]:
    """Return a function that reads the typed value from a raw row, null where it is missing."""
    column, read = _raw_name(mapped), value_reader(mapped)
    if isinstance(mapped, Label) and mapped.contained_in:
        return lambda raw: read(_is_contained(spec, raw, column))
    if isinstance(mapped, Label) and mapped.at_least is not None:
        least = mapped.at_least
        return lambda raw: None if raw[column] is None else read(_number(raw[column]) >= least)
    if mapped.column is None:
        return lambda raw: 1  # each action counts once; no column holds this value
    return lambda raw: read(raw[column])


def _fault_finder(spec: BuildSpec, mapped: MappedColumn) -> Callable[[Value], Faults]:
    """Return a function that lists the faults of a typed value that is not null."""
    if isinstance(mapped, TimeColumn):
        earliest, latest = (to_microseconds(bound) for bound in spec.time_range)

        def find_time_faults(time_us: Value) -> Faults:
            is_in_range = isinstance(time_us, int | float) and earliest <= time_us <= latest
            return () if is_in_range else ("time_out_of_range",)

        return find_time_faults
    if not isinstance(mapped, Declared) or (mapped.min, mapped.max, mapped.values) == (None, None, None):
        return lambda value: ()
    lowest, highest = _typed_bound(mapped.min, mapped.type), _typed_bound(mapped.max, mapped.type)
    allowed = None if mapped.values is None else {as_string(value) for value in mapped.values}

    def find_faults(value: Value) -> Faults:
        is_inside = True
        if isinstance(value, int | float):
            # Both comparisons are false for NaN, so NaN is out of any range.
            is_inside = (lowest is None or value >= lowest) and (highest is None or value <= highest)
        faults = () if is_inside else (f"out_of_range:{_raw_name(mapped)}",)
        return faults if allowed is None or as_string(value) in allowed else (*faults, f"unknown:{_raw_name(mapped)}")

    return find_faults


def _typed_bound(bound: float | None, type_name: FeatureType) -> float | None:
    """Round a bound as its values are rounded, so that 0.1 allows the float32 nearest to 0.1."""
    if type_name != "float32" or bound is None:
        return bound
    try:
        return _float32(bound)
    except UnparsableError:
        return bound


def value_reader(mapped: MappedColumn) -> Reader:
    """Return a function that reads a raw value as the declared type.

    Args:
        mapped: The mapped column.

    Returns:
        A function that keeps null, converts times to microseconds UTC, and raises UnparsableError. String ids of users
        and items are hashed; strings of an `id` feature are not hashed yet, because its `values` are compared first.
    """
    read = _reader_of_type(mapped)
    return lambda value: None if value is None else read(value)


def _reader_of_type(mapped: MappedColumn) -> Reader:
    if isinstance(mapped, TimeColumn):
        return lambda value: _time_us(value, mapped)
    if mapped.type == "string":
        is_hashed = isinstance(mapped, IdColumn) and not isinstance(mapped, RequestIdColumn)
        return (lambda value: string_id(as_string(value))) if is_hashed else as_string
    if mapped.type == "id":
        return lambda value: value if isinstance(value, str) else _integer(value, 64)
    if mapped.type == "bool":
        return _boolean
    if mapped.type in ("float32", "float64"):
        return _float32 if mapped.type == "float32" else _float64
    bits = int(mapped.type.removeprefix("int"))
    return lambda value: _integer(value, bits)


def value_or_null(value: object, mapped: MappedColumn) -> Value:
    """Read a raw value as a `where` sees it.

    Args:
        value: The raw value.
        mapped: The mapped column. A numeric time stays the number in the log, and a label with `at_least` is the
            number that is compared.

    Returns:
        The typed value, or None where the raw value is null or cannot be parsed.
    """
    try:
        if value is None or isinstance(mapped, TimeColumn):
            return None if value is None else _float64(value)
        if isinstance(mapped, Label) and mapped.at_least is not None:
            return _number(value)
        return value_reader(mapped)(value)
    except UnparsableError:
        return None


# One value of each type


def _is_contained(spec: BuildSpec, raw: Row, column: str) -> bool | None:
    """Return whether the row's item is in the list, None where the list is null."""
    item, members = raw[spec.requests.item_id.column], raw[column]
    if members is not None and not isinstance(members, list):
        raise DataError(
            f"column {column!r} contains {members!r}, which is not a list. "
            "A label with `contained_in` needs a list column."
        )
    return None if members is None else item is not None and item in members


def _integer(value: object, bits: int) -> int:
    if isinstance(value, str):
        match = _INTEGER.fullmatch(value)
        if match is None:
            raise UnparsableError
        number = int(match[1])
    elif isinstance(value, int | float | Decimal) and math.isfinite(value) and value == int(value):
        number = int(value)
    else:
        raise UnparsableError
    if not -(2 ** (bits - 1)) <= number < 2 ** (bits - 1):
        raise UnparsableError
    return number


def _float64(value: object) -> float:
    if isinstance(value, str) and _NUMBER.fullmatch(value):
        return float(value)
    if isinstance(value, int | float | Decimal):
        return float(value)
    raise UnparsableError


def _number(value: object) -> float:
    """Read a float that is not NaN."""
    number = _float64(value)
    if math.isnan(number):
        raise UnparsableError
    return number


def _float32(value: object) -> float:
    try:
        return float(struct.unpack("<f", struct.pack("<f", _float64(value)))[0])
    except OverflowError:
        raise UnparsableError from None


def _boolean(value: object) -> bool:
    if isinstance(value, str):
        value = {"true": True, "1": True, "false": False, "0": False}.get(value.lower())
    if not isinstance(value, int | float | Decimal) or value not in (0, 1):
        raise UnparsableError
    return bool(value)


def as_string(value: object) -> str:
    """Return a scalar as a string; booleans become "true" and "false"."""
    if isinstance(value, bool):
        return "true" if value else "false"
    return str(value)


def _time_us(value: object, mapped: TimeColumn) -> float:
    """Read a timestamp, a number with a unit, or a string, as microseconds UTC; infinity stays infinity."""
    if isinstance(value, date):
        moment = value if isinstance(value, datetime) else datetime.combine(value, time())
        return utc_microseconds(moment, mapped.timezone)
    if mapped.unit in DURATION_US:
        return _numeric_time_us(value, DURATION_US[mapped.unit])
    if not isinstance(value, str):
        raise SourceError(
            f"column {mapped.column!r} contains the number {value!r}, but the spec gives no unit for it. "
            'Set unit = "s", "ms" or "us".'
        )
    try:
        parsed = datetime.strptime(value, mapped.format) if mapped.format else datetime.fromisoformat(value)
    except ValueError:
        raise UnparsableError from None
    return utc_microseconds(parsed, mapped.timezone)


def _numeric_time_us(value: object, unit_us: int) -> float:
    if isinstance(value, str):
        match = _INTEGER.fullmatch(value)  # an integer stays exact, where a float would round it
        value = int(match[1]) if match else _float64(value)
    if not isinstance(value, int | float | Decimal) or math.isnan(value):
        raise UnparsableError
    return float(value) if math.isinf(value) else round(value * unit_us)


def utc_microseconds(moment: datetime, timezone: str) -> int:
    """Return a datetime as microseconds since 1970 UTC.

    Args:
        moment: The datetime. A naive one is local time in `timezone`; where clocks were set back and an hour occurs
            twice, it is the first.
        timezone: IANA name of the time zone of naive datetimes.

    Raises:
        UnparsableError: The naive time does not exist, because clocks were set forward over it.
    """
    if moment.tzinfo is None:
        moment = moment.replace(tzinfo=ZoneInfo(timezone))
        if moment.astimezone(ZoneInfo("UTC")).astimezone(moment.tzinfo).replace(tzinfo=None) != moment.replace(
            tzinfo=None
        ):
            raise UnparsableError
    return to_microseconds(moment)
