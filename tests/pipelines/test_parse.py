"""Readings of raw columns: what each type takes, and the reason where it does not."""

from __future__ import annotations

import math
from datetime import UTC, date, datetime
from decimal import Decimal
from typing import Any

import polars as pl
import pytest

from longbatch.pipelines.parse import read_column
from longbatch.schemas.errors import SourceError
from longbatch.schemas.source_schema import MappedColumn, RequestIdColumn
from longbatch.schemas.spec.build_spec import BuildSpec
from longbatch.schemas.spec.columns import Feature, IdColumn, Label, TimeColumn

SPEC = BuildSpec.model_validate(
    {
        "sources": {"log": {"path": "log.parquet"}},
        "history": {"source": "log", "user_id": "user", "item_id": "item", "event_time": "time"},
        "requests": {"source": "log", "user_id": "user", "item_id": "item", "request_time": "time"},
    }
)
T = 1_700_000_000
US = 1_000_000


def read(
    mapped: MappedColumn, values: Any, role: str = "x", dtype: Any = None, **others: Any
) -> list[tuple[Any, list[str]]]:
    """Return (value, reasons) of each row of a column called `x`."""
    frame = pl.DataFrame({"x": pl.Series(values, dtype=dtype, strict=False), **others})
    name = "request_time" if isinstance(mapped, TimeColumn) else role
    reading = read_column(mapped, "requests", name, frame.schema, SPEC)
    rows = frame.with_columns(**reading.typed).select(
        reading.value.alias("value"), *(f.alias(r) for r, f in reading.faults.items())
    )
    return [(row.pop("value"), [r for r, hit in row.items() if hit]) for row in rows.to_dicts()]


def values(mapped: MappedColumn, raw: Any, **options: Any) -> list[Any]:
    """Return the values alone, "!" where there is a fault."""
    return ["!" if reasons else value for value, reasons in read(mapped, raw, **options)]


BAD = "unparsable:x"


@pytest.mark.parametrize(
    ("type_name", "raw", "expected"),
    [
        ("int8", [127, 128, -128, -129, None], [127, "!", -128, "!", None]),
        ("int8", ["127", "128", "1.5", "x", "", None], [127, "!", "!", "!", "!", None]),
        ("int16", [1.0, 1.5, -32768.0, 40000.0], [1, "!", -32768, "!"]),
        ("int32", [2**31 - 1, 2**31], [2**31 - 1, "!"]),
        ("int64", [math.nan, math.inf, -math.inf, 2.0**62, 2.0**63], ["!", "!", "!", 2**62, "!"]),
        ("int64", [True, False, None], [1, 0, None]),
        ("int64", [Decimal("3"), Decimal("3.5")], [3, "!"]),
        ("float32", ["1.5", "1e3", "x", "nan", None], [1.5, 1000.0, "!", math.nan, None]),
        ("float64", [1, 2, None], [1.0, 2.0, None]),
        ("bool", ["true", "FALSE", "1", "0", "yes", None], [True, False, True, False, "!", None]),
        ("bool", [1, 0, 2, None], [True, False, "!", None]),
        ("bool", [True, None], [True, None]),
        ("string", ["a", "", None], ["a", "", None]),
        ("string", [1, None], ["1", None]),
    ],
)
def test_a_feature_is_read_as_its_type_or_is_a_fault(type_name: Any, raw: list[Any], expected: list[Any]) -> None:
    rows = read(Feature(column="x", type=type_name), raw)
    assert str([value for value, _ in rows]) == str([None if value == "!" else value for value in expected])
    assert [reasons for _, reasons in rows] == [[BAD] if value == "!" else [] for value in expected]


def test_unsigned_numbers_beyond_int64_are_faults() -> None:
    assert values(Feature(column="x", type="int64"), [1, 2**64 - 1], dtype=pl.UInt64) == [1, "!"]


