"""Which requests form which batch, as a pure function of numbers: no disk, no torch, no state.

Policy. Every request has a *cost*: 1 where batches hold a number of requests, 1 + its history events where they
hold a budget of tokens. The blocks, in an order permuted per epoch, form one long row of requests, and so of costs. The
row of costs is cut every `quota` into batches (only the very last may be short), and a request belongs to the batch in which its
cost ends. The batches are cut into C contiguous *streams*: batch number n is the (n div C)-th batch of stream n mod C; the
r-th rank of W takes n = first_batch + step * W + r; the workers of a rank take its steps in turn. So the sequence
of batches depends on neither W nor the number of workers, any batch is computable without those before it, and where
W * workers divides C a worker reads only its own streams: no block is read twice, but for those across the end of a stream.

Shuffling permutes the blocks, then the requests (or runs of `shuffle_run` neighbours) inside each window of `window_blocks`
blocks of a stream, so a batch mixes the users of that many blocks. A reader holds one window per stream it serves: that is
the price of shuffling, and the bound on memory.

Where all costs are 1, everything follows from the blocks' numbers of requests. With a budget, the places of the batches
follow from the blocks' total costs, and a window's requests are told apart by their own costs, once the window is read.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import lru_cache
from itertools import pairwise
from typing import Literal

import numpy as np

from .rng import BLOCKS, WINDOW, Ints, generator, shuffled_runs

Order = Literal["shuffled", "time", "sequential"]
Costs = Callable[[int], Ints]
_Window = tuple[int, int, int]  # first and end position, cost before the first


@dataclass(frozen=True)
class Plan:
    """Where the batches of one epoch lie.

    block_order: (B,) block numbers in reading order.  block_starts, block_costs: (B + 1,) requests, and costs, before
    each block in that order.  quota: the cost of a batch.  Of the order by time, B is 1: all requests are one block.
    """

    block_order: Ints
    block_starts: Ints
    block_costs: Ints
    quota: int
    streams: int
    window_blocks: int
    shuffle_run: int
    shuffle: bool
    seed: int
    epoch: int
    drop_last: bool

    @property
    def num_batches(self) -> int:
        """N, the batches of the epoch over all ranks; only the last may cost less than the quota."""
        total = int(self.block_costs[-1])
        return total // self.quota if self.drop_last else -(-total // self.quota)

    def first_batch(self, stream: int) -> int:
        """Batches before the stream: the first N mod C streams have one more than the others."""
        each, more = divmod(self.num_batches, self.streams)
        return stream * each + min(stream, more)

    def span(self, batch: int) -> tuple[int, int]:
        """The costs [first, end) of batch number `batch`, as places in the row of costs."""
        place = self.first_batch(batch % self.streams) + batch // self.streams
        return place * self.quota, min((place + 1) * self.quota, int(self.block_costs[-1]))

    def stream_span(self, stream: int) -> tuple[int, int]:
        """The costs [first, end) of a stream."""
        first, end = self.first_batch(stream) * self.quota, self.first_batch(stream + 1) * self.quota
        return first, min(end, int(self.block_costs[-1]))


class Finder:
    """Finds the requests of a plan's batches. costs: block number -> (n,) costs of its requests; None where all are 1."""

    def __init__(self, plan: Plan, costs: Costs | None = None) -> None:
        self.plan, self._costs = plan, costs
        self._stream_windows = lru_cache(maxsize=None)(self._cut_windows)
        self._order = lru_cache(maxsize=2 * plan.streams)(self._ordered)
        self._found = lru_cache(maxsize=2 * plan.streams)(self._find)

    def rows(self, batch: int) -> tuple[Ints, Ints]:
        """Block numbers and row numbers within the block, both (requests of the batch,), rows of a block adjacent."""
        plan, positions = self.plan, self.positions(batch)
        place = np.searchsorted(plan.block_starts, positions, side="right") - 1
        return plan.block_order[place], positions - plan.block_starts[place]

    def positions(self, batch: int) -> Ints:
        """Positions, ascending, of the batch's requests in the row of all requests."""
        return self._found(batch)[0]

    def live_blocks(self, batch: int) -> Ints:
        """The blocks worth keeping open after `batch`: of its last window, or where nothing is shuffled its last block."""
        plan = self.plan
        positions, (first, stop, _) = self._found(batch)
        if not plan.shuffle:
            first, stop = int(positions[-1]), int(positions[-1]) + 1
        begin = np.searchsorted(plan.block_starts, first, side="right") - 1
        return plan.block_order[begin : np.searchsorted(plan.block_starts, stop, side="left")]

    def _find(self, batch: int) -> tuple[Ints, _Window]:
        """A batch's positions, and the last window that they are of."""
        stream = batch % self.plan.streams
        low, high = self.plan.span(batch)
        if low == self.plan.stream_span(stream)[0]:
            low = -1  # the first of a stream takes all that end early, once they are shuffled
        windows = self._windows(stream, low, high)
        return np.sort(np.concatenate([self._taken(window, low, high) for window in windows])), windows[-1]

    def _windows(self, stream: int, low: int, high: int) -> list[_Window]:
        """The windows of a stream in which costs of [low, high) end."""
        places, costs = self._stream_windows(stream)
        first, end = np.searchsorted(costs[1:], low, side="right"), np.searchsorted(costs[:-1], high, side="left")
        edges = zip(places[first : end + 1].tolist(), costs[first : end + 1].tolist(), strict=True)
        return [(a, b, cost) for (a, cost), (b, _) in pairwise(edges) if b > a]

    def _cut_windows(self, stream: int) -> tuple[Ints, Ints]:
        """Positions and costs, (windows + 1,) each, of the windows' edges, cut at the ends of the stream."""
        plan = self.plan
        begin, stop = (self._cut(cost) for cost in plan.stream_span(stream))
        edges = np.append(np.arange(0, len(plan.block_order), plan.window_blocks), len(plan.block_order))
        first = max(0, int(np.searchsorted(plan.block_starts[edges], begin[0], side="right")) - 1)
        last = int(np.searchsorted(plan.block_starts[edges], stop[0], side="left"))
        near = edges[first : last + 1]
        return np.clip(plan.block_starts[near], begin[0], stop[0]), np.clip(plan.block_costs[near], begin[1], stop[1])

    def _cut(self, cost: int) -> tuple[int, int]:
        """Position of the first request whose cost ends behind `cost`, and the costs before it."""
        plan = self.plan
        if cost >= plan.block_costs[-1]:
            return int(plan.block_starts[-1]), int(plan.block_costs[-1])
        if self._costs is None:
            return cost, cost
        place = int(np.searchsorted(plan.block_costs, cost, side="right")) - 1
        edges = plan.block_costs[place] + np.append(0, np.cumsum(self._costs(int(plan.block_order[place]))))
        before = int(np.searchsorted(edges[1:], cost, side="right"))
        return int(plan.block_starts[place]) + before, int(edges[before])

    def _taken(self, window: _Window, low: int, high: int) -> Ints:
        """The positions of a window whose costs, added up in the window's order, end in (low, high]."""
        order, ends = self._order(window)
        return order[np.searchsorted(ends, low, side="right") : np.searchsorted(ends, high, side="right")]

    def _ordered(self, window: _Window) -> tuple[Ints, Ints]:
        """A window's positions in the order they are read, and where the cost of each ends."""
        plan, (first, stop, before) = self.plan, window
        size = stop - first
        places = np.arange(size)
        if plan.shuffle:
            places = shuffled_runs(size, plan.shuffle_run, plan.seed, plan.epoch, WINDOW, first)
        if self._costs is None:
            return first + places, before + 1 + np.arange(size)
        return first + places, before + np.cumsum(self._costs_between(first, stop, self._costs)[places])

    def _costs_between(self, first: int, stop: int, costs: Costs) -> Ints:
        """Costs (stop - first,) of the requests at these positions."""
        starts = self.plan.block_starts
        begin = int(np.searchsorted(starts, first, side="right")) - 1
        end = int(np.searchsorted(starts, stop, side="left"))
        joined = np.concatenate([costs(int(block)) for block in self.plan.block_order[begin:end]])
        return joined[first - starts[begin] : stop - starts[begin]]


