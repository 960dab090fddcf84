"""The naive reference: labels from later events on literal rows, windows to the microsecond, and when a log ends."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import polars as pl
import pytest

from longbatch.schemas.accounting import Counts
from longbatch.schemas.errors import DataError
from longbatch.schemas.spec.build_spec import BuildSpec, parse_spec
from longbatch.validation.reference.oracle import Reference, build_reference

T = 1_700_000_000_000_000  # microseconds, 2023-11-14T22:13:20; a time of a literal row is T plus a few
LATER = "until = 2024-01-01T00:00:00Z"
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
    spec: BuildSpec, shown: list[tuple[int, ...]], acts: list[tuple[Any, ...]], log_end: int | None = None
) -> Reference:
    """Targets are (user, request, item, microseconds after T); actions too, and a value."""
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
    return labels(build(spec_of(label, actions=LATER), [(1, 7, 5, 0)], acts), name)[0]


# Which actions belong to a target


@pytest.mark.parametrize(("time", "counts"), [(-1, 0), (0, 1), (9, 1), (10, 0)])
def test_a_window_begins_at_the_request_and_ends_before_its_length_has_passed(time: int, counts: int) -> None:
    assert labels(build(spec_of(ANY, actions=LATER), [(1, 7, 5, 0)], [(1, 7, 5, time, 1)]), "acted") == [counts]


def test_a_window_is_one_of_the_request_and_not_of_the_row() -> None:
    """Request 7 is at 0 for both targets, though one row is of 4: an action at 12 is too late for both."""
    shown = [(1, 7, 5, 0), (1, 7, 6, 4)]
    assert labels(build(spec_of(ANY, actions=LATER), shown, [(1, 7, 6, 12, 1)]), "acted") == [0, 0]
    assert labels(build(spec_of(ANY, actions=LATER), shown, [(1, 7, 6, 2, 1)]), "acted") == [0, 1]


def test_an_action_belongs_to_its_user_and_item_and_may_count_for_several_requests() -> None:
    shown = [(1, 7, 5, 0), (1, 7, 6, 0), (1, 8, 5, 3), (2, 9, 5, 0)]
    assert labels(build(spec_of(ANY, actions=LATER), shown, [(1, 7, 5, 4, 1)]), "acted") == [1, 0, 1, 0]


def test_an_action_with_a_request_id_belongs_to_that_request_only_and_without_one_to_none() -> None:
    shown = [(1, 7, 5, 0), (1, 8, 5, 3)]
    spec = spec_of(COUNT, actions=f"{LATER}\n{BY_REQUEST}")
    acts = [(1, 8, 5, 4, 1), (1, 8, 5, 2, 1), (1, None, 5, 4, 1)]
    assert labels(build(spec, shown, acts), "acts") == [0, 1]


def test_two_labels_have_their_own_windows_and_conditions() -> None:
    wide = 'wide = { aggregate = "count", within = "20us", where = "value > 1" }'
    acts = [(1, 7, 5, 9, 1), (1, 7, 5, 9, 2), (1, 7, 5, 10, 2), (1, 7, 5, 19, 3), (1, 7, 5, 20, 3)]
    (request,) = build(spec_of(COUNT, wide, actions=LATER), [(1, 7, 5, 0)], acts).requests
    assert request.targets == [{"item_id": 5, "acts": 2, "wide": 3}]


def test_an_action_that_stands_twice_counts_once() -> None:
    acts = [(1, 7, 5, 1, 1), (1, 7, 5, 1, 1), (1, 7, 5, 2, 1)]
    assert labels(build(spec_of(COUNT, actions=LATER), [(1, 7, 5, 0)], acts), "acts") == [2]


# What they add up to


def test_without_an_action_a_label_is_0_and_a_max_its_default() -> None:
    total = 'total = { aggregate = "sum", column = "value", type = "float64", within = "10us" }'
    most = 'most = { aggregate = "max", column = "value", within = "10us" }'
    other = 'other = { aggregate = "max", column = "value", within = "10us", default = -1 }'
    (request,) = build(spec_of(ANY, COUNT, total, most, other, actions=LATER), [(1, 7, 5, 0)], []).requests
    assert request.targets == [{"item_id": 5, "acted": 0, "acts": 0, "total": 0, "most": 0, "other": -1}]


def test_null_and_nan_add_nothing_to_sum_and_max() -> None:
    total = 'total = { aggregate = "sum", column = "value", type = "float32", within = "10us" }'
    most = 'most = { aggregate = "max", column = "value", type = "float32", within = "10us", default = 3 }'
    assert label_of(total, None, math.nan, 1.5, 2) == 3.5
    assert label_of(total, None, math.nan) == 0
    assert label_of(most, None, -4, math.nan, -2) == -2
    assert label_of(most, None, math.nan) == 3


def test_any_counts_an_action_whose_columns_are_null() -> None:
    assert label_of(ANY, None) == 1
    assert label_of(COUNT, None) == 0  # its `where` is null
    assert label_of('acted = { aggregate = "any", within = "10us", type = "bool" }', None) is True


def test_floats_are_added_in_double_precision_in_the_order_of_time_and_value() -> None:
    """As `np.add.reduceat` does it: the first value is added to the sum of the others."""
    double = 'total = { aggregate = "sum", column = "value", type = "float64", within = "10us" }'
    assert label_of(double, 1, 1e16, -1e16) == 1.0
    assert label_of(double, 1e16, -1e16, 1) == 0.0
    at_once = [(1, 7, 5, 3, value) for value in (1e16, 1, -1e16)]
    assert labels(build(spec_of(double, actions=LATER), [(1, 7, 5, 0)], at_once), "total") == [0.0]
    values = [0.1 * place for place in range(9)]
    assert label_of(double, *values) == np.add.reduceat(values, [0])[0] != sum(values)
    single = double.replace("float64", "float32")
    assert label_of(single, 2**24, 1, 1) == 2**24 + 2
    assert label_of(single, 2**24, 1) == 2**24  # 2**24 + 1 rounds to even


def test_whole_numbers_are_added_exactly() -> None:
    total = 'total = { aggregate = "sum", column = "value", within = "10us" }'
    assert label_of(total, 2.0**62, -(2.0**62), 3, 2.0**62) == 2**62 + 3


@pytest.mark.parametrize(
    ("label", "values", "found"),
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
def test_a_sum_that_is_not_of_the_labels_type_is_an_error(label: str, values: list[float], found: str) -> None:
    acts = [(1, 2, 3, time, value) for time, value in enumerate(values)]
    message = rf"label 'watched_ms' of user 1, request 2, item 3 is {found}, which does not fit its type \w+\. Declare a wider"
    with pytest.raises(DataError, match=message):
        build(spec_of(label, actions=LATER), [(1, 2, 3, 0)], acts)
    pending_label = build(spec_of(label, actions="until = 2023-11-14T22:13:20Z"), [(1, 2, 3, 0)], acts)
    assert pending_label.left_out.pending_targets == 1


def test_a_count_that_is_not_of_the_labels_type_is_an_error() -> None:
    label = 'acts = { aggregate = "count", type = "int8", within = "1s" }'
    assert label_of(label, *range(127)) == 127
    with pytest.raises(
        DataError, match="label 'acts' of user 1, request 7, item 5 is 128, which does not fit its type int8"
    ):
        label_of(label, *range(128))


def test_an_infinite_value_may_make_an_infinite_sum() -> None:
    total = 'total = { aggregate = "sum", column = "value", type = "float32", within = "10us" }'
    assert label_of(total, math.inf, 1) == math.inf
    assert math.isnan(label_of(total, math.inf, -math.inf))


# When the log ends


@pytest.mark.parametrize(("end", "pending_label"), [(10, 0), (9, 1)])
def test_a_request_is_held_back_unless_its_window_is_over_at_the_end_of_the_log(end: int, pending_label: int) -> None:
    """The latest action says when the log ends, whoever's it is."""
    reference = build(spec_of(ANY), [(1, 7, 5, 0), (1, 7, 6, 0)], [(2, 9, 5, end, 1)])
    assert reference.log_end == T + end
    assert len(reference.requests) == 1 - pending_label
    assert reference.left_out == Counts(pending_requests=pending_label, pending_targets=2 * pending_label)
    assert reference.row_accounting["shown"].policies == ({"pending_label": 2} if pending_label else {})
    assert (reference.row_accounting["shown"].accepted, reference.targets) == (2 - 2 * pending_label,) * 2


