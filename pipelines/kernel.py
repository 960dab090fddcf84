"""Canonical rows of one user bucket -> ordered timelines, grouped requests, cuts.

All the meaning of docs/meaning.md that needs a user's rows together happens here, on whole columns. Both engines
call it, once per bucket; nothing in it knows of files.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import polars as pl

from longbatch.pipelines.arrays.ragged import changes, offsets_of
from longbatch.pipelines.arrays.sorting import ranked_keys, repeated_rows, sort_rows
from longbatch.schemas.accounting import Counts, RowAccounting
from longbatch.schemas.profile import Large
from longbatch.schemas.source_schema import ROLE_COLUMN, SourceSchema, role_schema, source_schema
from longbatch.schemas.spec.build_spec import BuildSpec, Role
from longbatch.schemas.types import BoolArray, Int64Array
from longbatch.validation.rules import CONFLICTING_REQUEST

from .canonicalize import Facts
from .delayed_labels import add_delayed_labels, closed_requests
from .incremental import NEW, REACH, Carried, Reaches, kept_events
from .policies import KEPT, NO_ROLE, PENDING_LABEL, OutcomeCodes, judge_users, policy_counts
from .request_grouping import Requests, group_targets

VISIBLE_TIME = "visible_time"


@dataclass(frozen=True)
class Timelines:
    """All events of a bucket in order: by user, then visible time, then the tie-breakers.

    events: N rows with the history's role columns, sorted.
    user_id, visible_time: (N,) of the sorted rows.
    """

    events: pl.DataFrame
    user_id: Int64Array
    visible_time: Int64Array


@dataclass(frozen=True)
class Settled:
    """A source's rows (N,), and the places (K,) of those that are sound and no duplicates, in order.

    The rows themselves are not sorted: each role gathers what columns it needs, once.
    """

    schema: SourceSchema
    rows: pl.DataFrame
    places: Int64Array

    def playing(self, role: Role) -> BoolArray:
        """Which of the K kept rows play a role, (K,)."""
        if role not in self.schema.roles:
            return np.zeros(len(self.places), dtype=np.bool_)
        if ROLE_COLUMN[role] in self.rows.columns:
            return np.asarray(self.rows[ROLE_COLUMN[role]].to_numpy()[self.places])
        return np.ones(len(self.places), dtype=np.bool_)


@dataclass(frozen=True)
class Waiting:
    """Requests (R,) that were held back, their target rows as they came, and the actions of the bucket's users."""

    targets: pl.DataFrame
    requests: pl.DataFrame
    actions: pl.DataFrame


@dataclass(frozen=True)
class Bucket:
    """What the kernel makes of a bucket.

    history_end: (R,) in each user's whole timeline; event_start: (R,) where each request's user begins among the
    sorted events. row_accounting: what changed since canonicalize: duplicates, conflicting requests and rows that policies
    left out leave `accepted`. counts: what the policies left out; policy_users: the largest users they applied to.
    carried, waiting: what came from days before, and what must wait for days to come; reaches: (N,) how far
    requests of days before reached each event, NEW where it did not come from there.
    """

    timelines: Timelines
    requests: Requests
    history_end: Int64Array
    event_start: Int64Array
    row_accounting: dict[str, RowAccounting]
    counts: Counts
    policy_users: dict[str, tuple[Large, ...]]
    carried: Carried
    waiting: Waiting
    reaches: Reaches


def build_bucket(
    spec: BuildSpec,
    rows: Mapping[str, pl.DataFrame],
    facts: Facts | None = None,
    carried: Carried | None = None,
) -> Bucket:
    """Run the kernel on all canonical rows of some users, per source, and on what was carried from days before."""
    facts, carried = facts or Facts(), carried or Carried()
    settled, row_accounting = {}, {}
    for source, frame in rows.items():
        settled[source], row_accounting[source] = _settle(spec, source_schema(spec, source), frame, facts.conflicts)
    events, targets = (_role_frame(spec, settled, role) for role in ("history", "requests"))
    new_targets = targets.height
    events, reaches = carried.with_events(events)
    targets = carried.with_rows("targets", targets)
    judged = judge_users(spec.users, events["user_id"].to_numpy(), targets["user_id"].to_numpy())
    event_outcome, target_outcome = judged.events, judged.targets.copy()
    timelines = _timelines(_kept(events, event_outcome))
    reaches_before, reaches = reaches, reaches[event_outcome == KEPT]
    grouped = group_targets(spec, _kept(targets, target_outcome))
    counts = judged.counts
    waiting = Waiting(targets.head(0), grouped.requests.head(0), targets.head(0))
    if spec.requests.delayed_labels:
        actions = carried.with_rows("actions", _role_frame(spec, settled, "actions"))
        closed = closed_requests(spec, grouped.requests, facts.log_end)
        all_requests = grouped.requests
        grouped, held = _hold_back(grouped, closed)
        waiting = Waiting(targets[held], all_requests.filter(pl.Series(~closed)), actions)
        target_outcome[np.flatnonzero(target_outcome == KEPT)[held]] = PENDING_LABEL
        counts += Counts(pending_requests=int((~closed).sum()), pending_targets=len(held))
        grouped = add_delayed_labels(spec, grouped, actions)
    if event_outcome.any() or target_outcome.any():  # carried rows were booked where they came from
        outcomes = event_outcome[reaches_before == NEW], target_outcome[len(target_outcome) - new_targets :]
        _book_policies(settled, *outcomes, row_accounting)
    start, end = _cuts(spec, timelines, grouped.requests)
    return Bucket(
        timelines, grouped, end - start, start, row_accounting, counts, judged.users, carried, waiting, reaches
    )


