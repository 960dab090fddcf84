from __future__ import annotations

from pathlib import Path

import pytest
import torch
from block_rows import exact_contents

from longbatch.loaders import RequestDataset
from longbatch.loaders.batch import Histories, RequestBatch


def two_requests() -> RequestBatch:
    """Requests 7 and 8 with histories [1 2 3] and [], targets [10] and [11 12]."""
    return RequestBatch(
        history={"item_id": torch.tensor([1, 2, 3]), "event_time": torch.tensor([5, 6, 7])},
        history_offsets=torch.tensor([0, 3, 3]),
        targets={"item_id": torch.tensor([10, 11, 12])},
        target_offsets=torch.tensor([0, 1, 3]),
        labels={"click": torch.tensor([1, 0, 1])},
        requests={"tab": torch.tensor([4, 5])},
        request_id=torch.tensor([7, 8]),
        user_id=torch.tensor([70, 80]),
        request_time=torch.tensor([9, 9]),
    )


def test_sizes_count_requests_targets_and_events() -> None:
    batch = two_requests()
    assert (batch.num_requests, batch.num_targets, batch.num_events) == (2, 3, 3)


@pytest.mark.parametrize(
    ("length", "items", "offsets"),
    [(5, [1, 2, 3], [0, 3, 3]), (2, [2, 3], [0, 2, 2]), (0, [], [0, 0, 0])],
)
def test_the_newest_events_are_kept(length: int, items: list[int], offsets: list[int]) -> None:
    batch = two_requests().newest(length)
    assert batch.history["item_id"].tolist() == items
    assert batch.history_offsets.tolist() == offsets


def test_a_negative_length_is_an_error() -> None:
    with pytest.raises(ValueError, match="history length -1 is negative"):
        two_requests().newest(-1)


def test_the_representation_summarizes_sizes_and_columns() -> None:
    assert repr(two_requests()) == (
        "RequestBatch(2 requests, 3 targets, 3 events, per-request histories, cpu, history: item_id event_time, "
        "targets: item_id, labels: click, requests: tab)"
    )


def test_expanding_copies_the_history_for_each_target() -> None:
    batch = two_requests()
    twice = RequestBatch(**{**vars(batch), "target_offsets": torch.tensor([0, 2, 3])}).expand()
    assert twice.history["item_id"].tolist() == [1, 2, 3, 1, 2, 3]
    assert twice.history_offsets.tolist() == [0, 3, 6, 6]
    assert twice.target_offsets.tolist() == [0, 1, 2, 3]
    assert twice.request_id.tolist() == [7, 7, 8]
    assert twice.requests["tab"].tolist() == [4, 4, 5]
    assert twice.labels is batch.labels


def test_moving_moves_every_tensor() -> None:
    batch = two_requests().to("meta")
    tensors = [
        batch.request_id,
        batch.user_id,
        batch.request_time,
        batch.history_offsets,
        batch.target_offsets,
    ]
    for role in (batch.history, batch.targets, batch.labels, batch.requests):
        tensors += role.values()
    assert all(tensor.device.type == "meta" for tensor in tensors)


def test_pinning_pins_every_tensor(monkeypatch: pytest.MonkeyPatch) -> None:
    pinned: list[torch.Tensor] = []

    def pin(tensor: torch.Tensor) -> torch.Tensor:
        pinned.append(tensor)
        return tensor

    monkeypatch.setattr(torch.Tensor, "pin_memory", pin)
    two_requests().pin_memory()
    assert len(pinned) == 10


@pytest.mark.parametrize("histories", ["per_request", "shared"])
def test_requests_are_selected_by_slice_indices_or_mask(random_dataset: Path, histories: Histories) -> None:
    batch = next(iter(RequestDataset(random_dataset, batch_size=16, histories=histories)))
    part = batch[2:5]
    assert part.request_id.tolist() == batch.request_id[2:5].tolist()
    assert exact_contents(part) == exact_contents(batch[[2, 3, 4]])
    mask = torch.zeros(16, dtype=torch.bool)
    mask[2:5] = True
    assert exact_contents(part) == exact_contents(batch[mask])
    assert batch[:0].num_requests == batch[[]].num_targets == 0
    assert exact_contents(batch[:]) == exact_contents(batch.to_per_request())
    with pytest.raises(TypeError, match=r"request 3 alone is not a batch; give a slice, \[3:4\]"):
        batch[3]  # type: ignore[index]
    with pytest.raises(IndexError, match=r"a mask of shape \(3,\) for 16 requests"):
        batch[torch.ones(3, dtype=torch.bool)]