def make_plan(
    block_requests: Ints,
    *,
    quota: int,
    block_costs: Ints | None = None,
    shuffle: bool = False,
    seed: int = 0,
    epoch: int = 0,
    drop_last: bool = False,
    streams: int = 16,
    window_blocks: int = 8,
    shuffle_run: int = 1,
) -> Plan:
    """Plan an epoch over blocks with these numbers of requests (B,), and costs (B,) where they are not all 1.

    C is `streams`, but never so many that a stream has less than one window of blocks: small datasets
    stay well mixed. Without shuffling C is 1, so that batches follow the order of the dataset.
    No batch is empty if no request costs more than `quota`. Raises ValueError for sizes below 1 and for a
    negative seed or epoch.
    """
    sizes = {"quota": quota, "streams": streams, "window_blocks": window_blocks, "shuffle_run": shuffle_run}
    for name, value in sizes.items():
        if value < 1:
            raise ValueError(f"{name} is {value}; give 1 or more")
    if seed < 0 or epoch < 0:
        raise ValueError(f"seed {seed}, epoch {epoch}: neither may be negative")
    blocks = len(block_requests)
    order = generator(seed, epoch, BLOCKS).permutation(blocks) if shuffle else np.arange(blocks, dtype=np.int64)
    starts = edges_of(block_requests[order])
    return Plan(
        block_order=order,
        block_starts=starts,
        block_costs=starts if block_costs is None else edges_of(block_costs[order]),
        quota=quota,
        streams=min(streams, max(1, blocks // window_blocks)) if shuffle else 1,
        window_blocks=window_blocks,
        shuffle_run=shuffle_run,
        shuffle=shuffle,
        seed=seed,
        epoch=epoch,
        drop_last=drop_last,
    )


def token_quota(max_tokens: int, longest: int) -> int:
    """The quota of batches that never cost more than `max_tokens`, if no history is longer than `longest`.

    A request belongs to the batch in which its cost ends, so it may reach `longest` back into the batch before. Raises
    ValueError where a batch could come out empty.
    """
    if max_tokens < 2 * longest + 1:
        raise ValueError(
            f"max_tokens is {max_tokens:,}; a request takes up to {longest:,} events and 1 for itself, "
            f"so give at least {2 * longest + 1:,}, or a shorter history_length"
        )
    return max_tokens - longest


def num_steps(num_batches: int, world_size: int, drop_last: bool) -> int:
    """Steps of every rank; `drop_last` drops the last global step when it lacks batches for some ranks."""
    return num_batches // world_size if drop_last else -(-num_batches // world_size)


def worker_batches(
    num_batches: int,
    *,
    rank: int = 0,
    world_size: int = 1,
    worker: int = 0,
    num_workers: int = 1,
    drop_last: bool = False,
    first_batch: int = 0,
    yielded: int = 0,
) -> Iterator[int | None]:
    """The batch numbers one worker of one rank yields, in order; None stands for a padding batch.

    first_batch: the batch of the whole world with which step 0 begins.  yielded: how many this worker has had since.
    Raises ValueError for a rank outside the world.
    """
    if not 0 <= rank < world_size:
        raise ValueError(f"rank {rank} of a world of {world_size}; ranks run from 0 to world_size - 1")
    left = max(0, num_batches - first_batch)
    for step in range(worker + yielded * num_workers, num_steps(left, world_size, drop_last), num_workers):
        batch = first_batch + step * world_size + rank
        yield batch if batch < num_batches else None


def edges_of(sizes: Ints) -> Ints:
    """Offsets (N + 1,) of rows with these sizes (N,)."""
    edges = np.zeros(len(sizes) + 1, dtype=np.int64)
    np.cumsum(sizes, out=edges[1:])
    return edges
