"""The naive reference: docs/semantics.md in the plainest Python, one row and one user at a time.

The pipelines are compared with it, so it shares no code with them, only the spec. To learn what a build does, read
this file and its siblings in this order:

1. `values.py`: how a raw value is read as its declared type;
2. `row_outcomes.py`: which rows are filtered, rejected, duplicates, or valid;
3. here: policies, then the requests of each user, their histories and targets;
4. `delayed_labels.py`: labels computed from actions after the request.

Polars appears in two roles only: it reads files, and it evaluates a `where` (`pl.sql_expr` on the raw frame) to a
list of booleans. Time and memory grow with the number of rows; a log of 350,000 rows takes half a minute. For larger
logs choose some `users`.

Decisions where docs/semantics.md leaves room (more in the other files):
* rows that are equal in everything that orders events, or targets, are ordered by all columns of their source and
  then by their roles. This only decides which of them counts as left out;
* an event that a policy leaves out is in no timeline, so it does not end the history of the request it belongs to;
* a user with actions only, or without valid rows, is not a user: no policy counts them;
* row accounting covers all rows given; everything else, what policies left out included, covers the chosen users only.
"""

from __future__ import annotations

import bisect
from collections import Counter, defaultdict
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from typing import Any

import polars as pl

from longbatch.schemas.accounting import Counts, RowAccounting
from longbatch.schemas.spec.build_spec import BuildSpec, Role
from longbatch.schemas.time import to_microseconds

from .delayed_labels import Actions, actions_by_target, delayed_labels, label_windows_are_closed
from .row_outcomes import ClassifiedRows, Key, ValidRow, classify_rows
from .values import Row, generated_request_id, sort_key

Event = tuple[Any, ...]


@dataclass(frozen=True)
class ReferenceRequest:
    """One request; its history is a slice of its user's timeline.

    Attributes:
        request_id: The request.
        user_id: Its user.
        request_time: Its time, in microseconds UTC.
        features: Request features by name.
        timeline: All events of the user, oldest first. An event is a tuple of item_id, event_time in microseconds
            UTC, and the history features in the spec's order.
        history_start: Index of the first event of the history.
        history_end: Index behind the last event of the history.
        targets: The targets in order; each is a dict of item_id, target features and labels.
    """

    request_id: int | str
    user_id: int
    request_time: int
    features: Row
    timeline: list[Event]
    history_start: int
    history_end: int
    targets: list[Row]

    @property
    def history(self) -> list[Event]:
        """The newest L visible events, oldest first."""
        return self.timeline[self.history_start : self.history_end]


@dataclass(frozen=True)
class EventCounts:
    """How many accepted events requests can see.

    Attributes:
        stored_or_beyond: Events before the end of some history of their user. The reference does not separate those
            that a build stores from those that are beyond every history.
        after_last_request: All others.
    """

    stored_or_beyond: int
    after_last_request: int


@dataclass(frozen=True)
class Reference:
    """What a build must produce.

    Attributes:
        requests: The requests, ordered by (user_id, request_time, request_id).
        row_accounting: Row counts of each source.
        events: Counts of the events that policies leave.
        targets: Number of targets that policies leave.
        left_out: What policies took; the other counts are zero.
        log_end: The actions are complete up to this time, in microseconds UTC. None without actions.
    """

    requests: list[ReferenceRequest]
    row_accounting: dict[str, RowAccounting]
    events: EventCounts
    targets: int
    left_out: Counts
    log_end: int | None


@dataclass(frozen=True)
class _RequestRows:
    """The target rows that form one request."""

    request_id: int | str
    request_time: int
    rows: list[ValidRow]


@dataclass(frozen=True)
class _User:
    """What policies leave of a user: events, oldest first, and requests. Policies never take actions."""

    user_id: int
    events: list[ValidRow]
    requests: list[_RequestRows]
    actions: list[ValidRow]
    left_out: dict[str, int]


def build_reference(
    spec: BuildSpec,
    frames: Mapping[str, pl.DataFrame],
    users: Collection[int] | None = None,
    log_end: int | None = None,
) -> Reference:
    """Compute requests, histories, targets and row counts from raw rows.

    Args:
        spec: The build spec.
        frames: The raw rows of each source.
        users: The user ids whose requests to compute, None for all users. Row accounting counts every row of the
            frames either way.
        log_end: The actions are complete up to this time, in microseconds UTC. If None, it is the spec's `until`, or
            else the latest action in the frames; so frames that contain only some users need it.

    Returns:
        What a build of these rows must produce.

    Raises:
        DataError: A label does not fit its type, or lists to explode together have different lengths.
    """
    sources = {source: classify_rows(spec, source, frames[source]) for source in spec.sources}
    log_end = _log_end(spec, sources) if log_end is None else log_end
    user_rows = _rows_by_user(sources)
    # Policies are applied to all users, because they decide the outcome of every row.
    all_users = [_apply_policies(spec, user_id, user_rows[user_id], log_end) for user_id in sorted(user_rows)]
    wanted = set(user_rows if users is None else users)
    chosen = [user for user in all_users if user.user_id in wanted]
    requests_by_user = [_requests_of(spec, user) for user in chosen]
    last_ends = [max((request.history_end for request in requests), default=0) for requests in requests_by_user]
    requests = [request for user_requests in requests_by_user for request in user_requests]
    left_out: Counter[str] = Counter()
    for user in chosen:
        left_out.update(user.left_out)
    return Reference(
        requests=requests,
        row_accounting={source: rows.accounting_after_policies() for source, rows in sources.items()},
        events=EventCounts(sum(last_ends), sum(len(user.events) for user in chosen) - sum(last_ends)),
        targets=sum(len(request.targets) for request in requests),
        left_out=Counts(**left_out),
        log_end=log_end,
    )


