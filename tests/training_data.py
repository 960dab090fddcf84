"""A small dataset with a planted signal, a config that learns it, and batches and models of random values."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pyarrow as pa
import torch
from torch import Tensor

from longbatch.loaders.batch import RequestBatch
from longbatch.loaders.ragged_tensors import offsets_of
from longbatch.schemas.accounting import Counts
from longbatch.schemas.format.shard_writer import write_shard
from longbatch.schemas.format.shards_table import ShardsTable
from longbatch.schemas.format.snapshot import Snapshot, commit, fingerprint
from longbatch.schemas.spec.build_spec import parse_spec
from longbatch.schemas.storage.local_store import LocalStore
from longbatch.schemas.tables import requests_schema, timelines_schema
from longbatch.trainer.config import ModelConfig, ModelName, TrainConfig, model_columns
from longbatch.trainer.fit import TrainReport
from longbatch.trainer.models.registry import make_model
from longbatch.trainer.models.request_model import RequestModel
from longbatch.trainer.progress import TrainingProgress

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


def write(root: Path) -> Path:
    """40 users, 16 requests each over 16 days: a click is a target of the author of the user's events."""
    random = np.random.default_rng(0)
    spec = parse_spec(SPEC)
    for table in ("timelines", "requests", "dictionaries"):
        (root / table).mkdir(parents=True)

    def target(favorite: int) -> dict[str, int]:
        author = int(random.choice(np.array([favorite, int(random.integers(4))])))
        features = {"item_id": int(random.integers(50)), "author_id": author}
        return {**features, "click": int(author == favorite), "like": int(random.integers(2))}

    timelines: list[dict[str, object]] = []
    requests: list[dict[str, object]] = []
    for user in range(40):
        favorite = int(random.integers(4))
        times = [START + DAY * day - timedelta(seconds=1) for day in range(16)]
        events = [{"item_id": int(random.integers(50)), "event_time": t, "author_id": favorite} for t in times]
        timelines.append({"user_id": user, "segment": 0, "events": events})
        for day in range(16):
            ids = {"request_id": user * 16 + day, "user_id": user, "segment": 0, "timeline_row": user}
            time = {"request_time": START + DAY * day, "history_end": day + 1}
            requests.append({**ids, **time, "targets": [target(favorite) for _ in range(4)]})
    block = (
        pa.RecordBatch.from_pylist(timelines, schema=timelines_schema(spec)),
        pa.RecordBatch.from_pylist(requests, schema=requests_schema(spec)),
    )
    shard = write_shard(LocalStore(root), 0, "0", spec, [block])
    assert shard is not None
    shards = ShardsTable.from_entries([shard])
    commit(LocalStore(root), Snapshot(1, spec, Counts(), {}, 0, shards, (), (), fingerprint(spec, shards)))
    return root


def tiny(**changes: object) -> TrainConfig:
    """A config that learns the planted signal in seconds."""
    model = ModelConfig(width=16, heads=2, layers=2, id_table_rows=5_000)  # large enough for sparse gradients
    defaults = {"model": model, "history_length": 16, "batch_size": 16, "epochs": 4, "learning_rate": 5e-3}
    return TrainConfig.model_validate({**defaults, "embedding_learning_rate": 2e-2, **changes})


TYPES = {
    "history": {"author_id": "int32", "dwell_ms": "int32", "tab": "int8"},
    "targets": {"author_id": "int32", "score": "float"},
    "requests": {"tab": "int8"},
    "labels": {"click": "int8", "like": "bool"},
}
HOUR_US = 3_600_000_000


def make_batch(history_lengths: list[int], target_counts: list[int], seed: int = 0) -> RequestBatch:
    """A RequestBatch of random values with these ragged lengths, and the columns of TYPES."""
    random = torch.Generator().manual_seed(seed)

    def integers(high: int, size: int) -> Tensor:
        return torch.randint(0, high, (size,), generator=random)

    requests, events, targets = len(history_lengths), sum(history_lengths), sum(target_counts)
    request_time = 1_700_000_000_000_000 + integers(24 * HOUR_US, requests)
    request_of_event = torch.repeat_interleave(torch.arange(requests), torch.tensor(history_lengths, dtype=torch.int64))
    return RequestBatch(
        history={
            "item_id": integers(1000, events),
            "event_time": request_time[request_of_event] - 1 - integers(100 * HOUR_US, events),
            "author_id": integers(100, events).int(),
            "dwell_ms": integers(60_000, events).int(),
            "tab": integers(5, events).to(torch.int8),
        },
        history_offsets=offsets_of(torch.tensor(history_lengths, dtype=torch.int64)),
        targets={
            "item_id": integers(1000, targets),
            "author_id": integers(100, targets).int(),
            "score": torch.randn(targets, generator=random),
        },
        target_offsets=offsets_of(torch.tensor(target_counts, dtype=torch.int64)),
        labels={"click": integers(2, targets).to(torch.int8), "like": integers(2, targets).bool()},
        requests={"tab": integers(5, requests).to(torch.int8)},
        request_id=torch.arange(requests),
        user_id=integers(10, requests),
        request_time=request_time,
    )


def small_model(name: ModelName = "stca", **changes: object) -> RequestModel:
    """A model for `make_batch`, always with the same initial weights."""
    defaults = {"name": name, "width": 8, "heads": 2, "layers": 2, "id_table_rows": 5000, "query_tokens": 5}
    config = ModelConfig.model_validate({**defaults, **changes})
    torch.manual_seed(0)
    return make_model(config, model_columns(TYPES, (), config))


class TrainedRun(NamedTuple):
    """A finished training run of `tiny()`: its folder, its report, and the progress that it reported."""

    folder: Path
    report: TrainReport
    progress: list[TrainingProgress]