@pytest.mark.parametrize(
    ("type_name", "default", "raw", "expected"),
    [
        ("int8", -1, [None, 5], [-1, 5]),
        ("float32", 1, [None, 5.0], [1.0, 5.0]),
        ("bool", 1, [None, False], [True, False]),
        ("string", "?", [None, "a"], ["?", "a"]),
        ("id", 7, [None, 5], [7, 5]),
        ("id", "?", [None, "a"], ["?", "a"]),
        ("id", 7, [None, "a"], ["7", "a"]),
    ],
)
def test_a_null_takes_the_default(type_name: Any, default: Any, raw: list[Any], expected: list[Any]) -> None:
    assert values(Feature(column="x", type=type_name, default=default), raw) == expected


def test_a_value_that_cannot_be_read_does_not_take_the_default() -> None:
    assert [reasons for _, reasons in read(Feature(column="x", type="int8", default=0), ["x"])] == [[BAD]]


def test_an_id_feature_is_hashed_if_it_is_a_string() -> None:
    schema = pl.Schema({"x": pl.String, "n": pl.Int32})
    assert read_column(Feature(column="x", type="id"), "requests", "x", schema, SPEC).is_hashed
    assert not read_column(Feature(column="n", type="id"), "requests", "x", schema, SPEC).is_hashed


def test_a_string_default_for_a_column_of_numbers_is_refused() -> None:
    with pytest.raises(SourceError, match=r"default '\?' is a string, but column 'x' has numbers"):
        read(Feature(column="x", type="id", default="?"), [1])


def test_a_label_without_a_value_is_a_fault_unless_it_has_a_default() -> None:
    assert read(Label(column="x"), [1, None], "label.click") == [(1, []), (None, ["missing_label:click"])]
    assert read(Label(column="x", default=0), [1, None], "label.click") == [(1, []), (0, [])]
    assert read(Label(column="x"), ["1", "x"], "label.click") == [(1, []), (None, [BAD])]


@pytest.mark.parametrize(("role", "reason"), [("user_id", "missing_user"), ("item_id", "missing_item")])
def test_a_null_id_is_missing(role: str, reason: str) -> None:
    assert read(IdColumn(column="x"), [5, None], role) == [(5, []), (None, [reason])]
    assert read(IdColumn(column="x", type="string"), ["a", None], role) == [("a", []), (None, [reason])]


def test_an_id_that_is_not_an_integer_is_a_fault() -> None:
    assert read(IdColumn(column="x"), ["5", "a", "1.5"], "user_id") == [(5, []), (None, [BAD]), (None, [BAD])]


def test_a_request_id_stays_a_string() -> None:
    schema = pl.Schema({"x": pl.String})
    reading = read_column(RequestIdColumn(column="x", type="string"), "requests", "request_id", schema, SPEC)
    assert not reading.is_hashed
    assert list(reading.faults) == ["missing_request"]
    assert read_column(IdColumn(column="x", type="string"), "requests", "item_id", schema, SPEC).is_hashed


@pytest.mark.parametrize(
    ("unit", "raw", "expected"),
    [
        ("s", [T, None], [T * US, "!"]),
        ("ms", [T * 1000 + 1], [T * US + 1000]),
        ("us", [T * US + 1], [T * US + 1]),
        ("s", [T + 0.25, 1.7e9], [T * US + 250_000, T * US]),
        ("ms", [T * 1000 + 0.25], [T * US + 250]),
        ("us", [float(T * US)], [T * US]),
        ("s", [str(T), f"{T}.25", "1.7e9", "x", ""], [T * US, T * US + 250_000, T * US, "!", "!"]),
        ("ms", [str(T * 1000)], [T * US]),
    ],
)
def test_numbers_become_microseconds_by_their_unit(unit: Any, raw: list[Any], expected: list[Any]) -> None:
    assert values(TimeColumn(column="x", unit=unit), raw) == expected