def _log_end(spec: BuildSpec, sources: Mapping[str, ClassifiedRows]) -> int | None:
    if spec.actions is None:
        return None
    if spec.actions.until is not None:
        return to_microseconds(spec.actions.until)
    return sources[spec.actions.source].latest_action


def _rows_by_user(sources: Mapping[str, ClassifiedRows]) -> dict[int, dict[Role, list[ValidRow]]]:
    """Return every user's rows by role; a row with several roles is in several lists."""
    user_rows: dict[int, dict[Role, list[ValidRow]]] = {}
    for source in sources.values():
        for row in source.rows:
            for role, values in row.values.items():
                by_role = user_rows.setdefault(values["user_id"], {"history": [], "requests": [], "actions": []})
                by_role[role].append(row)
    return user_rows


# Policies


def _apply_policies(spec: BuildSpec, user_id: int, rows: dict[Role, list[ValidRow]], log_end: int | None) -> _User:
    """Leave out the rows that a policy leaves out, mark it in the rows, and return the rest.

    The order of the policies is that of docs/semantics.md: reject or drop the whole user, keep the newest events of a
    heavy user, leave out pending requests.
    """
    events, targets = sorted(rows["history"], key=_timeline_order(spec)), rows["requests"]
    user_policy = _user_policy(spec, len(events))
    if user_policy and (events or targets):
        policy, prefix = user_policy
        _leave_out(policy, "history", events)
        _leave_out(policy, "requests", targets)
        left_out = {f"{prefix}_users": 1, f"{prefix}_events": len(events), f"{prefix}_targets": len(targets)}
        return _User(user_id, [], [], [], left_out)

    surplus = max(0, len(events) - (spec.users.max_events or len(events)))
    _leave_out("heavy_user_cap", "history", events[:surplus])

    requests = _group_requests(spec, user_id, targets)
    complete = [request for request in requests if label_windows_are_closed(spec, request.request_time, log_end)]
    pending = [request for request in requests if not label_windows_are_closed(spec, request.request_time, log_end)]
    pending_targets = [row for request in pending for row in request.rows]
    _leave_out("pending_label", "requests", pending_targets)

    left_out = {"pending_requests": len(pending), "pending_targets": len(pending_targets)}
    left_out |= {"capped_users": min(surplus, 1), "capped_events": surplus}
    return _User(user_id, events[surplus:], complete, rows["actions"], left_out)


def _user_policy(spec: BuildSpec, events: int) -> tuple[str, str] | None:
    """Return the policy that leaves out a user with so many events, and the prefix of its counts."""
    most = spec.users.max_events
    if most is not None and events > most and spec.users.over_max_events == "reject_user":
        return "rejected_user", "rejected"
    return ("short_history", "short") if events < spec.users.min_events else None


def _leave_out(policy: str, role: Role, rows: list[ValidRow]) -> None:
    for row in rows:
        row.left_out[role] = policy


# Requests


def _group_requests(spec: BuildSpec, user_id: int, rows: list[ValidRow]) -> list[_RequestRows]:
    """Group a user's target rows into requests: by request id, or else by session."""
    if spec.requests.request_id is None:
        return _group_sessions(spec, user_id, rows)
    rows_by_id: dict[int | str, list[ValidRow]] = defaultdict(list)
    for row in rows:
        rows_by_id[row.values["requests"]["request_id"]].append(row)
    return [_RequestRows(request_id, min(map(_row_time, same)), same) for request_id, same in rows_by_id.items()]


def _group_sessions(spec: BuildSpec, user_id: int, rows: list[ValidRow]) -> list[_RequestRows]:
    """Start a new request where the gap to the previous row is too long, or the request is full.

    Example, with session_gap = "2s" and max_targets = 3:
        times of the rows     1 2 3 4   9 9
        requests             [1 2 3][4][9 9]
    """
    order = _row_order(spec)
    groups: list[list[ValidRow]] = []
    previous_time = 0
    for row in sorted(rows, key=lambda row: (order(row.values["requests"]), row.key)):
        gap = _row_time(row) - previous_time
        if not groups or gap > spec.requests.session_gap_us or len(groups[-1]) == spec.requests.max_targets:
            groups.append([])
        groups[-1].append(row)
        previous_time = _row_time(row)
    requests: list[_RequestRows] = []
    requests_at: Counter[int] = Counter()  # time -> number of requests at that time so far
    for group in groups:
        time = _row_time(group[0])
        requests.append(_RequestRows(generated_request_id(user_id, time, requests_at[time]), time, group))
        requests_at[time] += 1
    return requests


