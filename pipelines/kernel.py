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
from .incremental import NEW, EventStatus, IncrementalState
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
class BuiltBucket:
    """The result of the kernel for one user bucket.

    Attributes:
        timelines: The events that policies keep; in an increment, new events behind the kept ones of the state.
        requests: The closed requests and their targets.
        history_end: Number of the user's events in `timelines` that the history of each request may use, (R,): those
            visible to the request, up to its first own event (`history_ends`). Events that a policy excluded or that
            the state dropped do not count.
        event_start: Row of `timelines` at which the user of each request starts, (R,).
        row_accounting: Changes per source to the accounting of `canonicalize`: duplicates, conflicting requests and
            rows that a policy excluded move away from `accepted`.
        counts: Events, users and targets that policies excluded.
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
    log_facts: LogFacts | None = None,
    state: IncrementalState | None = None,
) -> BuiltBucket:
    """Run the kernel on one user bucket.

    Args:
        spec: The build spec.
        rows: Source -> all canonical rows of the bucket's users.
        log_facts: What is known of the rows of all buckets.
        state: The bucket's state after the previous increment.

    Returns:
        Timelines, requests with their history ends, and accounting.
    """
    log_facts, state = log_facts or LogFacts(), state or IncrementalState()
    valid, row_accounting = {}, {}
    for source, frame in rows.items():
        valid[source], row_accounting[source] = valid_rows(
            spec, source_schema(spec, source), frame, log_facts.conflicts
        )
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
    # A variable of its own, because `requests.rows` and `pending_rows` number these targets, not all `targets`.
    kept_targets = _kept(targets, target_outcome)
    requests = group_targets(spec, kept_targets)
    counts = outcomes.counts
    pending = PendingRequests(targets.head(0), requests.requests.head(0), targets.head(0))
    if spec.requests.delayed_labels:
        actions = state.join_rows("actions", role_rows(spec, valid, "actions"))
        requests, pending, pending_rows = _label_requests(spec, requests, kept_targets, actions, log_facts.log_end)
        target_outcome[np.flatnonzero(target_outcome == KEPT)[pending_rows]] = PENDING_LABEL
        counts += Counts(pending_requests=pending.requests.height, pending_targets=len(pending_rows))
    if event_outcome.any() or target_outcome.any():
        # Rows of the state were accounted for in the increment that they came from, so only new rows count here. The
        # state's targets come before the new ones; its events are mixed with them, and their status tells them apart.
        outcomes_of_new = event_outcome[status == NEW], target_outcome[targets.height - new_targets.height :]
        _account_policies(valid, *outcomes_of_new, row_accounting)
    start_row, end_row = history_bounds(spec, timelines, requests.requests)
    return BuiltBucket(
        timelines=timelines,
        requests=requests,
        history_end=end_row - start_row,
        event_start=start_row,
        row_accounting=row_accounting,
        counts=counts,
        policy_users=outcomes.users,
        previous_state=state,
        pending=pending,
        previous_status=status[event_outcome == KEPT],
    )


def _kept(rows: pl.DataFrame, outcome: OutcomeCodes) -> pl.DataFrame:
    return rows.filter(pl.Series(outcome == KEPT)) if outcome.any() else rows


def _label_requests(
    spec: BuildSpec, requests: Requests, kept_targets: pl.DataFrame, actions: pl.DataFrame, log_end: int | None
) -> tuple[Requests, PendingRequests, Int64Array]:
    """Return the closed requests with their delayed labels, the pending requests, and the rows of their targets."""
    closed = closed_requests(spec, requests.requests, log_end)
    open_requests = requests.requests.filter(pl.Series(~closed))
    labeled, pending_rows = _split_pending(requests, closed)
    pending = PendingRequests(kept_targets[pending_rows], open_requests, actions)
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
    """Move rows that policies excluded from all their roles from `accepted` to the policy, per source.

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
        excluded = policy_counts(per_role[0], per_role[1], rows.has_role("actions"))
        row_accounting[source] += RowAccounting(accepted=-sum(excluded.values()), policies=excluded)
