"""The naive reference: delayed labels of literal rows, windows to the microsecond, and the end of the log."""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import reduce
from operator import add
from typing import Any

import numpy as np
import polars as pl
import pytest

from longbatch.schemas.accounting import Counts
from longbatch.schemas.errors import DataError
from longbatch.schemas.spec.build_spec import BuildSpec, parse_spec
from longbatch.schemas.spec.columns import Label
from longbatch.validation.reference.delayed_labels import _aggregate
from longbatch.validation.reference.oracle import Reference, build_reference

T = 1_700_000_000_000_000  # microseconds, 2023-11-14T22:13:20; a time of a literal row is T plus a few
CLOSED = "until = 2024-01-01T00:00:00Z"
BY_REQUEST = 'request_id = "request"'

SPEC = """
[sources.events]
path = "events.parquet"
[sources.shown]
path = "shown.parquet"
[sources.acts]
path = "acts.parquet"
[history]
source = "events"
user_id = "user"
item_id = "item"
event_time = { column = "time", unit = "us" }
[requests]
source = "shown"
user_id = "user"
item_id = "item"
request_time = { column = "time", unit = "us" }
request_id = "request"
[actions]
source = "acts"
user_id = "user"
item_id = "item"
event_time = { column = "time", unit = "us" }
"""

ANY = 'acted = { aggregate = "any", within = "10us" }'
COUNT = 'acts = { aggregate = "count", within = "10us", where = "value >= 0" }'


def spec_of(*labels: str, actions: str = "") -> BuildSpec:
    return parse_spec(SPEC + actions + "\n[requests.labels]\n" + "\n".join(labels))


def build(
    spec: BuildSpec, shown: Sequence[tuple[int, ...]], acts: Sequence[tuple[Any, ...]], log_end: int | None = None
) -> Reference:
    """Targets are (user, request, item, microseconds after T); actions have a value after these."""
    names = ["user", "request", "item", "time"]
    targets = pl.DataFrame([(u, r, i, T + t) for u, r, i, t in shown], schema=names, orient="row")
    actions = pl.DataFrame(
        [(u, r, i, T + t, value) for u, r, i, t, value in acts],
        schema={**dict.fromkeys(names, pl.Int64), "value": pl.Float64},
        orient="row",
        strict=False,
    )
    frames = {"events": targets.clear(), "shown": targets, "acts": actions}
    return build_reference(spec, frames, log_end=log_end)


def labels(reference: Reference, name: str) -> list[Any]:
    """Return a label of every target, in order."""
    return [target[name] for request in reference.requests for target in request.targets]


def label_of(label: str, *values: float | None) -> Any:
    """Return the label of one target whose actions have these values, a microsecond apart."""
    name = label.partition(" ")[0]
    acts = [(1, 7, 5, time, value) for time, value in enumerate(values)]
    return labels(build(spec_of(label, actions=CLOSED), [(1, 7, 5, 0)], acts), name)[0]


# Which actions belong to a target


@pytest.mark.parametrize(("time", "counts"), [(-1, 0), (0, 1), (9, 1), (10, 0)])
def test_a_window_includes_its_start_and_excludes_its_end(time: int, counts: int) -> None:
    assert labels(build(spec_of(ANY, actions=CLOSED), [(1, 7, 5, 0)], [(1, 7, 5, time, 1)]), "acted") == [counts]


def test_a_window_starts_at_the_request_time_not_at_the_row_time() -> None:
    """Request 7 is at 0 for both targets, although one row is at 4: an action at 12 is too late for both."""
    shown = [(1, 7, 5, 0), (1, 7, 6, 4)]
    assert labels(build(spec_of(ANY, actions=CLOSED), shown, [(1, 7, 6, 12, 1)]), "acted") == [0, 0]
    assert labels(build(spec_of(ANY, actions=CLOSED), shown, [(1, 7, 6, 2, 1)]), "acted") == [0, 1]


def test_an_action_may_count_for_several_requests_of_its_user_and_item() -> None:
    shown = [(1, 7, 5, 0), (1, 7, 6, 0), (1, 8, 5, 3), (2, 9, 5, 0)]
    assert labels(build(spec_of(ANY, actions=CLOSED), shown, [(1, 7, 5, 4, 1)]), "acted") == [1, 0, 1, 0]


def test_with_request_ids_an_action_counts_for_its_own_request_only() -> None:
    shown = [(1, 7, 5, 0), (1, 8, 5, 3)]
    spec = spec_of(COUNT, actions=f"{CLOSED}\n{BY_REQUEST}")
    acts = [(1, 8, 5, 4, 1), (1, 8, 5, 2, 1), (1, None, 5, 4, 1)]
    assert labels(build(spec, shown, acts), "acts") == [0, 1]


