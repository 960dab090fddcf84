from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from longbatch.loaders.batch import RequestBatch, ragged_index


def two_requests():
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


def test_sizes_are_those_of_requests_targets_and_events():
    batch = two_requests()
    assert (batch.num_requests, batch.num_targets, batch.num_events) == (2, 3, 3)


@pytest.mark.parametrize(
    ("length", "items", "offsets"),
    [(5, [1, 2, 3], [0, 3, 3]), (2, [2, 3], [0, 2, 2]), (0, [], [0, 0, 0])],
)
def test_the_newest_events_are_kept(length, items, offsets):
    batch = two_requests().newest(length)
    assert batch.history["item_id"].tolist() == items
    assert batch.history_offsets.tolist() == offsets


def test_a_negative_length_is_refused():
    with pytest.raises(ValueError, match="history length -1 is negative"):
        two_requests().newest(-1)


def test_expanding_copies_the_history_for_each_target():
    batch = two_requests()
    twice = RequestBatch(**{**vars(batch), "target_offsets": torch.tensor([0, 2, 3])}).expand()
    assert twice.history["item_id"].tolist() == [1, 2, 3, 1, 2, 3]
    assert twice.history_offsets.tolist() == [0, 3, 6, 6]
    assert twice.target_offsets.tolist() == [0, 1, 2, 3]
    assert twice.request_id.tolist() == [7, 7, 8]
    assert twice.requests["tab"].tolist() == [4, 4, 5]
    assert twice.labels is batch.labels


def test_moving_moves_every_tensor():
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


def test_pinning_pins_every_tensor(monkeypatch):
    pinned = []
    monkeypatch.setattr(torch.Tensor, "pin_memory", lambda tensor: pinned.append(tensor) or tensor)
    two_requests().pin_memory()
    assert len(pinned) == 10


@given(st.lists(st.tuples(st.integers(0, 50), st.integers(0, 5)), max_size=9))
def test_ragged_indices_are_the_slices_one_after_another(slices):
    starts = torch.tensor([start for start, _ in slices], dtype=torch.int64)
    lengths = torch.tensor([length for _, length in slices], dtype=torch.int64)
    wanted = [start + i for start, length in slices for i in range(length)]
    assert ragged_index(starts, lengths).tolist() == wanted
