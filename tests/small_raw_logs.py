"""A small raw log with its spec, and functions that write it in every file format."""

from __future__ import annotations

import gzip
from collections.abc import Sequence
from pathlib import Path

import polars as pl

from longbatch.schemas.spec.build_spec import BuildSpec, parse_spec

T = 1_700_000_000
SPEC = """
[sources.log]
path = "log.parquet"
[history]
source = "log"
user_id = "user"
item_id = "item"
event_time = { column = "time", unit = "s" }
[requests]
source = "log"
where = "shown = 1"
user_id = "user"
item_id = "item"
request_time = { column = "time", unit = "s" }
request_id = "request"
features = { shown = "int8" }
"""
ACTIONS = """
labels = { click = { aggregate = "any", within = "5s", where = "kind = 'tap'" } }
[actions]
source = "acts"
where = "kind != 'none'"
user_id = "user"
item_id = "item"
event_time = { column = "at", unit = "s" }
[sources.acts]
path = "acts.parquet"
"""
LOG = pl.DataFrame(
    [  # user, item, time, request, shown, unused
        (1, 10, T, 7, 1, "a"),
        (2, 11, T + 1, 7, 1, "b"),
        (2, 12, T + 2, 8, 0, "c"),
        (3, 13, T + 3, 9, 1, "d"),
        (None, 14, T + 4, 9, 1, "e"),
    ],
    schema=["user", "item", "time", "request", "shown", "unused"],
    orient="row",
)


def write_log(folder: Path, suffix: str, text: str = SPEC, log: pl.DataFrame = LOG) -> BuildSpec:
    """Write a log in the format of a suffix, and return its spec."""
    path = folder / f"log.{suffix}"
    if suffix == "parquet":
        log.write_parquet(path)
    elif suffix == "arrow":
        log.write_ipc(path)
    elif suffix == "csv":
        log.write_csv(path)
    else:
        data = log.write_csv(separator="\t") if "tsv" in suffix else log.write_ndjson()
        path.write_bytes(gzip.compress(data.encode()) if suffix.endswith("gz") else data.encode())
    return parse_spec(text.replace("log.parquet", f"log.{suffix}")).with_paths_from(folder)


FORMATS = ("parquet", "arrow", "csv", "tsv.gz", "jsonl", "jsonl.gz")


def write_actions(folder: Path, times: Sequence[int | str], *changes: tuple[str, str]) -> BuildSpec:
    """Write the log, and actions at these times: a valid one, a filtered one, a valid one, one without a user."""
    LOG.write_parquet(folder / "log.parquet")
    rows = pl.DataFrame({"user": 1, "item": 10, "at": times, "kind": ["tap", "none", "scroll", "tap"][: len(times)]})
    rows.with_columns(user=pl.when(pl.int_range(pl.len()) != 3).then("user")).write_csv(folder / "acts.csv")
    text = SPEC + ACTIONS.replace("acts.parquet", "acts.csv")
    for old, new in changes:
        text = text.replace(old, new)
    return parse_spec(text).with_paths_from(folder)