def test_two_labels_have_their_own_windows_and_conditions() -> None:
    wide = 'wide = { aggregate = "count", within = "20us", where = "value > 1" }'
    acts = [(1, 7, 5, 9, 1), (1, 7, 5, 9, 2), (1, 7, 5, 10, 2), (1, 7, 5, 19, 3), (1, 7, 5, 20, 3)]
    (request,) = build(spec_of(COUNT, wide, actions=CLOSED), [(1, 7, 5, 0)], acts).requests
    assert request.targets == [{"item_id": 5, "acts": 2, "wide": 3}]


def test_a_duplicate_action_counts_once() -> None:
    acts = [(1, 7, 5, 1, 1), (1, 7, 5, 1, 1), (1, 7, 5, 2, 1)]
    assert labels(build(spec_of(COUNT, actions=CLOSED), [(1, 7, 5, 0)], acts), "acts") == [2]


# Aggregates


def test_without_actions_a_label_is_0_and_a_max_its_default() -> None:
    total = 'total = { aggregate = "sum", column = "value", type = "float64", within = "10us" }'
    most = 'most = { aggregate = "max", column = "value", within = "10us" }'
    other = 'other = { aggregate = "max", column = "value", within = "10us", default = -1 }'
    (request,) = build(spec_of(ANY, COUNT, total, most, other, actions=CLOSED), [(1, 7, 5, 0)], []).requests
    assert request.targets == [{"item_id": 5, "acted": 0, "acts": 0, "total": 0, "most": 0, "other": -1}]


def test_sum_and_max_ignore_null_and_nan() -> None:
    total = 'total = { aggregate = "sum", column = "value", type = "float32", within = "10us" }'
    most = 'most = { aggregate = "max", column = "value", type = "float32", within = "10us", default = 3 }'
    assert label_of(total, None, math.nan, 1.5, 2) == 3.5
    assert label_of(total, None, math.nan) == 0
    assert label_of(most, None, -4, math.nan, -2) == -2
    assert label_of(most, None, math.nan) == 3


def test_any_counts_actions_with_null_columns() -> None:
    assert label_of(ANY, None) == 1
    assert label_of(COUNT, None) == 0  # its `where` is null
    assert label_of('acted = { aggregate = "any", within = "10us", type = "bool" }', None) is True


def test_floats_are_added_in_double_precision_ordered_by_time_and_value() -> None:
    """`np.add.reduceat` adds the first value to the sum of the others."""
    double = 'total = { aggregate = "sum", column = "value", type = "float64", within = "10us" }'
    assert label_of(double, 1, 1e16, -1e16) == 1.0
    assert label_of(double, 1e16, -1e16, 1) == 0.0
    at_once = [(1, 7, 5, 3, value) for value in (1e16, 1, -1e16)]
    assert labels(build(spec_of(double, actions=CLOSED), [(1, 7, 5, 0)], at_once), "total") == [0.0]
    values = [0.1 * index for index in range(9)]
    assert label_of(double, *values) == np.add.reduceat(values, [0])[0] != reduce(add, values)
    single = double.replace("float64", "float32")
    assert label_of(single, 2**24, 1, 1) == 2**24 + 2
    assert label_of(single, 2**24, 1) == 2**24  # 2**24 + 1 rounds to even


def test_integers_are_added_exactly() -> None:
    total = 'total = { aggregate = "sum", column = "value", within = "10us" }'
    assert label_of(total, 2.0**62, -(2.0**62), 3, 2.0**62) == 2**62 + 3


@pytest.mark.parametrize(
    ("label", "values", "result"),
    [
        ('watched_ms = { aggregate = "sum", column = "value", type = "int8", within = "10us" }', [100] * 3, "300"),
        ('watched_ms = { aggregate = "sum", column = "value", type = "int8", within = "10us" }', [-128, -1], "-129"),
        (
            'watched_ms = { aggregate = "sum", column = "value", type = "float32", within = "10us" }',
            [3e38, 3e38],
            r"6\.0\d*e\+38",
        ),
        (
            'watched_ms = { aggregate = "sum", column = "value", type = "float64", within = "10us" }',
            [1e308, 1e308],
            "inf",
        ),
    ],
)
def test_a_sum_that_overflows_its_type_is_an_error(label: str, values: list[float], result: str) -> None:
    acts = [(1, 2, 3, time, value) for time, value in enumerate(values)]
    message = rf"label 'watched_ms' of user 1, request 2, item 3 is {result}, which does not fit its type \w+\. Declare"
    with pytest.raises(DataError, match=message):
        build(spec_of(label, actions=CLOSED), [(1, 2, 3, 0)], acts)
    pending = build(spec_of(label, actions="until = 2023-11-14T22:13:20Z"), [(1, 2, 3, 0)], acts)
    assert pending.left_out.pending_targets == 1


