"""Where the history of each request ends in its user's timeline (docs/semantics.md, The history of a request).

A timeline is sorted by visible time, so the events that a request sees are a prefix of it, and one binary search per
request finds its end.

An event that carries the id of a request is that request's own event: typically the row of the log that is both a
target of the request and an event. It shows how the user reacted to the request, so a history that includes it leaks
the label into the input. Clocks and arrival times can make an own event visible before the request time. So the end
moves back to the first own event, which may exclude visible events but never adds a later one.

An end is a row of the timelines of all users here (`end_row`). The kernel turns it into a number of events of the user
(`history_end`).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import polars as pl

from longbatch.pipelines.arrays.runs import starts_run
from longbatch.pipelines.arrays.sorting import ranked_keys
from longbatch.schemas.spec.build_spec import BuildSpec
from longbatch.schemas.types import Int64Array

from .valid_rows import VISIBLE_TIME


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

    @classmethod
    def of_events(cls, events: pl.DataFrame) -> Timelines:
        """Build the timelines of events in timeline order."""
        return cls(events, events["user_id"].to_numpy(), events[VISIBLE_TIME].to_numpy())


def history_bounds(spec: BuildSpec, timelines: Timelines, requests: pl.DataFrame) -> tuple[Int64Array, Int64Array]:
    """Locate the visible events of each request.

    Args:
        spec: The build spec.
        timelines: All events of a bucket.
        requests: R requests of the bucket's users.

    Returns:
        start_row, the row of `timelines` at which the user of each request starts, (R,), and end_row, the row at which
        the request's history ends, exclusive, (R,).
    """
    start_row, end_row = _visible_rows(timelines, requests)
    return start_row, _before_own_events(spec, timelines, requests, end_row)


def _visible_rows(timelines: Timelines, requests: pl.DataFrame) -> tuple[Int64Array, Int64Array]:
    """Return per request (R,) the row of its user's first event, and the end of those visible strictly before it.

    Events of users [7, 7, 9] visible at [10, 20, 15]; requests of users [7, 8, 9] at [20, 99, 16]:
    start_row = [0, 2, 2], because user 8 has no events and takes the start of the next user,
    end_row = [1, 2, 3], because the event at 20 is not strictly before the request at 20.
    """
    user_id, time = requests["user_id"].to_numpy(), requests["request_time"].to_numpy()
    # Run-length encoding of the sorted users: the distinct users, and bounds[i] to bounds[i + 1] for the events of
    # user i. The last bound is the start of a user behind all others.
    is_start = starts_run(timelines.user_id)
    distinct = timelines.user_id[is_start]
    bounds = np.append(np.flatnonzero(is_start), len(is_start)).astype(np.int64)
    user_rank = np.searchsorted(distinct, user_id)
    start_row = bounds[user_rank]
    if not len(user_id) or not len(is_start):
        return start_row, start_row.copy()
    # One binary search for all requests: the pair (user, time) as one 64-bit key that keeps the order.
    ranks = np.concatenate([np.cumsum(is_start) - 1, user_rank]).astype(np.uint64)
    # The rank of a user behind all others is len(distinct), hence its bit length and not that of the last rank.
    key = ranked_keys(ranks, len(distinct).bit_length(), np.concatenate([timelines.visible_time, time]))
    # side="left" makes the rule strict: an event at exactly the request time is not counted.
    end_row = np.searchsorted(key[: len(is_start)], key[len(is_start) :], side="left").astype(np.int64)
    # A user without events has the rank of the next user, whose events are not visible to the request.
    has_events = distinct[np.minimum(user_rank, len(distinct) - 1)] == user_id
    return start_row, np.where(has_events, end_row, start_row)


def _before_own_events(
    spec: BuildSpec, timelines: Timelines, requests: pl.DataFrame, end_row: Int64Array
) -> Int64Array:
    """Move each end in front of the first event that has the request's own id, so that no label leaks.

    Events 0 to 4 of a user with request ids [None, 8, None, 8, None], and request 8 with end_row 5:
    the first event of request 8 is row 1, so its end_row becomes 1.
    """
    if "request_id" not in timelines.events.columns or not requests.height:
        return end_row
    # A hash join, because request ids need not be sorted: by user too, because another user's event with the same id
    # is not the request's own.
    candidates = timelines.events.select("user_id", "request_id", event_row=pl.int_range(pl.len()))
    candidates = candidates.filter(_may_precede_own_request(spec, timelines.events, requests))
    ends = requests.select("user_id", "request_id", request_row=pl.int_range(pl.len()), end_row=pl.Series(end_row))
    own = candidates.join(ends, on=["user_id", "request_id"], how="inner")
    own = own.filter(pl.col("event_row") < pl.col("end_row"))
    if not own.height:
        return end_row
    # A join does not keep the order of rows, so the first event is the minimum, not the first match.
    firsts = own.group_by("request_row").agg(pl.col("event_row").min())
    moved = end_row.copy()
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
    # An event that is not a target has no request time of its own, so it is compared with the requests by id.
    needed = pl.when("is_target").then(before_own).otherwise(pl.lit(has_request)).fill_null(False)
    return events.select(needed.alias("needed")).to_series()