def _row_time(row: ValidRow) -> int:
    time_us: int = row.values["requests"]["request_time"]
    return time_us


def _target_order(spec: BuildSpec) -> Callable[[Row], Key]:
    """Return the sort key of the targets of a request.

    Delayed labels are not part of it: targets of one request with the same item have the same ones.
    """
    row_labels = [name for name, label in spec.requests.labels.items() if not label.aggregate]
    features = [f"target.{name}" for name in spec.requests.target_features]
    names = ["item_id", *features, *(f"label.{name}" for name in row_labels)]
    return lambda row: tuple(sort_key(row[name]) for name in names)


def _row_order(spec: BuildSpec) -> Callable[[Row], Key]:
    """Return the sort key of target rows; the first row of a request gives the request features."""
    target_key, names = _target_order(spec), [f"request.{name}" for name in spec.requests.features]
    return lambda row: (row["request_time"], target_key(row), *(sort_key(row[name]) for name in names))


# Histories and targets


def _requests_of(spec: BuildSpec, user: _User) -> list[ReferenceRequest]:
    """Compute the history and the targets of every request of a user, in the order of their times.

    Example, with history_length = 2 and no delay:
        events at   1  2  3  5      (index 0 1 2 3; the event at 3 belongs to request B)
        request A at 4: 3 events are visible, none is its own -> timeline[1:3]
        request B at 6: 4 events are visible, its own is at 2 -> timeline[0:2]
    """
    events = [row.values["history"] for row in user.events]
    visible_times = list(map(_visible_time(spec), events))
    features = [f"history.{name}" for name in spec.history.features]
    timeline = [(event["item_id"], event["event_time"], *(event[name] for name in features)) for event in events]
    first_own_event: dict[int | str, int] = {}  # request id -> index of the first event that belongs to it
    for index, event in enumerate(events):
        if event.get("request_id") is not None:
            first_own_event.setdefault(event["request_id"], index)
    actions = actions_by_target(spec, (row.values["actions"] for row in user.actions))
    requests = []
    for request in sorted(user.requests, key=lambda request: (request.request_time, request.request_id)):
        # bisect_left counts the events whose visible time is strictly before the request.
        visible = bisect.bisect_left(visible_times, request.request_time)
        history_end = min(visible, first_own_event.get(request.request_id, visible))
        request_features, targets = _features_and_targets(spec, user.user_id, request, actions)
        requests.append(
            ReferenceRequest(
                request_id=request.request_id,
                user_id=user.user_id,
                request_time=request.request_time,
                features=request_features,
                timeline=timeline,
                history_start=max(0, history_end - spec.history_length),
                history_end=history_end,
                targets=targets,
            )
        )
    return requests


def _features_and_targets(
    spec: BuildSpec, user_id: int, request: _RequestRows, actions: Actions
) -> tuple[Row, list[Row]]:
    """Return the features of a request, and its targets in order."""
    rows = [row.values["requests"] for row in request.rows]
    first = min(rows, key=_row_order(spec))
    features = {name: first[f"request.{name}"] for name in spec.requests.features}
    return features, [_target(spec, user_id, request, actions, row) for row in sorted(rows, key=_target_order(spec))]


def _target(spec: BuildSpec, user_id: int, request: _RequestRows, actions: Actions, row: Row) -> Row:
    """Return a target: its item, its features, and its labels, from the row or delayed, in the spec's order."""
    item_id = row["item_id"]
    delayed = delayed_labels(spec, actions, user_id, request.request_id, request.request_time, item_id)
    features = {name: row[f"target.{name}"] for name in spec.requests.target_features}
    labels = {name: delayed[name] if name in delayed else row[f"label.{name}"] for name in spec.requests.labels}
    return {"item_id": item_id, **features, **labels}


def _timeline_order(spec: BuildSpec) -> Callable[[ValidRow], Key]:
    """Return the sort key of a timeline: visible time, then the other columns that make the order total."""
    visible_time, features = _visible_time(spec), [f"history.{name}" for name in spec.history.features]

    def key(row: ValidRow) -> Key:
        event = row.values["history"]
        ties = [sort_key(event.get(name)) for name in (*features, "request_id")]
        return (visible_time(event), event["event_time"], event["item_id"], ties, row.key)

    return key


def _visible_time(spec: BuildSpec) -> Callable[[Row], int]:
    """Return a function that computes when an event becomes visible to requests, in microseconds UTC."""
    delay_us = spec.history.delay_us
    return lambda event: max(event["event_time"] + delay_us, event.get("arrival_time", event["event_time"]))
