"""Reads batches: holds the blocks that batches to come will need, each opened once, by one thread or several."""

from __future__ import annotations

import logging
from collections import OrderedDict
from concurrent.futures import Future
from itertools import pairwise
from threading import Lock

import numpy as np

from longbatch.schemas.errors import DatasetError

from .batch import Histories, RequestBatch
from .blocks import OpenBlock, open_block
from .collate import Gatherer, Piece
from .dataset_index import Opened, Schedule, Shards
from .history_length import lengths_of
from .plan import Finder
from .rng import Ints

log = logging.getLogger(__name__)
KEPT_BY_TIME = 256  # blocks kept where order is by time, in which any block may come next


class Reader:
    """Reads the batches of one epoch. Safe to be called by several threads.

    shards: shard number -> its reader.  skip: leave the requests of damaged blocks out, and count them, instead of raising.
    """

    def __init__(self, opened: Opened, schedule: Schedule, shards: Shards, *, histories: Histories, skip: bool) -> None:
        self._opened, self._schedule, self._shards, self._skip = opened, schedule, shards, skip
        self._gatherer = Gatherer(opened.empty, shared=histories == "shared")
        self._finder = Finder(schedule.plan, schedule.costs)
        self._blocks: OrderedDict[int, Future[OpenBlock | None]] = OrderedDict()
        self._kept: dict[int, tuple[int, frozenset[int]]] = {}
        self._lock = Lock()
        self._damaged: set[int] = set()

    def batch(self, number: int) -> RequestBatch:
        """Batch number `number` of the plan. Raises DatasetError naming file and block where one is damaged."""
        blocks, ordinals = self._find(number)
        edges = [0, *(np.flatnonzero(blocks[1:] != blocks[:-1]) + 1).tolist(), len(blocks)]
        runs = [(int(blocks[first]), ordinals[first:end]) for first, end in pairwise(edges)]
        pieces: list[Piece] = []
        skipped = 0
        for block, rows in runs:
            opened = self._open(block)
            if opened is None:
                skipped += len(rows)
            else:
                pieces.append((opened, opened.eligible[rows]))
        self._forget(number, {block for block, _ in runs})
        return self._gatherer.batch(pieces, skipped=skipped)

    def padding(self) -> RequestBatch:
        """The empty batch of a rank without data."""
        return self._gatherer.batch([])

    def _find(self, number: int) -> tuple[Ints, Ints]:
        with self._lock:
            blocks, rows = self._finder.rows(number)
        return (blocks, rows) if self._schedule.timetable is None else self._schedule.timetable.find(rows)

    def _open(self, number: int) -> OpenBlock | None:
        """A block, opened by whoever asks first; None if it is damaged and skipped."""
        with self._lock:
            found = self._blocks.get(number)
            mine = found is None
            if found is None:
                found = self._blocks[number] = Future()
            self._blocks.move_to_end(number)
        if mine:
            try:
                found.set_result(self._opened_block(number))
            except BaseException as error:
                with self._lock:
                    self._blocks.pop(number, None)
                found.set_exception(error)
        return found.result()

    def _opened_block(self, number: int) -> OpenBlock | None:
        try:
            return read_block(self._opened, self._shards, self._schedule, number)
        except DatasetError as error:
            if not self._skip:
                raise
            if number not in self._damaged:
                self._damaged.add(number)
                log.warning("skipped %d requests: %s", self._opened.counts[number], error)
            return None

    def _forget(self, number: int, used: set[int]) -> None:
        """Let go of blocks that no batch to come needs, unless a later batch of the stream has done so."""
        with self._lock:
            if self._schedule.timetable is not None:
                while len(self._blocks) > KEPT_BY_TIME:
                    self._blocks.popitem(last=False)
                return
            stream = number % self._schedule.plan.streams
            last, before = self._kept.get(stream, (-1, frozenset()))
            if last < number:
                self._kept[stream] = number, frozenset(self._finder.live_blocks(number).tolist())
            wanted = frozenset().union(*(blocks for _, blocks in self._kept.values()))
            for block in (used | before) - wanted:
                self._blocks.pop(block, None)


def read_block(opened: Opened, shards: Shards, schedule: Schedule, number: int) -> OpenBlock:
    """Open one block. Raises DatasetError naming file and block."""
    plan, shard, place = schedule.plan, shards(int(opened.block_shard[number])), int(opened.block_in_shard[number])
    block = shard.block(place)
    lengths = lengths_of(opened.history_length, plan.seed, plan.epoch, number, int(opened.block_rows[number]))
    first_row = int(opened.first_row[number])
    return open_block(block, opened.selection, lengths, first_row, opened.times_us, shard.where("requests", place))
