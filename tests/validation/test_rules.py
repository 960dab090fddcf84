"""Row rules: what is declared of columns, and how many rejects are too many."""

from __future__ import annotations

from typing import Any

import polars as pl
import pytest

from longbatch.schemas.accounting import RowAccounting
from longbatch.schemas.errors import SpecError
from longbatch.schemas.spec.build_spec import BuildSpec
from longbatch.schemas.spec.columns import Feature
from longbatch.validation.rules import check_threshold_names, declared_faults, exceeded_thresholds, possible_reasons


def faults(feature: Feature, values: list[Any], dtype: Any, *, as_string: bool = False) -> list[list[str]]:
    frame = pl.DataFrame({"x": pl.Series(values, dtype=dtype)})
    reasons = frame.select(**declared_faults(feature, "x", pl.col("x"), as_string=as_string))
    return [[reason for reason, hit in row.items() if hit] for row in reasons.to_dicts()]


def test_both_ends_of_a_declared_range_are_allowed() -> None:
    feature = Feature(column="x", type="int32", min=0, max=10)
    assert faults(feature, [-1, 0, 10, 11, None], pl.Int32) == [["out_of_range:x"], [], [], ["out_of_range:x"], []]


def test_nan_is_out_of_any_range_and_infinity_of_a_bounded_one() -> None:
    feature = Feature(column="x", type="float64", min=0.0)
    values = [0.5, float("nan"), float("inf"), None]
    assert faults(feature, values, pl.Float64) == [[], ["out_of_range:x"], [], []]
    bounded = Feature(column="x", type="float64", max=9.0)
    assert faults(bounded, values, pl.Float64) == [[], ["out_of_range:x"], ["out_of_range:x"], []]


def test_a_value_outside_the_declared_set_is_unknown() -> None:
    feature = Feature(column="x", type="id", values=("like", "play"))
    assert faults(feature, ["play", "Play", "", None], pl.String, as_string=True) == [
        [],
        ["unknown:x"],
        ["unknown:x"],
        [],
    ]


def test_numbers_are_compared_with_declared_numbers() -> None:
    assert faults(Feature(column="x", type="int8", values=(0, 1)), [0, 1, 2], pl.Int8) == [[], [], ["unknown:x"]]


def spec(**keys: Any) -> BuildSpec:
    return BuildSpec.model_validate(
        {
            "sources": {"log": {"path": "log.parquet"}},
            "history": {"source": "log", "user_id": "u", "item_id": "i", "event_time": "t"},
            "requests": {
                "source": "log",
                "user_id": "u",
                "item_id": "i",
                "request_time": "t",
                "request_id": "r",
                "target_features": {"tab": {"type": "int8", "values": [0, 1], "max": 1}},
                "labels": {"click": "int8"},
            },
            **keys,
        }
    )


def test_possible_reasons_of_a_source_are_listed() -> None:
    assert possible_reasons(spec(), "log") == [
        "malformed_row",
        "missing_user",
        "unparsable:u",
        "missing_time",
        "unparsable:t",
        "time_out_of_range",
        "missing_item",
        "unparsable:i",
        "missing_request",
        "unparsable:r",
        "unparsable:tab",
        "out_of_range:tab",
        "unknown:tab",
        "missing_label:click",
        "unparsable:click",
        "conflicting_request",
    ]


def test_a_threshold_for_an_unknown_reason_is_an_error_with_a_similar_one() -> None:
    check_threshold_names(spec(max_rejected_for={"missing_user": 0.1}))
    with pytest.raises(
        SpecError,
        match=r"max_rejected_for: 'unparsable:tabs' is not a reason of this spec\. Did you mean 'unparsable:tab'\?",
    ):
        check_threshold_names(spec(max_rejected_for={"unparsable:tabs": 0.1}))
    with pytest.raises(
        SpecError, match=r"'xyz' is not a reason of this spec. The reasons of this spec are malformed_row, missing_user"
    ):
        check_threshold_names(spec(max_rejected_for={"xyz": 0.1}))


def test_exactly_the_allowed_share_is_allowed_and_one_row_more_is_not() -> None:
    accounting = RowAccounting(rows=1100, filtered=100, rejected=10, accepted=990, reasons={"missing_user": 10})
    assert exceeded_thresholds(accounting, 0.01, {"missing_user": 0.01}) == []
    exceeded = exceeded_thresholds(accounting, 0.009, {"missing_user": 0.0, "missing_item": 0.0})
    assert [str(threshold) for threshold in exceeded] == [
        "10 of 1,000 rows (1.00%) were rejected, more than max_rejected = 0.90%",
        "10 of 1,000 rows (1.00%) were rejected for missing_user, more than max_rejected_for.'missing_user' = 0.00%",
    ]