@pytest.mark.parametrize(("end", "pending_label"), [(20, 0), (19, 1)])
def test_every_label_of_a_request_must_be_closed(end: int, pending_label: int) -> None:
    wide = 'wide = { aggregate = "any", within = "20us" }'
    reference = build(spec_of(ANY, wide), [(1, 7, 5, 0)], [(2, 9, 5, end, 1)])
    assert reference.left_out.pending_requests == pending_label


def test_until_says_when_the_log_ends_and_a_given_end_goes_before_all() -> None:
    shown, acts = [(1, 7, 5, 0)], [(1, 7, 5, 5, 1)]
    closed = "until = 2023-11-14T22:13:20.000010Z"
    assert labels(build(spec_of(ANY, actions=closed), shown, acts), "acted") == [1]
    assert not build(spec_of(ANY, actions=closed.replace("10Z", "09Z")), shown, acts).requests
    assert not build(spec_of(ANY, actions=closed), shown, acts, log_end=T + 9).requests
    assert labels(build(spec_of(ANY), shown, acts, log_end=T + 10), "acted") == [1]


def test_without_actions_and_an_end_every_request_is_held_back() -> None:
    reference = build(spec_of(ANY), [(1, 7, 5, 0), (2, 8, 5, 1)], [])
    assert (reference.log_end, reference.left_out.pending_requests) == (None, 2)
    assert labels(build(spec_of(ANY, actions=LATER), [(1, 7, 5, 0)], []), "acted") == [0]


