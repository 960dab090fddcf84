from __future__ import annotations

import pickle

import pytest

from longbatch.loaders.epoch_position import EpochPosition


def test_choosing_the_current_epoch_keeps_a_loaded_position() -> None:
    position = EpochPosition(2)
    position.set(2, 7)
    position.set_epoch(2)
    assert (position.epoch, position.first_batch) == (2, 7)
    position.set_epoch(3)
    assert (position.epoch, position.first_batch) == (3, 0)
    with pytest.raises(ValueError, match="epoch -1 is negative"):
        position.set_epoch(-1)


def test_the_next_epoch_begins_only_with_the_next_pass() -> None:
    position = EpochPosition(0)
    position.set(0, 4)
    position.end_pass()
    assert (position.epoch, position.first_batch) == (0, 4)
    position.begin_pass()
    assert (position.epoch, position.first_batch, position.epoch_ended) == (1, 0, False)


def test_choosing_an_epoch_after_its_end_repeats_it() -> None:
    position = EpochPosition(0)
    position.set(0, 4)
    position.end_pass()
    position.set_epoch(0)
    position.begin_pass()
    assert (position.epoch, position.first_batch) == (0, 0)


def test_a_pickled_position_is_shared_memory_of_its_own() -> None:
    position = EpochPosition(5)
    restored = pickle.loads(pickle.dumps(position))
    assert restored.epoch == 5
    assert restored._numbers.is_shared()
    restored.set(6, 1)
    assert position.epoch == 5
