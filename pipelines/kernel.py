"""Canonical rows of one user bucket -> ordered timelines, grouped requests, cuts.

All the meaning of docs/meaning.md that needs a user's rows together happens here, on whole columns. Both engines
call it, once per bucket; nothing in it knows of files.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import polars as pl

from longbatch.pipelines.hashing import Int64Array, request_ids_of
from longbatch.pipelines.order import compact, dense_rank, repeated_rows, sort_rows
from longbatch.schemas.ledger import RowLedger
from longbatch.schemas.spec import BuildSpec
from longbatch.schemas.tables import canonical_name, history_columns, request_columns, source_roles

VISIBLE_TIME = "visible_time"
REQUEST = "_request"


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
class Requests:
    """All requests of a bucket by (user, request time, request id), and their targets in the same order.

    requests: R rows request_id, user_id, request_time, request.<features>.
    targets: G rows item_id, target.<features>, label.<labels>; target_offsets: (R + 1,) into them.
    """

    requests: pl.DataFrame
    targets: pl.DataFrame
    target_offsets: Int64Array


@dataclass(frozen=True)
class Bucket:
    """What the kernel makes of a bucket. history_end: (R,) in each user's whole timeline."""

    timelines: Timelines
    requests: Requests
    history_end: Int64Array
    event_start: Int64Array
    ledgers: dict[str, RowLedger]


def build_bucket(spec: BuildSpec, rows: Mapping[str, pl.DataFrame], conflicts: pl.Series | None = None) -> Bucket:
    """Run the kernel on all canonical rows of some users, per source.

    `event_start` of the result, (R,), is where each request's user begins among the sorted events.
    `ledgers` hold only what changed since canonicalize: duplicates and conflicting requests leave `accepted`.
    """
    kept, ledgers = {}, {}
    for source, frame in rows.items():
        unique, ledgers[source] = _settle(spec, source, frame, conflicts)
        kept[source] = unique
    timelines = _timelines(spec, kept[spec.history.source])
    requests = _requests(spec, kept[spec.requests.source])
    start, end = _visible_ends(timelines, requests.requests)
    end = _before_own_events(spec, timelines, requests.requests, end)
    return Bucket(timelines, requests, end - start, start, ledgers)


def _settle(
    spec: BuildSpec, source: str, rows: pl.DataFrame, conflicts: pl.Series | None
) -> tuple[pl.DataFrame, RowLedger]:
    """Drop conflicting requests and exact duplicates, and leave the rows of a history in timeline order."""
    conflicting = 0
    if conflicts is not None and len(conflicts) and spec.requests.source == source:
        request_id = canonical_name(request_columns(spec)["request_id"])
        hit = pl.col(request_id).is_in(conflicts.implode())
        keep = (~(hit & pl.col("is_target") if spec.one_log else hit)).fill_null(True)
        before = rows.height
        rows = rows.filter(keep)
        conflicting = before - rows.height
    if "history" in source_roles(spec, source):
        rows = rows.with_columns(visible_time(spec).alias(VISIBLE_TIME))
    order = sort_rows(rows, _sort_columns(spec, source, rows.columns))
    repeated = repeated_rows(rows, order)
    ledger = RowLedger(
        rejected=conflicting,
        duplicate=int(repeated.sum()),
        accepted=-conflicting - int(repeated.sum()),
        reasons={"conflicting_request": conflicting} if conflicting else {},
    )
    return rows[order.permutation[~repeated]], ledger


def visible_time(spec: BuildSpec) -> pl.Expr:
    """When an event could be seen: `max(event_time + delay, arrival_time if the log has one)`."""
    columns = {role: canonical_name(m) for role, m in history_columns(spec).items()}
    ready = pl.col(columns["event_time"]) + spec.history.delay_us
    if "arrival_time" in columns:
        ready = pl.max_horizontal(ready, pl.col(columns["arrival_time"]))
    return ready.fill_null(0)


def _sort_columns(spec: BuildSpec, source: str, available: list[str]) -> list[str]:
    """Every column of a source's rows, those of its (first) role's order in front."""
    role = source_roles(spec, source)[0]
    columns = history_columns(spec) if role == "history" else request_columns(spec)
    leading = [canonical_name(m) for name, m in columns.items() if name != "arrival_time"]
    if role == "history":
        leading.insert(1, VISIBLE_TIME)
    return list(dict.fromkeys([*leading, *available]))


