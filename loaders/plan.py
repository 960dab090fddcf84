"""Which requests form which batch, as a pure function of numbers: no disk, no torch, no state.

Policy. Every request has a *cost*: 1 where a batch is a number of requests, or 1 + its history events where a batch has
a budget of tokens. Blocks are put in an order that is permuted per epoch, and the costs of their requests are added up
in that order: this is the *cost axis*. It is split every `quota` into batches (only the very last may be short), and a
request belongs to the batch in which its cost ends:

    block order     block 4        | block 0   | block 7 ...
    request costs   3   2   4      | 1   5     | 2 ...
    cumulative      3   5   9        10  15      17
    quota = 6       batch 0: 3, 5  | batch 1: 9, 10 | batch 2: 15, 17 ...

The batches are split into C contiguous *streams*: batch number n is the (n div C)-th batch of stream n mod C.
`schedule` deals the batch numbers to ranks and workers. Where ranks * workers divides C, a worker reads only its own
streams, so no block is read twice except those across the end of a stream.

Shuffling permutes the blocks, then the requests (or runs of `Shuffle.run` neighbors) within each *window* of
`window_blocks` blocks of a stream, so a batch mixes the users of that many blocks.

Cost. A plan is three arrays of one number per block: a billion requests take 6 MB and 15 ms. A batch is located by
binary search, without the batches before it. A reader keeps one window open per stream that it serves: this is the
price of shuffling, and the bound on memory. With a budget of tokens, the boundaries of the batches follow from the
total costs of the blocks, and the costs of single requests are read only for the windows that a batch touches.
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

from .rng import Purpose, generator, shuffled_runs

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
        run: Neighbors that stay together, mostly requests of one user.

    Raises:
        ValueError: A size is below 1, or seed or epoch is negative.
    """

    seed: int = 0
    epoch: int = 0
    streams: int = 16
    window_blocks: int = 8
    run: int = 1

    def __post_init__(self) -> None:
        for name, value in (
            ("streams", self.streams),
            ("window_blocks", self.window_blocks),
            ("shuffle_run", self.run),
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
        block_costs: Cost of the requests before each block in that order, and of all, (B + 1,).
        quota: Cost of a batch.
        streams: C, the number of streams.
        shuffle: How requests are shuffled; None keeps the order of the dataset.
        drop_last: Whether a last batch below the quota is dropped.
    """

    block_order: Int64Array
    block_starts: Int64Array
    block_costs: Int64Array
    quota: int
    streams: int
    shuffle: Shuffle | None
    drop_last: bool

    @property
    def num_batches(self) -> int:
        """N, the number of batches of the epoch over all ranks; only the last may cost less than the quota."""
        total = int(self.block_costs[-1])
        # Ceiling division in integers, -(-a // b): a float division would round totals above 2 ** 53.
        return total // self.quota if self.drop_last else -(-total // self.quota)

    def batches_before(self, stream: int) -> int:
        """Count the batches of the streams before this one; the first N mod C streams have one batch more."""
        # Batch n is batch n div C of stream n mod C. Only if the longer streams come first does every n below N exist.
        each, remainder = divmod(self.num_batches, self.streams)
        return stream * each + min(stream, remainder)

    def batch_costs(self, batch: int) -> tuple[int, int]:
        """Return the range [first, end) on the cost axis of a batch.

        Args:
            batch: Number of the batch.

        Returns:
            First cost and end of the range.

        Example:
            5 batches in 2 streams with quota=10: stream 0 covers costs [0, 30), stream 1 covers [30, 50).
            Batches 0, 2, 4 are of stream 0:      [0, 10), [10, 20), [20, 30).
            Batches 1, 3 are of stream 1:         [30, 40), [40, 50).
        """
        # Streams are contiguous, so a batch has a position on the cost axis that follows from counts alone.
        position = self.batches_before(batch % self.streams) + batch // self.streams
        return position * self.quota, min((position + 1) * self.quota, int(self.block_costs[-1]))

    def stream_costs(self, stream: int) -> tuple[int, int]:
        """Return the range [first, end) on the cost axis of a stream."""
        first, end = self.batches_before(stream) * self.quota, self.batches_before(stream + 1) * self.quota
        return first, min(end, int(self.block_costs[-1]))


class BatchLocator:
    """Finds the requests of a plan's batches.

    A *position* is the index of a request in the reading order of the blocks, before requests are shuffled within a
    window.

    Args:
        plan: The plan of the epoch.
        costs: Returns the costs of a block's requests; None where every request costs 1.
    """

    def __init__(self, plan: Plan, costs: RequestCosts | None = None) -> None:
        self.plan, self._costs = plan, costs
        # Batches of a window follow each other within a stream, and streams take turns: two entries per stream always
        # hit. They bound the memory of permutations to two windows per stream. Edges are small, and kept for the epoch.
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

    def live_blocks(self, batch: int) -> Int64Array:
        """Return the blocks that the next batches of the same stream may need.

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
            # A request across the beginning of a stream is the first of it. Shuffled, it ends at any cost, also below
            # `low`.
            low = -1
        windows = self._windows(stream, low, high)
        # Sorted, because the order within a batch is free: each block is one run of rows, copied front to back.
        return np.sort(np.concatenate([self._select(window, low, high) for window in windows])), windows[-1]

    def _windows(self, stream: int, low: int, high: int) -> list[_Window]:
        """The windows of a stream that overlap the cost range [low, high)."""
        # Window edges at positions [0 10 20 30] and costs [0 40 90 130], low=50, high=100:
        # the second window (costs 40 to 90) and the third (costs 90 to 130) overlap, so the
        # result is [(10, 20, 40), (20, 30, 90)].
        positions, costs = self._edges_of_stream(stream)
        # Binary search: the first window that ends after `low`, and the first one that begins at `high` or later.
        first, end = np.searchsorted(costs[1:], low, side="right"), np.searchsorted(costs[:-1], high, side="left")
        # A time range may exclude all blocks of a window; `_costs_between` cannot join the costs of zero blocks.
        edges = zip(positions[first : end + 1].tolist(), costs[first : end + 1].tolist(), strict=True)
        return [(start, stop, cost) for (start, cost), (stop, _) in pairwise(edges) if stop > start]

    def _window_edges(self, stream: int) -> tuple[Int64Array, Int64Array]:
        """Positions and costs, (windows + 1,) each, of the edges of a stream's windows, clipped to the stream."""
        # Blocks of 10 requests of cost 1, window_blocks=2, a stream from position 15 to 50:
        # window edges of the epoch are at positions [0 20 40 60 ...];
        # those of the stream are at [15 20 40 50], with equal costs.
        plan = self.plan
        window_blocks = plan.shuffle.window_blocks if plan.shuffle else WINDOW_BLOCKS_IN_ORDER
        begin, end = (self._first_request_after(cost) for cost in plan.stream_costs(stream))
        edges = np.append(np.arange(0, len(plan.block_order), window_blocks), len(plan.block_order))
        # Edges inside the stream are edges of blocks, so no window needs more than `window_blocks` blocks open.
        first = max(0, int(np.searchsorted(plan.block_starts[edges], begin[0], side="right")) - 1)
        last = int(np.searchsorted(plan.block_starts[edges], end[0], side="left"))
        blocks = edges[first : last + 1]
        # Positions and costs ascend together, so clipping them separately keeps each edge a pair.
        return np.clip(plan.block_starts[blocks], begin[0], end[0]), np.clip(plan.block_costs[blocks], begin[1], end[1])

    def _first_request_after(self, cost: int) -> tuple[int, int]:
        """Position of the first request whose cost ends after `cost`, and the cost of all requests before it."""
        # Request costs [3 2 4 1], ending at 3, 5, 9, 10:
        # for cost=5 the third request (2, 5), for cost=6 too, because its cost ends at 9;
        # for cost=10 or more (4, 10), the end of the epoch.
        plan = self.plan
        if cost >= plan.block_costs[-1]:
            return int(plan.block_starts[-1]), int(plan.block_costs[-1])
        if self._costs is None:
            return cost, cost
        # Binary search in the prefix sums of the blocks, then in those of one block: only its costs are read.
        block = int(np.searchsorted(plan.block_costs, cost, side="right")) - 1
        edges = plan.block_costs[block] + np.append(0, np.cumsum(self._costs(int(plan.block_order[block]))))
        row = int(np.searchsorted(edges[1:], cost, side="right"))
        return int(plan.block_starts[block]) + row, int(edges[row])

    def _select(self, window: _Window, low: int, high: int) -> Int64Array:
        """The positions of a window whose costs, added up in the window's order, end in (low, high]."""
        order, ends = self._order_of_window(window)
        # The range is open below: a request that ends exactly at `low` is the last one of the batch before.
        return order[np.searchsorted(ends, low, side="right") : np.searchsorted(ends, high, side="right")]

    def _window_order(self, window: _Window) -> tuple[Int64Array, Int64Array]:
        """A window's positions in the order they are read, and where on the cost axis each ends."""
        # Window (10, 14, 40) of requests of costs [3 2 4 1], shuffled to rows [2 0 3 1]:
        # positions [12 10 13 11], costs in that order [4 3 1 2], ends [44 47 48 50].
        plan, (first, end, cost_before) = self.plan, window
        size = end - first
        rows = np.arange(size)
        if plan.shuffle is not None:
            # The first position identifies a window, so every process draws its permutation without the others'.
            key = plan.shuffle.seed, plan.shuffle.epoch, Purpose.WINDOW_ORDER, first
            rows = shuffled_runs(size, plan.shuffle.run, *key)
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
    quota: int,
    block_costs: Int64Array | None = None,
    shuffle: Shuffle | None = None,
    drop_last: bool = False,
) -> Plan:
    """Plan an epoch over blocks of requests.

    The number of streams is `shuffle.streams`, but never so high that a stream has less than one window of blocks:
    small datasets stay well mixed. Without shuffling there is one stream, so that batches follow the order of the
    dataset. No batch is empty if no request costs more than `quota`.

    Args:
        block_requests: Number of requests of each block, (B,).
        quota: Cost of a batch.
        block_costs: Total cost of the requests of each block, (B,); None where every request costs 1.
        shuffle: How to shuffle; None keeps the order of the dataset.
        drop_last: Whether to drop a last batch below the quota.

    Returns:
        The plan.

    Raises:
        ValueError: `quota` is below 1.

    Example:
        >>> plan = make_plan(np.array([2, 0, 3]), quota=2)
        >>> plan.num_batches
        3
        >>> blocks, rows = BatchLocator(plan).rows(1)
        >>> blocks.tolist(), rows.tolist()
        ([2, 2], [0, 1])
    """
    if quota < 1:
        raise ValueError(f"quota is {quota}; give 1 or more")
    blocks, order, streams = len(block_requests), np.arange(len(block_requests), dtype=np.int64), 1
    if shuffle is not None:
        order = generator(shuffle.seed, shuffle.epoch, Purpose.BLOCK_ORDER).permutation(blocks)
        # With more streams, each would have less than one window of blocks, and a batch would mix fewer users.
        streams = min(shuffle.streams, max(1, blocks // shuffle.window_blocks))
    starts = offsets_of(block_requests[order])
    costs = starts if block_costs is None else offsets_of(block_costs[order])
    return Plan(order, starts, costs, quota, streams, shuffle, drop_last)


def token_quota(max_tokens: int, longest: int) -> int:
    """Compute the quota of batches that never cost more than `max_tokens`.

    A request belongs to the batch in which its cost ends, so it may begin up to `longest` before the batch does; the
    quota is smaller by that much.

    Args:
        max_tokens: Budget of a batch: history events, and 1 for each request.
        longest: Length of the longest history, in events.

    Returns:
        The quota, at least longest + 1, so that no batch is empty.

    Raises:
        ValueError: The budget is so small that a batch could be empty.
    """
    # Every range of quota >= longest + 1 costs contains the end of a request, so each batch has at least one.
    if max_tokens < 2 * longest + 1:
        raise ValueError(
            f"max_tokens is {max_tokens:,}; a request costs up to {longest:,} events and 1 for itself, "
            f"so give at least {2 * longest + 1:,}, or a shorter history_length"
        )
    return max_tokens - longest
