"""Batches with shared timelines contain the same histories as batches with per-request histories."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from longbatch.loaders import RequestBatch, RequestDataset, StochasticLength, collate
from longbatch.loaders.batch import Histories
from longbatch.loaders.copy_slices import join_slices_with_numpy
from longbatch.loaders.plan import Order


def values(batch: RequestBatch) -> list[tuple[object, ...]]:
    return [(field, name, tensor.dtype, tensor.tolist()) for field, name, tensor in batch.tensors() if name != "ratio"]


@pytest.mark.parametrize("order", ["shuffled", "time", "sequential"])
@pytest.mark.parametrize("length", [50, 7, StochasticLength(8, 48)])
def test_shared_timelines_contain_the_per_request_histories(
    random_dataset: Path, order: Order, length: int | StochasticLength | None
) -> None:
    options: dict[str, Any] = {"batch_size": 16, "order": order, "history_length": length}
    for shared, per_request in zip(
        RequestDataset(random_dataset, histories="shared", **options),
        RequestDataset(random_dataset, **options),
        strict=True,
    ):
        assert (shared.has_shared_timelines, per_request.has_shared_timelines) == (True, False)
        assert values(shared.to_per_request()) == values(per_request)
        assert values(shared.newest(5).to_per_request()) == values(per_request.newest(5))
        assert values(shared.expand()) == values(per_request.expand())
        assert len(shared.history_offsets) - 1 == len(set(shared.user_id.tolist()))
        assert length != 50 or shared.num_events <= per_request.num_events  # short histories may leave gaps between
        starts, ends = shared.spans
        rows = shared.history_rows
        assert rows is not None
        assert (starts >= shared.history_offsets[rows]).all()
        assert (ends <= shared.history_offsets[rows + 1]).all()


@pytest.mark.parametrize("histories", ["per_request", "shared"])
def test_batches_are_equal_without_the_compiled_copy(
    random_dataset: Path, monkeypatch: pytest.MonkeyPatch, histories: Histories
) -> None:
    compiled = [
        values(batch) for batch in RequestDataset(random_dataset, batch_size=16, histories=histories, shuffle=True)
    ]
    monkeypatch.setattr(collate, "join_slices", join_slices_with_numpy)
    assert [
        values(b) for b in RequestDataset(random_dataset, batch_size=16, histories=histories, shuffle=True)
    ] == compiled
