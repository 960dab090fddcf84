from __future__ import annotations

import torch

from longbatch.loaders.shared_memory import ReusedMemory


def test_memory_is_used_again_only_when_nothing_refers_to_it():
    pool = ReusedMemory()
    first = torch.from_numpy(pool.take(10_000))
    address = first.data_ptr()
    view = first[100:200].view(torch.int32)
    del first
    second = torch.from_numpy(pool.take(10_000))
    assert second.data_ptr() != address, "a view still refers to it"
    del view
    third = torch.from_numpy(pool.take(9_999))
    assert third.data_ptr() == address
    assert torch.from_numpy(pool.take(10_000)).data_ptr() not in (address, second.data_ptr())


def test_larger_batches_get_memory_of_their_own():
    pool = ReusedMemory()
    address = torch.from_numpy(pool.take(10)).data_ptr()
    assert len(pool.take(100_000)) >= 100_000
    assert torch.from_numpy(pool.take(10)).data_ptr() == address
