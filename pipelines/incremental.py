"""What one append must know of the days before: the newest events of each user, requests that wait for labels, and
how many segments each user has. All of it is kept by user bucket, so an append rereads nothing else.

A *window* [start, until) cuts the log by when things are known: events by visible time, requests by request time,
actions by event time. So what is appended only ever adds at the end of a timeline.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt
import polars as pl

from longbatch.pipelines.arrays.ragged import changes
from longbatch.schemas.spec.build_spec import BuildSpec
from longbatch.schemas.types import Int64Array

REACH = "reach"
NEW, AFTER_LAST_REQUEST, BEYOND_HISTORY, STORED = -1, 0, 1, 2
Reaches = npt.NDArray[np.int8]


@dataclass(frozen=True)
class Window:
    """Microseconds [start, until) of what is known; `start` is None from the beginning."""

    start: int | None
    until: int

    def holds(self, moment: pl.Expr) -> pl.Expr:
        """Whether a moment is inside; a row without one stays, to be rejected."""
        inside = moment < self.until
        inside = inside if self.start is None else inside & (moment >= self.start)
        return inside.fill_null(True)


@dataclass(frozen=True)
class Carried:
    """The state of one bucket, in the column names of the roles; tables that are empty may be left out.

    events: the newest of each user, in timeline order, with how far requests reached them so far (REACH). targets, actions: of requests whose windows were not over.
    users: user_id, ascending, and how many segments each has.
    """

    tables: dict[str, pl.DataFrame] = field(default_factory=dict)

    def with_events(self, events: pl.DataFrame) -> tuple[pl.DataFrame, Reaches]:
        """Put the new events, in timeline order, behind each user's carried ones; beside, the reach each had (N,)."""
        fresh = np.full(events.height, NEW, dtype=np.int8)
        if "events" not in self.tables:
            return events, fresh
        known = self.tables["events"]
        both = pl.concat([known.select(events.columns).cast(events.schema), events], rechunk=True)
        order = np.argsort(both["user_id"].to_numpy(), kind="stable")
        return both[order], np.concatenate([known[REACH].to_numpy().astype(np.int8), fresh])[order]

    def with_rows(self, table: str, rows: pl.DataFrame) -> pl.DataFrame:
        """Add the carried targets or actions to new ones."""
        if table not in self.tables:
            return rows
        return pl.concat([self.tables[table].select(rows.columns).cast(rows.schema), rows], rechunk=True)

    def segments_of(self, users: Int64Array) -> Int64Array:
        """How many segments each of these users, (N,), has already."""
        known = self.tables.get("users")
        if known is None or not known.height:
            return np.zeros(len(users), dtype=np.int64)
        ids, counts = known["user_id"].to_numpy(), known["segments"].to_numpy()
        place = np.minimum(np.searchsorted(ids, users), len(ids) - 1)
        return np.where(ids[place] == users, counts[place], 0)

    def with_segments(self, users: Int64Array) -> pl.DataFrame:
        """The table of users after segments of these users, one for each element, were added."""
        added = pl.DataFrame({"user_id": users}).group_by("user_id").agg(segments=pl.len().cast(pl.Int64))
        parts = [added, *([self.tables["users"]] if "users" in self.tables else [])]
        return pl.concat(parts).group_by("user_id").agg(pl.col("segments").sum()).sort("user_id")


def kept_events(
    spec: BuildSpec, events: pl.DataFrame, until: int, waiting_user: Int64Array, waiting_start: Int64Array
) -> pl.DataFrame:
    """The events (N,), ordered, that later requests can still reach: each user's newest L, and from further back

    those of requests that wait (by user, and where in `events` their histories start), and those that carry the id of
    a request yet to come, for they end its history.
    """
    if not events.height:
        return events
    user = events["user_id"].to_numpy()
    begins = np.flatnonzero(changes(user))
    ends = np.append(begins[1:], len(user))
    first = np.maximum(begins, ends - spec.history_length)
    distinct = user[begins]
    np.minimum.at(first, np.searchsorted(distinct, waiting_user), waiting_start)
    if "request_id" in events.columns and "request_time" in events.columns:
        coming = (pl.col("request_time") >= until) & (pl.col("visible_time") < pl.col("request_time"))
        early = events.select(coming.fill_null(False)).to_series().arg_true().to_numpy().astype(np.int64)
        np.minimum.at(first, np.searchsorted(distinct, user[early]), early)
    first = np.maximum(first, begins)
    return events.filter(pl.Series(np.arange(len(user)) >= np.repeat(first, ends - begins)))
