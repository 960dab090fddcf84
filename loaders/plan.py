"""Which requests form which batch, as a pure function of numbers: no disk, no torch, no state.

Policy. The blocks, in an order permuted per epoch, form one long row of requests. The row is cut into
`batches` of equal size (only the very last may be short) and these into C contiguous *streams*. Batch
number n is the (n div C)-th batch of stream n mod C; rank r of W takes n = step * W + r; the workers of
a rank take its steps in turn. So the sequence of batches depends on neither W nor the number of workers,
any batch is computable without those before it, and where W * workers divides C a worker reads only its
own streams: no block is read twice, but for those that lie across the end of a batch or stream.

Shuffling permutes the blocks, then the requests inside each window of `window_blocks` blocks of a stream,
so a batch mixes the users of that many blocks. A reader holds one window per stream it serves: that is
the price of shuffling, and the bound on memory.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

Ints = NDArray[np.int64]

_BLOCKS, _WINDOW, _LENGTHS = 1, 2, 3  # what a random stream is for; part of its key


def _random(*key: int) -> np.random.Generator:
    """A generator that depends on the key alone: the same on every machine, rank and worker."""
    return np.random.Generator(np.random.Philox(np.random.SeedSequence(key)))


@dataclass(frozen=True)
class StochasticLength:
    """Sampled history lengths for training short and serving long (STCA, arXiv 2511.06077).

    `L = minimum + s * (maximum - minimum)` with s ~ Beta(alpha, beta), U-shaped since both are below 1,
    rounded to a multiple of 8; a history keeps its newest L events. The paper does not publish alpha and
    beta; the mean length is `minimum + (maximum - minimum) * alpha / (alpha + beta)`.
    """

    minimum: int
    maximum: int
    alpha: float = 0.5
    beta: float = 0.5

    def __post_init__(self) -> None:
        if not 0 <= self.minimum <= self.maximum:
            raise ValueError(f"lengths {self.minimum} to {self.maximum}: give 0 <= minimum <= maximum")
        if -(-self.minimum // 8) * 8 > self.maximum:
            raise ValueError(f"no multiple of 8 lies in {self.minimum} to {self.maximum}; widen the range")
        if not (0 < self.alpha < 1 and 0 < self.beta < 1):
            raise ValueError(f"alpha {self.alpha}, beta {self.beta}: a U shape needs both between 0 and 1")

    def lengths(self, seed: int, epoch: int, block: int, num_requests: int) -> Ints:
        """Lengths (num_requests,) of all requests of one block; the same whoever reads the block."""
        share = _random(seed, epoch, _LENGTHS, block).beta(self.alpha, self.beta, num_requests)
        raw: NDArray[np.float64] = np.rint((self.minimum + share * (self.maximum - self.minimum)) / 8) * 8
        lengths: Ints = np.clip(raw, -(-self.minimum // 8) * 8, self.maximum // 8 * 8).astype(np.int64)
        return lengths


@dataclass(frozen=True)
class Plan:
    """The batches of one epoch.

    block_order: (B,) block numbers in reading order.  block_starts: (B + 1,) offsets of the blocks, in
    that order, in the row of all requests.  Lengths are in requests.
    """

    block_order: Ints
    block_starts: Ints
    batch_size: int
    streams: int
    window_blocks: int
    shuffle: bool
    seed: int
    epoch: int
    drop_last: bool

    @property
    def num_batches(self) -> int:
        """N, the batches of the epoch over all ranks; only the last may hold fewer than batch_size."""
        total = int(self.block_starts[-1])
        return total // self.batch_size if self.drop_last else -(-total // self.batch_size)

    def stream_span(self, stream: int) -> tuple[int, int]:
        """First and end position of a stream in the row of all requests."""
        first = self._first_batch(stream) * self.batch_size
        end = self._first_batch(stream + 1) * self.batch_size
        return first, min(end, int(self.block_starts[-1]))

    def _first_batch(self, stream: int) -> int:
        """Batches before the stream: the first N mod C streams have one more than the others."""
        each, more = divmod(self.num_batches, self.streams)
        return stream * each + min(stream, more)

    def positions(self, batch: int) -> Ints:
        """Positions (<= batch_size,), ascending, of batch number `batch` in the row of all requests."""
        stream, rank_in_stream = batch % self.streams, batch // self.streams
        start = (self._first_batch(stream) + rank_in_stream) * self.batch_size
        end = min(start + self.batch_size, int(self.block_starts[-1]))
        if not self.shuffle:
            return np.arange(start, end, dtype=np.int64)
        taken = [self._taken(window, start, end) for window in self._windows(stream, start, end)]
        return np.sort(np.concatenate(taken))

    def rows(self, batch: int) -> tuple[Ints, Ints]:
        """Block numbers and row numbers within the block, both (<= batch_size,), rows of a block adjacent."""
        positions = self.positions(batch)
        place = np.searchsorted(self.block_starts, positions, side="right") - 1
        return self.block_order[place], positions - self.block_starts[place]

    def live_blocks(self, batch: int) -> Ints:
        """The blocks worth keeping open after `batch`: those of the windows its requests lie in."""
        stream, rank_in_stream = batch % self.streams, batch // self.streams
        start = (self._first_batch(stream) + rank_in_stream) * self.batch_size
        end = min(start + self.batch_size, int(self.block_starts[-1]))
        spans = self._windows(stream, max(start, end - 1), end) if self.shuffle else [(end - 1, end)]
        first = np.searchsorted(self.block_starts, spans[0][0], side="right") - 1
        last = np.searchsorted(self.block_starts, spans[-1][1], side="left")
        return self.block_order[first:last]

    def _windows(self, stream: int, start: int, end: int) -> list[tuple[int, int]]:
        """The windows of a stream that hold positions `[start, end)`, each as (first, end) position."""
        edges = np.append(self.block_starts[: -1 : self.window_blocks], self.block_starts[-1])
        first = int(np.searchsorted(edges, start, side="right")) - 1
        last = int(np.searchsorted(edges, end, side="left"))
        bounds = np.clip(edges[first : last + 1], *self.stream_span(stream)).tolist()
        return [(low, high) for low, high in itertools.pairwise(bounds) if low < high]

    def _taken(self, window: tuple[int, int], start: int, end: int) -> Ints:
        """What the shuffled window yields at positions `[start, end)`."""
        first, stop = window
        order = _permutation(self.seed, self.epoch, first, stop - first)
        return first + order[max(start - first, 0) : max(end - first, 0)]


@lru_cache(maxsize=64)  # a reader works through one window per stream, a batch at a time
def _permutation(seed: int, epoch: int, start: int, size: int) -> Ints:
    return _random(seed, epoch, _WINDOW, start).permutation(size)


def make_plan(
    block_requests: Ints,
    *,
    batch_size: int,
    shuffle: bool = False,
    seed: int = 0,
    epoch: int = 0,
    drop_last: bool = False,
    streams: int = 16,
    window_blocks: int = 8,
) -> Plan:
    """Plan an epoch over blocks with these numbers of requests (B,).

    C is `streams`, but never so many that a stream has less than one window of blocks: small datasets
    stay well mixed. Without shuffling C is 1, so that batches follow the order of the dataset.
    Raises ValueError for sizes below 1 and for a negative seed or epoch.
    """
    for name, value in (("batch_size", batch_size), ("streams", streams), ("window_blocks", window_blocks)):
        if value < 1:
            raise ValueError(f"{name} is {value}; give 1 or more")
    if seed < 0 or epoch < 0:
        raise ValueError(f"seed {seed}, epoch {epoch}: neither may be negative")
    blocks = len(block_requests)
    order = np.arange(blocks, dtype=np.int64)
    if shuffle:
        order = _random(seed, epoch, _BLOCKS).permutation(order)
    starts = np.zeros(blocks + 1, dtype=np.int64)
    np.cumsum(block_requests[order], out=starts[1:])
    return Plan(
        block_order=order,
        block_starts=starts,
        batch_size=batch_size,
        streams=min(streams, max(1, blocks // window_blocks)) if shuffle else 1,
        window_blocks=window_blocks,
        shuffle=shuffle,
        seed=seed,
        epoch=epoch,
        drop_last=drop_last,
    )


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
    first_step: int = 0,
) -> Iterator[int | None]:
    """The batch numbers one worker of one rank yields, in order; None stands for a padding batch.

    Raises ValueError for a rank outside the world.
    """
    if not 0 <= rank < world_size:
        raise ValueError(f"rank {rank} of a world of {world_size}; ranks run from 0 to world_size - 1")
    for step in range(first_step + worker, num_steps(num_batches, world_size, drop_last), num_workers):
        batch = step * world_size + rank
        yield batch if batch < num_batches else None


def ragged_index(starts: Ints, lengths: Ints) -> Ints:
    """Indices (sum of lengths,) of the slices `[starts, starts + lengths)`, one after another."""
    ends = np.cumsum(lengths, dtype=np.int64)
    shift = np.repeat(starts - (ends - lengths), lengths)
    index: Ints = np.arange(len(shift), dtype=np.int64) + shift
    return index
