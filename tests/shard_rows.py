"""Literal rows of timelines and requests, and a small dataset of one shard made of them."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pyarrow as pa

from longbatch.schemas.accounting import Counts, RowAccounting
from longbatch.schemas.format.dataset import Dataset, open_dataset
from longbatch.schemas.format.manifest import BlockTable
from longbatch.schemas.format.physical_schema import Batches
from longbatch.schemas.format.shard_writer import write_shard
from longbatch.schemas.format.shards_table import ShardsTable
from longbatch.schemas.format.snapshot import Snapshot, commit, fingerprint
from longbatch.schemas.spec.build_spec import BuildSpec, parse_spec
from longbatch.schemas.storage.local_store import LocalStore
from longbatch.schemas.tables import requests_schema, timelines_schema

Row = dict[str, Any]
BlockRows = tuple[list[Row], list[Row]]  # timelines, requests
SPEC = """
history_length = 3
compression = "zstd"
[sources.log]
path = "log.parquet"
[history]
source = "log"
user_id = "user_id"
item_id = "item_id"
event_time = { column = "time", unit = "s" }
features = { tab = "int8" }
[requests]
source = "log"
user_id = "user_id"
item_id = "item_id"
request_time = { column = "time", unit = "s" }
request_id = "request_id"
features = { page = "int8" }
labels = { click = "int8" }
"""


def time_at(second: int) -> datetime:
    return datetime(2024, 1, 1, tzinfo=UTC) + timedelta(seconds=second)


def timeline(user: int, *items: int, segment: int = 0) -> Row:
    """A user with an event at second 0, 1, 2, ... for each item."""
    events = [{"item_id": item, "event_time": time_at(second), "tab": item % 3} for second, item in enumerate(items)]
    return {"user_id": user, "segment": segment, "events": events}


def request(request_id: int, user: int, row: int, second: int, end: int, *clicks: int) -> Row:
    """A request of the timeline in row `row`, with a target for each click."""
    targets = [{"item_id": 100 + index, "click": click} for index, click in enumerate(clicks)]
    ids = {"request_id": request_id, "user_id": user, "segment": 0, "timeline_row": row}
    return {**ids, "request_time": time_at(second), "history_end": end, "page": None, "targets": targets}


# Two blocks: user 1 (five events, three requests) and user 2 (one event, one request); then user 3.
BLOCKS: list[BlockRows] = [
    (
        [timeline(1, 11, 12, 13, 14, 15), timeline(2, 21)],
        [request(1, 1, 0, 0, 0, 1), request(2, 1, 0, 3, 3, 0, 1), request(3, 1, 0, 9, 5, 0), request(4, 2, 1, 5, 1, 1)],
    ),
    ([timeline(3, 31, 32, 33, 34)], [request(5, 3, 0, 2, 2, 0), request(6, 3, 0, 4, 4, 1)]),
]


def as_batches(spec: BuildSpec, rows: BlockRows) -> Batches:
    """Convert the rows of a block to its two record batches."""
    timelines, requests = rows
    return (
        pa.RecordBatch.from_pylist(timelines, schema=timelines_schema(spec)),
        pa.RecordBatch.from_pylist(requests, schema=requests_schema(spec)),
    )


def write_one_shard(root: Path, blocks: list[BlockRows], **changes: Any) -> Dataset:
    """Write a dataset of one shard, with keys of the spec changed."""
    spec = parse_spec(SPEC).model_copy(update=changes)
    for table in ("timelines", "requests", "dictionaries"):
        (root / table).mkdir(parents=True, exist_ok=True)
    entry = write_shard(LocalStore(root), 7, "a1", spec, [as_batches(spec, rows) for rows in blocks])
    shards = ShardsTable.from_entries([entry] if entry else [])
    row_accounting = {"log": RowAccounting(rows=9, rejected=2, accepted=7, reasons={"missing_user": 2})}
    counts = Counts(users=3, requests=6)
    commit(LocalStore(root), Snapshot(1, spec, counts, row_accounting, 0, shards, (), (), fingerprint(spec, shards)))
    return open_dataset(root)


def file_of(dataset: Dataset, table: BlockTable) -> Path:
    """The path of the first shard's file of timelines or requests."""
    return Path(dataset.location) / dataset.shards[0].file(table).path