def _timelines(spec: BuildSpec, rows: pl.DataFrame) -> Timelines:
    events = rows.filter("in_history") if spec.one_log else rows
    names = {role: canonical_name(m) for role, m in history_columns(spec).items()}
    columns = [pl.col(VISIBLE_TIME), *(pl.col(name).alias(role) for role, name in names.items())]
    if spec.one_log:
        request_time = canonical_name(request_columns(spec)["request_time"])
        columns += [pl.col("is_target"), pl.col(request_time).alias("request_time")]
    frame = events.select(columns)
    return Timelines(frame, frame["user_id"].to_numpy(), frame[VISIBLE_TIME].to_numpy())


def _requests(spec: BuildSpec, rows: pl.DataFrame) -> Requests:
    """Group target rows into requests; see docs/meaning.md, Requests."""
    names = {role: canonical_name(m) for role, m in request_columns(spec).items()}
    targets = rows.filter("is_target") if spec.one_log else rows
    targets = targets.select(pl.col(name).alias(role) for role, name in names.items())
    if "request_id" not in names:
        ids = request_ids_of(targets["user_id"].to_numpy(), targets["request_time"].to_numpy())
        targets = targets.with_columns(request_id=pl.Series(ids, dtype=pl.Int64))
    columns = [name for name in targets.columns if name.startswith(("target.", "label."))]
    targets = targets[sort_rows(targets, ["user_id", "request_id"]).permutation]
    starts = _run_starts(targets, ["user_id", "request_id"])
    first = _first_of_each(targets, starts, columns)
    order = sort_rows(first, ["user_id", "request_time", "request_id"]).permutation
    rank = np.empty(len(order), dtype=np.int64)
    rank[order] = np.arange(len(order))
    sizes = np.diff(np.append(starts, targets.height))
    targets = targets.select("item_id", *columns).with_columns(pl.Series(REQUEST, np.repeat(rank, sizes)))
    targets = targets[sort_rows(targets, [REQUEST, "item_id", *columns]).permutation].drop(REQUEST)
    offsets = np.concatenate([np.zeros(1, dtype=np.int64), np.cumsum(sizes[order])])
    return Requests(first[order], targets, offsets)


def _first_of_each(targets: pl.DataFrame, starts: Int64Array, columns: list[str]) -> pl.DataFrame:
    """One row per request: its ids, its earliest time, and the request features of its first row.

    `targets` are sorted by request, which begin at `starts`. Only where the rows of a request disagree
    on a feature does it matter which row is the first.
    """
    features = [name for name in targets.columns if name.startswith("request.")]
    time = targets["request_time"].to_numpy()
    earliest = np.minimum.reduceat(time, starts) if len(starts) else time
    request = ["user_id", "request_id"]
    if features and len(_run_starts(targets, [*request, *features])) > len(starts):
        order = sort_rows(targets, [*request, "request_time", "item_id", *columns, *features])
        targets = targets[order.permutation]
    return targets[starts].select("request_id", "user_id", pl.Series("request_time", earliest), *features)


def _run_starts(frame: pl.DataFrame, columns: list[str]) -> Int64Array:
    """Return the first rows of the runs of equal values of `columns` in a sorted frame."""
    changed = pl.any_horizontal(pl.col(c).ne_missing(pl.col(c).shift()) for c in columns)
    return np.flatnonzero(frame.select(changed | (pl.int_range(pl.len()) == 0)).to_series().to_numpy()).astype(np.int64)


def _visible_ends(timelines: Timelines, requests: pl.DataFrame) -> tuple[Int64Array, Int64Array]:
    """Per request (R,): where its user's events begin, and where those visible strictly before it end."""
    user_id, time = requests["user_id"].to_numpy(), requests["request_time"].to_numpy()
    start = np.searchsorted(timelines.user_id, user_id, side="left").astype(np.int64)
    if not len(user_id) or not len(timelines.user_id):
        return start, start.copy()
    everybody = np.concatenate([timelines.user_id, user_id])
    moments = np.concatenate([timelines.visible_time, time])
    ranks, rank_bits = dense_rank(everybody)
    codes, code_bits = compact(moments)
    if rank_bits + code_bits > 64:
        codes, code_bits = dense_rank(moments)
    key = (ranks << np.uint64(code_bits)) | codes
    events, asked = key[: len(timelines.user_id)], key[len(timelines.user_id) :]
    return start, np.searchsorted(events, asked, side="left").astype(np.int64)


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
