"""Corrupt rows: invalid copies of clean rows, shuffled into a simulated log, and counted by the outcome they must have.

The clean rows stay, so a build of a corrupt log equals a build of the clean one, except for the counts, the label
"bought" (only the spec of a corrupt log has it, to make requests pending), and the requests of the corruption
"differing_request_time", which are unusual and valid. Copies of feed rows are invalid as history, copies of discover
rows as requests. No two corrupt rows are copies of one clean row.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import polars as pl

from longbatch.schemas.types import Int64Array

from .rows import LABELS
from .world import FEED, LARGEST_REQUEST

Corrupt = Callable[[pl.DataFrame], pl.DataFrame]
"""Takes copies of clean rows and returns them corrupted."""

IMPOSSIBLE_MS = (0, -1, 7_258_118_400_000)  # 1970-01-01, just before it, and 2200-01-01
LONGEST_DWELL_MS = 86_400_000  # the maximum that the spec declares
ACTION = -1  # value of `tab` in a row that reports the purchase of a shown item
DIFFERING_TIME = "differing_request_time"
ACCEPTED = (DIFFERING_TIME, "action")  # corruptions whose rows are valid
# Columns that a corrupt CSV log writes as strings, each with a value that is not of the column's type.
UNPARSABLE = {"event_time": "yesterday", "dwell_ms": "1.2.3", "request_time": "12:30", "click": "yes?"}
# A corrupt CSV log writes its last columns as one string, so that a line can have too few or too many fields.
LAST_COLUMNS = ["long_view", "like"]
LAST_FIELDS = ",".join(LAST_COLUMNS)


@dataclass(frozen=True)
class CorruptionSettings:
    """How corrupt a log is.

    Attributes:
        share: Corrupt rows per clean row.
        log_format: "parquet" or "csv".
        end_ms: The end of the log's period, milliseconds since 1970.
    """

    share: float
    log_format: str
    end_ms: int


@dataclass(frozen=True)
class Corruption:
    """One way in which rows are corrupt.

    Attributes:
        name: The outcome in a build: a policy, or the reasons of a rejected row joined by "+".
        corrupt: Corrupts copies of clean rows.
        rows: The number of rows of one request that a copy takes, 1 or 2.
        as_written: Whether `corrupt` takes the rows as the files have them, see `as_written`.
    """

    name: str
    corrupt: Corrupt
    rows: int = 1
    as_written: bool = False


@dataclass(frozen=True)
class CorruptRows:
    """The corrupt rows of one file.

    Attributes:
        rows: The rows as the file has them.
        planted: The number of rows by table of the spec, then by corruption.
        added: One row per added valid target: its request_id, and as source the row number of the clean target that it
            equals in item, position and probabilities.
    """

    rows: pl.DataFrame
    planted: dict[str, dict[str, int]]
    added: pl.DataFrame


def _set_to(column: str, *values: int | str | None) -> Corrupt:
    """Copies that have these values in a column, in turn."""

    def corrupt(rows: pl.DataFrame) -> pl.DataFrame:
        turns = np.resize(np.arange(len(values)), rows.height)
        return rows.with_columns(pl.Series(column, values, rows.schema[column]).gather(turns))

    return corrupt


def _both(first: Corrupt, second: Corrupt) -> Corrupt:
    """Copies that are corrupt in two ways."""
    return lambda rows: second(first(rows))


def _conflict(rows: pl.DataFrame) -> pl.DataFrame:
    """Copies in pairs of one request, of which the second has another user."""
    return rows.with_columns(user_id=pl.col("user_id") + (pl.int_range(pl.len()) % 2))


def _differ_in_time(rows: pl.DataFrame) -> pl.DataFrame:
    """Copies in pairs of one request, of which the second has a request time one second later."""
    return rows.with_columns(request_time=pl.col("request_time") + (pl.int_range(pl.len()) % 2) * 1_000)


def corruptions(table: str, settings: CorruptionSettings) -> list[Corruption]:
    """Return the corruptions of rows that one table of the spec reads.

    Args:
        table: "history" or "requests".
        settings: How corrupt the log is.

    Returns:
        The corruptions, in the order in which their rows are drawn.
    """
    time, parsed = ("event_time", "dwell_ms") if table == "history" else ("request_time", "click")
    result = [
        Corruption("duplicate", lambda rows: rows),
        Corruption("filtered", _set_to("tab", None)),
        Corruption("missing_user", _set_to("user_id", None)),
        Corruption("missing_item", _set_to("item_id", None)),
        Corruption("missing_time", _set_to(time, None)),
        Corruption("time_out_of_range", _set_to(time, *IMPOSSIBLE_MS)),
        Corruption("unparsable:topic", _set_to("topic", 70_000, -32_769), as_written=True),
        *(_history_corruptions() if table == "history" else _request_corruptions(settings.end_ms)),
    ]
    if settings.log_format == "csv":
        result += [Corruption(f"unparsable:{c}", _set_to(c, UNPARSABLE[c]), as_written=True) for c in (time, parsed)]
        result.append(Corruption("malformed_row", _set_to(LAST_FIELDS, "1", "1,0,0"), as_written=True))
    return result


def _history_corruptions() -> list[Corruption]:
    """Corruptions that only events have."""
    too_long = _set_to("dwell_ms", LONGEST_DWELL_MS + 1, -1)
    return [
        Corruption("out_of_range:dwell_ms", too_long),
        Corruption("unknown:click", _set_to("click", 2, -1)),
        Corruption("missing_item+out_of_range:dwell_ms", _both(_set_to("item_id", None), too_long)),
    ]


def _request_corruptions(end_ms: int) -> list[Corruption]:
    """Corruptions that only targets and requests have, and unusual rows that are valid."""
    return [
        Corruption("missing_request", _set_to("request_id", None)),
        *(Corruption(f"missing_label:{label}", _set_to(label, None)) for label in LABELS),
        Corruption("out_of_range:position", _set_to("position", LARGEST_REQUEST, -1)),
        Corruption("unknown:tab", _set_to("tab", 3, 99)),
        Corruption("unknown:like", _set_to("like", 2, -1)),
        Corruption("missing_time+missing_label:click", _both(_set_to("request_time", None), _set_to("click", None))),
        Corruption("conflicting_request", _conflict, rows=2),
        Corruption(DIFFERING_TIME, _differ_in_time, rows=2),
        Corruption("pending_label", _set_to("request_time", end_ms + 1), rows=2),
        Corruption("action", _set_to("tab", ACTION)),
    ]


def plan_copies(share: float, rows_before: int, rows: int, planted: list[Corruption]) -> list[int]:
    """Decide how many copies of each corruption a file gets.

    Over all files, each corruption gets an equal share of the corrupt rows, however the log is split into files:
    the copies due after n rows are `floor(n * share + offset)`, and a file gets the difference between its end and its
    start. The offsets differ, so that the corruptions take turns.

        share of a corruption 0.01, offset 0.5     file of rows 0 to 180: floor(2.3) - floor(0.5) = 2
                                                   file of rows 180 to 300: floor(3.5) - floor(2.3) = 1

    Args:
        share: Corrupt rows per clean row.
        rows_before: The rows of the same table in earlier files.
        rows: The rows of the table in this file.
        planted: The corruptions of the table.

    Returns:
        The copies of each corruption.
    """
    shares = [share / (len(planted) * corruption.rows) for corruption in planted]
    offsets = [(k + 0.5) / len(planted) for k in range(len(planted))]
    return [
        int((rows_before + rows) * each + offset) - int(rows_before * each + offset)
        for each, offset in zip(shares, offsets, strict=True)
    ]


def draw_corrupt_rows(
    log: pl.DataFrame,
    rows_before: dict[str, int],
    settings: CorruptionSettings,
    first_id: int,
    rng: np.random.Generator,
) -> CorruptRows:
    """Draw the corrupt rows of one file.

    Args:
        log: The clean rows of the file.
        rows_before: By table, the clean rows in earlier files.
        settings: How corrupt the log is.
        first_id: The id of the first added request; the others follow.
        rng: The source of random numbers.

    Returns:
        The corrupt rows.
    """
    is_feed = (log["tab"] == FEED).to_numpy()
    parts, added = [], []
    planted: dict[str, dict[str, int]] = {}
    for table, rows in (("history", np.flatnonzero(is_feed)), ("requests", np.flatnonzero(~is_feed))):
        chosen = corruptions(table, settings)
        copies = plan_copies(settings.share, rows_before[table], len(rows), chosen)
        planted[table] = {}
        for corruption, source in zip(chosen, _draw_source_rows(log, rows, copies, chosen, rng), strict=True):
            copy = log[source]
            if corruption.rows == 2:
                request_ids = first_id + np.arange(len(source) // 2)
                first_id += len(request_ids)
                copy = copy.with_columns(request_id=pl.Series(np.repeat(request_ids, 2)))
            if corruption.name == DIFFERING_TIME:
                added.append(pl.DataFrame({"request_id": copy["request_id"], "source": source}))
            parts.append(_corrupt_copy(copy, corruption, settings.log_format))
            planted[table][corruption.name] = len(source)
    return CorruptRows(pl.concat(parts), planted, pl.concat(added))


def _corrupt_copy(copy: pl.DataFrame, corruption: Corruption, log_format: str) -> pl.DataFrame:
    """Corrupt copies of clean rows; the result is as the log's files have it."""
    if corruption.as_written:
        return corruption.corrupt(as_written(copy, log_format))
    return as_written(corruption.corrupt(copy), log_format)


