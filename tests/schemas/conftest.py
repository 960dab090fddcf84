from __future__ import annotations

from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

from longbatch.schemas.accounting import Counts, RowAccounting
from longbatch.schemas.format.dataset import Dataset, open_dataset
from longbatch.schemas.format.shard_writer import write_shard
from longbatch.schemas.format.snapshot import Snapshot, commit, fingerprint
from longbatch.schemas.spec.build_spec import BuildSpec, parse_spec
from longbatch.schemas.tables import requests_schema, timelines_schema

Row = dict[str, Any]
Rows = tuple[list[Row], list[Row]]
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
features = { place = "int8" }
labels = { click = "int8" }
"""


def at(second: int) -> datetime:
    return datetime(2024, 1, 1, tzinfo=UTC) + timedelta(seconds=second)


def timeline(user: int, *items: int, segment: int = 0) -> Row:
    """A user with an event at second 0, 1, 2, ... for each item."""
    events = [{"item_id": item, "event_time": at(second), "tab": item % 3} for second, item in enumerate(items)]
    return {"user_id": user, "segment": segment, "events": events}


def request(request_id: int, user: int, row: int, second: int, end: int, *clicks: int) -> Row:
    """A request of the timeline in row `row`, with a target for each click."""
    targets = [{"item_id": 100 + place, "click": click} for place, click in enumerate(clicks)]
    ids = {"request_id": request_id, "user_id": user, "segment": 0, "timeline_row": row}
    return {**ids, "request_time": at(second), "history_end": end, "place": None, "targets": targets}


# Two blocks: user 1 (five events, three requests) and user 2 (one event, one request); then user 3.
BLOCKS: list[Rows] = [
    (
        [timeline(1, 11, 12, 13, 14, 15), timeline(2, 21)],
        [request(1, 1, 0, 0, 0, 1), request(2, 1, 0, 3, 3, 0, 1), request(3, 1, 0, 9, 5, 0), request(4, 2, 1, 5, 1, 1)],
    ),
    ([timeline(3, 31, 32, 33, 34)], [request(5, 3, 0, 2, 2, 0), request(6, 3, 0, 4, 4, 1)]),
]


def batches(spec: BuildSpec, rows: Rows) -> tuple[pa.RecordBatch, pa.RecordBatch]:
    timelines, requests = rows
    return (
        pa.RecordBatch.from_pylist(timelines, schema=timelines_schema(spec)),
        pa.RecordBatch.from_pylist(requests, schema=requests_schema(spec)),
    )


def write(root: Path, blocks: list[Rows], **changes: Any) -> Dataset:
    """Write a dataset of one shard, with keys of the spec changed."""
    spec = parse_spec(SPEC).model_copy(update=changes)
    for table in ("timelines", "requests", "dictionaries"):
        (root / table).mkdir(parents=True, exist_ok=True)
    row = write_shard(root, 7, "a1", spec, [batches(spec, rows) for rows in blocks])
    shards = () if row is None else (row,)
    row_accounting = {"log": RowAccounting(rows=9, rejected=2, accepted=7, reasons={"missing_user": 2})}
    print_of = fingerprint(spec, shards)
    commit(root, Snapshot(1, spec, Counts(users=3, requests=6), row_accounting, 0, shards, (), (), print_of))
    return open_dataset(root)


@pytest.fixture
def write_dataset() -> Callable[..., Dataset]:
    return write


@pytest.fixture
def dataset(tmp_path: Path) -> Dataset:
    """A dataset of BLOCKS in one shard, at history length 3."""
    return write(tmp_path / "dataset", BLOCKS)


@pytest.fixture
def blocks() -> list[Rows]:
    return BLOCKS


@pytest.fixture
def as_batches() -> Callable[..., tuple[pa.RecordBatch, pa.RecordBatch]]:
    return batches


@pytest.fixture
def rows() -> tuple[Callable[..., Row], Callable[..., Row]]:
    """(timeline, request): builders of literal rows."""
    return timeline, request
