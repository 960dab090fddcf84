"""Batches of worker processes are right however long they are kept, and their memory is used again."""

from __future__ import annotations

import random

import torch
from torch.utils.data import DataLoader

from longbatch.loaders import RequestDataset, make_dataloader
from longbatch.loaders.buffer_pool import BufferPool, send_buffer, take_buffer


class Twice(RequestDataset):
    """Sends each batch three times, and once a tensor of it alone."""

    def __len__(self):
        return 4 * super().__len__()

    def __iter__(self):
        for batch in super().__iter__():
            yield batch
            yield batch
            yield batch.history["item_id"]
            yield batch


def contents(batches):
    return [[(f, n, t.tolist()) for f, n, t in b.tensors()] if hasattr(b, "tensors") else b.tolist() for b in batches]


def test_batches_kept_and_dropped_at_random_stay_as_they_were(random_dataset):
    dataset = RequestDataset(random_dataset, batch_size=2, shuffle=True)
    expected, loader = contents(dataset), make_dataloader(dataset, num_workers=2)
    draw = random.Random(0)
    for _ in range(3):
        dataset.set_epoch(0)
        kept = {}
        for number, batch in enumerate(loader):
            assert contents([batch]) == [expected[number]]
            if draw.random() < 0.3:
                kept[number] = batch.labels if draw.random() < 0.5 else batch
            if kept and draw.random() < 0.3:
                kept.pop(draw.choice(list(kept)))
            del batch
        for number, part in kept.items():
            whole = list(dataset)[number]
            if isinstance(part, dict):
                assert str(part) == str(whole.labels)
            else:
                assert contents([part]) == contents([whole])


def test_a_batch_sent_twice_or_in_parts_is_not_overwritten(random_dataset):
    dataset = Twice(random_dataset, batch_size=2)
    loader = make_dataloader(dataset, num_workers=1)
    expected = contents(iter(dataset))
    for _ in range(2):
        assert contents(list(loader)) == expected
        assert [contents([batch]) for batch in loader] == [[content] for content in expected]


def test_batches_that_are_let_go_share_few_pieces_of_memory(random_dataset):
    loader = make_dataloader(RequestDataset(random_dataset, batch_size=2), num_workers=1, prefetch_factor=2)
    places = set()
    for _ in range(2):
        for batch in loader:
            places.add(batch.request_id.untyped_storage().data_ptr())
            del batch
    assert len(places) <= 4


def test_memory_is_new_where_no_slot_is_free(random_dataset):
    dataset = RequestDataset(random_dataset, batch_size=2)
    loader = make_dataloader(dataset, num_workers=1, prefetch_factor=1)
    kept = list(loader)
    assert len({batch.request_id.untyped_storage().data_ptr() for batch in kept}) == len(kept) > 3
    assert contents(kept) == contents(dataset)


def test_a_slot_grows_with_the_batches_put_into_it(random_dataset):
    dataset = RequestDataset(random_dataset, batch_size=1)
    loader = make_dataloader(dataset, num_workers=1)
    for size, batch in zip((b.num_events for b in dataset), loader, strict=True):
        assert batch.num_events == size


def test_slots_are_lent_to_workers_only():
    pool = BufferPool(1, 2)
    assert take_buffer(100) is None
    assert send_buffer(torch.zeros(1).data_ptr()) is None
    del pool


def test_a_plain_dataloader_needs_no_slots(random_dataset):
    dataset = RequestDataset(random_dataset, batch_size=3)
    assert contents(list(DataLoader(dataset, batch_size=None, num_workers=2))) == contents(list(dataset))