def test_a_count_that_overflows_its_type_is_an_error() -> None:
    label = 'acts = { aggregate = "count", type = "int8", within = "1s" }'
    assert label_of(label, *range(127)) == 127
    with pytest.raises(
        DataError, match="label 'acts' of user 1, request 7, item 5 is 128, which does not fit its type int8"
    ):
        label_of(label, *range(128))


def test_infinite_values_may_add_up_to_infinity_or_nan() -> None:
    total = 'total = { aggregate = "sum", column = "value", type = "float32", within = "10us" }'
    assert label_of(total, math.inf, 1) == math.inf
    assert math.isnan(label_of(total, math.inf, -math.inf))


# The end of the log


@pytest.mark.parametrize(("end", "pending"), [(10, 0), (9, 1)])
def test_a_request_is_pending_until_the_log_covers_its_label_window(end: int, pending: int) -> None:
    """The log ends with the latest action of any user."""
    reference = build(spec_of(ANY), [(1, 7, 5, 0), (1, 7, 6, 0)], [(2, 9, 5, end, 1)])
    assert reference.log_end == T + end
    assert len(reference.requests) == 1 - pending
    assert reference.left_out == Counts(pending_requests=pending, pending_targets=2 * pending)
    assert reference.row_accounting["shown"].policies == ({"pending_label": 2} if pending else {})
    assert (reference.row_accounting["shown"].accepted, reference.targets) == (2 - 2 * pending,) * 2


@pytest.mark.parametrize(("end", "pending"), [(20, 0), (19, 1)])
def test_a_request_is_pending_until_all_its_label_windows_are_closed(end: int, pending: int) -> None:
    wide = 'wide = { aggregate = "any", within = "20us" }'
    reference = build(spec_of(ANY, wide), [(1, 7, 5, 0)], [(2, 9, 5, end, 1)])
    assert reference.left_out.pending_requests == pending


def test_until_sets_the_log_end_and_an_explicit_log_end_overrides_it() -> None:
    shown, acts = [(1, 7, 5, 0)], [(1, 7, 5, 5, 1)]
    closed = "until = 2023-11-14T22:13:20.000010Z"
    assert labels(build(spec_of(ANY, actions=closed), shown, acts), "acted") == [1]
    assert not build(spec_of(ANY, actions=closed.replace("10Z", "09Z")), shown, acts).requests
    assert not build(spec_of(ANY, actions=closed), shown, acts, log_end=T + 9).requests
    assert labels(build(spec_of(ANY), shown, acts, log_end=T + 10), "acted") == [1]


def test_without_actions_or_a_log_end_every_request_is_pending() -> None:
    reference = build(spec_of(ANY), [(1, 7, 5, 0), (2, 8, 5, 1)], [])
    assert (reference.log_end, reference.left_out.pending_requests) == (None, 2)
    assert labels(build(spec_of(ANY, actions=CLOSED), [(1, 7, 5, 0)], []), "acted") == [0]


def test_a_rejected_action_does_not_set_the_log_end() -> None:
    reference = build(spec_of(ANY), [(1, 7, 5, 0)], [(1, 7, 5, 9, 1), (None, 7, 5, 99, 1)])
    assert reference.log_end == T + 9
    summed = 'total = { aggregate = "sum", column = "value", within = "10us", where = "item = 5", max = 3 }'
    acts = [(1, 7, 5, 9, 3), (1, 7, 5, 50, 4), (1, 7, 6, 20, 4)]
    assert build(spec_of(summed), [(1, 7, 5, 0)], acts).log_end == T + 20


def test_an_action_of_a_conflicting_request_still_sets_the_log_end() -> None:
    text = SPEC.replace('[sources.acts]\npath = "acts.parquet"\n', "").replace('source = "acts"', 'source = "shown"')
    spec = parse_spec(f"{text}\n[requests.labels]\n{ANY}")
    shown = [(1, 7, 5, T), (1, 8, 5, T + 20), (2, 8, 5, T + 20)]
    frame = pl.DataFrame(shown, schema=["user", "request", "item", "time"], orient="row")
    reference = build_reference(spec, {"events": frame.clear(), "shown": frame})
    assert reference.row_accounting["shown"].reasons == {"conflicting_request": 2}
    assert (reference.log_end, labels(reference, "acted")) == (T + 20, [1])


def test_without_actions_in_the_spec_no_request_is_pending() -> None:
    text = SPEC.partition("[actions]")[0].replace('[sources.acts]\npath = "acts.parquet"\n', "")
    frame = pl.DataFrame({"user": [1], "request": [7], "item": [5], "time": [T]})
    reference = build_reference(parse_spec(text), {"events": frame.clear(), "shown": frame})
    assert (reference.log_end, len(reference.requests), reference.left_out) == (None, 1, Counts())


def test_an_aggregate_without_an_implementation_raises() -> None:
    label = Label(column="value", type="int32", aggregate="sum", within="10us").model_copy(update={"aggregate": "min"})
    with pytest.raises(AssertionError, match="min"):
        _aggregate(label, [3])
