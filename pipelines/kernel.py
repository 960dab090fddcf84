"""The kernel: canonical rows of one user bucket -> ordered timelines, grouped requests, and history ends.

All rules of docs/semantics.md that need the rows of a user together are applied here, on whole columns. Both engines
call `build_bucket` once per bucket. Nothing here reads or writes files.

    valid rows -> state of the previous increment -> user policies -> requests -> pending requests -> history ends
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import polars as pl

from longbatch.schemas.accounting import Counts, RowAccounting
from longbatch.schemas.profile import Large
from longbatch.schemas.ragged import offsets_of, owners_of
from longbatch.schemas.source_schema import source_schema
from longbatch.schemas.spec.build_spec import BuildSpec, Role
from longbatch.schemas.types import BoolArray, Int64Array

from .canonicalize import LogFacts
from .delayed_labels import add_delayed_labels, closed_requests
from .history_ends import Timelines, history_bounds
from .incremental import NEW, STATUS, EventStatus, IncrementalState, events_to_keep
from .policies import KEPT, NO_ROLE, PENDING_LABEL, OutcomeCodes, apply_user_policies, policy_counts
from .request_grouping import Requests, group_targets
from .valid_rows import ValidRows, role_rows, valid_rows


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
    valid, row_accounting = {}, {}
    for source, frame in rows.items():
        valid[source], row_accounting[source] = valid_rows(spec, source_schema(spec, source), frame, facts.conflicts)
    new_events, new_targets = (role_rows(spec, valid, role) for role in ("history", "requests"))
    # Continue from the previous increment: its events come before the new ones, because increments are split by
    # visible time (docs/incremental.md).
    events, status = state.join_events(new_events)
    targets = state.join_rows("targets", new_targets)
    # The order of policies is part of the semantics: users first, so that a pending request of a rejected user counts
    # as rejected_user.
    outcomes = apply_user_policies(spec.users, events["user_id"].to_numpy(), targets["user_id"].to_numpy())
    event_outcome, target_outcome = outcomes.events, outcomes.targets.copy()
    timelines = Timelines.of_events(_kept(events, event_outcome))
    requests = group_targets(spec, _kept(targets, target_outcome))
    counts = outcomes.counts
    pending = PendingRequests(targets.head(0), requests.requests.head(0), targets.head(0))
    if spec.requests.delayed_labels:
        actions = state.join_rows("actions", role_rows(spec, valid, "actions"))
        requests, pending, pending_rows = _label_requests(spec, requests, targets, actions, facts.log_end)
        # `pending_rows` number the targets that user policies kept.
        target_outcome[np.flatnonzero(target_outcome == KEPT)[pending_rows]] = PENDING_LABEL
        counts += Counts(pending_requests=pending.requests.height, pending_targets=len(pending_rows))
    if event_outcome.any() or target_outcome.any():
        # Rows of the state were accounted for in the increment that they came from, so only new rows count here. The
        # state's targets come before the new ones; its events are mixed with them, and their status tells them apart.
        outcomes_of_new = event_outcome[status == NEW], target_outcome[targets.height - new_targets.height :]
        _account_policies(valid, *outcomes_of_new, row_accounting)
    start, end = history_bounds(spec, timelines, requests.requests)
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
        previous_status=status[event_outcome == KEPT],
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
    start, end = history_bounds(spec, bucket.timelines, pending.requests)
    user = pending.requests["user_id"].to_numpy()
    # A pending request of a user without events has no history to keep; its start is another user's first event.
    has_events = np.isin(user, bucket.timelines.user_id)
    first = np.maximum(start, end - spec.history_length)
    events = bucket.timelines.events.with_columns(pl.Series(STATUS, status))
    tables = {
        "events": events_to_keep(spec, events, until, user[has_events], first[has_events]),
        "targets": pending.targets,
        "users": bucket.previous_state.add_segments(segment_users),
    }
    if spec.requests.delayed_labels:
        # A later request is at or after `until`. A pending one that can still close is after `until - longest`, or its
        # longest window would be closed. Neither counts an action before that time.
        longest = max(label.within_us for label in spec.requests.delayed_labels.values())
        tables["actions"] = pending.actions.filter(pl.col("event_time") >= until - longest)
    return IncrementalState(tables)


def _kept(rows: pl.DataFrame, outcome: OutcomeCodes) -> pl.DataFrame:
    return rows.filter(pl.Series(outcome == KEPT)) if outcome.any() else rows


def _label_requests(
    spec: BuildSpec, requests: Requests, targets: pl.DataFrame, actions: pl.DataFrame, log_end: int | None
) -> tuple[Requests, PendingRequests, Int64Array]:
    """Return the closed requests with their delayed labels, the pending requests, and the rows of their targets."""
    closed = closed_requests(spec, requests.requests, log_end)
    open_requests = requests.requests.filter(pl.Series(~closed))
    labeled, pending_rows = _split_pending(requests, closed)
    # Where user policies left out targets, `pending_rows` number the others and not all `targets`. That is safe: only
    # increments use the pending targets, and they refuse user policies (docs/incremental.md).
    pending = PendingRequests(targets[pending_rows], open_requests, actions)
    return add_delayed_labels(spec, labeled, actions), pending, pending_rows


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
    valid: Mapping[str, ValidRows],
    event_outcome: OutcomeCodes,
    target_outcome: OutcomeCodes,
    row_accounting: dict[str, RowAccounting],
) -> None:
    """Move rows that policies left out of all their roles from `accepted` to the policy, per source.

    Four valid rows of a log with two roles, events [yes, yes, no, yes] and targets [yes, no, yes, no],
    event_outcome [0, 3, 3] and target_outcome [4, 4]: per row, events [0, 3, -, 3] and targets [4, -, 4, -].
    Row 0 stays accepted as an event; rows 1 and 3 count under policy 3, and row 2 under policy 4.
    """
    outcomes: tuple[tuple[Role, OutcomeCodes], ...] = (("history", event_outcome), ("requests", target_outcome))
    for source, rows in valid.items():
        per_role = []
        for role, outcome in outcomes:
            has_role = rows.has_role(role)
            # Outcomes are in the order of `ValidRows.order`, as `role_rows` gathered them, so a mask puts them back.
            per_row = np.full(len(has_role), NO_ROLE, dtype=np.uint8)
            # A role without rows here may belong to another source, whose outcomes do not fit this mask.
            per_row[has_role] = outcome if has_role.any() else 0
            per_role.append(per_row)
        left_out = policy_counts(per_role[0], per_role[1], rows.has_role("actions"))
        row_accounting[source] += RowAccounting(accepted=-sum(left_out.values()), policies=left_out)
