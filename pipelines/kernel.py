"""The kernel: canonical rows of one user bucket -> ordered timelines, grouped requests, and history ends.

All rules of docs/semantics.md that need the rows of a user together are applied here, on whole columns. Both engines
call `build_bucket` once per bucket. Nothing here reads or writes files.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import polars as pl

from longbatch.pipelines.arrays.runs import starts_run
from longbatch.pipelines.arrays.sorting import ranked_keys, repeated_rows, sort_rows
from longbatch.schemas.accounting import Counts, RowAccounting
from longbatch.schemas.profile import Large
from longbatch.schemas.ragged import offsets_of, owners_of
from longbatch.schemas.source_schema import ROLE_COLUMN, SourceSchema, role_schema, source_schema
from longbatch.schemas.spec.build_spec import BuildSpec, Role
from longbatch.schemas.types import BoolArray, Int64Array
from longbatch.validation.rules import CONFLICTING_REQUEST

from .canonicalize import LogFacts
from .delayed_labels import add_delayed_labels, closed_requests
from .incremental import NEW, STATUS, EventStatus, IncrementalState, events_to_keep
from .policies import KEPT, NO_ROLE, PENDING_LABEL, OutcomeCodes, apply_user_policies, policy_counts
from .request_grouping import Requests, group_targets

VISIBLE_TIME = "visible_time"


@dataclass(frozen=True)
class Timelines:
    """All events of a bucket, sorted by user, then visible time, then the tie-breakers.

    Attributes:
        events: N rows with the history's columns.
        user_id: User of each event, (N,).
        visible_time: Microseconds from which on each event can be in a history, (N,).
    """

    events: pl.DataFrame
    user_id: Int64Array
    visible_time: Int64Array


@dataclass(frozen=True)
class SoundRows:
    """The sound rows of a source in order: neither conflicting nor duplicates.

    The rows themselves are not sorted, because each role gathers only the columns it needs, once.

    Attributes:
        schema: Schema of the source.
        rows: Canonical rows, (N,), in the order they arrived.
        order: Row numbers of the sound rows, (K,), in order.
    """

    schema: SourceSchema
    rows: pl.DataFrame
    order: Int64Array

    def has_role(self, role: Role) -> BoolArray:
        """Return which of the sound rows have a role, (K,)."""
        if role not in self.schema.roles:
            return np.zeros(len(self.order), dtype=np.bool_)
        if ROLE_COLUMN[role] in self.rows.columns:
            return np.asarray(self.rows[ROLE_COLUMN[role]].to_numpy()[self.order])
        return np.ones(len(self.order), dtype=np.bool_)


@dataclass(frozen=True)
class PendingRequests:
    """Requests whose label windows are still open when the log of actions ends.

    Attributes:
        targets: Their target rows, as they entered the grouping.
        requests: The requests, P rows.
        actions: All actions of the bucket's users.
    """

    targets: pl.DataFrame
    requests: pl.DataFrame
    actions: pl.DataFrame


@dataclass(frozen=True)
class Bucket:
    """The result of the kernel for one user bucket.

    Attributes:
        timelines: The events that policies keep.
        requests: The closed requests and their targets.
        history_end: Number of events of the user that are visible to each request, (R,).
        event_start: Row of `timelines` at which the user of each request starts, (R,).
        row_accounting: Changes per source to the accounting of `canonicalize`: duplicates, conflicting requests and
            rows that a policy left out move away from `accepted`.
        counts: Events, users and targets that policies left out.
        policy_users: Largest users by policy.
        previous_state: The incremental state of the bucket before this increment.
        pending: Requests that wait for later actions.
        previous_status: Status of each event before this increment, (N,); NEW for an event of this increment.
    """

    timelines: Timelines
    requests: Requests
    history_end: Int64Array
    event_start: Int64Array
    row_accounting: dict[str, RowAccounting]
    counts: Counts
    policy_users: dict[str, tuple[Large, ...]]
    previous_state: IncrementalState
    pending: PendingRequests
    previous_status: EventStatus


def build_bucket(
    spec: BuildSpec,
    rows: Mapping[str, pl.DataFrame],
    facts: LogFacts | None = None,
    state: IncrementalState | None = None,
) -> Bucket:
    """Run the kernel on one user bucket.

    Args:
        spec: The build spec.
        rows: Source -> all canonical rows of the bucket's users.
        facts: What is known of the rows of all buckets.
        state: The bucket's state after the previous increment.

    Returns:
        Timelines, requests with their history ends, and accounting.
    """
    facts, state = facts or LogFacts(), state or IncrementalState()
    sound, row_accounting = {}, {}
    for source, frame in rows.items():
        sound[source], row_accounting[source] = _sound_rows(spec, source_schema(spec, source), frame, facts.conflicts)
    events, targets = (_role_rows(spec, sound, role) for role in ("history", "requests"))
    new_targets = targets.height
    # Continue from the previous increment: its events come before the new ones.
    events, status = state.join_events(events)
    targets = state.join_rows("targets", targets)
    outcomes = apply_user_policies(spec.users, events["user_id"].to_numpy(), targets["user_id"].to_numpy())
    event_outcome, target_outcome = outcomes.events, outcomes.targets.copy()
    timelines = _timelines(_kept(events, event_outcome))
    kept_status = status[event_outcome == KEPT]
    requests = group_targets(spec, _kept(targets, target_outcome))
    counts = outcomes.counts
    pending = PendingRequests(targets.head(0), requests.requests.head(0), targets.head(0))
    # Requests whose label windows are open wait for a later increment.
    if spec.requests.delayed_labels:
        actions = state.join_rows("actions", _role_rows(spec, sound, "actions"))
        closed = closed_requests(spec, requests.requests, facts.log_end)
        open_requests = requests.requests.filter(pl.Series(~closed))
        requests, pending_rows = _split_pending(requests, closed)
        pending = PendingRequests(targets[pending_rows], open_requests, actions)
        target_outcome[np.flatnonzero(target_outcome == KEPT)[pending_rows]] = PENDING_LABEL
        counts += Counts(pending_requests=open_requests.height, pending_targets=len(pending_rows))
        requests = add_delayed_labels(spec, requests, actions)
    if event_outcome.any() or target_outcome.any():
        # Rows of the state were accounted for in the increment that they came from, so only new rows count here.
        new_outcomes = event_outcome[status == NEW], target_outcome[len(target_outcome) - new_targets :]
        _account_policies(sound, *new_outcomes, row_accounting)
    start, end = _history_bounds(spec, timelines, requests.requests)
    return Bucket(
        timelines=timelines,
        requests=requests,
        history_end=end - start,
        event_start=start,
        row_accounting=row_accounting,
        counts=counts,
        policy_users=outcomes.users,
        previous_state=state,
        pending=pending,
        previous_status=kept_status,
    )


def advance_state(
    spec: BuildSpec, bucket: Bucket, until: int, segment_users: Int64Array, status: EventStatus
) -> IncrementalState:
    """Return the state of a bucket after an increment.

    Args:
        spec: The build spec.
        bucket: The bucket of the increment.
        until: End of the increment in microseconds.
        segment_users: User of each new segment, (S,).
        status: Status of each event of the bucket after the increment, (N,).

    Returns:
        The state that the next increment needs.
    """
    pending = bucket.pending
    start, end = _history_bounds(spec, bucket.timelines, pending.requests)
    user = pending.requests["user_id"].to_numpy()
    # A pending request of a user without events has no history to keep.
    has_events = np.isin(user, bucket.timelines.user_id)
    first = np.maximum(start, end - spec.history_length)
    events = bucket.timelines.events.with_columns(pl.Series(STATUS, status))
    tables = {
        "events": events_to_keep(spec, events, until, user[has_events], first[has_events]),
        "targets": pending.targets,
        "users": bucket.previous_state.add_segments(segment_users),
    }
    if spec.requests.delayed_labels:
        # A request from `until` on, or one that is still open, counts no action before this.
        longest = max(label.within_us for label in spec.requests.delayed_labels.values())
        tables["actions"] = pending.actions.filter(pl.col("event_time") >= until - longest)
    return IncrementalState(tables)


def visible_time(spec: BuildSpec) -> pl.Expr:
    """Return the expression of the time from which on an event can be in a history.

    It is `max(event_time + delay, arrival_time)`, or without the arrival time if the log has none.

    Args:
        spec: The build spec.

    Returns:
        Microseconds, from the canonical columns of the history's source; 0 for rows without a time.
    """
    columns = role_schema(spec, "history").names["history"]
    ready = pl.col(columns["event_time"]) + spec.history.delay_us
    if "arrival_time" in columns:
        ready = pl.max_horizontal(ready, pl.col(columns["arrival_time"]))
    return ready.fill_null(0)


# Rows


def _sound_rows(
    spec: BuildSpec, schema: SourceSchema, rows: pl.DataFrame, conflicts: pl.Series | None
) -> tuple[SoundRows, RowAccounting]:
    """Drop conflicting requests and exact duplicates, and order the rows; rows of a history in timeline order."""
    conflicting = 0
    if conflicts is not None and len(conflicts) and "requests" in schema.roles:
        request_id = schema.names["requests"]["request_id"]
        has_conflict = pl.col(request_id).is_in(conflicts.implode())
        is_target = ROLE_COLUMN["requests"]
        # A row that is not a target keeps its other roles; a null id has no conflict.
        keep = (~(has_conflict & pl.col(is_target) if is_target in rows.columns else has_conflict)).fill_null(True)
        before = rows.height
        rows = rows.filter(keep)
        conflicting = before - rows.height
    if "history" in schema.roles:
        rows = rows.with_columns(visible_time(spec).alias(VISIBLE_TIME))
    # One sort by all columns gives the timeline order and puts duplicates next to each other.
    order = sort_rows(rows, _sort_columns(schema, rows.columns))
    repeated = repeated_rows(rows, order)
    accounting = RowAccounting(
        rejected=conflicting,
        duplicate=int(repeated.sum()),
        accepted=-conflicting - int(repeated.sum()),
        reasons={CONFLICTING_REQUEST: conflicting} if conflicting else {},
    )
    return SoundRows(schema, rows, order.permutation[~repeated]), accounting


def _sort_columns(schema: SourceSchema, available: list[str]) -> list[str]:
    """Return every column of a source's rows, those that order its first role in front."""
    role = schema.roles[0]
    leading = [canonical for name, canonical in schema.names[role].items() if name != "arrival_time"]
    if role == "history":
        leading.insert(1, VISIBLE_TIME)  # behind user_id
    return list(dict.fromkeys([*leading, *available]))


