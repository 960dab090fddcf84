"""Values and ids of the naive reference: how one raw value is read as declared, in plain Python."""

from __future__ import annotations

import math
import re
import struct
from collections.abc import Callable
from datetime import UTC, date, datetime, time
from decimal import Decimal
from functools import lru_cache
from typing import Any
from zoneinfo import ZoneInfo

from longbatch.schemas.errors import DataError, SourceError
from longbatch.schemas.source_schema import MappedColumn, RequestIdColumn
from longbatch.schemas.spec.build_spec import BuildSpec
from longbatch.schemas.spec.columns import DURATION_US, Declared, Feature, FeatureType, IdColumn, Label, TimeColumn
from longbatch.schemas.time import to_microseconds

_WORD = 2**64
_INTEGER = re.compile(r"([+-]?[0-9]+)(\.0+)?")
_NUMBER = re.compile(r"[+-]?([0-9]+\.?[0-9]*|\.[0-9]+)(e[+-]?[0-9]+)?|[+-]?(nan|inf|infinity)", re.IGNORECASE)

Row = dict[str, Any]
Reader = Callable[[Any], Any]
Faults = tuple[str, ...]
RowReader = Callable[[Row], tuple[Any, Faults]]


class Unparsable(Exception):
    """A value that cannot be read as the declared type."""


def order(value: Any) -> tuple[Any, ...]:
    """Return a sort key: nulls first, text by code point (as its UTF-8 bytes), false before true, NaN last."""
    if value is None:
        return (0,)
    if isinstance(value, float) and math.isnan(value):
        return (2,)
    return (1, value)


def mix(word: int) -> int:
    """Scramble 64 bits (the finaliser of SplitMix64, Steele, Lea and Flood 2014)."""
    word ^= word >> 30
    word = word * 0xBF58476D1CE4E5B9 % _WORD
    word ^= word >> 27
    word = word * 0x94D049BB133111EB % _WORD
    return word ^ word >> 31


@lru_cache(maxsize=1 << 20)
def string_id(text: str) -> int:
    """Return the id of a text, below 2**63."""
    data = text.encode()
    state = len(data) * 0x9E3779B97F4A7C15 % _WORD
    for start in range(0, len(data), 8):
        state = mix(state ^ int.from_bytes(data[start : start + 8].ljust(8, b"\0"), "little"))
    return mix(state) >> 1


def generated_request_id(user_id: int, request_time_us: int, place: int = 0) -> int:
    """Return the id of a request in a log without request ids: the `place`-th of the user's at that time, from 0."""
    state = mix(user_id % _WORD) ^ request_time_us % _WORD
    return mix((mix(state) + place) % _WORD if place else state) >> 1


# Values


def row_reader(spec: BuildSpec, mapped: MappedColumn) -> RowReader:
    """Return what reads a canonical value from a raw row, and every reason why it cannot be used.

    A value that cannot be read, or a time out of range, counts as missing: it is the default, or null.
    """
    read, faults_of = _column_reader(spec, mapped), _fault_finder(spec, mapped)
    hashed = isinstance(mapped, Feature) and mapped.type == "id"
    missing = value_reader(mapped)(getattr(mapped, "default", None))
    missing = string_id(missing) if hashed and isinstance(missing, str) else missing

    def read_row(raw: Row) -> tuple[Any, Faults]:
        try:
            value = read(raw)
        except Unparsable:
            return missing, (f"unparsable:{_raw_name(mapped)}",)
        faults = () if value is None else faults_of(value)
        if value is None or (faults and isinstance(mapped, TimeColumn)):
            return missing, faults
        return string_id(value) if hashed and isinstance(value, str) else value, faults

    return read_row


def _raw_name(mapped: MappedColumn) -> str:
    """Return the raw column as reasons name it; a label that is `contained_in` a list is named by the list."""
    return str(mapped.contained_in if isinstance(mapped, Label) and mapped.contained_in else mapped.column)


def _column_reader(spec: BuildSpec, mapped: MappedColumn) -> Reader:
    """Return what reads a value as declared from a raw row: null where it is missing; an action's 1 is in no column."""
    column, read = _raw_name(mapped), value_reader(mapped)
    if isinstance(mapped, Label) and mapped.contained_in:
        return lambda raw: read(_is_contained(spec, raw, column))
    if isinstance(mapped, Label) and mapped.at_least is not None:
        least = mapped.at_least
        return lambda raw: None if raw[column] is None else read(_number(raw[column]) >= least)
    return (lambda raw: 1) if mapped.column is None else (lambda raw: read(raw[column]))


def _fault_finder(spec: BuildSpec, mapped: MappedColumn) -> Callable[[Any], Faults]:
    """Return what names the faults of a value as declared that is there."""
    if isinstance(mapped, TimeColumn):
        earliest, latest = (microseconds(bound) for bound in spec.time_range)
        return lambda time_us: () if earliest <= time_us <= latest else ("time_out_of_range",)
    if not isinstance(mapped, Declared) or (mapped.min, mapped.max, mapped.values) == (None, None, None):
        return lambda value: ()
    lowest, highest = _bound(mapped.min, mapped.type), _bound(mapped.max, mapped.type)
    known = None if mapped.values is None else {as_string(value) for value in mapped.values}

    def faults_of(value: Any) -> Faults:
        inside = (lowest is None or value >= lowest) and (highest is None or value <= highest)  # never of NaN
        faults = () if inside else (f"out_of_range:{_raw_name(mapped)}",)
        return faults if known is None or as_string(value) in known else (*faults, f"unknown:{_raw_name(mapped)}")

    return faults_of


