from __future__ import annotations

import itertools
import time
import tracemalloc

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from longbatch.loaders.history_length import StochasticLength
from longbatch.loaders.plan import BatchLocator, Shuffle, make_plan, token_quota
from longbatch.loaders.schedule import Topology, num_steps, worker_batches

blocks_of_requests = st.lists(st.integers(0, 9), min_size=0, max_size=12)


def all_rows(plan, costs=None):
    find = BatchLocator(plan, costs)
    return [list(zip(*map(np.ndarray.tolist, find.rows(n)), strict=True)) for n in range(plan.num_batches)]


@settings(max_examples=80, deadline=None)
@given(
    blocks_of_requests,
    st.integers(1, 7),
    st.booleans(),
    st.integers(1, 5),
    st.integers(1, 4),
    st.integers(0, 3),
)
def test_every_request_is_in_exactly_one_batch(blocks, batch_size, shuffle, streams, window_blocks, epoch):
    plan = make_plan(
        np.array(blocks, dtype=np.int64),
        quota=batch_size,
        shuffle=Shuffle(0, epoch, streams, window_blocks) if shuffle else None,
    )
    batches = all_rows(plan)
    wanted = [(block, row) for block, size in enumerate(blocks) for row in range(size)]
    assert sorted(itertools.chain(*batches)) == wanted
    assert sum(len(batch) != batch_size for batch in batches) <= 1
    for number, batch in enumerate(batches):
        last_block = plan.block_order.tolist().index(batch[-1][0])
        assert plan.block_order[last_block] in BatchLocator(plan).live_blocks(number)


@settings(max_examples=200, deadline=None)
@given(st.data())
def test_a_budget_of_tokens_is_never_exceeded_and_no_batch_is_empty(data):
    longest = data.draw(st.integers(0, 8))
    blocks = data.draw(st.lists(st.lists(st.integers(1, longest + 1), max_size=9), max_size=12))
    max_tokens = 2 * longest + 1 + data.draw(st.integers(0, 9))
    costs = [np.array(block, dtype=np.int64) for block in blocks]
    plan = make_plan(
        np.array([len(block) for block in blocks], dtype=np.int64),
        quota=token_quota(max_tokens, longest),
        block_costs=np.array([sum(block) for block in blocks], dtype=np.int64),
        shuffle=data.draw(
            st.none()
            | st.builds(Shuffle, streams=st.integers(1, 5), window_blocks=st.integers(1, 4), run=st.integers(1, 3))
        ),
    )
    batches = all_rows(plan, costs.__getitem__)
    assert sorted(itertools.chain(*batches)) == [(b, r) for b, block in enumerate(blocks) for r in range(len(block))]
    assert all(0 < sum(blocks[b][r] for b, r in batch) <= max_tokens for batch in batches)


def test_batches_of_a_budget_have_nearly_equal_tokens():
    random = np.random.default_rng(0)
    costs = [random.integers(1, 1_001, 200) for _ in range(64)]
    totals = np.array([block.sum() for block in costs])
    plan = make_plan(np.full(64, 200), quota=token_quota(64_000, 1_000), block_costs=totals, shuffle=Shuffle())
    sums = [sum(costs[b][r] for b, r in batch) for batch in all_rows(plan, costs.__getitem__)]
    assert 61_000 < sorted(sums)[1] <= max(sums) <= 64_000  # the last one may be short


def test_a_budget_below_two_histories_is_refused():
    with pytest.raises(ValueError, match=r"max_tokens is 20,000; .* give at least 20,001, or a shorter"):
        token_quota(20_000, 10_000)


