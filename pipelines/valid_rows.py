"""The valid rows of a source in order: without conflicting requests and without duplicates (docs/semantics.md).

One sort by all columns does both: it puts equal rows next to each other and gives the order of a timeline.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import polars as pl

from longbatch.pipelines.arrays.sorting import repeated_rows, sort_rows
from longbatch.schemas.accounting import RowAccounting
from longbatch.schemas.source_schema import ROLE_COLUMN, SourceSchema, role_schema
from longbatch.schemas.spec.build_spec import BuildSpec, Role
from longbatch.schemas.types import BoolArray, Int64Array
from longbatch.validation.rules import CONFLICTING_REQUEST

VISIBLE_TIME = "visible_time"


@dataclass(frozen=True)
class ValidRows:
    """The valid rows of a source: those that are neither rejected nor duplicates.

    The rows themselves are not sorted, because each role gathers only the columns it needs, once.

    Attributes:
        schema: Schema of the source.
        rows: Canonical rows, (N,), in the order they arrived.
        order: Row numbers of the valid rows, (K,), in order.
    """

    schema: SourceSchema
    rows: pl.DataFrame
    order: Int64Array

    def has_role(self, role: Role) -> BoolArray:
        """Return which of the valid rows have a role, (K,)."""
        if role not in self.schema.roles:
            return np.zeros(len(self.order), dtype=np.bool_)
        if ROLE_COLUMN[role] in self.rows.columns:
            return np.asarray(self.rows[ROLE_COLUMN[role]].to_numpy()[self.order])
        # A source with one role has no role column: rows that the role does not select were filtered.
        return np.ones(len(self.order), dtype=np.bool_)


def valid_rows(
    spec: BuildSpec, schema: SourceSchema, rows: pl.DataFrame, conflicts: pl.Series | None
) -> tuple[ValidRows, RowAccounting]:
    """Drop conflicting requests and exact duplicates, and order the rows; rows of a history in timeline order.

    Canonical rows [b, a, b] of one user sort to a, b, b. The second b repeats the row before it, so
    order = [1, 0] or [1, 2] (equal rows are interchangeable), and one row moves from accepted to duplicate.

    Args:
        spec: The build spec.
        schema: Schema of the source.
        rows: All canonical rows of a bucket's users, (N,).
        conflicts: Request ids of several users; None if there are none.

    Returns:
        The valid rows, and the changes to the accounting of `canonicalize`.
    """
    conflicting = 0
    if conflicts is not None and len(conflicts) and "requests" in schema.roles:
        request_id = schema.names["requests"]["request_id"]
        has_conflict = pl.col(request_id).is_in(conflicts.implode())
        is_target = ROLE_COLUMN["requests"]
        # A rejected row leaves all its roles, but a row that is not a target is not rejected: an event may name the
        # request. A null id has no conflict.
        keep = (~(has_conflict & pl.col(is_target) if is_target in rows.columns else has_conflict)).fill_null(True)
        before = rows.height
        rows = rows.filter(keep)
        conflicting = before - rows.height
    if "history" in schema.roles:
        rows = rows.with_columns(visible_time(spec).alias(VISIBLE_TIME))
    order = sort_rows(rows, _sort_columns(schema, rows.columns))
    repeated = repeated_rows(rows, order)
    # `canonicalize` counted these rows as accepted, so they are subtracted there, and the outcomes still add up.
    accounting = RowAccounting(
        rejected=conflicting,
        duplicate=int(repeated.sum()),
        accepted=-conflicting - int(repeated.sum()),
        reasons={CONFLICTING_REQUEST: conflicting} if conflicting else {},
    )
    return ValidRows(schema, rows, order.permutation[~repeated]), accounting


def role_rows(spec: BuildSpec, valid: Mapping[str, ValidRows], role: Role) -> pl.DataFrame:
    """Return the valid rows of a role in order, in the role's names of the columns.

    Args:
        spec: The build spec.
        valid: Source -> its valid rows.
        role: The role.

    Returns:
        The rows; those of the history also with their visible time.
    """
    schema = role_schema(spec, role)
    rows = valid[schema.source]
    columns = [pl.col(canonical).alias(name) for name, canonical in schema.names[role].items()]
    if role == "history":
        columns.insert(0, pl.col(VISIBLE_TIME))
        if spec.one_log:
            # The time of the request that the same row is a target of: it excludes most events from the search for a
            # request's own events (`history_ends`), and `next_state.events_to_keep` needs it.
            request_time = pl.col(schema.names["requests"]["request_time"])
            columns += [pl.col("is_target"), request_time.alias("request_time")]
    return rows.rows.select(columns)[rows.order[rows.has_role(role)]]


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
    # Every event has a time, but a row of another role may lack one. A null would keep the column, and all that follow
    # it, out of the packed sort key (`sorting`), so that every row of a user would tie.
    return ready.fill_null(0)


def _sort_columns(schema: SourceSchema, available: list[str]) -> list[str]:
    """Return every column of a source's rows, those that order its first role in front."""
    role = schema.roles[0]
    # arrival_time does not order a timeline: it counts only through visible_time. It is among `available`, because
    # rows that differ only in it are not duplicates.
    leading = [canonical for name, canonical in schema.names[role].items() if name != "arrival_time"]
    if role == "history":
        leading.insert(1, VISIBLE_TIME)  # behind user_id
    return list(dict.fromkeys([*leading, *available]))
