"""The datasets of the loader's benchmark: long timelines with several requests each, written directly as shards."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa

from longbatch.schemas.accounting import Counts
from longbatch.schemas.format.shard_writer import write_shard
from longbatch.schemas.format.shards_table import ShardsTable
from longbatch.schemas.format.snapshot import Snapshot, commit, fingerprint
from longbatch.schemas.spec.build_spec import BuildSpec, parse_spec
from longbatch.schemas.storage.local_store import LocalStore
from longbatch.schemas.tables import requests_schema, timelines_schema
from longbatch.schemas.types import ArrowArray, Int64Array

LENGTH = 10_000
SPEC = """
history_length = 10000
compression = "COMPRESSION"
[sources.log]
path = "log.parquet"
[history]
source = "log"
user_id = "user_id"
item_id = "item_id"
event_time = { column = "event_time", unit = "us" }
features = { author_id = "int32", duration_ms = "int32", watched_ms = "int32", ratio = "float32", action = "int8" }
[requests]
source = "log"
user_id = "user_id"
item_id = "item_id"
request_time = { column = "request_time", unit = "us" }
request_id = "request_id"
target_features = { author_id = "int32" }
labels = { click = "int8" }
"""


@dataclass(frozen=True)
class Size:
    """Size of a dataset; every request has LENGTH events of history.

    Attributes:
        users: Number of users.
        requests: Requests of each user.
        targets: Targets of each request.
        users_per_block: Users of a block.
    """

    users: int
    requests: int
    targets: int
    users_per_block: int = 6


def write(root: Path, size: Size, compression: str) -> Path:
    """Write a dataset of one shard.

    Args:
        root: Folder to create.
        size: Size of the dataset.
        compression: Codec of the files, as in a build spec.

    Returns:
        The folder.
    """
    spec = parse_spec(SPEC.replace("COMPRESSION", compression))
    for table in ("timelines", "requests", "dictionaries"):
        (root / table).mkdir(parents=True)
    row = write_shard(LocalStore(root), 0, "0", spec, _blocks(spec, size))
    shards = ShardsTable.from_entries([row] if row else [])
    commit(LocalStore(root), Snapshot(1, spec, Counts(), {}, 0, shards, (), (), fingerprint(spec, shards)))
    return root


def _blocks(spec: BuildSpec, size: Size) -> Iterator[tuple[pa.RecordBatch, pa.RecordBatch]]:
    rng = np.random.default_rng(0)
    for first in range(0, size.users, size.users_per_block):
        users = np.arange(first, min(size.users, first + size.users_per_block))
        yield _timelines(spec, rng, users, size), _requests(spec, rng, users, size)


def _timelines(spec: BuildSpec, rng: np.random.Generator, users: Int64Array, size: Size) -> pa.RecordBatch:
    schema = timelines_schema(spec)
    length = LENGTH + 10 * size.requests
    count = length * len(users)
    steps = rng.integers(1_000_000, 60_000_000, count)
    columns = {
        "item_id": rng.zipf(1.2, count) % 1_000_000,
        "event_time": 1_700_000_000_000_000 + np.cumsum(steps) // 1_000_000 * 1_000_000,
        "author_id": rng.integers(0, 50_000, count),
        "duration_ms": rng.integers(3_000, 300_000, count),
        "watched_ms": rng.integers(0, 300_000, count),
        "ratio": rng.random(count),
        "action": rng.integers(0, 6, count),
    }
    event = schema.field("events").type.value_type
    arrays = [pa.array(columns[field.name]).cast(field.type, safe=False) for field in event]
    events = pa.StructArray.from_arrays(arrays, fields=list(event))
    lists = pa.ListArray.from_arrays(pa.array(np.arange(len(users) + 1) * length, pa.int32()), events)
    ids: list[ArrowArray] = [pa.array(users, pa.int64()), pa.array(np.zeros(len(users)), pa.int32())]
    return pa.RecordBatch.from_arrays([*ids, lists], schema=schema)


def _requests(spec: BuildSpec, rng: np.random.Generator, users: Int64Array, size: Size) -> pa.RecordBatch:
    schema = requests_schema(spec)
    count, rows = len(users) * size.requests, np.repeat(np.arange(len(users)), size.requests)
    index = np.tile(np.arange(size.requests), len(users))
    targets = count * size.targets
    columns = {
        "item_id": rng.integers(0, 1_000_000, targets),
        "author_id": rng.integers(0, 50_000, targets),
        "click": rng.integers(0, 2, targets),
    }
    target = schema.field("targets").type.value_type
    arrays = [pa.array(columns[field.name]).cast(field.type, safe=False) for field in target]
    lists = pa.ListArray.from_arrays(
        pa.array(np.arange(count + 1) * size.targets, pa.int32()),
        pa.StructArray.from_arrays(arrays, fields=list(target)),
    )
    own = {
        "request_id": users[rows] * size.requests + index,
        "user_id": users[rows],
        "segment": np.zeros(count),
        "timeline_row": rows,
        "request_time": 1_800_000_000_000_000 + index * 1_000_000,
        "history_end": LENGTH + 10 * index,
    }
    plain = [pa.array(values).cast(pa.int64()).cast(schema.field(name).type) for name, values in own.items()]
    return pa.RecordBatch.from_arrays([*plain, lists], schema=schema)
