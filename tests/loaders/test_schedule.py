from __future__ import annotations

import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from longbatch.loaders.schedule import RankAndWorker, num_steps, worker_batches


@given(st.integers(0, 40), st.integers(1, 5), st.integers(1, 4), st.booleans())
def test_ranks_and_workers_share_the_batches_exactly(
    batches: int, world_size: int, num_workers: int, drop_last: bool
) -> None:
    steps = num_steps(batches, world_size, drop_last)
    taken: dict[tuple[int, int], int | None] = {}
    for rank in range(world_size):
        workers = [
            list(
                worker_batches(
                    batches,
                    RankAndWorker(rank, world_size, worker, num_workers),
                    drop_last=drop_last,
                )
            )
            for worker in range(num_workers)
        ]
        in_turn = [n for turn in itertools.zip_longest(*workers, fillvalue=-1) for n in turn if n != -1]
        assert len(in_turn) == steps
        taken.update({(step, rank): batch for step, batch in enumerate(in_turn)})
    sequence = [taken[step, rank] for step in range(steps) for rank in range(world_size)]
    kept = batches // world_size * world_size if drop_last else batches
    assert [batch for batch in sequence if batch is not None] == list(range(kept))


def test_a_later_position_yields_the_rest_of_the_sequence() -> None:
    assert list(worker_batches(7, RankAndWorker(1, 2), yielded=2)) == [5, None]
    assert list(worker_batches(7, RankAndWorker(1, 2), first_batch=3)) == [4, 6]
    assert list(worker_batches(7, RankAndWorker(worker=1, num_workers=2), yielded=1)) == [3, 5]
    assert list(worker_batches(7, RankAndWorker(), first_batch=9)) == []


def test_a_rank_outside_the_world_is_an_error() -> None:
    with pytest.raises(ValueError, match="rank 2 of a world of 2"):
        RankAndWorker(2, 2)
