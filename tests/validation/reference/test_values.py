"""How the naive reference reads values, orders them, and computes ids."""

from __future__ import annotations

import polars as pl
import pytest

from longbatch.schemas.errors import SourceError
from longbatch.schemas.spec.build_spec import parse_spec
from longbatch.validation.reference.oracle import Reference, build_reference
from longbatch.validation.reference.values import generated_request_id, mix, sort_key, string_id

T = 1_700_000_000  # seconds; a time of a literal row is T plus a few

SPEC = """
history_length = 3
[sources.events]
path = "events.parquet"
[sources.impressions]
path = "impressions.parquet"
[history]
source = "events"
user_id = "user"
item_id = "item"
event_time = { column = "time", unit = "s" }
[requests]
source = "impressions"
user_id = "user"
item_id = "item"
request_time = { column = "time", unit = "s" }
"""


def read_feature(declared: str, raw: object) -> Reference:
    """Build one request with a request feature `tab`, whose default only a null may take."""
    default = {"bool": "true", "string": '"none"', "id": "3"}.get(declared, "3")
    feature = f'[requests.features]\ntab = {{ type = "{declared}", default = {default} }}'
    impressions = pl.DataFrame({"user": [1], "item": [2], "time": [T], "tab": [raw]})
    events = impressions.drop("tab").clear()
    return build_reference(parse_spec(SPEC + feature), {"events": events, "impressions": impressions})


@pytest.mark.parametrize(
    ("declared", "raw", "value"),
    [
        ("int8", "127", 127),
        ("int8", "+5", 5),
        ("int8", "11.0", 11),
        ("int8", True, 1),
        ("int8", 3.0, 3),
        ("int64", "-9223372036854775808", -(2**63)),
        ("float32", "0.1", 0.10000000149011612),
        ("float64", "1e-3", 0.001),
        ("float64", "-inf", float("-inf")),
        ("bool", "TRUE", True),
        ("bool", 0.0, False),
        ("string", 17, "17"),
        ("id", 17, 17),
        ("id", "17", string_id("17")),
    ],
)
def test_a_value_is_read_as_its_declared_type(declared: str, raw: object, value: object) -> None:
    assert read_feature(declared, raw).requests[0].features == {"tab": value}


@pytest.mark.parametrize(
    ("declared", "raw"),
    [
        *[
            ("int8", raw)
            for raw in ("128", "1.5", "1.", ".0", " 1", "", "1_0", "x", 128, 1.5, float("nan"), float("inf"))
        ],
        *[("float64", raw) for raw in ("1,5", "1_0", "", " 1", "0x1")],
        *[("float32", raw) for raw in ("1e39", 1e39)],
        *[("bool", raw) for raw in ("yes", "", 2, -1, 0.5)],
        ("int64", "9223372036854775808"),
    ],
)
def test_a_value_of_another_type_is_unparsable(declared: str, raw: object) -> None:
    reference = read_feature(declared, raw)
    assert reference.row_accounting["impressions"].reasons == {"unparsable:tab": 1}


def test_a_null_feature_takes_its_default_or_stays_null() -> None:
    features = '[requests.features]\ntab = { type = "int8", default = 3 }\nshown = { column = "tab", type = "int8" }'
    impressions = pl.DataFrame({"user": [1], "item": [2], "time": [T], "tab": [None]})
    events = impressions.drop("tab").clear()
    reference = build_reference(parse_spec(SPEC + features), {"events": events, "impressions": impressions})
    assert reference.requests[0].features == {"tab": 3, "shown": None}


@pytest.mark.parametrize(
    ("unit", "raw", "seconds"),
    [
        ('unit = "s"', T, T),
        ('unit = "ms"', str(T * 1000 + 250), T + 0.25),
        ('unit = "s"', f"{T}.5", T + 0.5),
        ('unit = "us"', T * 1e6 + 0.4, T),
        ('unit = "iso"', "2023-11-14T22:13:20", T),
        ('unit = "iso"', "2023-11-14 22:13:20.5+01:00", T + 0.5 - 3600),
        ('unit = "iso", timezone = "Europe/Berlin"', "2023-11-14T22:13:20", T - 3600),
        ('format = "%d.%m.%Y %H:%M"', "14.11.2023 22:13", T - 20),
    ],
)
def test_times_become_microseconds(unit: str, raw: object, seconds: float) -> None:
    spec = parse_spec(SPEC.replace('unit = "s"', unit))
    impressions = pl.DataFrame({"user": [1], "item": [2], "time": [raw]})
    reference = build_reference(spec, {"events": impressions.clear(), "impressions": impressions})
    assert reference.requests[0].request_time == int(seconds * 1_000_000)


def test_a_numeric_time_without_a_unit_is_an_error() -> None:
    frame = pl.DataFrame({"user": [1], "item": [1], "time": [T]})
    with pytest.raises(SourceError, match="gives no unit for it"):
        build_reference(parse_spec(SPEC.replace(', unit = "s"', "")), {"events": frame, "impressions": frame})


def test_ids_are_hashed_as_documented() -> None:
    """`mix` is SplitMix64's finalizer, whose first outputs from seed 0 are published; ids follow by hand."""
    assert [mix(n * 0x9E3779B97F4A7C15 % 2**64) for n in (1, 2)] == [0xE220A8397B1DCDAF, 0x6E789E6AA1B965F4]
    length = 0x9E3779B97F4A7C15
    assert string_id("") == mix(0) >> 1 == 0
    assert string_id("abc") == mix(mix(3 * length % 2**64 ^ 0x636261)) >> 1
    word, rest = 0x6867666564636261, 0xA9C3
    assert string_id("abcdefghé") == mix(mix(mix(10 * length % 2**64 ^ word) ^ rest)) >> 1
    assert generated_request_id(-1, 5) == mix(mix(2**64 - 1) ^ 5) >> 1


def test_nulls_sort_first_and_nan_last() -> None:
    values = [float("nan"), 1.0, None, float("inf"), -0.0]
    assert [str(value) for value in sorted(values, key=sort_key)] == ["None", "-0.0", "1.0", "inf", "nan"]
    assert sorted(["é", "z", "😀", "ﬀ"], key=sort_key) == sorted(["é", "z", "😀", "ﬀ"], key=str.encode)
