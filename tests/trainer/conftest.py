from __future__ import annotations

import pytest
import torch
import training_data

from longbatch.loaders.batch import RequestBatch, offsets_of
from longbatch.trainer.config import ModelConfig, model_columns

torch.set_num_threads(1)  # small tensors; several threads crawl on a busy machine

TYPES = {
    "history": {"author_id": "int32", "dwell_ms": "int32", "tab": "int8"},
    "targets": {"author_id": "int32", "score": "float"},
    "requests": {"tab": "int8"},
    "labels": {"click": "int8", "like": "bool"},
}
HOUR_US = 3_600_000_000


def make_batch(history_lengths, target_counts, seed=0):
    """A RequestBatch of random values with these ragged lengths, its columns those of TYPES."""
    random = torch.Generator().manual_seed(seed)

    def integers(high, size):
        return torch.randint(0, high, (size,), generator=random)

    requests, events, targets = len(history_lengths), sum(history_lengths), sum(target_counts)
    request_time = 1_700_000_000_000_000 + integers(24 * HOUR_US, requests)
    owner = torch.repeat_interleave(torch.arange(requests), torch.tensor(history_lengths, dtype=torch.int64))
    return RequestBatch(
        history={
            "item_id": integers(1000, events),
            "event_time": request_time[owner] - 1 - integers(100 * HOUR_US, events),
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


@pytest.fixture(name="make_batch")
def make_batch_fixture():
    return make_batch


@pytest.fixture
def small_model():
    """(ModelConfig, ModelColumns) of a model for `make_batch`."""
    config = ModelConfig(width=8, heads=2, layers=2, id_rows=5000)
    return config, model_columns(TYPES, (), config)


@pytest.fixture(scope="session")
def dataset(tmp_path_factory):
    """A dataset that a model learns in seconds, see `training_data`."""
    return training_data.write(tmp_path_factory.mktemp("trainer") / "dataset")