def _role_rows(spec: BuildSpec, sound: Mapping[str, SoundRows], role: Role) -> pl.DataFrame:
    """Return the sound rows of a role in order, in the role's names of the columns."""
    schema = role_schema(spec, role)
    rows = sound[schema.source]
    columns = [pl.col(canonical).alias(name) for name, canonical in schema.names[role].items()]
    if role == "history":
        columns.insert(0, pl.col(VISIBLE_TIME))
        if spec.one_log:
            # The time of the request that the same row is a target of, for `_may_precede_own_request`.
            request_time = pl.col(schema.names["requests"]["request_time"])
            columns += [pl.col("is_target"), request_time.alias("request_time")]
    return rows.rows.select(columns)[rows.order[rows.has_role(role)]]


def _kept(rows: pl.DataFrame, outcome: OutcomeCodes) -> pl.DataFrame:
    return rows.filter(pl.Series(outcome == KEPT)) if outcome.any() else rows


def _timelines(events: pl.DataFrame) -> Timelines:
    return Timelines(events, events["user_id"].to_numpy(), events[VISIBLE_TIME].to_numpy())


def _split_pending(requests: Requests, closed: BoolArray) -> tuple[Requests, Int64Array]:
    """Return the closed requests, and the row numbers (before grouping) of the targets of the others.

    With closed [True, False] and target_offsets [0, 2, 3], targets 0 and 1 stay with one request,
    and the original row of target 2, requests.rows[2], is returned.
    """
    if closed.all():
        return requests, np.empty(0, dtype=np.int64)
    keep = closed[owners_of(requests.target_offsets)]
    return (
        Requests(
            requests=requests.requests.filter(pl.Series(closed)),
            targets=requests.targets.filter(pl.Series(keep)),
            target_offsets=offsets_of(np.diff(requests.target_offsets)[closed]),
            rows=requests.rows[keep],
        ),
        requests.rows[~keep],
    )


