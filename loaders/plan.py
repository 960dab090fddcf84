"""Which requests form which batch, as a pure function of numbers: no disk, no torch, no state.

Policy. Every request has a *cost*: 1 where a batch is a number of requests, or 1 + its history events where a batch is
a number of tokens. Blocks are read in an order that is permuted per epoch. The *cumulative cost* of a request is the
cost of all requests up to and including it, in reading order. It decides the batch: the i-th batch in reading order
contains the requests whose cumulative cost is in (i * batch_budget, (i + 1) * batch_budget]:

    block order          block 4        | block 0   | block 7 ...
    request costs        3   2   4      | 1   5     | 2 ...
    cumulative costs     3   5   9        10  15      17
    batch_budget = 6     batch 0: 3, 5  | batch 1: 9, 10 | batch 2: 15, 17 ...

All ranges of cumulative costs are open below and closed above, like this one.

The batches are split into C contiguous *streams*: batch number n is the (n div C)-th batch of stream n mod C.
`schedule` deals the batch numbers to ranks and workers. Where ranks * workers divides C, a worker reads only its own
streams, so no block is read twice except those across the end of a stream.

Shuffling permutes the blocks, then the requests within each *window* of `window_blocks` blocks of a stream, so a batch
mixes the users of that many blocks. `Shuffle.group` neighbors are permuted as one group. Shuffling decides which
requests are in a batch, not their order in it: they are in the order of the permuted blocks, and within a block in the
order of the dataset, so that each block is copied front to back.

Cost. A plan is three arrays of one number per block: a billion requests take 6 MB and 15 ms. A batch is located by
binary search, without the batches before it. A reader keeps one window open per stream that it serves: this is the
price of shuffling, and the bound on memory. With batches of a number of tokens, the boundaries of the batches follow
from the total costs of the blocks, and the costs of single requests are read only for the windows that a batch touches.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from itertools import pairwise
from typing import Literal

import numpy as np

from longbatch.schemas.ragged import offsets_of
from longbatch.schemas.types import Int64Array

from .rng import Purpose, generator, shuffled_groups

Order = Literal["shuffled", "time", "sequential"]
RequestCosts = Callable[[int], Int64Array]
"""Returns the costs of the requests of a block, given the number of the block."""

WINDOW_BLOCKS_IN_ORDER = 8
"""Blocks whose costs are read at a time where requests are not shuffled."""

_Window = tuple[int, int, int]  # position of its first request, position after its last, cost before the first


@dataclass(frozen=True)
class Shuffle:
    """How an epoch is shuffled.

    Args:
        seed: Seed of the order.
        epoch: Number of the epoch, which changes the order.
        streams: Largest number of streams that are read at the same time.
        window_blocks: Number of blocks whose requests are mixed.
        group: Number of neighboring requests that stay together, mostly of one user; the last of a window may be
            fewer.

    Raises:
        ValueError: A size is below 1, or seed or epoch is negative.
    """

    seed: int = 0
    epoch: int = 0
    streams: int = 16
    window_blocks: int = 8
    group: int = 1

    def __post_init__(self) -> None:
        for name, value in (
            ("streams", self.streams),
            ("window_blocks", self.window_blocks),
            ("shuffle_run", self.group),
        ):
            if value < 1:
                raise ValueError(f"{name} is {value}; give 1 or more")
        if self.seed < 0 or self.epoch < 0:
            raise ValueError(f"seed {self.seed}, epoch {self.epoch}: neither may be negative")


@dataclass(frozen=True)
class Plan:
    """The batches of one epoch over B blocks. With order="time", B is 1: all requests form one block.

    Args:
        block_order: Block numbers in reading order, (B,).
        block_starts: Number of requests before each block in that order, and of all, (B + 1,).
        block_cost_offsets: Cost of the requests before each block in that order, and of all, (B + 1,).
        batch_budget: Cost of a batch. If requests cost more than 1, the cost of a batch differs from it by less than
            the cost of one request, because the requests at its ends may be partly in the range of a neighbor. The last
            batch costs what remains.
        streams: C, the number of streams.
        shuffle: How requests are shuffled; None keeps the order of the dataset.
        drop_last: Whether the last batch is dropped if the total cost is not a multiple of the budget.
    """

    block_order: Int64Array
    block_starts: Int64Array
    block_cost_offsets: Int64Array
    batch_budget: int
    streams: int
    shuffle: Shuffle | None
    drop_last: bool

    @property
    def num_batches(self) -> int:
        """N, the number of batches of the epoch over all ranks."""
        total = int(self.block_cost_offsets[-1])
        # Ceiling division in integers, -(-a // b): a float division would round totals above 2 ** 53.
        return total // self.batch_budget if self.drop_last else -(-total // self.batch_budget)

    def batches_before(self, stream: int) -> int:
        """Count the batches of the streams before this one; the first N mod C streams have one batch more."""
        # Batch n is batch n div C of stream n mod C. Only if the longer streams come first does every n below N exist.
        each, remainder = divmod(self.num_batches, self.streams)
        return stream * each + min(stream, remainder)

    def batch_costs(self, batch: int) -> tuple[int, int]:
        """Return the range (low, high] of cumulative costs of a batch.

        Args:
            batch: Number of the batch.

        Returns:
            Low and high.

        Example:
            5 batches in 2 streams with batch_budget=10: stream 0 covers (0, 30], stream 1 covers (30, 50].
            Batches 0, 2, 4 are of stream 0:             (0, 10], (10, 20], (20, 30].
            Batches 1, 3 are of stream 1:                (30, 40], (40, 50].
        """
        # Streams are contiguous, so the index of a batch in reading order follows from counts alone.
        index = self.batches_before(batch % self.streams) + batch // self.streams
        high = min((index + 1) * self.batch_budget, int(self.block_cost_offsets[-1]))
        return index * self.batch_budget, high

    def stream_costs(self, stream: int) -> tuple[int, int]:
        """Return the range (low, high] of cumulative costs of a stream."""
        low, high = (self.batches_before(number) * self.batch_budget for number in (stream, stream + 1))
        return low, min(high, int(self.block_cost_offsets[-1]))


class BatchLocator:
    """Finds the requests of a plan's batches.

    A *position* is the index of a request in reading order, before requests are shuffled within a window.

    Args:
        plan: The plan of the epoch.
        costs: Returns the costs of a block's requests; None where every request costs 1.
    """

    def __init__(self, plan: Plan, costs: RequestCosts | None = None) -> None:
        self.plan, self._costs = plan, costs
        # Batches of a window follow each other within a stream, and streams take turns, so two entries per stream are
        # enough. They bound the memory of permutations to two windows per stream. Edges are small, and kept for the
        # epoch.
        self._edges_of_stream = lru_cache(maxsize=None)(self._window_edges)
        self._order_of_window = lru_cache(maxsize=2 * plan.streams)(self._window_order)
        self._located = lru_cache(maxsize=2 * plan.streams)(self._locate)

    def rows(self, batch: int) -> tuple[Int64Array, Int64Array]:
        """Return the requests of a batch as block and row numbers.

        Args:
            batch: Number of the batch.

        Returns:
            Block numbers and row numbers within the block, both (requests of the batch,). Rows of a block are adjacent
            and ascending.

        Example:
            block_order [4 0], block_starts [0 3 5], positions [1 2 4]:
            blocks [4 4 0], rows [1 2 1].
        """
        plan, positions = self.plan, self.positions(batch)
        # side="right" skips blocks without requests: they start at the same position as the block after them.
        index = np.searchsorted(plan.block_starts, positions, side="right") - 1
        return plan.block_order[index], positions - plan.block_starts[index]

    def positions(self, batch: int) -> Int64Array:
        """Return the positions of a batch's requests, ascending."""
        return self._located(batch)[0]

    def blocks_to_keep(self, batch: int) -> Int64Array:
        """Return the blocks to keep open after a batch, because the next batches of its stream may need them.

        Args:
            batch: Number of the batch that was read last.

        Returns:
            Numbers of the blocks of its last window, or, without shuffling, of the block of its last request.
        """
        # A stream reads its windows in order, so none of its later batches needs a block before its last window.
        plan = self.plan
        positions, (first, end, _) = self._located(batch)
        if plan.shuffle is None:
            first, end = int(positions[-1]), int(positions[-1]) + 1
        first_block = np.searchsorted(plan.block_starts, first, side="right") - 1
        return plan.block_order[first_block : np.searchsorted(plan.block_starts, end, side="left")]

    def _locate(self, batch: int) -> tuple[Int64Array, _Window]:
        """The positions of a batch, and the last window that they belong to."""
        stream = batch % self.plan.streams
        low, high = self.plan.batch_costs(batch)
        if low == self.plan.stream_costs(stream)[0]:
            # The first request of a stream may begin before the stream does. Once its window is shuffled, another
            # request is in its place and may end before the stream begins. It is part of the stream's first batch: no
            # cumulative cost is below 1.
            low = 0
        windows = self._windows(stream, low, high)
        # Back to reading order, so that the rows of a block are adjacent and ascending.
        return np.sort(np.concatenate([self._select(window, low, high) for window in windows])), windows[-1]

    def _windows(self, stream: int, low: int, high: int) -> list[_Window]:
        """The windows of a stream that overlap the range (low, high] of cumulative costs."""
        # Window edges at positions [0 10 20 30] and costs [0 40 90 130], low=50, high=100:
        # the second window with cumulative costs (40, 90] and the third with (90, 130] overlap, so the
        # result is [(10, 20, 40), (20, 30, 90)].
        positions, costs = self._edges_of_stream(stream)
        # Binary search: the first window that ends after `low`, and the first one that begins at `high` or later.
        first, end = np.searchsorted(costs[1:], low, side="right"), np.searchsorted(costs[:-1], high, side="left")
        # A time range may exclude all blocks of a window; `_costs_between` cannot join the costs of zero blocks.
        edges = zip(positions[first : end + 1].tolist(), costs[first : end + 1].tolist(), strict=True)
        return [(start, stop, cost) for (start, cost), (stop, _) in pairwise(edges) if stop > start]

    def _window_edges(self, stream: int) -> tuple[Int64Array, Int64Array]:
        """Position and cumulative cost of the edges of a stream's windows, (windows + 1,) each, clipped to the stream.

        An edge is described by the number of requests before it, and by their cost.
        """
        # Blocks of 10 requests of cost 1, window_blocks=2, a stream from position 15 to 50:
        # window edges of the epoch are at positions [0 20 40 60 ...];
        # those of the stream are at [15 20 40 50], with equal costs.
        plan = self.plan
        window_blocks = plan.shuffle.window_blocks if plan.shuffle else WINDOW_BLOCKS_IN_ORDER
        begin, end = (self._first_request_after(cost) for cost in plan.stream_costs(stream))
        edges = np.append(np.arange(0, len(plan.block_order), window_blocks), len(plan.block_order))
        # Windows are counted from the beginning of the epoch, not of the stream: their edges are edges of blocks, so no
        # window needs more than `window_blocks` blocks open.
        first = max(0, int(np.searchsorted(plan.block_starts[edges], begin[0], side="right")) - 1)
        last = int(np.searchsorted(plan.block_starts[edges], end[0], side="left"))
        blocks = edges[first : last + 1]
        # Positions and costs ascend together, so clipping them separately keeps each edge a pair.
        costs = plan.block_cost_offsets[blocks]
        return np.clip(plan.block_starts[blocks], begin[0], end[0]), np.clip(costs, begin[1], end[1])

    def _first_request_after(self, cost: int) -> tuple[int, int]:
        """Position of the first request whose cumulative cost is above `cost`, and the cost of all before it."""
        # Request costs [3 2 4 1], cumulative [3 5 9 10]:
        # for cost=5 the third request (2, 5), for cost=6 too, because its cumulative cost is 9;
        # for cost=10 or more (4, 10), the end of the epoch.
        plan = self.plan
        if cost >= plan.block_cost_offsets[-1]:
            return int(plan.block_starts[-1]), int(plan.block_cost_offsets[-1])
        if self._costs is None:
            return cost, cost
        # Binary search in the prefix sums of the blocks, then in those of one block: only its costs are read.
        block = int(np.searchsorted(plan.block_cost_offsets, cost, side="right")) - 1
        edges = plan.block_cost_offsets[block] + np.append(0, np.cumsum(self._costs(int(plan.block_order[block]))))
        row = int(np.searchsorted(edges[1:], cost, side="right"))
        return int(plan.block_starts[block]) + row, int(edges[row])

    def _select(self, window: _Window, low: int, high: int) -> Int64Array:
        """The positions of a window whose cumulative costs, after shuffling, are in (low, high]."""
        order, cumulative = self._order_of_window(window)
        # side="right" for both ends: what is equal to `low` is part of the batch before, what is equal to `high` of
        # this one.
        return order[np.searchsorted(cumulative, low, side="right") : np.searchsorted(cumulative, high, side="right")]

    def _window_order(self, window: _Window) -> tuple[Int64Array, Int64Array]:
        """A window's positions after shuffling, and their cumulative costs in that order."""
        # Window (10, 14, 40) of requests of costs [3 2 4 1], shuffled to rows [2 0 3 1]:
        # positions [12 10 13 11], costs in that order [4 3 1 2], cumulative [44 47 48 50].
        plan, (first, end, cost_before) = self.plan, window
        size = end - first
        rows = np.arange(size)
        if plan.shuffle is not None:
            # The first position identifies a window, so every process draws its permutation without the others'.
            key = plan.shuffle.seed, plan.shuffle.epoch, Purpose.WINDOW_ORDER, first
            rows = shuffled_groups(size, plan.shuffle.group, *key)
        if self._costs is None:
            return first + rows, cost_before + 1 + np.arange(size)
        return first + rows, cost_before + np.cumsum(self._costs_between(first, end, self._costs)[rows])

    def _costs_between(self, first: int, end: int, costs: RequestCosts) -> Int64Array:
        """Costs (end - first,) of the requests at these positions."""
        # A window that was clipped to its stream begins or ends within a block: join whole blocks, then slice.
        starts = self.plan.block_starts
        first_block = int(np.searchsorted(starts, first, side="right")) - 1
        end_block = int(np.searchsorted(starts, end, side="left"))
        joined = np.concatenate([costs(int(block)) for block in self.plan.block_order[first_block:end_block]])
        return joined[first - starts[first_block] : end - starts[first_block]]


