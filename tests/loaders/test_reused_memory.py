from __future__ import annotations

import sys

import pytest
import torch

from longbatch.loaders import reused_memory
from longbatch.loaders.reused_memory import ReusedMemory, rounded_up, unused_references


def test_memory_is_reused_only_when_nothing_refers_to_it() -> None:
    memory = ReusedMemory()
    first = torch.from_numpy(memory.take(10_000))
    address = first.data_ptr()
    view = first[100:200].view(torch.int32)
    del first
    second = torch.from_numpy(memory.take(10_000))
    assert second.data_ptr() != address, "a view still refers to it"
    del view
    third = torch.from_numpy(memory.take(9_999))
    assert third.data_ptr() == address
    assert torch.from_numpy(memory.take(10_000)).data_ptr() not in (address, second.data_ptr())


@pytest.mark.parametrize("difference", [-2, 1])  # the lambda itself adds 1
def test_an_interpreter_that_counts_other_references_changes_nothing(
    monkeypatch: pytest.MonkeyPatch, difference: int
) -> None:
    getrefcount = sys.getrefcount
    monkeypatch.setattr(sys, "getrefcount", lambda array: getrefcount(array) + difference)
    measured = unused_references()
    assert measured != reused_memory._UNUSED_REFERENCES
    monkeypatch.setattr(reused_memory, "_UNUSED_REFERENCES", measured)
    test_memory_is_reused_only_when_nothing_refers_to_it()


def test_larger_batches_get_memory_of_their_own() -> None:
    memory = ReusedMemory()
    address = torch.from_numpy(memory.take(10)).data_ptr()
    assert len(memory.take(100_000)) >= 100_000
    assert torch.from_numpy(memory.take(10)).data_ptr() == address


def test_sizes_are_rounded_up_by_at_most_an_eighth() -> None:
    assert rounded_up(1_000_000) == 1_048_576
    assert rounded_up(1) == 4_096
    for size in (40_000, 65_537, 999_999, 123_456_789):
        assert size <= rounded_up(size) <= size * 9 / 8