def _account_policies(
    sound: Mapping[str, SoundRows],
    event_outcome: OutcomeCodes,
    target_outcome: OutcomeCodes,
    row_accounting: dict[str, RowAccounting],
) -> None:
    """Move rows that policies left out of all their roles from `accepted` to the policy, per source."""
    outcomes: tuple[tuple[Role, OutcomeCodes], ...] = (("history", event_outcome), ("requests", target_outcome))
    for source, rows in sound.items():
        per_role = []
        for role, outcome in outcomes:
            has_role = rows.has_role(role)
            per_row = np.full(len(has_role), NO_ROLE, dtype=np.uint8)
            per_row[has_role] = outcome if has_role.any() else 0
            per_role.append(per_row)
        left_out = policy_counts(per_role[0], per_role[1], rows.has_role("actions"))
        row_accounting[source] += RowAccounting(accepted=-sum(left_out.values()), policies=left_out)


# Histories


def _history_bounds(spec: BuildSpec, timelines: Timelines, requests: pl.DataFrame) -> tuple[Int64Array, Int64Array]:
    """Return per request (R,) the row of its user's first event, and the row at which its history ends."""
    start, end = _visible_ends(timelines, requests)
    return start, _before_own_events(spec, timelines, requests, end)


def _visible_ends(timelines: Timelines, requests: pl.DataFrame) -> tuple[Int64Array, Int64Array]:
    """Return per request (R,) the row of its user's first event, and the end of those visible strictly before it.

    Events of users [7, 7, 9] visible at [10, 20, 15]; requests of users [7, 8, 9] at [20, 99, 16]:
    start = [0, 2, 2], because user 8 has no events and takes the start of the next user,
    end = [1, 2, 3], because the event at 20 is not strictly before the request at 20.
    """
    user_id, time = requests["user_id"].to_numpy(), requests["request_time"].to_numpy()
    is_start = starts_run(timelines.user_id)
    distinct = timelines.user_id[is_start]
    bounds = np.append(np.flatnonzero(is_start), len(is_start)).astype(np.int64)
    user_rank = np.searchsorted(distinct, user_id)
    start = bounds[user_rank]
    if not len(user_id) or not len(is_start):
        return start, start.copy()
    # One binary search for all requests: the pair (user, time) as one 64-bit key that keeps the order.
    ranks = np.concatenate([np.cumsum(is_start) - 1, user_rank]).astype(np.uint64)
    key = ranked_keys(ranks, len(distinct).bit_length(), np.concatenate([timelines.visible_time, time]))
    end = np.searchsorted(key[: len(is_start)], key[len(is_start) :], side="left").astype(np.int64)
    has_events = distinct[np.minimum(user_rank, len(distinct) - 1)] == user_id
    return start, np.where(has_events, end, start)


