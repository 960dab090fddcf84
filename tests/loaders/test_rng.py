from __future__ import annotations

from itertools import pairwise

import pytest

from longbatch.loaders.rng import generator, shuffled_runs


def test_numbers_depend_only_on_their_key() -> None:
    assert generator(1, 2).integers(1 << 60) == generator(1, 2).integers(1 << 60)
    assert generator(1, 2).integers(1 << 60) != generator(2, 1).integers(1 << 60)


@pytest.mark.parametrize(("size", "run"), [(0, 3), (1, 1), (10, 1), (10, 3), (10, 20)])
def test_runs_stay_together_and_every_number_occurs_once(size: int, run: int) -> None:
    order = shuffled_runs(size, run, 7).tolist()
    assert sorted(order) == list(range(size))
    for before, after in pairwise(order):
        assert after == before + 1 or before % run == run - 1 or before == size - 1
