"""Labels from later events, at the bounds of their windows."""

from __future__ import annotations

from typing import Any

import numpy as np
import polars as pl
import pytest
from arrow_values import lists_of

from longbatch.pipelines.canonicalize import LogFacts, canonicalize
from longbatch.pipelines.delayed_labels import _reduced, range_sums
from longbatch.pipelines.in_memory import InMemoryDataset, build_in_memory
from longbatch.pipelines.kernel import build_bucket
from longbatch.schemas.errors import DataError
from longbatch.schemas.spec.build_spec import BuildSpec
from longbatch.schemas.spec.columns import Label

T = 1_700_000_000_000_000
MINUTE = 60_000_000
END = (T + 10 * MINUTE, 99, None)  # an action that closes the windows of requests at T


def build(
    actions: list[tuple[int, int, Any]], label: dict[str, Any], value: Any = pl.Int64, **section: Any
) -> InMemoryDataset:
    """Build one request of items 1 and 2 at T, with actions of (time, item, value)."""
    time = {"column": "t", "unit": "us"}
    named = {"user_id": "user", "item_id": "item"}
    spec = BuildSpec.model_validate(
        {
            "sources": {"shown": {"path": "shown.parquet"}, "done": {"path": "done.parquet"}},
            "history": {"source": "done", **named, "event_time": time},
            "requests": {
                "source": "shown",
                **named,
                "request_time": time,
                "labels": {"x": {"within": "1m", **label}},
            },
            "actions": {"source": "done", **named, "event_time": time, **section},
        }
    )
    done = pl.DataFrame(actions, schema={"t": pl.Int64, "item": pl.Int64, "v": value}, orient="row")
    shown = pl.DataFrame({"t": [T, T], "item": [1, 2]})
    frames = {"shown": shown.with_columns(user=7), "done": done.with_columns(user=7)}
    return build_in_memory(spec, frames)


def labels(built: InMemoryDataset) -> list[Any]:
    return [target["x"] for _, batch in built.blocks for row in lists_of(batch["targets"]) for target in row]


@pytest.mark.parametrize(
    ("time", "counts"),
    [(T - 1, 0), (T, 1), (T + MINUTE - 1, 1), (T + MINUTE, 0)],
    ids=["just before the request", "at the request", "just before the end", "at the end"],
)
def test_an_action_counts_from_the_request_until_before_the_window_ends(time: int, counts: int) -> None:
    assert labels(build([(time, 1, None), END], {"aggregate": "any"})) == [counts, 0]


@pytest.mark.parametrize(("end", "pending"), [(T + MINUTE - 1, 1), (T + MINUTE, 0)])
def test_a_request_is_pending_until_its_label_window_closes(end: int, pending: int) -> None:
    built = build([(end, 9, None)], {"aggregate": "any"})
    assert built.counts.pending_requests == pending
    assert built.row_accounting["shown"].policies == ({"pending_label": 2} if pending else {})
    assert len(labels(built)) == 2 - 2 * pending


def test_a_declared_end_closes_windows_that_the_last_action_does_not() -> None:
    until = "2023-11-14T22:14:20Z"  # T + 1 minute
    assert labels(build([(T + 5, 2, None)], {"aggregate": "any"}, until=until)) == [0, 1]
    built = build([(T + 5 * MINUTE, 2, None)], {"aggregate": "any"}, until="2023-11-14T22:14:19.999999Z")
    assert built.counts.pending_requests == 1


def test_without_any_action_every_request_is_pending() -> None:
    assert build([], {"aggregate": "any"}).counts.pending_requests == 1


def test_count_sum_and_max_leave_nulls_out() -> None:
    actions = [(T + 1, 1, 5), (T + 2, 1, None), (T + 3, 1, -8), END]
    assert labels(build(actions, {"aggregate": "count"})) == [3, 0]
    assert labels(build(actions, {"aggregate": "sum", "column": "v"})) == [-3, 0]
    assert labels(build(actions, {"aggregate": "max", "column": "v"})) == [5, 0]
    assert labels(build(actions, {"aggregate": "max", "column": "v", "default": -1})) == [5, -1]


def test_only_the_actions_that_where_selects_count() -> None:
    actions = [(T + 1, 1, 5), (T + 3, 1, -8), END]
    assert labels(build(actions, {"aggregate": "count", "where": "v > 0"})) == [1, 0]