def make_plan(
    block_requests: Int64Array,
    *,
    batch_budget: int,
    block_costs: Int64Array | None = None,
    shuffle: Shuffle | None = None,
    drop_last: bool = False,
) -> Plan:
    """Plan an epoch over blocks of requests.

    The number of streams is `shuffle.streams`, but never so high that a stream has less than one window of blocks:
    small datasets stay well mixed. Without shuffling there is one stream, so that batches follow the order of the
    dataset. No batch is empty if no request costs more than `batch_budget`.

    Args:
        block_requests: Number of requests of each block, (B,).
        batch_budget: Cost of a batch, see `Plan`.
        block_costs: Total cost of the requests of each block, (B,); None where every request costs 1.
        shuffle: How to shuffle; None keeps the order of the dataset.
        drop_last: Whether to drop the last batch if the total cost is not a multiple of the budget.

    Returns:
        The plan.

    Raises:
        ValueError: `batch_budget` is below 1.

    Example:
        >>> plan = make_plan(np.array([2, 0, 3]), batch_budget=2)
        >>> plan.num_batches
        3
        >>> blocks, rows = BatchLocator(plan).rows(1)
        >>> blocks.tolist(), rows.tolist()
        ([2, 2], [0, 1])
    """
    if batch_budget < 1:
        raise ValueError(f"the batch budget is {batch_budget}; give 1 or more")
    blocks, order, streams = len(block_requests), np.arange(len(block_requests), dtype=np.int64), 1
    if shuffle is not None:
        order = generator(shuffle.seed, shuffle.epoch, Purpose.BLOCK_ORDER).permutation(blocks)
        # With more streams, each would have less than one window of blocks, and a batch would mix fewer users.
        streams = min(shuffle.streams, max(1, blocks // shuffle.window_blocks))
    starts = offsets_of(block_requests[order])
    cost_offsets = starts if block_costs is None else offsets_of(block_costs[order])
    return Plan(order, starts, cost_offsets, batch_budget, streams, shuffle, drop_last)


def token_budget(max_tokens: int, longest: int) -> int:
    """Compute the budget of batches that never cost more than `max_tokens`.

    The first request of a batch may begin up to `longest` before the range of the batch does, so the budget is smaller
    than the limit by that much.

    Args:
        max_tokens: Limit of a batch: history events, and 1 for each request.
        longest: Length of the longest history, in events.

    Returns:
        The batch budget, at least longest + 1, so that no batch is empty.

    Raises:
        ValueError: The limit is so small that a batch could be empty.
    """
    # A range of longest + 1 or more costs contains the cumulative cost of a request, so each batch has at least one.
    if max_tokens < 2 * longest + 1:
        raise ValueError(
            f"max_tokens is {max_tokens:,}; a request costs up to {longest:,} events and 1 for itself, "
            f"so give at least {2 * longest + 1:,}, or a shorter history_length"
        )
    return max_tokens - longest
