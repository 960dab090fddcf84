"""Dirty rows: broken copies of clean rows, added to a simulated log, and counted by the reason a build should give.

The clean rows stay, so a build of a dirty log equals a build of the clean one, but for the counts, and for the
requests of kind "differing_request_time", which are unusual and valid. A feed row is broken where the history
looks, a discover row where the requests look. No two dirty rows come from one clean row.
"""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import polars as pl

from longbatch.jobs.simulated_world import FEED, Longs

Breaker = Callable[[pl.DataFrame], pl.DataFrame]

IMPOSSIBLE_MS = (0, -1, 7_258_118_400_000)  # 1970-01-01, just before it, and 2200-01-01
ACCEPTED = ("differing_request_time",)  # kinds whose rows are valid
# Columns written as text in a dirty CSV log, each with a value that is not of the column's type.
UNPARSABLE = {"event_time": "yesterday", "dwell_ms": "1.2.3", "request_time": "12:30", "click": "yes?"}


@dataclass(frozen=True)
class Kind:
    """One way to be dirty: its name (the reason code or policy of a build), how to break a copy, rows per copy."""

    name: str
    breaker: Breaker
    rows: int = 1


@dataclass(frozen=True)
class Dirt:
    """The dirty rows of one file, the rows planted per kind for each table, and the accepted copies.

    `accepted` has the columns request_id and source: the added request, and the row number of a clean target that
    its target equals in item, position and probabilities.
    """

    rows: pl.DataFrame
    planted: dict[str, dict[str, int]]
    accepted: pl.DataFrame


def to_missing(column: str) -> Breaker:
    """Copies without a value in `column`."""
    return lambda rows: rows.with_columns(pl.lit(None, rows.schema[column]).alias(column))


def to_impossible(column: str) -> Breaker:
    """Copies whose time in `column` no log can have, in turn 0, negative, and in the year 2200."""
    return lambda rows: rows.with_columns(pl.Series(column, np.resize(np.array(IMPOSSIBLE_MS, np.int64), rows.height)))


def to_unparsable(column: str) -> Breaker:
    """Copies with text in `column` that is no number."""
    return lambda rows: rows.with_columns(pl.lit(UNPARSABLE[column]).alias(column))


def to_conflict(rows: pl.DataFrame) -> pl.DataFrame:
    """Copies of which every second one, of the same request, has another user."""
    return rows.with_columns(user_id=pl.col("user_id") + (pl.int_range(pl.len()) % 2))


def to_differing_time(rows: pl.DataFrame) -> pl.DataFrame:
    """Copies of which every second one, of the same request, has a request time a second later."""
    return rows.with_columns(request_time=pl.col("request_time") + (pl.int_range(pl.len()) % 2) * 1_000)


def kinds(table: str, log_format: str) -> list[Kind]:
    """The kinds planted in rows of one table of the spec, "history" or "requests"."""
    time, parsed = ("event_time", "dwell_ms") if table == "history" else ("request_time", "click")
    found = [
        Kind("duplicate", lambda rows: rows),
        Kind("missing_user", to_missing("user_id")),
        Kind("missing_item", to_missing("item_id")),
        Kind("missing_time", to_missing(time)),
        Kind("time_out_of_range", to_impossible(time)),
    ]
    if table == "requests":
        found += [Kind(f"missing_label:{label}", to_missing(label)) for label in ("click", "long_view", "like")]
        found += [
            Kind("conflicting_request", to_conflict, rows=2),
            Kind("differing_request_time", to_differing_time, rows=2),
        ]
    if log_format == "csv":
        found += [Kind(f"unparsable:{column}", to_unparsable(column)) for column in (time, parsed)]
    return found


def plan_copies(fraction: float, rows_before: int, rows: int, planted: list[Kind]) -> list[int]:
    """Copies to make of each kind in a file of `rows` rows that follows `rows_before` rows of the same table.

    Each kind gets its equal share of `fraction` of all rows, whatever the cut into files; the kinds take turns.
    """
    shares = [fraction / (len(planted) * kind.rows) for kind in planted]
    turns = [(k + 0.5) / len(planted) for k in range(len(planted))]
    return [
        int((rows_before + rows) * share + turn) - int(rows_before * share + turn)
        for share, turn in zip(shares, turns, strict=True)
    ]


def draw_dirt(
    log: pl.DataFrame,
    rows_before: dict[str, int],
    fraction: float,
    log_format: str,
    first_id: int,
    rng: np.random.Generator,
) -> Dirt:
    """Dirty rows for the rows of one file; `rows_before` counts the rows of each table in earlier files.

    Requests that the dirt adds get ids from `first_id` on. In a CSV log the columns of UNPARSABLE are text.
    """
    is_feed = (log["tab"] == FEED).to_numpy()
    as_text = log_format == "csv"
    pieces, accepted = [], []
    planted: dict[str, dict[str, int]] = {}
    for table, rows in (("history", np.flatnonzero(is_feed)), ("requests", np.flatnonzero(~is_feed))):
        chosen = kinds(table, log_format)
        copies = plan_copies(fraction, rows_before[table], len(rows), chosen)
        sources = iter(draw_sources(log, rows, copies, chosen, rng))
        planted[table] = {}
        for kind in chosen:
            source = next(sources)
            broken = log[source]
            if kind.rows == 2:
                fresh = first_id + np.arange(len(source) // 2)
                first_id += len(fresh)
                broken = broken.with_columns(request_id=pl.Series(np.repeat(fresh, 2)))
            if kind.name in ACCEPTED:
                accepted.append(pl.DataFrame({"request_id": broken["request_id"], "source": source}))
            pieces.append(write_as_text(kind.breaker(broken)) if as_text else kind.breaker(broken))
            planted[table][kind.name] = len(source)
    return Dirt(pl.concat(pieces), planted, pl.concat(accepted))


def draw_sources(
    log: pl.DataFrame, rows: Longs, copies: list[int], planted: list[Kind], rng: np.random.Generator
) -> list[Longs]:
    """For each kind the numbers of the clean rows to copy; kinds of two rows get neighbours of one request.

    Kinds that the file has too few rows for go short.
    """
    position = log["position"].to_numpy()[rows]
    firsts = rng.permutation(rows[position == 0])
    singles = rng.permutation(rows[position >= 2])
    found = []
    for count, kind in zip(copies, planted, strict=True):
        if kind.rows == 2:
            head, firsts = firsts[:count], firsts[count:]
            found.append(np.stack([head, head + 1], axis=1).reshape(-1))
        else:
            head, singles = singles[:count], singles[count:]
            found.append(head)
    return found


def write_as_text(log: pl.DataFrame) -> pl.DataFrame:
    """The same log with the columns of UNPARSABLE as text, as a dirty CSV log needs them."""
    return log.with_columns(pl.col(column).cast(pl.String) for column in UNPARSABLE)