def test_nan_adds_nothing() -> None:
    actions = [(T + 1, 1, 0.5), (T + 2, 1, float("nan")), END]
    label = {"aggregate": "sum", "column": "v", "type": "float32"}
    assert labels(build(actions, label, pl.Float64)) == [0.5, 0.0]


@pytest.mark.parametrize(
    ("value", "type_name", "value_in_message", "remedy"),
    [
        (100, "int8", "200", "Declare a wider type"),
        (2**62, "int64", "more than 64 bits can hold", "Correct the values"),
        (3e38, "float32", r"6\.0\d*e\+38", "Declare a wider type"),
        (1.5e308, "float64", "more than 64 bits can hold", "Correct the values"),
    ],
)
def test_a_sum_that_does_not_fit_its_type_is_an_error_that_names_it(
    value: Any, type_name: str, value_in_message: str, remedy: str
) -> None:
    actions = [(T + 1, 1, value), (T + 2, 1, value), END]
    label = {"aggregate": "sum", "column": "v", "type": type_name}
    message = (
        rf"label x of user 7, request \d+, item 1 is {value_in_message}, "
        rf"which does not fit its type {type_name}. {remedy}"
    )
    with pytest.raises(DataError, match=message):
        build(actions, label, pl.Float64 if type_name.startswith("float") else pl.Int64)


def test_an_unreadable_value_rejects_only_actions_that_the_label_selects() -> None:
    actions = [(T + 1, 1, "x"), (T + 2, 1, "5"), END]
    label = {"aggregate": "sum", "column": "v"}
    assert build(actions, label, pl.String).row_accounting["done"].reasons == {"unparsable:v": 1}
    assert build(actions, {**label, "where": "v <> 'x'"}, pl.String).row_accounting["done"].reasons == {}


def test_an_aggregate_without_an_implementation_raises() -> None:
    label = Label(column="value", type="int32", aggregate="sum", within="10us").model_copy(update={"aggregate": "min"})
    with pytest.raises(AssertionError, match="min"):
        _reduced(label, np.array([3]), np.array([0]), np.array([1]))


@pytest.mark.parametrize("seed", range(20))
def test_the_sum_of_a_range_of_floats_does_not_depend_on_other_ranges(seed: int) -> None:
    rng = np.random.default_rng(seed)
    values = rng.normal(size=500) * 10.0 ** rng.integers(-8, 8, 500)
    low = rng.integers(0, 501, 300)
    high = np.minimum(low + rng.integers(0, 60, 300), 500)  # some empty, some up to the last value
    padded = np.append(values, 0.0)
    one_by_one = [np.add.reduceat(padded, [a, b])[0] if b > a else 0.0 for a, b in zip(low, high, strict=True)]
    assert range_sums(values, low, high).to_list() == one_by_one


def test_pending_targets_are_those_of_users_whom_policies_keep() -> None:
    time, named = {"column": "t", "unit": "us"}, {"user_id": "user", "item_id": "item"}
    spec = BuildSpec.model_validate(
        {
            "sources": {"shown": {"path": "shown.parquet"}, "done": {"path": "done.parquet"}},
            "history": {"source": "done", **named, "event_time": time},
            "requests": {
                "source": "shown",
                **named,
                "request_time": time,
                "labels": {"x": {"within": "1m", "aggregate": "any"}},
            },
            "actions": {"source": "done", **named, "event_time": time},
            "users": {"max_events": 1, "over_max_events": "reject_user"},
        }
    )
    # User 1 has too many events, so its target comes first and is rejected; the target of user 2 is pending.
    raw = {
        "done": pl.DataFrame({"user": [1, 1, 2], "item": [1, 2, 3], "t": [T, T + 1, T]}),
        "shown": pl.DataFrame({"user": [1, 2], "item": [4, 5], "t": [T, T]}),
    }
    rows = {source: canonicalize(frame, spec, source).rows for source, frame in raw.items()}
    built = build_bucket(spec, rows, LogFacts(log_end=T + 1))
    assert built.pending.targets.select("user_id", "item_id").rows() == [(2, 5)]
    assert built.row_accounting["shown"].policies == {"rejected_user": 1, "pending_label": 1}