def _draw_source_rows(
    log: pl.DataFrame, rows: Int64Array, copies: list[int], planted: list[Corruption], rng: np.random.Generator
) -> list[Int64Array]:
    """The numbers of the clean rows to copy for each corruption; those of two rows get the first two of a request.

    If a file has too few rows, the last corruptions get fewer copies.
    """
    position = log["position"].to_numpy()[rows]
    firsts = rng.permutation(rows[position == 0])
    singles = rng.permutation(rows[position >= 2])
    sources = []
    for count, corruption in zip(copies, planted, strict=True):
        if corruption.rows == 2:
            head, firsts = firsts[:count], firsts[count:]
            sources.append(np.stack([head, head + 1], axis=1).reshape(-1))
        else:
            head, singles = singles[:count], singles[count:]
            sources.append(head)
    return sources


def as_written(log: pl.DataFrame, log_format: str) -> pl.DataFrame:
    """Return rows as the files of a corrupt log have them.

    Topics are wider, so that they can be out of range. In CSV some columns are strings, and the last two are one.

    Args:
        log: Rows with the columns of a clean log.
        log_format: "parquet" or "csv".

    Returns:
        The rows.
    """
    log = log.with_columns(pl.col("topic").cast(pl.Int32))
    if log_format == "parquet":
        return log
    last = pl.concat_str(pl.col(LAST_COLUMNS).cast(pl.String).fill_null(""), separator=",")
    log = log.with_columns(last.alias(LAST_FIELDS), *(pl.col(column).cast(pl.String) for column in UNPARSABLE))
    return log.drop(LAST_COLUMNS)


def shuffle_in(clean: pl.DataFrame, corrupt: pl.DataFrame, rng: np.random.Generator) -> pl.DataFrame:
    """Insert corrupt rows at random positions among the clean ones, which keep their order.

    Args:
        clean: The clean rows.
        corrupt: The corrupt rows, with the same columns.
        rng: The source of random numbers.

    Returns:
        All rows.
    """
    positions = np.sort(rng.integers(0, clean.height + 1, corrupt.height))
    order = np.insert(np.arange(clean.height), positions, clean.height + rng.permutation(corrupt.height))
    return pl.concat([clean, corrupt])[order]
