"""Values and ids of the naive reference: how one raw value is read as declared, in plain Python."""

from __future__ import annotations

import math
import re
import struct
from collections.abc import Callable
from datetime import UTC, date, datetime, time
from decimal import Decimal
from functools import cache
from typing import Any
from zoneinfo import ZoneInfo

from longbatch.schemas.errors import DataError, SourceError
from longbatch.schemas.spec import DURATION_US, BuildSpec, IdColumn, Label, TimeColumn
from longbatch.schemas.tables import (
    Mapped,
    RequestIdColumn,
)

_WORD = 2**64
_INTEGER = re.compile(r"([+-]?[0-9]+)(\.0+)?")
_NUMBER = re.compile(r"[+-]?([0-9]+\.?[0-9]*|\.[0-9]+)(e[+-]?[0-9]+)?|[+-]?(nan|inf|infinity)", re.IGNORECASE)
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)

Row = dict[str, Any]
Reader = Callable[[Any], Any]


class Unparsable(Exception):
    """A value that cannot be read as the declared type."""


class OutOfRange(Exception):
    """A time outside the spec's `time_range`."""


def mix(word: int) -> int:
    """Scramble 64 bits (the finaliser of SplitMix64, Steele, Lea and Flood 2014)."""
    word ^= word >> 30
    word = word * 0xBF58476D1CE4E5B9 % _WORD
    word ^= word >> 27
    word = word * 0x94D049BB133111EB % _WORD
    return word ^ word >> 31


@cache
def text_id(text: str) -> int:
    """Return the id of a text, below 2**63."""
    data = text.encode()
    state = len(data) * 0x9E3779B97F4A7C15 % _WORD
    for start in range(0, len(data), 8):
        state = mix(state ^ int.from_bytes(data[start : start + 8].ljust(8, b"\0"), "little"))
    return mix(state) >> 1


def made_request_id(user_id: int, request_time_us: int) -> int:
    """Return the id of a request in a log without request ids."""
    return mix(mix(user_id % _WORD) ^ request_time_us % _WORD) >> 1


# Values


def row_reader(spec: BuildSpec, mapped: Mapped) -> Reader:
    """Return what reads a canonical value from a raw row: null or default where the raw value is missing."""
    column = str(mapped.column)
    default = getattr(mapped, "default", None)
    read = value_reader(mapped)
    earliest, latest = (_microseconds(bound, TimeColumn(column="")) for bound in spec.time_range)

    def read_column(raw: Row) -> Any:
        value = raw[column]
        return read(default if value is None else value)

    def read_membership(raw: Row) -> Any:
        value = _is_contained(spec, raw, column)
        return read(default if value is None else value)

    def read_time(raw: Row) -> Any:
        time_us = read(raw[column])
        if time_us is not None and not earliest <= time_us <= latest:
            raise OutOfRange
        return time_us

    if isinstance(mapped, Label) and mapped.contained_in:
        column = mapped.contained_in
        return read_membership
    return read_time if isinstance(mapped, TimeColumn) else read_column


def value_reader(mapped: Mapped) -> Reader:
    """Return what reads a raw value as the declared type, null as null; times become microseconds UTC."""
    read = _reader_of_type(mapped)
    return lambda value: None if value is None else read(value)


def _reader_of_type(mapped: Mapped) -> Reader:
    if isinstance(mapped, TimeColumn):
        return lambda value: _time(value, mapped)
    if mapped.type == "string":
        hashed = isinstance(mapped, IdColumn) and not isinstance(mapped, RequestIdColumn)
        return (lambda value: text_id(as_text(value))) if hashed else as_text
    if mapped.type == "id":
        return lambda value: text_id(value) if isinstance(value, str) else _integer(value, 64)
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


def as_text(value: Any) -> str:
    if isinstance(value, bool):
        return "true" if value else "false"
    return str(value)


def _time(value: Any, mapped: TimeColumn) -> int:
    """Return microseconds UTC of a timestamp, a number with a unit, or text."""
    if isinstance(value, date):
        return _microseconds(value if isinstance(value, datetime) else datetime.combine(value, time()), mapped)
    if mapped.unit in DURATION_US:
        if isinstance(value, str):
            digits = _INTEGER.fullmatch(value)
            value = int(digits[1]) if digits else _double(value)
        if not isinstance(value, int | float | Decimal) or math.isnan(value):
            raise Unparsable
        if math.isinf(value):
            raise OutOfRange
        return round(value * DURATION_US[mapped.unit])
    if not isinstance(value, str):
        raise SourceError(f"column {mapped.column} holds the number {value!r}; say its unit: s, ms or us")
    try:
        parsed = datetime.strptime(value, mapped.format) if mapped.format else datetime.fromisoformat(value)
    except ValueError:
        raise Unparsable from None
    return _microseconds(parsed, mapped)


def _microseconds(moment: datetime, mapped: TimeColumn) -> int:
    """Naive times are local to the column's time zone (of an hour that comes twice, the first)."""
    if moment.tzinfo is None:
        moment = moment.replace(tzinfo=ZoneInfo(mapped.timezone))
        if moment.astimezone(UTC).astimezone(moment.tzinfo).replace(tzinfo=None) != moment.replace(tzinfo=None):
            raise Unparsable  # an hour that the clocks jumped over
    since = moment.astimezone(UTC) - _EPOCH
    return (since.days * 86_400 + since.seconds) * 1_000_000 + since.microseconds


def or_null(value: Any, mapped: Mapped) -> Any:
    """Read a value as a `where` sees it; a numeric time is the number that stands in the log."""
    try:
        if value is None or isinstance(mapped, TimeColumn):
            return None if value is None else _double(value)
        return value_reader(mapped)(value)
    except Unparsable:
        return None
