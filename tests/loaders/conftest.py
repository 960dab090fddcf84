from __future__ import annotations

from datetime import UTC, datetime, timedelta

import numpy as np
import pyarrow as pa
import pytest

from longbatch.schemas.accounting import Counts
from longbatch.schemas.format.shard_writer import write_shard
from longbatch.schemas.format.snapshot import Snapshot, commit, fingerprint
from longbatch.schemas.spec.build_spec import parse_spec
from longbatch.schemas.tables import requests_schema, timelines_schema

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


def time_of(seconds):
    return START + timedelta(seconds=int(seconds))


def write_dataset(root, shards, *, request_id="int64", compression="zstd"):
    """Write shards, each a list of blocks, each a pair of lists of rows (timelines, requests)."""
    spec = parse_spec(SPEC.replace("REQUEST_ID", request_id).replace("COMPRESSION", compression))
    for table in ("timelines", "requests", "dictionaries"):
        (root / table).mkdir(parents=True)
    rows = []
    for bucket, blocks in enumerate(shards):
        pairs = [
            (
                pa.RecordBatch.from_pylist(timelines, schema=timelines_schema(spec)),
                pa.RecordBatch.from_pylist(requests, schema=requests_schema(spec)),
            )
            for timelines, requests in blocks
        ]
        rows.append(write_shard(root, bucket, "0", spec, pairs))
    snapshot = Snapshot(1, spec, Counts(), {}, 0, tuple(rows), (), (), fingerprint(spec, tuple(rows)))
    commit(root, snapshot)
    return root


def event(item, seconds, **features):
    row = {
        "item_id": item,
        "event_time": time_of(seconds),
        "author_id": item % 7,
        "ratio": item / 2,
        "title": "t",
    }
    return {**row, **features}


def target(item, **features):
    return {"item_id": item, "author_id": item % 7, "click": item % 2, "like": True, "dwell": 1.5, **features}


def request(request_id, user, row, seconds, end, targets, **features):
    ids = {"request_id": request_id, "user_id": user, "segment": 0, "timeline_row": row}
    rest = {"request_time": time_of(seconds), "history_end": end, "tab": 3, "targets": targets}
    return {**ids, **rest, **features}


def random_shards(seed=0, shards=3, blocks=4, users=3, request_id=int):
    """Blocks of random users: up to 80 events and 9 requests each, times within a day."""
    random, number = np.random.default_rng(seed), iter(range(10**9))

    def one_user(user, row):
        times = np.sort(random.integers(0, 86_400, random.integers(0, 81)))
        events = [event(int(random.integers(1000)), second) for second in times]
        requests = []
        for second in np.sort(random.integers(0, 86_400, random.integers(1, 10))):
            targets = [target(int(item)) for item in random.integers(0, 1000, random.integers(1, 6))]
            end = int(np.searchsorted(times, second))
            requests.append(request(request_id(next(number)), user, row, second, end, targets))
        return {"user_id": user, "segment": 0, "events": events}, requests

    def one_block(first_user):
        made = [one_user(first_user + row, row) for row in range(users)]
        return [timeline for timeline, _ in made], [r for _, requests in made for r in requests]

    return [[one_block((s * blocks + b) * users) for b in range(blocks)] for s in range(shards)]


@pytest.fixture(scope="session")
def random_dataset(tmp_path_factory):
    """A dataset of 3 shards of 4 blocks of 3 users, about 180 requests."""
    return write_dataset(tmp_path_factory.mktemp("random") / "dataset", random_shards())


@pytest.fixture(scope="session")
def rows():
    """(event, target, request, time_of, write_dataset, random_shards): builders of literal rows."""
    return event, target, request, time_of, write_dataset, random_shards
