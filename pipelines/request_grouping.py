"""Target rows -> requests: by the log's request id, or by time if the log has none (docs/semantics.md, Requests)."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import polars as pl

from longbatch.pipelines.arrays.hashing import request_ids_of
from longbatch.pipelines.arrays.runs import positions_in_run, starts_run
from longbatch.pipelines.arrays.sorting import sort_rows
from longbatch.schemas.ragged import offsets_of
from longbatch.schemas.spec.build_spec import BuildSpec
from longbatch.schemas.types import Int64Array

REQUEST = "_request"
ROW = "_row"


@dataclass(frozen=True)
class Requests:
    """All requests of a bucket by (user, request time, request id), and their targets in the same order.

    Attributes:
        requests: R rows with request_id, user_id, request_time and request.<feature>.
        targets: G rows with item_id, target.<feature> and label.<label>.
        target_offsets: Offsets of each request's targets, (R + 1,).
        rows: Row of each target among the rows that were grouped, (G,).
    """

    requests: pl.DataFrame
    targets: pl.DataFrame
    target_offsets: Int64Array
    rows: Int64Array


def group_targets(spec: BuildSpec, targets: pl.DataFrame) -> Requests:
    """Group target rows into requests.

    Rows (user, request, time, item): (7, b, 20, 1), (7, a, 30, 2), (7, b, 10, 3).
    Requests by time: b at 10 (the earliest of its rows), a at 30; target_offsets [0, 2, 3].
    Targets by item within a request: items [1, 3, 2], rows [0, 2, 1].

    Args:
        spec: The build spec.
        targets: Valid target rows in order, in the role's names of the columns.

    Returns:
        The requests and their targets.
    """
    # Row numbers travel through the sorts: the kernel needs the original rows of pending targets.
    targets = targets.with_columns(pl.int_range(pl.len(), dtype=pl.UInt32).alias(ROW))
    if "request_id" not in targets.columns:
        targets = _with_request_ids(spec, targets)
    columns = _target_columns(targets)
    # First sort: rows of a request next to each other.
    targets = targets[sort_rows(targets, ["user_id", "request_id"]).permutation]
    starts = _run_starts(targets, ["user_id", "request_id"])
    first = _first_of_each(targets, starts, columns)
    # Second sort: requests by time, which is known only now.
    order = sort_rows(first, ["user_id", "request_time", "request_id"]).permutation
    rank = np.empty(len(order), dtype=np.int64)
    rank[order] = np.arange(len(order))  # the inverse permutation
    sizes = np.diff(np.append(starts, targets.height))
    targets = targets.select("item_id", *columns, ROW).with_columns(pl.Series(REQUEST, np.repeat(rank, sizes)))
    # Third sort: targets by request; a total order, so that the result does not depend on the order of the log.
    targets = targets[sort_rows(targets, [REQUEST, "item_id", *columns]).permutation]
    return Requests(
        requests=first[order],
        targets=targets.drop(REQUEST, ROW),
        target_offsets=offsets_of(sizes[order]),
        rows=targets[ROW].to_numpy().astype(np.int64),
    )


def _target_columns(targets: pl.DataFrame) -> list[str]:
    return [name for name in targets.columns if name.startswith(("target.", "label."))]


def _with_request_ids(spec: BuildSpec, targets: pl.DataFrame) -> pl.DataFrame:
    """Generate request ids: one per user and time, or one per part of a session if the spec has sessions."""
    requests = spec.requests
    if not requests.session_gap_us and requests.max_targets is None:
        ids = request_ids_of(targets["user_id"].to_numpy(), targets["request_time"].to_numpy())
        return targets.with_columns(request_id=pl.Series(ids, dtype=pl.Int64))
    # Every `max_targets` rows of a session are one request, so rows of equal time need a total order. If it depended on
    # the order of the log, the same rows in other files would give other requests. ROW breaks ties, because valid rows
    # come ordered by all columns of their source and then by their roles (`valid_rows`).
    features = [name for name in targets.columns if name.startswith("request.")]
    order = sort_rows(targets, ["user_id", "request_time", "item_id", *_target_columns(targets), *features, ROW])
    targets = targets[order.permutation]
    user, time = targets["user_id"].to_numpy(), targets["request_time"].to_numpy()
    starts = _session_starts(user, time, requests.session_gap_us, requests.max_targets)
    ids = _session_ids(user[starts], time[starts])
    per_row = np.repeat(ids, np.diff(np.append(starts, len(user))))
    return targets.with_columns(request_id=pl.Series(per_row, dtype=pl.Int64))


def _session_starts(user: Int64Array, time: Int64Array, gap_us: int, max_targets: int | None) -> Int64Array:
    """Return the first rows of sessions, given rows (G,) sorted by user and time.

    A session ends before a gap of more than `gap_us`, and every `max_targets` rows of it are a request.
    User 7 at times [0, 1, 2, 9] with gap_us = 5: sessions [0, 1, 2] and [9], so starts = [0, 3].
    With max_targets = 2 the first session is split after two rows: starts = [0, 2, 3].
    """
    # At the first row of a user the difference is to another user's time, but that row starts a session anyway.
    starts = starts_run(user)
    starts[1:] |= time[1:] - time[:-1] > gap_us
    if max_targets is not None:
        # Every max_targets-th row of a session starts a new request; row 0 does anyway.
        starts = positions_in_run(starts) % max_targets == 0
    return np.flatnonzero(starts).astype(np.int64)


def _session_ids(user: Int64Array, time: Int64Array) -> Int64Array:
    """Generate ids of sessions, (S,), from user and first time; their position tells apart those that share both."""
    return request_ids_of(user, time, positions_in_run(starts_run(user, time)))


def _first_of_each(targets: pl.DataFrame, starts: Int64Array, columns: list[str]) -> pl.DataFrame:
    """Return one row per request: its ids, its earliest time, and the request features of its first row.

    `targets` are sorted by request, and `starts` are the first rows of the requests. The first row is searched only
    if the rows of some request differ in a request feature.
    """
    features = [name for name in targets.columns if name.startswith("request.")]
    time = targets["request_time"].to_numpy()
    # The earliest time of the rows, which can hide events but never leaks one.
    earliest = np.minimum.reduceat(time, starts) if len(starts) else time
    request = ["user_id", "request_id"]
    if features and len(_run_starts(targets, [*request, *features])) > len(starts):
        order = sort_rows(targets, [*request, "request_time", "item_id", *columns, *features])
        targets = targets[order.permutation]
    return targets[starts].select("request_id", "user_id", pl.Series("request_time", earliest), *features)


def _run_starts(frame: pl.DataFrame, columns: list[str]) -> Int64Array:
    """Return the first rows of the runs of equal values of any type in a sorted frame; a null equals a null."""
    changed = pl.any_horizontal(pl.col(c).ne_missing(pl.col(c).shift()) for c in columns)
    return np.flatnonzero(frame.select(changed | (pl.int_range(pl.len()) == 0)).to_series().to_numpy()).astype(np.int64)
