"""Plans one epoch of an opened dataset: reads the costs or times that the plan needs, and no more."""

from __future__ import annotations

import logging
import time
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np
from torch.utils.data import get_worker_info

from longbatch.schemas.ragged import offsets_of
from longbatch.schemas.types import Int64Array

from .dataset_index import DatasetIndex, Shards
from .history_length import longest
from .plan import BatchLocator, Order, Plan, RequestCosts, Shuffle, make_plan, token_budget

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Batching:
    """The arguments that split requests into batches; a saved state is compared with them."""

    order: Order
    batch_size: int | None
    max_tokens: int | None
    drop_last: bool
    streams: int
    window_blocks: int
    shuffle_run: int


@dataclass(frozen=True)
class TimeOrder:
    """All requests inside the time range in the order of their times.

    Requests at equal times keep the order of the dataset.

    Args:
        rows: Index of each request among the selected ones in the order of the dataset, (N,).
        block_starts: Number of selected requests before each block, and of all, (B + 1,).
    """

    rows: Int64Array
    block_starts: Int64Array

    def rows_at(self, positions: Int64Array) -> tuple[Int64Array, Int64Array]:
        """Look up requests by their positions in the order of time.

        Args:
            positions: Positions, (n,).

        Returns:
            Block numbers and row numbers within the block, (n,) each.

        Example:
            Blocks of 2 and 3 requests at times [5 9] and [1 7 8]: rows is [2 0 3 4 1], block_starts is [0 2 5].
            The oldest two requests, positions [0 1], are rows [2 0] of the dataset:
            block numbers [1 0], row numbers within the block [0 0].
        """
        rows = self.rows[positions]
        # Binary search in the prefix sums of the blocks; side="right" skips blocks without selected requests.
        blocks = np.searchsorted(self.block_starts, rows, side="right") - 1
        return blocks, rows - self.block_starts[blocks]


@dataclass(frozen=True)
class EpochPlan:
    """The plan of an epoch, and what it takes to locate its batches.

    Args:
        plan: The plan.
        seed: Seed of the order and of drawn history lengths.
        epoch: Number of the epoch.
        costs: Returns the costs of a block's requests; None where every request costs 1.
        time_order: The order of the requests with order="time", else None.
    """

    plan: Plan
    seed: int
    epoch: int
    costs: RequestCosts | None
    time_order: TimeOrder | None

    def locator(self) -> BatchLocator:
        """Create what locates the batches of this plan."""
        return BatchLocator(self.plan, self.costs)


def plan_epoch(index: DatasetIndex, shards: Shards, batching: Batching, seed: int, epoch: int) -> EpochPlan:
    """Plan an epoch.

    Nothing is read for batches of a number of requests, nor for a budget of tokens if all requests are read at the
    built history length. Otherwise a budget reads one column of each block to add up costs, and order="time" reads one
    to sort.

    Args:
        index: The opened dataset.
        shards: Readers of the shards.
        batching: How requests are split into batches.
        seed: Seed of the order and of drawn history lengths.
        epoch: Number of the epoch.

    Returns:
        The plan.

    Raises:
        ValueError: A size is below 1, or the budget is too small for the history length.
    """
    started = time.perf_counter()
    shuffle = Shuffle(seed, epoch, batching.streams, batching.window_blocks, batching.shuffle_run)
    costs: RequestCosts | None = None
    batch_budget = batching.batch_size or 0  # 0 is refused by `make_plan`, with the value in the message
    if batching.max_tokens is not None:
        # Drawn history lengths change the costs, hence seed and epoch: each epoch has boundaries of its own.
        costs = partial(index.request_costs, shards, seed, epoch)
        batch_budget = token_budget(batching.max_tokens, longest(index.history_length))
    time_order = None
    if batching.order == "time":
        # All requests form one block of the plan, sorted by time; `time_order` leads back to the blocks of the dataset.
        time_order = _sort_by_time(index, shards)
        costs = None if costs is None else _costs_by_time(index, time_order, costs)
        block_requests, block_costs = np.array([len(time_order.rows)]), None if costs is None else _sums(costs, 1)
    else:
        block_requests, block_costs = index.selected_rows, None if costs is None else _block_costs(index, costs)
    plan = make_plan(
        block_requests,
        batch_budget=batch_budget,
        block_costs=block_costs,
        shuffle=shuffle if batching.order == "shuffled" else None,
        drop_last=batching.drop_last,
    )
    logger.log(
        logging.INFO if get_worker_info() is None else logging.DEBUG,  # once per epoch, not once per worker process
        "planned epoch %d: %d batches of %d requests in %d blocks, %.3f s",
        epoch,
        plan.num_batches,
        int(plan.block_starts[-1]),
        index.num_blocks,
        time.perf_counter() - started,
    )
    return EpochPlan(plan, seed, epoch, costs, time_order)


def _block_costs(index: DatasetIndex, costs: RequestCosts) -> Int64Array:
    """Total cost of each block, (B,): from the snapshot if it lists them."""
    # The snapshot's totals are those of whole blocks at the built length; anything else reads one column per block.
    return index.block_events + index.block_rows if index.lists_costs else _sums(costs, index.num_blocks)


def _sums(costs: RequestCosts, num_blocks: int) -> Int64Array:
    return np.array([costs(number).sum() for number in range(num_blocks)], dtype=np.int64)


def _sort_by_time(index: DatasetIndex, shards: Shards) -> TimeOrder:
    """Sort all selected requests; this takes 16 bytes per request while it sorts."""
    times = [index.request_times(shards, number) for number in range(index.num_blocks)]
    selected = [part[index.times.contains(part)] for part in times]
    # Stable, so that requests at equal times keep their order and the result does not depend on NumPy's version.
    rows = np.argsort(_concatenated(selected), kind="stable")
    return TimeOrder(rows, offsets_of(index.selected_rows))


def _costs_by_time(index: DatasetIndex, time_order: TimeOrder, costs: RequestCosts) -> RequestCosts:
    """The costs of all requests in the order of time, as those of a single block 0."""
    # Computed once: this order has no blocks that could be read one at a time. 8 bytes per request stay in memory.
    in_order = _concatenated([costs(number) for number in range(index.num_blocks)])[time_order.rows]
    return {0: in_order}.__getitem__


def _concatenated(parts: Sequence[Int64Array]) -> Int64Array:
    """Join arrays, also none at all."""
    # np.concatenate refuses an empty list; a dataset without requests has no blocks.
    return np.concatenate([np.zeros(0, dtype=np.int64), *parts])