def carry_on(spec: BuildSpec, made: Bucket, until: int, segment_users: Int64Array, reaches: Reaches) -> Carried:
    """The state behind a bucket whose window ended at `until`.

    segment_users: (S,) the users of its new segments; reaches: (N,) how far requests reach each event by now.
    """
    waiting = made.waiting
    start, end = _cuts(spec, made.timelines, waiting.requests)
    user = waiting.requests["user_id"].to_numpy()
    has_events = np.isin(user, made.timelines.user_id)
    first = np.maximum(start, end - spec.history_length)
    events = made.timelines.events.with_columns(pl.Series(REACH, reaches))
    tables = {
        "events": kept_events(spec, events, until, user[has_events], first[has_events]),
        "targets": waiting.targets,
        "users": made.carried.with_segments(segment_users),
    }
    if spec.requests.delayed_labels:
        longest = max(label.within_us for label in spec.requests.delayed_labels.values())
        tables["actions"] = waiting.actions.filter(pl.col("event_time") >= until - longest)
    return Carried(tables)


def _role_frame(spec: BuildSpec, settled: Mapping[str, Settled], role: Role) -> pl.DataFrame:
    """Return the kept rows that play a role, in order, in the names of the role's columns."""
    schema = role_schema(spec, role)
    kept = settled[schema.source]
    columns = [pl.col(canonical).alias(name) for name, canonical in schema.names[role].items()]
    if role == "history":
        columns.insert(0, pl.col(VISIBLE_TIME))
        if spec.one_log:
            request_time = pl.col(schema.names["requests"]["request_time"])
            columns += [pl.col("is_target"), request_time.alias("request_time")]
    return kept.rows.select(columns)[kept.places[kept.playing(role)]]


def _kept(rows: pl.DataFrame, outcome: OutcomeCodes) -> pl.DataFrame:
    return rows.filter(pl.Series(outcome == KEPT)) if outcome.any() else rows


def _hold_back(grouped: Requests, closed: BoolArray) -> tuple[Requests, Int64Array]:
    """Return the requests that are closed, and the places (among the grouped rows) of the targets of the others."""
    if closed.all():
        return grouped, np.empty(0, dtype=np.int64)
    sizes = np.diff(grouped.target_offsets)
    keep = np.repeat(closed, sizes)
    offsets = offsets_of(sizes[closed])
    requests = grouped.requests.filter(pl.Series(closed))
    targets = grouped.targets.filter(pl.Series(keep))
    return Requests(requests, targets, offsets, grouped.rows[keep]), grouped.rows[~keep]


def _book_policies(
    settled: Mapping[str, Settled],
    event_outcome: OutcomeCodes,
    target_outcome: OutcomeCodes,
    row_accounting: dict[str, RowAccounting],
) -> None:
    """Move rows that policies left out of all their roles from `accepted` to the policy, in each source's accounting."""
    for source, kept in settled.items():
        outcomes = []
        played: tuple[tuple[Role, OutcomeCodes], ...] = (("history", event_outcome), ("requests", target_outcome))
        for role, outcome in played:
            plays = kept.playing(role)
            spread = np.full(len(plays), NO_ROLE, dtype=np.uint8)
            spread[plays] = outcome if plays.any() else 0
            outcomes.append(spread)
        left = policy_counts(outcomes[0], outcomes[1], kept.playing("actions"))
        row_accounting[source] += RowAccounting(accepted=-sum(left.values()), policies=left)


