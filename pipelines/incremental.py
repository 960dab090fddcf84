"""The state that lets an append continue a dataset without reading earlier logs again.

Each user bucket has these tables; L is the spec's history_length, and `next_state` trims all but the last:

| table | rows kept | reason | trimmed by |
|---|---|---|---|
| events | newest L per user; from a pending request's history on | later histories | `events_to_keep` |
| targets | of pending requests (a label window is still open) | a later increment writes them | `advance_state` |
| actions | at most the longest label window before the increment's end | pending labels | `advance_state` |
| users | one per user with segments | segment numbers continue | nothing |

Increments are split by the time at which a row counts: an event by its visible time, a target by its request time, an
action by its event time. So the events of an increment all come behind those of earlier increments in a timeline.

An event of the current increment is NEW while its bucket is built. `pack.event_status` then gives it one of three
statuses, which only grow from increment to increment: AFTER_LAST_REQUEST (no request has followed it yet),
BEYOND_HISTORY (visible to a request, but never among its newest L events), STORED (part of a stored timeline).
"""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt
import polars as pl

from longbatch.schemas.types import Int64Array

STATUS = "status"
NEW, AFTER_LAST_REQUEST, BEYOND_HISTORY, STORED = -1, 0, 1, 2
EventStatus = npt.NDArray[np.int8]


@dataclass(frozen=True)
class IncrementWindow:
    """The interval [start, until) of an increment, of the times by which rows count (see the top of the file).

    Attributes:
        start: Microseconds since 1970 UTC, or None for no lower bound (the first increment).
        until: Microseconds since 1970 UTC.
    """

    start: int | None
    until: int

    def contains(self, time: pl.Expr) -> pl.Expr:
        """Return an expression for whether a time is inside; true for a null, so that the row is rejected later.

        Args:
            time: Expression of times in microseconds.

        Returns:
            A boolean expression without nulls.
        """
        inside = time < self.until
        inside = inside if self.start is None else inside & (time >= self.start)
        return inside.fill_null(True)


@dataclass(frozen=True)
class IncrementalState:
    """What one user bucket keeps for later increments.

    Attributes:
        tables: Tables by name, in the column names of the roles; a missing table is empty.
            `events`: the events that later histories may include, in timeline order, with their STATUS.
            `targets`, `actions`: rows of pending requests, and the actions that their labels may count.
            `users`: user_id, ascending, and `segments`, how many segments the user has.
    """

    tables: dict[str, pl.DataFrame] = field(default_factory=dict)

    def join_events(self, events: pl.DataFrame) -> tuple[pl.DataFrame, EventStatus]:
        """Put new events behind the kept events of each user.

        Kept events a, b of user 7 and c of user 9, new events d of user 7 and e of user 8:
        joined = [a, b, c, d, e], users [7, 7, 9, 7, 8], order = [0, 1, 3, 4, 2].
        Result: [a, b, d, e, c], and d and e have the status NEW.

        Args:
            events: New events in timeline order.

        Returns:
            Kept and new events in timeline order, (N,), and the status of each, (N,).
        """
        new_status = np.full(events.height, NEW, dtype=np.int8)
        if "events" not in self.tables:
            return events, new_status
        kept = self.tables["events"]
        joined = pl.concat([kept.select(events.columns).cast(events.schema), events], rechunk=True)
        # Kept events come first and are older, because increments are split by visible time. So a stable sort by user
        # alone restores timeline order: in effect a merge of two runs that are sorted already.
        order = np.argsort(joined["user_id"].to_numpy(), kind="stable")
        return joined[order], np.concatenate([kept[STATUS].to_numpy().astype(np.int8), new_status])[order]

    def join_rows(self, table: str, rows: pl.DataFrame) -> pl.DataFrame:
        """Put new targets or actions behind the kept ones.

        Args:
            table: "targets" or "actions".
            rows: New rows.

        Returns:
            Kept rows, then new rows.
        """
        if table not in self.tables:
            return rows
        return pl.concat([self.tables[table].select(rows.columns).cast(rows.schema), rows], rechunk=True)

    def segment_counts(self, users: Int64Array) -> Int64Array:
        """Return how many segments each of these users has, (N,) -> (N,); 0 for a new user."""
        known = self.tables.get("users")
        if known is None or not known.height:
            return np.zeros(len(users), dtype=np.int64)
        ids, counts = known["user_id"].to_numpy(), known["segments"].to_numpy()
        # A look-up by binary search in sorted ids; a user behind the last id is compared with that id, and differs.
        row = np.minimum(np.searchsorted(ids, users), len(ids) - 1)
        return np.where(ids[row] == users, counts[row], 0)

    def add_segments(self, users: Int64Array) -> pl.DataFrame:
        """Return the table of users after new segments.

        Args:
            users: User of each new segment, (S,).

        Returns:
            Columns user_id (ascending) and segments.
        """
        added = pl.DataFrame({"user_id": users}).group_by("user_id").agg(segments=pl.len().cast(pl.Int64))
        parts = [added, *([self.tables["users"]] if "users" in self.tables else [])]
        return pl.concat(parts).group_by("user_id").agg(pl.col("segments").sum()).sort("user_id")
