"""Reads batches: keeps the blocks that later batches need open, each opened once, by one thread or several."""

from __future__ import annotations

import logging
from collections import OrderedDict
from concurrent.futures import Future
from itertools import pairwise
from threading import Lock

import numpy as np

from longbatch.schemas.errors import DatasetError
from longbatch.schemas.types import Int64Array

from .batch import Histories, RequestBatch
from .blocks import BlockView
from .collate import BlockRows, Collator
from .dataset_index import DatasetIndex, Shards
from .epoch_plan import EpochPlan

logger = logging.getLogger(__name__)
MAX_BLOCKS_BY_TIME = 256  # blocks kept open with order="time", where any block may be the next one


class Reader:
    """Reads the batches of one epoch. Thread-safe.

    Policy: a block is opened by the first thread that needs it, while others wait for it. It is evicted when no stream
    needs it any more, see `BatchLocator.blocks_to_keep`. With order="time" any block may be needed, and the least
    recently used is evicted (LRU).

    Args:
        index: The opened dataset.
        planned: The plan of the epoch.
        shards: Readers of the shards.
        histories: The history layout of the batches.
        skip_damaged: Whether to leave out and count the requests of damaged blocks, instead of raising.
    """

    def __init__(
        self, index: DatasetIndex, planned: EpochPlan, shards: Shards, *, histories: Histories, skip_damaged: bool
    ) -> None:
        self._index, self._planned, self._shards, self._skip_damaged = index, planned, shards, skip_damaged
        self._collator = Collator(index.empty, shared=histories == "shared")
        self._locator = planned.locator()
        self._blocks: OrderedDict[int, Future[BlockView | None]] = OrderedDict()
        # stream -> its latest batch so far, and the blocks that its next batches may need. Only streams that this
        # process serves have an entry: at most `window_blocks` blocks stay open for each, besides those in use.
        self._to_keep: dict[int, tuple[int, frozenset[int]]] = {}
        self._lock = Lock()
        self._damaged: set[int] = set()

    @property
    def num_open_blocks(self) -> int:
        """Number of blocks that are open now."""
        return len(self._blocks)

    def batch(self, number: int) -> RequestBatch:
        """Read a batch.

        Args:
            number: Number of the batch in the plan.

        Returns:
            The batch.

        Raises:
            DatasetError: A block is damaged; the message names file and block.
        """
        # blocks [4 4 0], rows [1 2 1] belong to two blocks:
        # edges [0 2 3],
        # rows_by_block [(4, [1 2]), (0, [1])].
        blocks, rows = self._locate(number)
        edges = [0, *(np.flatnonzero(blocks[1:] != blocks[:-1]) + 1).tolist(), len(blocks)]
        rows_by_block = [(int(blocks[first]), rows[first:end]) for first, end in pairwise(edges)]
        parts: list[BlockRows] = []
        skipped = 0
        for block, block_rows in rows_by_block:
            view = self._open(block)
            if view is None:
                skipped += len(block_rows)
            else:
                # The plan numbers only rows inside the time range; `selected` leads back to rows of the block.
                parts.append((view, view.selected[block_rows]))
        # Safe before the copy: `parts` keeps the views of this batch alive until the copy is complete.
        self._evict(number, {block for block, _ in rows_by_block})
        return self._collator.batch(parts, skipped=skipped)

    def padding(self) -> RequestBatch:
        """Return the empty batch of a rank without data."""
        return self._collator.batch([])

    def _locate(self, number: int) -> tuple[Int64Array, Int64Array]:
        # lru_cache would let two threads compute the same window at once; the lock computes each only once.
        with self._lock:
            blocks, rows = self._locator.rows(number)
        time_order = self._planned.time_order
        return (blocks, rows) if time_order is None else time_order.rows_at(rows)

    def _open(self, number: int) -> BlockView | None:
        """A block, opened by the first thread that needs it; None if it is damaged and skipped."""
        # Single flight: the thread that adds the future reads the block, all others wait for its result. The lock is
        # not held while reading, so that different blocks are read in parallel.
        with self._lock:
            future = self._blocks.get(number)
            is_first = future is None
            if future is None:
                future = self._blocks[number] = Future()
            self._blocks.move_to_end(number)
        if is_first:
            try:
                future.set_result(self._read(number))
            except BaseException as error:  # also KeyboardInterrupt: waiting threads would never wake up
                # Forget the block before waking the others, so that a later batch tries to read it again.
                with self._lock:
                    self._blocks.pop(number, None)
                future.set_exception(error)
        return future.result()

    def _read(self, number: int) -> BlockView | None:
        logger.debug("opening block %d", number)
        try:
            return self._index.view(self._shards, number, self._planned.seed, self._planned.epoch)
        except DatasetError as error:
            if not self._skip_damaged:
                raise
            if number not in self._damaged:  # evicted blocks may be read again; warn once per block
                self._damaged.add(number)
                logger.warning("skipped %d requests: %s", self._index.selected_rows[number], error)
            return None

    def _evict(self, number: int, used: set[int]) -> None:
        """Evict blocks that no remaining batch needs.

        Threads finish batches of a stream out of order, so only the latest batch of a stream so far decides which
        blocks the stream keeps open.
        """
        with self._lock:
            if self._planned.time_order is not None:
                # `_open` moves a block to the end, so the first one is the least recently used.
                while len(self._blocks) > MAX_BLOCKS_BY_TIME:
                    self._blocks.popitem(last=False)
                return
            stream = number % self._planned.plan.streams
            latest, kept_before = self._to_keep.get(stream, (-1, frozenset()))
            if latest < number:
                self._to_keep[stream] = number, frozenset(self._locator.blocks_to_keep(number).tolist())
            # Over all streams: the block across the end of a stream is also the first of the next one.
            to_keep = frozenset().union(*(blocks for _, blocks in self._to_keep.values()))
            # `used` too: a late batch may have opened blocks again that its stream has already left.
            for block in (used | kept_before) - to_keep:
                if self._blocks.pop(block, None) is not None:
                    logger.debug("evicted block %d after batch %d", block, number)