def test_an_action_that_is_rejected_for_its_own_sake_does_not_end_the_log() -> None:
    reference = build(spec_of(ANY), [(1, 7, 5, 0)], [(1, 7, 5, 9, 1), (None, 7, 5, 99, 1)])
    assert reference.log_end == T + 9
    summed = 'total = { aggregate = "sum", column = "value", within = "10us", where = "item = 5", max = 3 }'
    acts = [(1, 7, 5, 9, 3), (1, 7, 5, 50, 4), (1, 7, 6, 20, 4)]
    assert build(spec_of(summed), [(1, 7, 5, 0)], acts).log_end == T + 20


def test_an_action_of_a_request_id_with_two_users_still_says_how_far_the_log_goes() -> None:
    text = SPEC.replace('[sources.acts]\npath = "acts.parquet"\n', "").replace('source = "acts"', 'source = "shown"')
    spec = parse_spec(f"{text}\n[requests.labels]\n{ANY}")
    shown = [(1, 7, 5, T), (1, 8, 5, T + 20), (2, 8, 5, T + 20)]
    frame = pl.DataFrame(shown, schema=["user", "request", "item", "time"], orient="row")
    reference = build_reference(spec, {"events": frame.clear(), "shown": frame})
    assert reference.row_accounting["shown"].reasons == {"conflicting_request": 2}
    assert (reference.log_end, labels(reference, "acted")) == (T + 20, [1])


def test_a_spec_without_actions_holds_nothing_back() -> None:
    text = SPEC.partition("[actions]")[0].replace('[sources.acts]\npath = "acts.parquet"\n', "")
    frame = pl.DataFrame({"user": [1], "request": [7], "item": [5], "time": [T]})
    reference = build_reference(parse_spec(text), {"events": frame.clear(), "shown": frame})
    assert (reference.log_end, len(reference.requests), reference.left_out) == (None, 1, Counts())