def _settle(
    spec: BuildSpec, schema: SourceSchema, rows: pl.DataFrame, conflicts: pl.Series | None
) -> tuple[Settled, RowAccounting]:
    """Leave out conflicting requests and exact duplicates, and find the order of the rows: of a history, the timeline's."""
    conflicting = 0
    if conflicts is not None and len(conflicts) and "requests" in schema.roles:
        request_id = schema.names["requests"]["request_id"]
        hit = pl.col(request_id).is_in(conflicts.implode())
        is_target = ROLE_COLUMN["requests"]
        keep = (~(hit & pl.col(is_target) if is_target in rows.columns else hit)).fill_null(True)
        before = rows.height
        rows = rows.filter(keep)
        conflicting = before - rows.height
    if "history" in schema.roles:
        rows = rows.with_columns(visible_time(spec).alias(VISIBLE_TIME))
    order = sort_rows(rows, _sort_columns(schema, rows.columns))
    repeated = repeated_rows(rows, order)
    accounting = RowAccounting(
        rejected=conflicting,
        duplicate=int(repeated.sum()),
        accepted=-conflicting - int(repeated.sum()),
        reasons={CONFLICTING_REQUEST: conflicting} if conflicting else {},
    )
    return Settled(schema, rows, order.permutation[~repeated]), accounting


def visible_time(spec: BuildSpec) -> pl.Expr:
    """When an event could be seen: `max(event_time + delay, arrival_time if the log has one)`."""
    columns = role_schema(spec, "history").names["history"]
    ready = pl.col(columns["event_time"]) + spec.history.delay_us
    if "arrival_time" in columns:
        ready = pl.max_horizontal(ready, pl.col(columns["arrival_time"]))
    return ready.fill_null(0)


def _sort_columns(schema: SourceSchema, available: list[str]) -> list[str]:
    """Every column of a source's rows, those of its (first) role's order in front."""
    role = schema.roles[0]
    leading = [canonical for name, canonical in schema.names[role].items() if name != "arrival_time"]
    if role == "history":
        leading.insert(1, VISIBLE_TIME)
    return list(dict.fromkeys([*leading, *available]))


def _timelines(events: pl.DataFrame) -> Timelines:
    return Timelines(events, events["user_id"].to_numpy(), events[VISIBLE_TIME].to_numpy())


def _cuts(spec: BuildSpec, timelines: Timelines, requests: pl.DataFrame) -> tuple[Int64Array, Int64Array]:
    """Per request (R,): where its user's events begin, and where its history ends."""
    start, end = _visible_ends(timelines, requests)
    return start, _before_own_events(spec, timelines, requests, end)


def _visible_ends(timelines: Timelines, requests: pl.DataFrame) -> tuple[Int64Array, Int64Array]:
    """Per request (R,): where its user's events begin, and where those visible strictly before it end."""
    user_id, time = requests["user_id"].to_numpy(), requests["request_time"].to_numpy()
    begins = changes(timelines.user_id)
    distinct = timelines.user_id[begins]
    bounds = np.append(np.flatnonzero(begins), len(begins)).astype(np.int64)
    asker = np.searchsorted(distinct, user_id)  # of a user without events: the next one
    start = bounds[asker]
    if not len(user_id) or not len(begins):
        return start, start.copy()
    ranks = np.concatenate([np.cumsum(begins) - 1, asker]).astype(np.uint64)
    key = ranked_keys(ranks, len(distinct).bit_length(), np.concatenate([timelines.visible_time, time]))
    end = np.searchsorted(key[: len(begins)], key[len(begins) :], side="left").astype(np.int64)
    has_events = distinct[np.minimum(asker, len(distinct) - 1)] == user_id
    return start, np.where(has_events, end, start)


def _before_own_events(spec: BuildSpec, timelines: Timelines, requests: pl.DataFrame, end: Int64Array) -> Int64Array:
    """Move each end in front of the first event that carries the request's own id."""
    if "request_id" not in timelines.events.columns or not requests.height:
        return end
    carriers = timelines.events.select("user_id", "request_id", place=pl.int_range(pl.len()))
    carriers = carriers.filter(_may_precede_its_request(spec, timelines.events, requests))
    asked = requests.select("user_id", "request_id", asker=pl.int_range(pl.len()), end=pl.Series(end))
    own = carriers.join(asked, on=["user_id", "request_id"], how="inner").filter(pl.col("place") < pl.col("end"))
    if not own.height:
        return end
    firsts = own.group_by("asker").agg(pl.col("place").min())
    moved = end.copy()
    moved[firsts["asker"].to_numpy()] = firsts["place"].to_numpy()
    return moved


def _may_precede_its_request(spec: BuildSpec, events: pl.DataFrame, requests: pl.DataFrame) -> pl.Series:
    """Which events are worth the join: those whose id some request has.

    Where one column names both the event's and the target's request, a target row seen at or after its own
    request time cannot precede the request, which is no later: that spares nearly all rows the join.
    """
    asked = events["request_id"].is_in(requests["request_id"].unique().implode())
    if not spec.one_log or spec.history.request_id != spec.requests.request_id:
        return asked.fill_null(False)
    before_own = pl.col(VISIBLE_TIME) < pl.col("request_time")
    return events.select(
        pl.when("is_target").then(before_own).otherwise(pl.lit(asked)).fill_null(False).alias("asked")
    ).to_series()
