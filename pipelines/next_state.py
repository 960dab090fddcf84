"""The state that one increment leaves for the next: which rows of a built bucket to keep (`incremental`)."""

from __future__ import annotations

import numpy as np
import polars as pl

from longbatch.pipelines.arrays.runs import starts_run
from longbatch.schemas.spec.build_spec import BuildSpec
from longbatch.schemas.types import Int64Array

from .history_ends import history_bounds
from .incremental import STATUS, EventStatus, IncrementalState
from .kernel import BuiltBucket


def advance_state(
    spec: BuildSpec, bucket: BuiltBucket, until: int, segment_users: Int64Array, status: EventStatus
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
    start_row, end_row = history_bounds(spec, bucket.timelines, pending.requests)
    user = pending.requests["user_id"].to_numpy()
    # A pending request of a user without events has no history to keep; its start is another user's first event.
    has_events = np.isin(user, bucket.timelines.user_id)
    first = np.maximum(start_row, end_row - spec.history_length)
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


def events_to_keep(
    spec: BuildSpec, events: pl.DataFrame, until: int, pending_user: Int64Array, pending_start: Int64Array
) -> pl.DataFrame:
    """Return the events that histories of later increments can include: a suffix of each user's timeline.

    With L = 2, users [7, 7, 7, 7, 9] and a pending request of user 7 whose history starts at row 1:
    the newest 2 events of user 7 start at row 2, the pending history at row 1, so rows 1 to 3 are kept, and row 4.

    Args:
        spec: The build spec; L is its history_length.
        events: All events of the bucket in timeline order, (N,).
        until: End of the increment in microseconds.
        pending_user: User of each pending request that has events, (P,).
        pending_start: Row of `events` at which the history of each pending request starts, (P,).

    Returns:
        The kept rows of `events`, in order.
    """
    if not events.height:
        return events
    user = events["user_id"].to_numpy()
    starts = np.flatnonzero(starts_run(user))
    ends = np.append(starts[1:], len(user))
    # Per user, the first event to keep; the two conditions below only move it back. `minimum.at` and not an indexed
    # assignment, because a user may have several requests, of which the earliest start counts.
    first = np.maximum(starts, ends - spec.history_length)
    distinct = user[starts]
    np.minimum.at(first, np.searchsorted(distinct, pending_user), pending_start)
    if "request_id" in events.columns and "request_time" in events.columns:
        # An event that is visible before its own request, which is yet to come, will end that request's history.
        early = (pl.col("request_time") >= until) & (pl.col("visible_time") < pl.col("request_time"))
        rows = events.select(early.fill_null(False)).to_series().arg_true().to_numpy().astype(np.int64)
        np.minimum.at(first, np.searchsorted(distinct, user[rows]), rows)
    return events.filter(pl.Series(np.arange(len(user)) >= np.repeat(first, ends - starts)))
