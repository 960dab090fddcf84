from __future__ import annotations

from itertools import pairwise

import pytest

from longbatch.loaders.rng import generator, shuffled_groups


def test_numbers_depend_only_on_their_key() -> None:
    assert generator(1, 2).integers(1 << 60) == generator(1, 2).integers(1 << 60)
    assert generator(1, 2).integers(1 << 60) != generator(2, 1).integers(1 << 60)


@pytest.mark.parametrize(("size", "group"), [(0, 3), (1, 1), (10, 1), (10, 3), (10, 20)])
def test_groups_stay_together_and_every_number_occurs_once(size: int, group: int) -> None:
    order = shuffled_groups(size, group, 7).tolist()
    assert sorted(order) == list(range(size))
    for before, after in pairwise(order):
        assert after == before + 1 or before % group == group - 1 or before == size - 1
