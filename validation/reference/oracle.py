"""The naive reference: docs/meaning.md in the plainest Python, one row and one user at a time.

It exists to be compared with: it shares no code with the pipelines, only the spec. Polars appears in two
places: it reads files, and it evaluates a `where` (`pl.sql_expr` on the raw frame) to a list of booleans.
Memory and time grow with everything it is given; a log of 350,000 rows takes half a minute, so for bigger ones
choose some `users`. How values are read is in `values.py`, what becomes of rows in `outcomes.py`, labels from later
events in `delayed_labels.py`; here are policies, requests and histories of one user.

Decisions where docs/meaning.md leaves room (more in the files named):
* rows that are alike in all that orders events, or targets, are ordered by all of their source's columns and then
  by their roles. It can only matter for which of them counts as left out;
* an event that a policy leaves out is in no timeline: it does not end the history of the request it carries;
* users that have actions only, or no sound row, are no users: no policy counts them;
* books count all rows given, what policies left out and all else only the chosen users.
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

from .delayed_labels import Actions, actions_by_item, delayed_labels, windows_are_over
from .row_outcomes import Key, SoundRow, SourceRows, source_rows
from .values import Row, generated_request_id, microseconds, order

Event = tuple[Any, ...]


@dataclass(frozen=True)
class ReferenceRequest:
    """One request; its history is a slice of `timeline`, its user's whole list of events, oldest first.

    An event is a tuple (item_id, event_time in us, history features in the spec's order); times are
    microseconds UTC; a target is a dict of item_id, target features and labels.
    """

    request_id: int | str
    user_id: int
    request_time: int
    features: dict[str, Any]
    timeline: list[Event]
    history_start: int
    history_end: int
    targets: list[dict[str, Any]]

    @property
    def history(self) -> list[Event]:
        """The newest L visible events, oldest first."""
        return self.timeline[self.history_start : self.history_end]


@dataclass(frozen=True)
class EventCounts:
    """Accepted events by what requests can reach; stored and beyond_history are one number here."""

    stored_or_beyond: int
    after_last_request: int


@dataclass(frozen=True)
class Reference:
    """What a build must yield; requests are ordered by (user_id, request_time, request_id).

    `events` and `targets` are what the policies leave; of `left_out` only what policies took is filled.
    `log_end`: until when the log of actions is complete, microseconds UTC; None without actions.
    """

    requests: list[ReferenceRequest]
    row_accounting: dict[str, RowAccounting]
    events: EventCounts
    targets: int
    left_out: Counts
    log_end: int | None


@dataclass(frozen=True)
class _Group:
    """The target rows that are one request."""

    request_id: int | str
    request_time: int
    rows: list[SoundRow]


@dataclass(frozen=True)
class _User:
    """What the policies leave of a user: events, oldest first, requests, and all actions."""

    user_id: int
    events: list[SoundRow]
    groups: list[_Group]
    actions: list[SoundRow]
    left_out: dict[str, int]


def build_reference(
    spec: BuildSpec,
    frames: Mapping[str, pl.DataFrame],
    users: Collection[int] | None = None,
    log_end: int | None = None,
) -> Reference:
    """Work out requests, histories, targets and row counts from raw frames, one frame per source.

    `users` limits requests and what is counted of them to some user ids; the row_accounting count every row of the frames.
    `log_end` says until when the log of actions is complete, in microseconds UTC. If it is None, the frames say so,
    or the spec's `until`. Frames of sampled users cannot: with them it must be given. Raises DataError where the
    result for a label is not of its type.
    """
    sources = {source: source_rows(spec, source, frames[source]) for source in spec.sources}
    end = _log_end(spec, sources) if log_end is None else log_end
    wanted = set(users or ())
    rows_of = _rows_of_users(sources)
    everyone = [_apply_policies(spec, user, rows_of[user], end) for user in sorted(rows_of)]
    chosen = everyone if users is None else [user for user in everyone if user.user_id in wanted]
    parts = [_requests_of(spec, user) for user in chosen]
    reached = [max((request.history_end for request in part), default=0) for part in parts]
    requests = [request for part in parts for request in part]
    left_out: Counter[str] = Counter()
    for user in chosen:
        left_out.update(user.left_out)
    return Reference(
        requests,
        {source: rows.accounting_after_policies() for source, rows in sources.items()},
        EventCounts(sum(reached), sum(len(user.events) for user in chosen) - sum(reached)),
        sum(len(request.targets) for request in requests),
        Counts(**left_out),
        end,
    )


def _log_end(spec: BuildSpec, sources: Mapping[str, SourceRows]) -> int | None:
    if spec.actions is None or spec.actions.until is None:
        return None if spec.actions is None else sources[spec.actions.source].latest_action
    return microseconds(spec.actions.until)


def _rows_of_users(sources: Mapping[str, SourceRows]) -> dict[int, dict[Role, list[SoundRow]]]:
    """Return every user's rows by the role that they play; those of several roles several times."""
    rows_of: dict[int, dict[Role, list[SoundRow]]] = {}
    for source in sources.values():
        for row in source.rows:
            for role, values in row.values.items():
                rows_of.setdefault(values["user_id"], {"history": [], "requests": [], "actions": []})[role].append(row)
    return rows_of


# Policies


def _apply_policies(spec: BuildSpec, user_id: int, rows: dict[Role, list[SoundRow]], log_end: int | None) -> _User:
    """Leave out what the policies say, note it at the rows, and return what stays."""
    events, targets = sorted(rows["history"], key=_timeline_order(spec)), rows["requests"]
    refused = _refused(spec, len(events))
    if refused and (events or targets):
        policy, name = refused
        _leave_out(policy, "history", events)
        _leave_out(policy, "requests", targets)
        left_out = {f"{name}_users": 1, f"{name}_events": len(events), f"{name}_targets": len(targets)}
        return _User(user_id, [], [], [], left_out)
    too_many = max(0, len(events) - (spec.users.max_events or len(events)))
    _leave_out("heavy_user_cap", "history", events[:too_many])
    asked = _grouped(spec, user_id, targets)
    requests = [request for request in asked if windows_are_over(spec, request.request_time, log_end)]
    open_ones = [request for request in asked if not windows_are_over(spec, request.request_time, log_end)]
    pending_label = [row for request in open_ones for row in request.rows]
    _leave_out("pending_label", "requests", pending_label)
    left_out = {"pending_requests": len(open_ones), "pending_targets": len(pending_label)}
    left_out |= {"capped_users": min(too_many, 1), "capped_events": too_many}
    return _User(user_id, events[too_many:], requests, rows["actions"], left_out)


def _refused(spec: BuildSpec, events: int) -> tuple[str, str] | None:
    """Return the policy that leaves out a user with so many events, and its name in the counts."""
    most = spec.users.max_events
    if most is not None and events > most and spec.users.over_max_events == "reject_user":
        return "rejected_user", "rejected"
    return ("short_history", "short") if events < spec.users.min_events else None


def _leave_out(policy: str, role: Role, rows: list[SoundRow]) -> None:
    for row in rows:
        row.left_out[role] = policy


# Requests


def _grouped(spec: BuildSpec, user_id: int, rows: list[SoundRow]) -> list[_Group]:
    """Return a user's target rows as requests: by request id, or else by session."""
    if spec.requests.request_id is None:
        return _sessions(spec, user_id, rows)
    same_id: dict[int | str, list[SoundRow]] = defaultdict(list)
    for row in rows:
        same_id[row.values["requests"]["request_id"]].append(row)
    return [_Group(request_id, min(map(_row_time, group)), group) for request_id, group in same_id.items()]


def _sessions(spec: BuildSpec, user_id: int, rows: list[SoundRow]) -> list[_Group]:
    """Cut the ordered rows where the time to the row before is too long, or the request is full."""
    requests: list[list[SoundRow]] = []
    last_time = 0
    first_key = _first_order(spec)
    for row in sorted(rows, key=lambda row: (first_key(row.values["requests"]), row.key)):
        too_late = _row_time(row) - last_time > spec.requests.session_gap_us
        if not requests or too_late or len(requests[-1]) == spec.requests.max_targets:
            requests.append([])
        requests[-1].append(row)
        last_time = _row_time(row)
    groups: list[_Group] = []
    at_time: Counter[int] = Counter()
    for request in requests:
        time = _row_time(request[0])
        groups.append(_Group(generated_request_id(user_id, time, at_time[time]), time, request))
        at_time[time] += 1
    return groups


def _row_time(row: SoundRow) -> int:
    time: int = row.values["requests"]["request_time"]
    return time


def _target_order(spec: BuildSpec) -> Callable[[Row], Key]:
    """Return what orders the targets of a request.

    Labels from later events are not needed for it: rows of a request that are alike in their item have the same.
    """
    own = [name for name, label in spec.requests.labels.items() if not label.aggregate]
    names = ["item_id", *(f"target.{n}" for n in spec.requests.target_features), *(f"label.{n}" for n in own)]
    return lambda row: tuple(order(row[name]) for name in names)


def _first_order(spec: BuildSpec) -> Callable[[Row], Key]:
    """Return what orders target rows where it matters which is first."""
    target_key, names = _target_order(spec), [f"request.{name}" for name in spec.requests.features]
    return lambda row: (row["request_time"], target_key(row), *(order(row[name]) for name in names))


# Histories and targets


def _requests_of(spec: BuildSpec, user: _User) -> list[ReferenceRequest]:
    """Cut the history of every request of a user and work out its targets; in the order of their times."""
    events = [row.values["history"] for row in user.events]
    visible_times = list(map(_visibility(spec), events))
    features = [f"history.{name}" for name in spec.history.features]
    timeline = [(event["item_id"], event["event_time"], *(event[name] for name in features)) for event in events]
    first_own: dict[Any, int] = {}
    for place, event in enumerate(events):
        if event.get("request_id") is not None:
            first_own.setdefault(event["request_id"], place)
    actions = actions_by_item(spec, (row.values["actions"] for row in user.actions))
    requests = []
    for group in sorted(user.groups, key=lambda group: (group.request_time, group.request_id)):
        visible = bisect.bisect_left(visible_times, group.request_time)  # how many are < request_time
        end = min(visible, first_own.get(group.request_id, visible))
        start = max(0, end - spec.history_length)
        of_request, targets = _features_and_targets(spec, user.user_id, group, actions)
        requests.append(
            ReferenceRequest(
                group.request_id, user.user_id, group.request_time, of_request, timeline, start, end, targets
            )
        )
    return requests


def _features_and_targets(spec: BuildSpec, user_id: int, group: _Group, actions: Actions) -> tuple[Row, list[Row]]:
    """Return the features of a request, and its targets in order."""
    rows = [row.values["requests"] for row in group.rows]
    first = min(rows, key=_first_order(spec))
    features = {name: first[f"request.{name}"] for name in spec.requests.features}
    return features, [_target(spec, user_id, group, actions, row) for row in sorted(rows, key=_target_order(spec))]


def _target(spec: BuildSpec, user_id: int, group: _Group, actions: Actions, row: Row) -> Row:
    """Return a target: its item, its features, and its labels of both origins, in the spec's order."""
    item_id = row["item_id"]
    later = delayed_labels(spec, actions, user_id, group.request_id, group.request_time, item_id)
    features = {name: row[f"target.{name}"] for name in spec.requests.target_features}
    labels = {name: later[name] if name in later else row[f"label.{name}"] for name in spec.requests.labels}
    return {"item_id": item_id, **features, **labels}


def _timeline_order(spec: BuildSpec) -> Callable[[SoundRow], Key]:
    """Return what orders a timeline: visible time first, then the rest of the total order."""
    visible_time, features = _visibility(spec), [f"history.{name}" for name in spec.history.features]

    def key(row: SoundRow) -> Key:
        event = row.values["history"]
        ties = [order(event.get(name)) for name in (*features, "request_id")]
        return (visible_time(event), event["event_time"], event["item_id"], ties, row.key)

    return key


def _visibility(spec: BuildSpec) -> Callable[[Row], int]:
    """Return what says when serving can see an event."""
    delay_us = spec.history.delay_us
    return lambda event: max(event["event_time"] + delay_us, event.get("arrival_time", event["event_time"]))
