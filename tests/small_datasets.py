"""A small log, its spec and its dataset, whose rows a test may change before they are written."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import polars as pl
import pyarrow as pa

from longbatch.pipelines.in_memory import build_in_memory
from longbatch.schemas.format.shard_writer import write_shard
from longbatch.schemas.format.shards_table import ShardsTable
from longbatch.schemas.format.snapshot import Snapshot, commit, fingerprint
from longbatch.schemas.spec.build_spec import BuildSpec
from longbatch.schemas.storage.local_store import LocalStore
from longbatch.schemas.tables import requests_schema, timelines_schema

T = 1_700_000_000

SPEC = """
history_length = 2
[sources.log]
path = "log.parquet"
[history]
source = "log"
user_id = "user"
item_id = "item"
event_time = { column = "time", unit = "s" }
[history.features]
score = "float32"
[requests]
source = "log"
where = "click >= 0"
user_id = "user"
item_id = "item"
request_time = { column = "time", unit = "s" }
request_id = "request"
[requests.features]
tab = "int8"
[requests.target_features]
place = { column = "score", type = "float32" }
[requests.labels]
click = "int8"
"""
LOG = pl.DataFrame(
    [  # user, request, item, seconds after T, score, tab, click
        (1, 10, 100, 0, 0.5, 1, None),
        (1, 11, 101, 1, math.nan, 1, 0),
        (1, 12, 102, 2, None, 2, 1),
        (1, 12, 103, 2, 0.25, 2, 0),
        (1, 13, 104, 5, 0.5, 1, 1),
        (2, 20, 100, 3, 0.5, 1, 0),
        (2, 21, 101, 4, 0.5, 1, 1),
    ],
    schema=["user", "request", "item", "time", "score", "tab", "click"],
    orient="row",
).with_columns(pl.col("time") + T)

Rows = list[dict[str, Any]]
Change = Callable[[Rows, Rows], None]


def stored(root: Path, spec: BuildSpec, log: pl.DataFrame, change: Change | None = None) -> Path:
    """Write a log and its dataset, after a change to the rows (timelines, requests) of each block."""
    root.mkdir(parents=True, exist_ok=True)
    log.write_parquet(root / "log.parquet")
    spec = spec.with_paths_from(root)
    built = build_in_memory(spec, {"log": log})
    blocks = [changed(spec, *block, change) for block in built.blocks]
    for table in ("timelines", "requests", "dictionaries", "snapshots"):
        (root / "dataset" / table).mkdir(parents=True)
    shard = write_shard(LocalStore(root / "dataset"), 0, "test", spec, blocks)
    shards = ShardsTable.from_entries([shard] if shard else [])
    snapshot = Snapshot(1, spec, built.counts, built.row_accounting, 0, shards, (), (), fingerprint(spec, shards))
    commit(LocalStore(root / "dataset"), snapshot)
    return root / "dataset"


def changed(
    spec: BuildSpec, timelines: pa.RecordBatch, requests: pa.RecordBatch, change: Change | None
) -> tuple[pa.RecordBatch, pa.RecordBatch]:
    if change is None:
        return timelines, requests
    rows = timelines.to_pylist(), requests.to_pylist()
    change(*rows)
    return (
        pa.RecordBatch.from_pylist(rows[0], schema=timelines_schema(spec)),
        pa.RecordBatch.from_pylist(rows[1], schema=requests_schema(spec)),
    )