@pytest.mark.parametrize(
    ("unit", "raw", "reason"),
    [
        ("s", [None], "missing_time"),
        ("s", [-1], "time_out_of_range"),
        ("ms", [T], "time_out_of_range"),
        ("s", [T * 1000], "time_out_of_range"),
        ("s", [2**63 - 1], "time_out_of_range"),
        ("s", [-(2**63)], "time_out_of_range"),
        ("ms", [2**62], "time_out_of_range"),
        ("us", [2**63 - 1], "time_out_of_range"),
        ("s", [math.inf], "time_out_of_range"),
        ("s", [-math.inf], "time_out_of_range"),
        ("s", [1e300], "time_out_of_range"),
        ("s", [math.nan], BAD),
        ("s", ["x"], BAD),
        ("s", ["9" * 30], "time_out_of_range"),
        ("s", [str(2**63 - 1)], "time_out_of_range"),
        ("iso", ["yesterday"], BAD),
        ("iso", ["2024-13-01"], BAD),
        ("iso", ["1970-01-01T00:00:00"], "time_out_of_range"),
        ("iso", ["2100-01-01T00:00:01Z"], "time_out_of_range"),
        ("iso", [None], "missing_time"),
    ],
)
def test_an_impossible_time_has_one_reason(unit: Any, raw: list[Any], reason: str) -> None:
    dtype = pl.String if unit == "iso" else None
    assert read(TimeColumn(column="x", unit=unit), raw, dtype=dtype or (pl.Int64 if raw == [None] else None)) == [
        (None, [reason])
    ]


