from __future__ import annotations

import itertools
import tracemalloc

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from longbatch.loaders.plan import BatchLocator, Plan, RequestCosts, Shuffle, make_plan, token_budget

blocks_of_requests = st.lists(st.integers(0, 9), min_size=0, max_size=12)


def all_rows(plan: Plan, costs: RequestCosts | None = None) -> list[list[tuple[int, int]]]:
    """The requests of each batch as (block, row)."""
    locator = BatchLocator(plan, costs)
    rows = [locator.rows(number) for number in range(plan.num_batches)]
    return [list(zip(blocks.tolist(), in_block.tolist(), strict=True)) for blocks, in_block in rows]


@settings(max_examples=80, deadline=None)
@given(
    blocks_of_requests,
    st.integers(1, 7),
    st.booleans(),
    st.integers(1, 5),
    st.integers(1, 4),
    st.integers(0, 3),
)
def test_every_request_is_in_exactly_one_batch(
    blocks: list[int], batch_size: int, shuffle: bool, streams: int, window_blocks: int, epoch: int
) -> None:
    plan = make_plan(
        np.array(blocks, dtype=np.int64),
        batch_budget=batch_size,
        shuffle=Shuffle(0, epoch, streams, window_blocks) if shuffle else None,
    )
    batches = all_rows(plan)
    expected = [(block, row) for block, size in enumerate(blocks) for row in range(size)]
    assert sorted(itertools.chain(*batches)) == expected
    assert sum(len(batch) != batch_size for batch in batches) <= 1
    for number, batch in enumerate(batches):
        last_block = plan.block_order.tolist().index(batch[-1][0])
        assert plan.block_order[last_block] in BatchLocator(plan).blocks_to_keep(number)


@settings(max_examples=200, deadline=None)
@given(st.data())
def test_a_budget_of_tokens_is_never_exceeded_and_no_batch_is_empty(data: st.DataObject) -> None:
    longest = data.draw(st.integers(0, 8))
    blocks = data.draw(st.lists(st.lists(st.integers(1, longest + 1), max_size=9), max_size=12))
    max_tokens = 2 * longest + 1 + data.draw(st.integers(0, 9))
    costs = [np.array(block, dtype=np.int64) for block in blocks]
    plan = make_plan(
        np.array([len(block) for block in blocks], dtype=np.int64),
        batch_budget=token_budget(max_tokens, longest),
        block_costs=np.array([sum(block) for block in blocks], dtype=np.int64),
        shuffle=data.draw(
            st.none()
            | st.builds(Shuffle, streams=st.integers(1, 5), window_blocks=st.integers(1, 4), group=st.integers(1, 3))
        ),
    )
    batches = all_rows(plan, costs.__getitem__)
    assert sorted(itertools.chain(*batches)) == [(b, r) for b, block in enumerate(blocks) for r in range(len(block))]
    assert all(0 < sum(blocks[b][r] for b, r in batch) <= max_tokens for batch in batches)


def test_batches_of_a_budget_have_nearly_equal_tokens() -> None:
    random = np.random.default_rng(0)
    costs = [random.integers(1, 1_001, 200) for _ in range(64)]
    totals = np.array([block.sum() for block in costs])
    plan = make_plan(np.full(64, 200), batch_budget=token_budget(64_000, 1_000), block_costs=totals, shuffle=Shuffle())
    sums = [sum(costs[b][r] for b, r in batch) for batch in all_rows(plan, costs.__getitem__)]
    assert 61_000 < sorted(sums)[1] <= max(sums) <= 64_000  # the last one may be short


def test_a_budget_below_two_histories_is_an_error() -> None:
    with pytest.raises(ValueError, match=r"max_tokens is 20,000; .* give at least 20,001, or a shorter"):
        token_budget(20_000, 10_000)