def test_runs_of_neighbours_stay_together():
    plan = make_plan(np.full(8, 40), quota=40, shuffle=Shuffle(streams=1, run=8))
    for batch in all_rows(plan):
        runs = {(block, row // 8) for block, row in batch}
        assert len(runs) == 5
        assert len({block for block, _ in batch}) > 1


def test_a_billion_requests_are_planned_in_little_time_and_memory():
    tracemalloc.start()
    started = time.monotonic()
    plan = make_plan(np.full(200_000, 5_000), quota=64, shuffle=Shuffle())
    find = BatchLocator(plan)
    assert [len(find.positions(n)) for n in (0, 7_812_500, plan.num_batches - 1)] == [64, 64, 64]
    assert plan.num_batches == 15_625_000
    assert time.monotonic() - started < 2
    assert tracemalloc.get_traced_memory()[1] < 200e6
    tracemalloc.stop()


def test_without_shuffling_batches_follow_the_order_of_the_dataset():
    plan = make_plan(np.array([2, 0, 3]), quota=2)
    assert all_rows(plan) == [[(0, 0), (0, 1)], [(2, 0), (2, 1)], [(2, 2)]]


def test_dropping_the_last_batch_leaves_only_full_ones():
    plan = make_plan(np.array([2, 0, 3]), quota=2, drop_last=True)
    assert all_rows(plan) == [[(0, 0), (0, 1)], [(2, 0), (2, 1)]]


def test_shuffling_mixes_the_blocks_of_a_window_and_no_others():
    plan = make_plan(np.full(64, 10), quota=20, shuffle=Shuffle(streams=4, window_blocks=8))
    windows = plan.block_order.reshape(8, 8)
    for batch in range(plan.num_batches):
        blocks = set(BatchLocator(plan).rows(batch)[0].tolist())
        assert len(blocks) > 3
        assert any(blocks <= set(window.tolist()) for window in windows)
        assert blocks <= set(BatchLocator(plan).live_blocks(batch).tolist())


def test_a_batch_number_belongs_to_the_stream_of_its_remainder():
    plan = make_plan(np.full(64, 10), quota=20, shuffle=Shuffle(streams=4, window_blocks=8))
    for batch in range(plan.num_batches):
        first, end = plan.stream_costs(batch % 4)
        assert all(first <= position < end for position in BatchLocator(plan).positions(batch))


def test_seeds_and_epochs_differ_and_the_same_key_agrees():
    def order(seed, epoch):
        return all_rows(make_plan(np.full(9, 9), quota=4, shuffle=Shuffle(seed, epoch)))

    assert order(0, 0) == order(0, 0)
    assert order(0, 0) != order(0, 1)
    assert order(0, 0) != order(1, 0)


@given(st.integers(0, 40), st.integers(1, 5), st.integers(1, 4), st.booleans())
def test_ranks_and_workers_share_the_batches_exactly(batches, world_size, num_workers, drop_last):
    steps = num_steps(batches, world_size, drop_last)
    taken = {}
    for rank in range(world_size):
        workers = [
            list(
                worker_batches(
                    batches,
                    Topology(rank, world_size, worker, num_workers),
                    drop_last=drop_last,
                )
            )
            for worker in range(num_workers)
        ]
        in_turn = [n for group in itertools.zip_longest(*workers, fillvalue=-1) for n in group if n != -1]
        assert len(in_turn) == steps
        taken.update({(step, rank): batch for step, batch in enumerate(in_turn)})
    sequence = [taken[step, rank] for step in range(steps) for rank in range(world_size)]
    kept = batches // world_size * world_size if drop_last else batches
    assert [batch for batch in sequence if batch is not None] == list(range(kept))


def test_a_later_first_step_yields_the_suffix():
    assert list(worker_batches(7, Topology(1, 2), yielded=2)) == [5, None]
    assert list(worker_batches(7, Topology(1, 2), first_batch=3)) == [4, 6]
    assert list(worker_batches(7, Topology(worker=1, num_workers=2), yielded=1)) == [3, 5]
    assert list(worker_batches(7, Topology(), first_batch=9)) == []


def test_a_rank_outside_the_world_is_refused():
    with pytest.raises(ValueError, match="rank 2 of a world of 2"):
        Topology(2, 2)


@pytest.mark.parametrize(
    ("name", "field"), [("streams", "streams"), ("window_blocks", "window_blocks"), ("shuffle_run", "run")]
)
def test_sizes_below_one_are_refused(name, field):
    with pytest.raises(ValueError, match=f"{name} is 0"):
        Shuffle(**{field: 0})
    with pytest.raises(ValueError, match="quota is 0"):
        make_plan(np.array([1]), quota=0)


def test_negative_seeds_are_refused():
    with pytest.raises(ValueError, match="seed -1"):
        Shuffle(seed=-1)


def test_sampled_lengths_are_u_shaped_multiples_of_8_that_depend_on_the_epoch():
    sampler = StochasticLength(100, 2000, alpha=0.3, beta=0.6)
    lengths = sampler.lengths(0, 0, 5, 20_000)
    assert (lengths % 8 == 0).all()
    assert (lengths.min(), lengths.max()) == (104, 2000)
    histogram = np.histogram(lengths, bins=10)[0]
    assert histogram[0] > histogram[1:9].max() < histogram[9]
    assert abs(lengths.mean() - (100 + 1900 / 3)) < 20
    assert (lengths == sampler.lengths(0, 0, 5, 20_000)).all()
    assert (lengths != sampler.lengths(0, 1, 5, 20_000)).any()
    assert (lengths != sampler.lengths(0, 0, 6, 20_000)).any()


def test_length_ranges_that_cannot_be_sampled_are_refused():
    with pytest.raises(ValueError, match="give 0 <= minimum <= maximum"):
        StochasticLength(9, 8)
    with pytest.raises(ValueError, match="there is no multiple of 8 from 9 to 15"):
        StochasticLength(9, 15)
    with pytest.raises(ValueError, match="a U shape needs both between 0 and 1"):
        StochasticLength(8, 16, alpha=1.5)