@pytest.mark.parametrize("unit", ["s", "ms", "us"])
def test_both_ends_of_the_range_are_within_it(unit: Any) -> None:
    per_unit = {"s": US, "ms": 1000, "us": 1}[unit]
    ends = [int(moment.timestamp()) * US // per_unit for moment in SPEC.time_range]
    assert values(TimeColumn(column="x", unit=unit), [ends[0] - 1, *ends, ends[1] + 1]) == [
        "!",
        ends[0] * per_unit,
        ends[1] * per_unit,
        "!",
    ]


@pytest.mark.parametrize(
    ("string", "hour", "microsecond"),
    [
        ("2024-01-01T05:00:00", 5, 0),
        ("2024-01-01 05:00:00", 5, 0),
        ("2024-01-01T05:00", 5, 0),
        ("2024-01-01T05:00:00.25", 5, 250_000),
        ("2024-01-01T05:00:00.123456789", 5, 123_456),
        ("2024-01-01T05:00:00Z", 5, 0),
        ("2024-01-01 05:00:00Z", 5, 0),
        ("2024-01-01T05:00:00.5+02:00", 3, 500_000),
        ("2024-01-01T05:00:00+0200", 3, 0),
        ("2024-01-01T05:00:00-01:30", 6, 30 * 60 * US),
        ("2024-01-01", 0, 0),
    ],
)
def test_iso_strings_are_read_with_and_without_an_offset(string: str, hour: int, microsecond: int) -> None:
    expected = int(datetime(2024, 1, 1, hour, tzinfo=UTC).timestamp()) * US + microsecond
    assert values(TimeColumn(column="x", unit="iso"), [string]) == [expected]


def test_iso_strings_without_an_offset_are_local_to_the_time_zone() -> None:
    berlin = TimeColumn(column="x", unit="iso", timezone="Europe/Berlin")
    expected = [
        datetime(2024, 7, 1, 10, tzinfo=UTC),
        datetime(2024, 7, 1, 12, tzinfo=UTC),
        datetime(2024, 10, 27, 0, 30, tzinfo=UTC),
    ]
    strings = ["2024-07-01T12:00:00", "2024-07-01T12:00:00Z", "2024-10-27T02:30:00"]
    assert values(berlin, strings) == [int(moment.timestamp()) * US for moment in expected]
    assert values(berlin, ["2024-03-31T02:30:00"]) == ["!"], "an hour that the clocks skip"


def test_strings_are_read_in_a_declared_format() -> None:
    expected = int(datetime(2024, 2, 1, 12, tzinfo=UTC).timestamp()) * US
    assert values(TimeColumn(column="x", format="%d.%m.%Y %H:%M"), ["01.02.2024 12:00", "2024"]) == [expected, "!"]
    with_offset = TimeColumn(column="x", format="%d.%m.%Y %H:%M %z")
    assert values(with_offset, ["01.02.2024 14:00 +0200"]) == [expected]
    paris = TimeColumn(column="x", format="%d.%m.%Y %H:%M", timezone="Europe/Paris")
    assert values(paris, ["01.02.2024 13:00"]) == [expected]


def test_timestamp_columns_are_used_as_they_are() -> None:
    moment = datetime(2024, 7, 1, 12)
    utc = int(moment.replace(tzinfo=UTC).timestamp()) * US
    plain = TimeColumn(column="x")
    for unit in ("ms", "us", "ns"):
        assert values(plain, [moment, None], dtype=pl.Datetime(unit)) == [utc, "!"]
    aware = pl.Series([moment]).dt.replace_time_zone("Asia/Tokyo")
    assert values(plain, aware) == [utc - 9 * 3600 * US]
    tokyo = TimeColumn(column="x", timezone="Asia/Tokyo")
    assert values(tokyo, [moment]) == [utc - 9 * 3600 * US]
    assert values(plain, [date(2024, 7, 1)]) == [utc - 12 * 3600 * US]
    assert read(plain, [datetime(1970, 1, 1)]) == [(None, ["time_out_of_range"])]


@pytest.mark.parametrize(
    ("mapped", "raw"), [(TimeColumn(column="x"), [1]), (TimeColumn(column="x", unit="iso"), [1.5])]
)
def test_numbers_without_a_unit_are_refused(mapped: TimeColumn, raw: list[Any]) -> None:
    with pytest.raises(
        SourceError, match=r"time column 'x' has type \w+\. Declare its unit: unit = \"s\", \"ms\" or \"us\""
    ):
        read(mapped, raw)


def test_a_missing_column_is_named_with_the_available_ones() -> None:
    with pytest.raises(SourceError, match=r"column 'y' is not in the source; its columns are x"):
        read(Feature(column="y", type="int8"), [1])
    with pytest.raises(SourceError, match=r"column 'y' is not in the source; its columns are x"):
        read(Label(contained_in="y"), [1])


@pytest.mark.parametrize("raw", [[[1, 2]], [{"a": 1}]])
def test_a_nested_column_is_refused(raw: list[Any]) -> None:
    with pytest.raises(
        SourceError, match=r"column 'x' has type (List|Struct).*, but one value per row is needed. Add it to"
    ):
        read(Feature(column="x", type="int8"), raw)


def test_a_contained_in_label_is_whether_the_item_is_in_the_list() -> None:
    label = Label(contained_in="x")
    rows = read(label, [[1, 2], [1], [], None, [None]], "label.click", item=[2, 2, 2, 2, 2])
    assert rows == [(1, []), (0, []), (0, []), (None, ["missing_label:click"]), (0, [])]
    assert values(Label(contained_in="x", type="bool"), [["a"], ["b"]], item=["a", "a"]) == [True, False]
    assert values(Label(contained_in="x", default=0), [None, [2]], item=[2, 2]) == [0, 1]


def test_a_list_of_another_type_than_the_item_is_refused() -> None:
    with pytest.raises(
        SourceError, match=r"compares 'item' with the elements of 'x', but their types are Int64 and String"
    ):
        read(Label(contained_in="x"), [["a"]], item=[1])


def test_a_label_in_a_column_without_lists_is_refused() -> None:
    with pytest.raises(SourceError, match=r"`contained_in` needs a list column, but 'x' has type Int64"):
        read(Label(contained_in="x"), [1], item=[1])