def _bound(bound: float | None, type_name: FeatureType) -> float | None:
    """Read a bound as the values that it is for: 0.1 allows the float32 nearest to 0.1."""
    if type_name != "float32" or bound is None:
        return bound
    try:
        return _single(bound)
    except Unparsable:
        return bound


def value_reader(mapped: MappedColumn) -> Reader:
    """Return what reads a raw value as the declared type, null as null; times become microseconds UTC.

    It raises Unparsable. Users, items and requests are hashed where they are, the text of an `id` feature is not yet.
    """
    read = _reader_of_type(mapped)
    return lambda value: None if value is None else read(value)


def _reader_of_type(mapped: MappedColumn) -> Reader:
    if isinstance(mapped, TimeColumn):
        return lambda value: _time(value, mapped)
    if mapped.type == "string":
        hashed = isinstance(mapped, IdColumn) and not isinstance(mapped, RequestIdColumn)
        return (lambda value: string_id(as_string(value))) if hashed else as_string
    if mapped.type == "id":
        return lambda value: value if isinstance(value, str) else _integer(value, 64)
    if mapped.type == "bool":
        return _boolean
    if mapped.type in ("float32", "float64"):
        return _single if mapped.type == "float32" else _double
    bits = int(mapped.type.removeprefix("int"))
    return lambda value: _integer(value, bits)


def _is_contained(spec: BuildSpec, raw: Row, column: str) -> bool | None:
    """Whether the row's item is in the list; None where there is no list."""
    item, members = raw[spec.requests.item_id.column], raw[column]
    if members is not None and not isinstance(members, list):
        raise DataError(f"column {column} holds {members!r}, not a list; `contained_in` needs a list column")
    return None if members is None else item is not None and item in members


def _integer(value: Any, bits: int) -> int:
    if isinstance(value, str):
        digits = _INTEGER.fullmatch(value)
        if digits is None:
            raise Unparsable
        value = digits[1]
    elif not isinstance(value, int | float | Decimal) or not math.isfinite(value) or value != int(value):
        raise Unparsable
    number = int(value)
    if not -(2 ** (bits - 1)) <= number < 2 ** (bits - 1):
        raise Unparsable
    return number


def _double(value: Any) -> float:
    if not (_NUMBER.fullmatch(value) if isinstance(value, str) else isinstance(value, int | float | Decimal)):
        raise Unparsable
    return float(value)


def _number(value: Any) -> float:
    number = _double(value)
    if math.isnan(number):
        raise Unparsable
    return number


def _single(value: Any) -> float:
    try:
        return float(struct.unpack("<f", struct.pack("<f", _double(value)))[0])
    except OverflowError:
        raise Unparsable from None


def _boolean(value: Any) -> bool:
    if isinstance(value, str):
        value = {"true": True, "1": True, "false": False, "0": False}.get(value.lower())
    if value is None or not isinstance(value, int | float | Decimal) or value not in (0, 1):
        raise Unparsable
    return bool(value)


def as_string(value: Any) -> str:
    if isinstance(value, bool):
        return "true" if value else "false"
    return str(value)


def _time(value: Any, mapped: TimeColumn) -> float:
    """Return microseconds UTC of a timestamp, a number with a unit, or text; an infinite number stays infinite."""
    if isinstance(value, date):
        moment = value if isinstance(value, datetime) else datetime.combine(value, time())
        return microseconds(moment, mapped.timezone)
    if mapped.unit in DURATION_US:
        if isinstance(value, str):
            digits = _INTEGER.fullmatch(value)
            value = int(digits[1]) if digits else _double(value)
        if not isinstance(value, int | float | Decimal) or math.isnan(value):
            raise Unparsable
        return float(value) if math.isinf(value) else round(value * DURATION_US[mapped.unit])
    if not isinstance(value, str):
        raise SourceError(f"column {mapped.column} holds the number {value!r}; say its unit: s, ms or us")
    try:
        parsed = datetime.strptime(value, mapped.format) if mapped.format else datetime.fromisoformat(value)
    except ValueError:
        raise Unparsable from None
    return microseconds(parsed, mapped.timezone)


def microseconds(moment: datetime, timezone: str = "UTC") -> int:
    """Return microseconds since 1970; naive times are local (of an hour that comes twice, the first)."""
    if moment.tzinfo is None:
        moment = moment.replace(tzinfo=ZoneInfo(timezone))
        if moment.astimezone(UTC).astimezone(moment.tzinfo).replace(tzinfo=None) != moment.replace(tzinfo=None):
            raise Unparsable  # an hour that the clocks jumped over
    return to_microseconds(moment)


def or_null(value: Any, mapped: MappedColumn) -> Any:
    """Read a value as a `where` sees it; a numeric time is the number that stands in the log."""
    try:
        if value is None or isinstance(mapped, TimeColumn):
            return None if value is None else _double(value)
        if isinstance(mapped, Label) and mapped.at_least is not None:
            return _number(value)
        return value_reader(mapped)(value)
    except Unparsable:
        return None