def _before_own_events(spec: BuildSpec, timelines: Timelines, requests: pl.DataFrame, end: Int64Array) -> Int64Array:
    """Move each history end in front of the first event that has the request's own id.

    Events 0 to 4 of a user with request ids [None, 8, None, 8, None], and request 8 with end 5:
    the first event of request 8 is row 1, so its end becomes 1.
    """
    if "request_id" not in timelines.events.columns or not requests.height:
        return end
    candidates = timelines.events.select("user_id", "request_id", event_row=pl.int_range(pl.len()))
    candidates = candidates.filter(_may_precede_own_request(spec, timelines.events, requests))
    ends = requests.select("user_id", "request_id", request_row=pl.int_range(pl.len()), end=pl.Series(end))
    own = candidates.join(ends, on=["user_id", "request_id"], how="inner")
    own = own.filter(pl.col("event_row") < pl.col("end"))
    if not own.height:
        return end
    firsts = own.group_by("request_row").agg(pl.col("event_row").min())
    moved = end.copy()
    moved[firsts["request_row"].to_numpy()] = firsts["event_row"].to_numpy()
    return moved


def _may_precede_own_request(spec: BuildSpec, events: pl.DataFrame, requests: pl.DataFrame) -> pl.Series:
    """Return which events (N,) need the join with requests: those whose id some request has.

    Where one column holds the request id of both the event and the target of a row, a row that is visible at or after
    its own request time cannot precede the request, whose time is no later. That excludes nearly all rows.
    """
    has_request = events["request_id"].is_in(requests["request_id"].unique().implode())
    if not spec.one_log or spec.history.request_id != spec.requests.request_id:
        return has_request.fill_null(False)
    before_own = pl.col(VISIBLE_TIME) < pl.col("request_time")
    needed = pl.when("is_target").then(before_own).otherwise(pl.lit(has_request)).fill_null(False)
    return events.select(needed.alias("needed")).to_series()
