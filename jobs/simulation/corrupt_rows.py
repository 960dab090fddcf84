"""Dirty rows: broken copies of clean rows, mingled with a simulated log, and counted by the outcome a build should give.

The clean rows stay, so a build of a corrupt log equals a build of the clean one, but for the counts, the label
"bought" (only the spec of a corrupt log has it, so that requests can be held back), and the requests of kind
"differing_request_time", which are unusual and valid. A feed row is broken where the history looks, a discover row
where the requests look. No two corrupt rows come from one clean row.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import polars as pl

from longbatch.schemas.types import Int64Array

from .rows import LABELS
from .world import FEED, LARGEST_REQUEST

Breaker = Callable[[pl.DataFrame], pl.DataFrame]

IMPOSSIBLE_MS = (0, -1, 7_258_118_400_000)  # 1970-01-01, just before it, and 2200-01-01
LONGEST_DWELL_MS = 86_400_000  # the spec declares it
ACTION = -1  # value of `tab` in a row that says that a shown item was bought
DIFFERING_TIME = "differing_request_time"
ACCEPTED = (DIFFERING_TIME, "action")  # kinds whose rows are valid
# Columns written as text in a corrupt CSV log, each with a value that is not of the column's type.
UNPARSABLE = {"event_time": "yesterday", "dwell_ms": "1.2.3", "request_time": "12:30", "click": "yes?"}
LAST_COLUMNS = [
    "long_view",
    "like",
]  # a corrupt CSV log writes them as one, so that lines can be too short and too long
LAST_FIELDS = ",".join(LAST_COLUMNS)


@dataclass(frozen=True)
class Recipe:
    """How corrupt a log is to be: corrupt rows per clean row, its format, and the end of its period."""

    fraction: float
    log_format: str
    end_ms: int


@dataclass(frozen=True)
class Kind:
    """One way to be corrupt: its name, how to break a copy, rows per copy, and whether the copy is broken as written.

    The name is the outcome of a build: a policy, or the reasons of a rejected row with "+" between them.
    """

    name: str
    breaker: Breaker
    rows: int = 1
    as_written: bool = False


@dataclass(frozen=True)
class CorruptRows:
    """The corrupt rows of one file as they are written, the rows planted per kind for each table, and the added targets.

    `added` has the columns request_id and source: the request, and the row number of a clean target that its
    target equals in item, position and probabilities.
    """

    rows: pl.DataFrame
    planted: dict[str, dict[str, int]]
    added: pl.DataFrame


def to(column: str, *values: Any) -> Breaker:
    """Copies that have these values in `column`, in turn."""

    def put(rows: pl.DataFrame) -> pl.DataFrame:
        turns = np.resize(np.arange(len(values)), rows.height)
        return rows.with_columns(pl.Series(column, values, rows.schema[column]).gather(turns))

    return put


def both(first: Breaker, second: Breaker) -> Breaker:
    """Copies broken twice."""
    return lambda rows: second(first(rows))


def to_conflict(rows: pl.DataFrame) -> pl.DataFrame:
    """Copies of which every second one, of the same request, has another user."""
    return rows.with_columns(user_id=pl.col("user_id") + (pl.int_range(pl.len()) % 2))


def to_differing_time(rows: pl.DataFrame) -> pl.DataFrame:
    """Copies of which every second one, of the same request, has a request time a second later."""
    return rows.with_columns(request_time=pl.col("request_time") + (pl.int_range(pl.len()) % 2) * 1_000)


def kinds(table: str, recipe: Recipe) -> list[Kind]:
    """The kinds planted in rows of one table of the spec, "history" or "requests"."""
    time, parsed = ("event_time", "dwell_ms") if table == "history" else ("request_time", "click")
    found = [
        Kind("duplicate", lambda rows: rows),
        Kind("filtered", to("tab", None)),
        Kind("missing_user", to("user_id", None)),
        Kind("missing_item", to("item_id", None)),
        Kind("missing_time", to(time, None)),
        Kind("time_out_of_range", to(time, *IMPOSSIBLE_MS)),
        Kind("unparsable:topic", to("topic", 70_000, -32_769), as_written=True),
        *(history_kinds() if table == "history" else request_kinds(recipe.end_ms)),
    ]
    if recipe.log_format == "csv":
        found += [Kind(f"unparsable:{c}", to(c, UNPARSABLE[c]), as_written=True) for c in (time, parsed)]
        found.append(Kind("malformed_row", to(LAST_FIELDS, "1", "1,0,0"), as_written=True))
    return found


def history_kinds() -> list[Kind]:
    """What can be wrong with an event only."""
    too_long = to("dwell_ms", LONGEST_DWELL_MS + 1, -1)
    return [
        Kind("out_of_range:dwell_ms", too_long),
        Kind("unknown:click", to("click", 2, -1)),
        Kind("missing_item+out_of_range:dwell_ms", both(to("item_id", None), too_long)),
    ]


def request_kinds(end_ms: int) -> list[Kind]:
    """What can be wrong with a target or its request only, and what is unusual about them."""
    return [
        Kind("missing_request", to("request_id", None)),
        *(Kind(f"missing_label:{label}", to(label, None)) for label in LABELS),
        Kind("out_of_range:position", to("position", LARGEST_REQUEST, -1)),
        Kind("unknown:tab", to("tab", 3, 99)),
        Kind("unknown:like", to("like", 2, -1)),
        Kind("missing_time+missing_label:click", both(to("request_time", None), to("click", None))),
        Kind("conflicting_request", to_conflict, rows=2),
        Kind(DIFFERING_TIME, to_differing_time, rows=2),
        Kind("pending_label", to("request_time", end_ms + 1), rows=2),
        Kind("action", to("tab", ACTION)),
    ]


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


def draw_corrupt_rows(
    log: pl.DataFrame, rows_before: dict[str, int], recipe: Recipe, first_id: int, rng: np.random.Generator
) -> CorruptRows:
    """Dirty rows for the rows of one file; `rows_before` counts the rows of each table in earlier files.

    Requests that the dirt adds get ids from `first_id` on.
    """
    is_feed = (log["tab"] == FEED).to_numpy()
    pieces, added = [], []
    planted: dict[str, dict[str, int]] = {}
    for table, rows in (("history", np.flatnonzero(is_feed)), ("requests", np.flatnonzero(~is_feed))):
        chosen = kinds(table, recipe)
        copies = plan_copies(recipe.fraction, rows_before[table], len(rows), chosen)
        planted[table] = {}
        for kind, source in zip(chosen, draw_sources(log, rows, copies, chosen, rng), strict=True):
            copy = log[source]
            if kind.rows == 2:
                fresh = first_id + np.arange(len(source) // 2)
                first_id += len(fresh)
                copy = copy.with_columns(request_id=pl.Series(np.repeat(fresh, 2)))
            if kind.name == DIFFERING_TIME:
                added.append(pl.DataFrame({"request_id": copy["request_id"], "source": source}))
            pieces.append(broken(copy, kind, recipe.log_format))
            planted[table][kind.name] = len(source)
    return CorruptRows(pl.concat(pieces), planted, pl.concat(added))


def broken(copy: pl.DataFrame, kind: Kind, log_format: str) -> pl.DataFrame:
    """Break a copy of clean rows; the result is as the log's files have it."""
    if kind.as_written:
        return kind.breaker(as_written(copy, log_format))
    return as_written(kind.breaker(copy), log_format)


def draw_sources(
    log: pl.DataFrame, rows: Int64Array, copies: list[int], planted: list[Kind], rng: np.random.Generator
) -> list[Int64Array]:
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


def as_written(log: pl.DataFrame, log_format: str) -> pl.DataFrame:
    """The log as the files of a corrupt one have it: wider topics; in CSV text columns, and the last two as one."""
    log = log.with_columns(pl.col("topic").cast(pl.Int32))
    if log_format == "parquet":
        return log
    last = pl.concat_str(pl.col(LAST_COLUMNS).cast(pl.String).fill_null(""), separator=",")
    log = log.with_columns(last.alias(LAST_FIELDS), *(pl.col(column).cast(pl.String) for column in UNPARSABLE))
    return log.drop(LAST_COLUMNS)


def mingle(clean: pl.DataFrame, dirt: pl.DataFrame, rng: np.random.Generator) -> pl.DataFrame:
    """Put the corrupt rows at random places among the clean ones, which keep their order."""
    places = np.sort(rng.integers(0, clean.height + 1, dirt.height))
    order = np.insert(np.arange(clean.height), places, clean.height + rng.permutation(dirt.height))
    return pl.concat([clean, dirt])[order]
