"""The naive reference: policies over users, and requests from sessions, on literal rows."""

from __future__ import annotations

from typing import Any

import polars as pl
import pytest

from longbatch.schemas.accounting import Counts, RowAccounting
from longbatch.schemas.spec.build_spec import parse_spec
from longbatch.validation.reference.oracle import Reference, build_reference
from longbatch.validation.reference.values import generated_request_id, mix

T = 1_700_000_000_000_000  # microseconds, 2023-11-14T22:13:20; a time of a literal row is T plus a few
SECOND = 1_000_000

SPEC = """
[sources.log]
path = "log.parquet"
[history]
source = "log"
where = "kind LIKE '%e%'"
user_id = "user"
item_id = "item"
event_time = { column = "time", unit = "us" }
[requests]
source = "log"
where = "kind LIKE '%t%'"
user_id = "user"
item_id = "item"
request_time = { column = "time", unit = "us" }
"""
ACTIONS = """
[requests.labels]
acted = { aggregate = "any", within = "10us" }
[actions]
source = "log"
where = "kind LIKE '%a%'"
user_id = "user"
item_id = "item"
event_time = { column = "time", unit = "us" }
"""


def build(spec: str, *rows: tuple[str, int, int, int]) -> Reference:
    """Rows are (roles, user, item, microseconds after T); roles are of e (event), t (target) and a (action)."""
    moved = [(kind, user, item, T + time) for kind, user, item, time in rows]
    types = {"kind": pl.String, "user": pl.Int64, "item": pl.Int64, "time": pl.Int64}
    return build_reference(parse_spec(spec), {"log": pl.DataFrame(moved, schema=types, orient="row")})


def users(lines: str, text: str = SPEC) -> str:
    return f"{text}\n[users]\n{lines}"


def outcomes(reference: Reference) -> tuple[int, dict[str, int]]:
    """Return how many rows were accepted, and how many each policy left out; every row must have an outcome."""
    accounting = reference.row_accounting["log"]
    accounting.check("log")
    return accounting.accepted, dict(accounting.policies)


# Policies over users


def test_a_user_with_more_than_max_events_is_rejected_with_all_requests() -> None:
    spec = users('max_events = 2\nover_max_events = "reject_user"')
    two = [("e", 1, 5, 0), ("e", 1, 6, 1), ("t", 1, 9, 2)]
    assert outcomes(build(spec, *two)) == (3, {})
    reference = build(spec, *two, ("e", 1, 7, 3), ("t", 2, 9, 0))
    assert outcomes(reference) == (1, {"rejected_user": 4})
    assert reference.left_out == Counts(rejected_users=1, rejected_events=3, rejected_targets=1)
    assert [request.user_id for request in reference.requests] == [2]
    assert reference.events.stored_or_beyond + reference.events.after_last_request == 0


def test_duplicates_and_rejected_rows_do_not_count_as_events() -> None:
    spec = users('max_events = 2\nover_max_events = "reject_user"')
    assert outcomes(build(spec, ("e", 1, 5, 0), ("e", 1, 5, 0), ("e", 1, 6, 1), ("e", 1, 6, -T)))[1] == {}


def test_a_user_with_fewer_than_min_events_is_left_out() -> None:
    spec = users("min_events = 2")
    enough = [("e", 1, 5, 0), ("e", 1, 6, 9), ("t", 1, 9, 2)]
    reference = build(spec, *enough, ("e", 2, 5, 0), ("t", 2, 9, 1), ("t", 2, 9, 2), ("t", 3, 9, 1))
    assert outcomes(reference) == (3, {"short_history": 4})
    assert reference.left_out == Counts(short_users=2, short_events=1, short_targets=3)
    assert [request.user_id for request in reference.requests] == [1]


def test_without_min_events_a_user_needs_no_events() -> None:
    assert outcomes(build(SPEC, ("t", 1, 9, 0))) == (1, {})


def test_the_timeline_of_a_heavy_user_has_the_newest_max_events() -> None:
    events = [("e", 1, item, item) for item in (1, 2, 3, 4)]
    reference = build(users("max_events = 3"), *events, ("t", 1, 9, 3), ("t", 1, 9, 9))
    assert [[event[0] for event in request.history] for request in reference.requests] == [[2], [2, 3, 4]]
    assert outcomes(reference) == (5, {"heavy_user_cap": 1})
    assert reference.left_out == Counts(capped_users=1, capped_events=1)
    assert reference.events.stored_or_beyond == 3
    assert outcomes(build(users("max_events = 4"), *events)) == (4, {})