def test_groups_of_neighbors_stay_together() -> None:
    plan = make_plan(np.full(8, 40), batch_budget=40, shuffle=Shuffle(streams=1, group=8))
    for batch in all_rows(plan):
        groups = {(block, row // 8) for block, row in batch}
        assert len(groups) == 5
        assert len({block for block, _ in batch}) > 1


def test_a_billion_requests_are_planned_in_little_memory() -> None:
    tracemalloc.start()
    plan = make_plan(np.full(200_000, 5_000), batch_budget=64, shuffle=Shuffle())
    locator = BatchLocator(plan)
    assert [len(locator.positions(n)) for n in (0, 7_812_500, plan.num_batches - 1)] == [64, 64, 64]
    assert plan.num_batches == 15_625_000
    assert tracemalloc.get_traced_memory()[1] < 200e6
    tracemalloc.stop()


def test_without_shuffling_batches_follow_the_order_of_the_dataset() -> None:
    plan = make_plan(np.array([2, 0, 3]), batch_budget=2)
    assert all_rows(plan) == [[(0, 0), (0, 1)], [(2, 0), (2, 1)], [(2, 2)]]


def test_the_cumulative_cost_of_a_request_decides_its_batch() -> None:
    costs = [np.array([3, 2, 4]), np.array([1, 5]), np.array([2])]
    plan = make_plan(np.array([3, 2, 1]), batch_budget=6, block_costs=np.array([9, 6, 2]))
    assert all_rows(plan, costs.__getitem__) == [[(0, 0), (0, 1)], [(0, 2), (1, 0)], [(1, 1), (2, 0)]]
    assert [plan.batch_costs(batch) for batch in range(3)] == [(0, 6), (6, 12), (12, 17)]


def test_shuffled_requests_are_in_reading_order_within_a_batch() -> None:
    plan = make_plan(np.full(16, 10), batch_budget=20, shuffle=Shuffle(streams=2, window_blocks=4))
    rank = {block: index for index, block in enumerate(plan.block_order.tolist())}
    for batch in all_rows(plan):
        assert batch == sorted(batch, key=lambda request: (rank[request[0]], request[1]))


def test_dropping_the_last_batch_leaves_only_full_ones() -> None:
    plan = make_plan(np.array([2, 0, 3]), batch_budget=2, drop_last=True)
    assert all_rows(plan) == [[(0, 0), (0, 1)], [(2, 0), (2, 1)]]


def test_shuffling_mixes_only_the_blocks_of_one_window() -> None:
    plan = make_plan(np.full(64, 10), batch_budget=20, shuffle=Shuffle(streams=4, window_blocks=8))
    windows = plan.block_order.reshape(8, 8)
    for batch in range(plan.num_batches):
        blocks = set(BatchLocator(plan).rows(batch)[0].tolist())
        assert len(blocks) > 3
        assert any(blocks <= set(window.tolist()) for window in windows)
        assert blocks <= set(BatchLocator(plan).blocks_to_keep(batch).tolist())


def test_a_batch_number_belongs_to_the_stream_of_its_remainder() -> None:
    plan = make_plan(np.full(64, 10), batch_budget=20, shuffle=Shuffle(streams=4, window_blocks=8))
    for batch in range(plan.num_batches):
        low, high = plan.stream_costs(batch % 4)
        assert all(low < position + 1 <= high for position in BatchLocator(plan).positions(batch))


def test_the_order_depends_on_seed_and_epoch_only() -> None:
    def order(seed: int, epoch: int) -> list[list[tuple[int, int]]]:
        return all_rows(make_plan(np.full(9, 9), batch_budget=4, shuffle=Shuffle(seed, epoch)))

    assert order(0, 0) == order(0, 0)
    assert order(0, 0) != order(0, 1)
    assert order(0, 0) != order(1, 0)


@pytest.mark.parametrize(
    ("name", "field"), [("streams", "streams"), ("window_blocks", "window_blocks"), ("shuffle_run", "group")]
)
def test_sizes_below_one_are_errors(name: str, field: str) -> None:
    with pytest.raises(ValueError, match=f"{name} is 0"):
        Shuffle(**{field: 0})
    with pytest.raises(ValueError, match="the batch budget is 0"):
        make_plan(np.array([1]), batch_budget=0)


def test_a_negative_seed_is_an_error() -> None:
    with pytest.raises(ValueError, match="seed -1"):
        Shuffle(seed=-1)
