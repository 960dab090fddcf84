"""A small dataset with a planted signal, and a config that learns it."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

import numpy as np
import pyarrow as pa

from longbatch.schemas.accounting import Counts
from longbatch.schemas.format.shard_writer import write_shard
from longbatch.schemas.format.snapshot import Snapshot, commit, fingerprint
from longbatch.schemas.spec.build_spec import parse_spec
from longbatch.schemas.tables import requests_schema, timelines_schema
from longbatch.trainer.config import ModelConfig, TrainConfig

SPEC = """
history_length = 16
[sources.log]
path = "log.parquet"
[history]
source = "log"
user_id = "user_id"
item_id = "item_id"
event_time = { column = "event_time", unit = "us" }
[history.features]
author_id = "int32"
[requests]
source = "log"
user_id = "user_id"
item_id = "item_id"
request_time = { column = "request_time", unit = "us" }
[requests.target_features]
author_id = "int32"
[requests.labels]
click = "int8"
like = "int8"
"""
START = datetime(2024, 1, 1, tzinfo=UTC)
DAY = timedelta(days=1)


def write(root):
    """40 users, 16 requests each over 16 days: a click is a target of the author of the user's events."""
    random = np.random.default_rng(0)
    spec = parse_spec(SPEC)
    for table in ("timelines", "requests", "dictionaries"):
        (root / table).mkdir(parents=True)

    def target(favourite):
        author = int(random.choice([favourite, random.integers(4)]))
        features = {"item_id": int(random.integers(50)), "author_id": author}
        return {**features, "click": int(author == favourite), "like": int(random.integers(2))}

    timelines, requests = [], []
    for user in range(40):
        favourite = int(random.integers(4))
        times = [START + DAY * day - timedelta(seconds=1) for day in range(16)]
        events = [{"item_id": int(random.integers(50)), "event_time": t, "author_id": favourite} for t in times]
        timelines.append({"user_id": user, "segment": 0, "events": events})
        for day in range(16):
            ids = {"request_id": user * 16 + day, "user_id": user, "segment": 0, "timeline_row": user}
            time = {"request_time": START + DAY * day, "history_end": day + 1}
            requests.append({**ids, **time, "targets": [target(favourite) for _ in range(4)]})
    block = (
        pa.RecordBatch.from_pylist(timelines, schema=timelines_schema(spec)),
        pa.RecordBatch.from_pylist(requests, schema=requests_schema(spec)),
    )
    shards = (write_shard(root, 0, "0", spec, [block]),)
    commit(root, Snapshot(1, spec, Counts(), {}, 0, shards, (), (), fingerprint(spec, shards)))
    return root


def tiny(**changes):
    """A config that learns the planted signal in seconds."""
    model = ModelConfig(width=16, heads=2, layers=2, id_rows=5_000)  # so that tables of ids are sparse
    wanted = {"model": model, "history_length": 16, "batch_size": 16, "epochs": 4, "learning_rate": 5e-3}
    return TrainConfig(**{**wanted, "embedding_learning_rate": 2e-2, **changes})
