"""Builders of literal rows of timelines and requests, and of small datasets made of them."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from longbatch.loaders.batch import RequestBatch
from longbatch.schemas.accounting import Counts
from longbatch.schemas.format.shard_writer import write_shard
from longbatch.schemas.format.shards_table import ShardsTable
from longbatch.schemas.format.snapshot import Snapshot, commit, fingerprint
from longbatch.schemas.spec.build_spec import parse_spec
from longbatch.schemas.storage.local_store import LocalStore
from longbatch.schemas.tables import requests_schema, timelines_schema

Row = dict[str, Any]
BlockRows = tuple[list[Row], list[Row]]  # timelines, requests
ShardRows = list[BlockRows]

SPEC = """
history_length = 50
compression = "COMPRESSION"
[sources.log]
path = "log.parquet"
[history]
source = "log"
user_id = "user_id"
item_id = "item_id"
event_time = { column = "event_time", unit = "us" }
[history.features]
author_id = "int32"
ratio = "float32"
title = "string"
[requests]
source = "log"
user_id = "user_id"
item_id = "item_id"
request_time = { column = "request_time", unit = "us" }
request_id = { column = "request_id", type = "REQUEST_ID" }
[requests.features]
tab = "int8"
[requests.target_features]
author_id = "int32"
[requests.labels]
click = "int8"
like = "bool"
dwell = "float32"
"""
START = datetime(2024, 1, 1, tzinfo=UTC)


def time_of(seconds: float) -> datetime:
    return START + timedelta(seconds=int(seconds))


def write_dataset(root: Path, shards: list[ShardRows], *, request_id: str = "int64", compression: str = "zstd") -> Path:
    """Write shards, each a list of blocks, each a pair of lists of rows (timelines, requests)."""
    spec = parse_spec(SPEC.replace("REQUEST_ID", request_id).replace("COMPRESSION", compression))
    for table in ("timelines", "requests", "dictionaries"):
        (root / table).mkdir(parents=True)
    entries = []
    for bucket, blocks in enumerate(shards):
        batches = [
            (
                pa.RecordBatch.from_pylist(timelines, schema=timelines_schema(spec)),
                pa.RecordBatch.from_pylist(requests, schema=requests_schema(spec)),
            )
            for timelines, requests in blocks
        ]
        entry = write_shard(LocalStore(root), bucket, "0", spec, batches)
        assert entry is not None
        entries.append(entry)
    shards_table = ShardsTable.from_entries(entries)
    commit(LocalStore(root), Snapshot(1, spec, Counts(), {}, 0, shards_table, (), (), fingerprint(spec, shards_table)))
    return root


def event(item: int, seconds: float, **features: object) -> Row:
    row = {"item_id": item, "event_time": time_of(seconds), "author_id": item % 7, "ratio": item / 2, "title": "t"}
    return {**row, **features}


def target(item: int, **features: object) -> Row:
    return {"item_id": item, "author_id": item % 7, "click": item % 2, "like": True, "dwell": 1.5, **features}


def timeline(user: int, events: list[Row]) -> Row:
    return {"user_id": user, "segment": 0, "events": events}


def request(
    request_id: int | str, user: int, row: int, seconds: float, end: int, targets: list[Row], **features: object
) -> Row:
    ids = {"request_id": request_id, "user_id": user, "segment": 0, "timeline_row": row}
    rest = {"request_time": time_of(seconds), "history_end": end, "tab": 3, "targets": targets}
    return {**ids, **rest, **features}


def random_shards(
    seed: int = 0, shards: int = 3, blocks: int = 4, users: int = 3, request_id: Callable[[int], int | str] = int
) -> list[ShardRows]:
    """Blocks of random users: up to 80 events and 9 requests each, times within a day."""
    random, numbers = np.random.default_rng(seed), iter(range(10**9))

    def one_user(user: int, row: int) -> tuple[Row, list[Row]]:
        times = np.sort(random.integers(0, 86_400, random.integers(0, 81)))
        events = [event(int(random.integers(1000)), second) for second in times]
        requests = []
        for second in np.sort(random.integers(0, 86_400, random.integers(1, 10))):
            targets = [target(int(item)) for item in random.integers(0, 1000, random.integers(1, 6))]
            end = int(np.searchsorted(times, second))
            requests.append(request(request_id(next(numbers)), user, row, second, end, targets))
        return timeline(user, events), requests

    def one_block(first_user: int) -> BlockRows:
        rows = [one_user(first_user + row, row) for row in range(users)]
        return [user for user, _ in rows], [request for _, requests in rows for request in requests]

    return [[one_block((s * blocks + b) * users) for b in range(blocks)] for s in range(shards)]


def request_ids(batches: Iterable[RequestBatch]) -> list[int]:
    return [request_id for batch in batches for request_id in batch.request_id.tolist()]


def exact_contents(batch: RequestBatch) -> list[tuple[str, str | None, str, bytes]]:
    """Every tensor of a batch, comparable bit by bit."""
    return [(f, n, str(t.dtype), t.detach().contiguous().numpy().tobytes()) for f, n, t in batch.tensors()]