def test_newest_events_are_the_last_to_become_visible() -> None:
    """Item 1 happened first and arrived last."""
    text = SPEC.replace("[requests]", 'arrival_time = { column = "arrival", unit = "us" }\n[requests]', 1)
    log = pl.DataFrame(
        [("e", 1, 1, T, T + 9), ("e", 1, 2, T + 1, T + 1), ("t", 1, 3, T + 20, T + 20)],
        schema=["kind", "user", "item", "time", "arrival"],
        orient="row",
    )
    (request,) = build_reference(parse_spec(users("max_events = 1", text)), {"log": log}).requests
    assert [event[0] for event in request.history] == [1]


def test_a_capped_event_does_not_end_the_history_of_its_request() -> None:
    """The event of item 1 belongs to request 7. Once it is capped, request 7 sees later events of other requests."""
    text = SPEC.replace("event_time = {", 'request_id = "request"\nevent_time = {')
    text = text.replace("request_time = {", 'request_id = "request"\nrequest_time = {')
    rows = [("e", 1, 1, T, 7), ("e", 1, 2, T + 1, 6), ("e", 1, 3, T + 2, 6), ("t", 1, 9, T + 5, 7)]
    log = pl.DataFrame(rows, schema=["kind", "user", "item", "time", "request"], orient="row")
    (uncapped,) = build_reference(parse_spec(text), {"log": log}).requests
    (capped,) = build_reference(parse_spec(users("max_events = 2", text)), {"log": log}).requests
    assert (uncapped.history_end, capped.history_end) == (0, 2)


def test_actions_are_never_left_out() -> None:
    spec = users("min_events = 3", SPEC + ACTIONS)
    reference = build(spec, ("ea", 1, 5, 0), ("e", 1, 6, 0), ("t", 1, 5, 0), ("a", 2, 5, 50))
    assert outcomes(reference) == (2, {"short_history": 2})
    assert reference.left_out == Counts(short_users=1, short_events=2, short_targets=1)


# Rows of several roles


def test_a_row_counts_as_left_out_only_if_it_lost_every_role() -> None:
    """The target at 45 is pending because the log ends at 50; the row stays an event."""
    reference = build(SPEC + ACTIONS, ("et", 1, 5, 45), ("t", 1, 6, 45), ("a", 1, 5, 50))
    assert outcomes(reference) == (2, {"pending_label": 1})
    assert reference.left_out == Counts(pending_requests=1, pending_targets=2)
    assert (reference.targets, reference.events.after_last_request) == (0, 1)


def test_a_row_with_a_capped_event_and_a_pending_target_counts_as_pending() -> None:
    spec = users("max_events = 1", SPEC + ACTIONS)
    reference = build(spec, ("et", 1, 5, 45), ("e", 1, 5, 46), ("a", 1, 5, 50))
    assert outcomes(reference) == (2, {"pending_label": 1})
    assert reference.left_out == Counts(capped_users=1, capped_events=1, pending_requests=1, pending_targets=1)


def test_a_row_with_a_capped_event_and_a_complete_target_is_accepted() -> None:
    spec = users("max_events = 1", SPEC + ACTIONS)
    reference = build(spec, ("et", 1, 5, 40), ("e", 1, 5, 46), ("a", 1, 5, 50))
    assert outcomes(reference) == (3, {})
    assert (reference.left_out.capped_events, reference.targets) == (1, 1)


def test_a_row_with_three_roles_remains_an_action() -> None:
    spec = users('max_events = 1\nover_max_events = "reject_user"', SPEC + ACTIONS)
    reference = build(spec, ("eta", 1, 5, 40), ("et", 1, 5, 41), ("a", 1, 5, 99))
    assert outcomes(reference) == (2, {"rejected_user": 1})
    assert reference.left_out == Counts(rejected_users=1, rejected_events=2, rejected_targets=2)


@pytest.mark.parametrize("backwards", [False, True])
def test_which_of_two_equal_events_is_capped_does_not_depend_on_file_order(backwards: bool) -> None:
    """Both rows are the event of item 5 at T. The one that is not a target comes first: false sorts before true."""
    rows = [("et", 1, 5, 0), ("e", 1, 5, 0)]
    assert outcomes(build(users("max_events = 1"), *(reversed(rows) if backwards else rows))) == (
        1,
        {"heavy_user_cap": 1},
    )


def test_chosen_users_are_counted_but_row_accounting_covers_all_rows() -> None:
    rows = [("e", 1, 5, 0), ("e", 1, 6, 1), ("t", 1, 9, 2), ("t", 2, 9, 2), ("t", 3, 9, 2)]
    types = {"kind": pl.String, "user": pl.Int64, "item": pl.Int64, "time": pl.Int64}
    log = pl.DataFrame([(k, u, i, T + t) for k, u, i, t in rows], schema=types, orient="row")
    reference = build_reference(parse_spec(users("min_events = 1\nmax_events = 1")), {"log": log}, users=[1, 2])
    assert reference.left_out == Counts(capped_users=1, capped_events=1, short_users=1, short_targets=1)
    assert reference.row_accounting["log"] == RowAccounting(
        rows=5, accepted=2, policies={"short_history": 2, "heavy_user_cap": 1}
    )


