"""Batches of worker processes are right however long they are kept, and their memory is reused."""

from __future__ import annotations

import random
import threading
from collections.abc import Iterable
from pathlib import Path
from typing import cast

import torch
from block_rows import exact_contents
from torch import Tensor
from torch.utils.data import DataLoader

from longbatch.loaders import RequestBatch, RequestDataset, make_dataloader
from longbatch.loaders.batch_iterator import BatchIterator
from longbatch.loaders.buffer_pool import BufferPool, send_buffer, take_buffer

Part = RequestBatch | Tensor | dict[str, Tensor]


class RepeatingDataset(RequestDataset):
    """Sends each batch three times, and once a tensor of it alone."""

    def __len__(self) -> int:
        return 4 * super().__len__()

    def __iter__(self) -> BatchIterator:
        def parts() -> Iterable[Part]:
            for batch in super(RepeatingDataset, self).__iter__():
                yield from (batch, batch, batch.history["item_id"], batch)

        return cast(BatchIterator, parts())


def contents(part: Part) -> object:
    if isinstance(part, RequestBatch):
        return exact_contents(part)
    if isinstance(part, dict):
        return {name: values.numpy().tobytes() for name, values in part.items()}
    return part.numpy().tobytes()


def test_batches_kept_or_dropped_at_random_do_not_change(random_dataset: Path) -> None:
    dataset = RequestDataset(random_dataset, batch_size=2, shuffle=True)
    expected = list(dataset)
    loader = make_dataloader(dataset, num_workers=2)
    draw = random.Random(0)
    for _ in range(3):
        dataset.set_epoch(0)
        kept: dict[int, Part] = {}
        for number, batch in enumerate(loader):
            assert contents(batch) == contents(expected[number])
            if draw.random() < 0.3:
                kept[number] = batch.labels if draw.random() < 0.5 else batch
            if kept and draw.random() < 0.3:
                kept.pop(draw.choice(list(kept)))
            del batch
        for number, part in kept.items():
            assert contents(part) == contents(expected[number].labels if isinstance(part, dict) else expected[number])


def test_a_batch_sent_twice_or_in_parts_is_not_overwritten(random_dataset: Path) -> None:
    dataset = RepeatingDataset(random_dataset, batch_size=2)
    loader = make_dataloader(dataset, num_workers=1)
    expected = [contents(part) for part in dataset]
    dataset.set_epoch(0)
    assert [contents(part) for part in list(loader)] == expected
    dataset.set_epoch(0)
    assert [contents(part) for part in loader] == expected


def test_dropped_batches_share_few_buffers(random_dataset: Path) -> None:
    loader = make_dataloader(RequestDataset(random_dataset, batch_size=2), num_workers=1, prefetch_factor=2)
    addresses = set()
    for _ in range(2):
        for batch in loader:
            addresses.add(batch.request_id.untyped_storage().data_ptr())
            del batch
    assert len(addresses) <= 4


def test_new_memory_is_used_if_no_buffer_is_free(random_dataset: Path) -> None:
    dataset = RequestDataset(random_dataset, batch_size=2)
    loader = make_dataloader(dataset, num_workers=1, prefetch_factor=1)
    kept = list(loader)
    assert len({batch.request_id.untyped_storage().data_ptr() for batch in kept}) == len(kept) > 3
    assert [contents(batch) for batch in kept] == [contents(batch) for batch in dataset]


def test_a_buffer_grows_with_the_batches_put_into_it(random_dataset: Path) -> None:
    dataset = RequestDataset(random_dataset, batch_size=1)
    loader = make_dataloader(dataset, num_workers=1)
    for size, batch in zip((b.num_events for b in dataset), loader, strict=True):
        assert batch.num_events == size


def test_buffers_are_lent_to_workers_only() -> None:
    pool = BufferPool(1, 2)
    assert take_buffer(100) is None
    assert send_buffer(torch.zeros(1).data_ptr()) is None
    del pool


def test_releases_of_one_buffer_by_several_threads_are_all_counted() -> None:
    pool = BufferPool(1, 1)

    def release() -> None:
        for _ in range(2_000):
            pool._release(0, 0)

    threads = [threading.Thread(target=release) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert pool._released.tolist() == [[8_000]]


def test_a_release_during_another_one_is_counted_without_waiting() -> None:
    pool = BufferPool(1, 2)
    with pool._release_lock:  # the garbage collector interrupts a release in the same thread
        pool._release(0, 1)
    pool._release(0, 0)
    assert pool._released.tolist() == [[1, 1]]


def test_a_plain_dataloader_works_without_buffers(random_dataset: Path) -> None:
    dataset = RequestDataset(random_dataset, batch_size=3)
    loader: DataLoader[RequestBatch] = DataLoader(dataset, batch_size=None, num_workers=2)
    assert [contents(batch) for batch in loader] == [contents(batch) for batch in dataset]