# Requests from sessions


def requests_of(lines: str, *rows: tuple[int, int]) -> list[tuple[int, list[int]]]:
    """Return (time, items) of the requests of a user's target rows (item, time), both after T."""
    spec = SPEC.replace("[requests]\n", f"[requests]\n{lines}\n")
    reference = build(spec, *(("t", 1, item, time) for item, time in rows))
    return [(r.request_time - T, [target["item_id"] for target in r.targets]) for r in reference.requests]


def test_without_a_gap_rows_with_equal_times_are_one_request() -> None:
    assert requests_of("", (5, 0), (7, 1), (6, 0)) == [(0, [5, 6]), (1, [7])]


def test_exactly_the_session_gap_stays_one_request_and_a_microsecond_more_does_not() -> None:
    assert requests_of('session_gap = "1s"', (5, 0), (6, SECOND), (7, 2 * SECOND + 1)) == [
        (0, [5, 6]),
        (2 * SECOND + 1, [7]),
    ]


def test_the_session_gap_is_measured_from_the_previous_row() -> None:
    assert requests_of('session_gap = "1s"', *((item, item * SECOND) for item in range(4))) == [(0, [0, 1, 2, 3])]


def test_a_session_is_split_into_requests_of_max_targets_rows() -> None:
    rows = [(item, item) for item in range(5)]
    assert requests_of('session_gap = "1s"\nmax_targets = 2', *rows) == [(0, [0, 1]), (2, [2, 3]), (4, [4])]
    assert requests_of('session_gap = "1s"\nmax_targets = 5', *rows) == [(0, [0, 1, 2, 3, 4])]


def test_a_new_session_starts_a_new_request() -> None:
    rows = [(0, 0), (1, 1), (2, 2), (3, 2 * SECOND), (4, 2 * SECOND + 1), (5, 2 * SECOND + 2)]
    assert requests_of('session_gap = "1s"\nmax_targets = 2', *rows) == [
        (0, [0, 1]),
        (2, [2]),
        (2 * SECOND, [3, 4]),
        (2 * SECOND + 2, [5]),
    ]


def test_ids_of_requests_at_the_same_time_depend_on_their_index() -> None:
    spec = SPEC.replace("[requests]\n", "[requests]\nmax_targets = 2\n")
    reference = build(spec, *(("t", 1, item, 0) for item in (4, 3, 2, 1, 0)))
    first = mix(1) ^ T
    ids = {0: mix(first) >> 1, 1: mix(mix(first) + 1) >> 1, 2: mix((mix(first) + 2) % 2**64) >> 1}
    assert {r.request_id: [t["item_id"] for t in r.targets] for r in reference.requests} == {
        ids[0]: [0, 1],
        ids[1]: [2, 3],
        ids[2]: [4],
    }
    assert [r.request_id for r in reference.requests] == sorted(ids.values())
    assert generated_request_id(1, T, 2) == ids[2]


def test_rows_of_a_session_are_ordered_by_target_then_by_request_features() -> None:
    text = SPEC.replace("[requests]\n", "[requests]\nmax_targets = 1\n")
    text += '[requests.target_features]\nplace = "int8"\n[requests.labels]\nclick = "int8"\n'
    text += '[requests.features]\ntab = { type = "int8" }'
    rows = [(2, 1, 1), (1, 1, 2), (1, 0, 1), (1, 0, None)]
    log: dict[str, Any] = {"kind": "t", "user": 1, "item": 5, "time": T}
    columns = {name: [row[place] for row in rows] for place, name in enumerate(("place", "click", "tab"))}
    requests = build_reference(parse_spec(text), {"log": pl.DataFrame(log | columns)}).requests
    ordered = [(1, 0, None), (1, 0, 1), (1, 1, 2), (2, 1, 1)]
    assert {r.request_id: (r.targets[0]["place"], r.targets[0]["click"], r.features["tab"]) for r in requests} == {
        generated_request_id(1, T, place): row for place, row in enumerate(ordered)
    }


def test_only_requests_with_open_label_windows_are_pending() -> None:
    """The log ends at 50: it covers the label window of the request at 40, but not of the one at 41."""
    spec = SPEC.replace("[requests]\n", '[requests]\nsession_gap = "1s"\nmax_targets = 1\n') + ACTIONS
    reference = build(spec, ("t", 1, 5, 40), ("t", 1, 5, 41), ("a", 1, 5, 50))
    assert [request.request_time - T for request in reference.requests] == [40]
    assert reference.left_out == Counts(pending_requests=1, pending_targets=1)
