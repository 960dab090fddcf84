"""From rows of open blocks to a batch: the only copy on the way, made of whole slices.

A batch is a list of moves of bytes, worked out for all requests and columns at once: from which array of which block, from where, to
where, how many. `slices` makes them in one call. All columns of a batch lie in one piece of memory; in a worker process that is
shared, and goes to the main process without another copy.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import get_worker_info

from longbatch.loaders import slots
from longbatch.loaders.batch import RequestBatch, unpacked
from longbatch.loaders.blocks import Array, Column, OpenBlock
from longbatch.loaders.draws import Ints
from longbatch.loaders.memory import POOL
from longbatch.loaders.slices import copy_slices

Piece = tuple[OpenBlock, Ints]  # a block and row numbers of requests in it
ALIGNMENT = 64  # bytes, for the first value of a column in memory that columns share


@dataclass(frozen=True)
class _Spans:
    """Slices of columns, in the order of the batch: values [starts, ends) of the blocks with the numbers `owner`, (S,) each."""

    owner: Ints
    starts: Ints
    ends: Ints

    def offsets(self) -> Ints:
        """Where each slice begins in the batch, and the last one ends, (S + 1,)."""
        offsets = np.zeros(len(self.starts) + 1, dtype=np.int64)
        np.cumsum(self.ends - self.starts, out=offsets[1:])
        return offsets


def gather(
    pieces: Sequence[Piece], *, shared: bool = False, is_padding: bool = False, skipped: int = 0
) -> RequestBatch:
    """A batch of the requests with these row numbers; shared: each timeline once, requests point into it."""
    blocks = list({id(block): block for block, _ in pieces}.values())
    number = {id(block): place for place, block in enumerate(blocks)}
    owner = np.repeat([number[id(block)] for block, _ in pieces], [len(rows) for _, rows in pieces])
    timelines, *history, target_starts, target_ends = np.concatenate([b.spans[:, rows] for b, rows in pieces], axis=1)
    rows = np.concatenate([rows for _, rows in pieces])
    events, made = _timelines(owner, timelines, *history) if shared else (_Spans(owner, *history), {})
    targets, requests = _Spans(owner, target_starts, target_ends), _Spans(owner, rows, rows + 1)
    made["history_offsets"], made["target_offsets"] = events.offsets(), targets.offsets()
    layout = _Layout(blocks)
    first = blocks[0]
    for columns, spans in ((first.events, events), (first.targets, targets), (first.requests, requests)):
        layout.add(columns, spans)
    for field, values in made.items():
        layout.add_made(field, values)
    return unpacked(layout.filled(), layout.columns, is_padding, skipped)


def _timelines(owner: Ints, timelines: Ints, starts: Ints, ends: Ints) -> tuple[_Spans, dict[str, Ints]]:
    """Each timeline of the batch from the first event that a request needs to the last, and where the requests point.

    history_rows: (R,) the timeline of each request.  history_starts, history_ends: (R,) places in the copied events.
    """
    keys, first, row = np.unique((owner << 32) | timelines, return_index=True, return_inverse=True)
    low, high = starts[first], ends[first]
    np.minimum.at(low, row, starts)
    np.maximum.at(high, row, ends)
    spans = _Spans(keys >> 32, low, high)
    shift = (spans.offsets()[:-1] - low)[row]
    return spans, {"history_starts": starts + shift, "history_ends": ends + shift, "history_rows": row.astype(np.int64)}


class _Layout:
    """Where the columns of a batch of these blocks lie in its memory, and the moves that fill them.

    columns: field, name, type, first byte and number of values of each.
    """

    def __init__(self, blocks: Sequence[OpenBlock]) -> None:
        self.columns: list[tuple[str, str | None, torch.dtype, int, int]] = []
        self._each = len(blocks[0].arrays)
        self._sources = [array for block in blocks for array in block.arrays]
        self._moves: list[Ints] = []
        self._size = 0

    def add(self, columns: dict[Column, Array], spans: _Spans) -> None:
        """Columns of the blocks, a slice of each for every span."""
        offsets = spans.offsets()
        places = [self._place(column, array.dtype, int(offsets[-1])) for column, array in columns.items()]
        width = np.array([array.itemsize for array in columns.values()])[:, None]
        first = np.arange(len(self.columns) - len(columns), len(self.columns))[:, None]
        moves = np.empty((len(columns), len(spans.starts), 4), dtype=np.int64)
        moves[..., 0] = first + self._each * spans.owner
        moves[..., 1] = width * spans.starts
        moves[..., 2] = np.array(places)[:, None] + width * offsets[:-1]
        moves[..., 3] = width * (spans.ends - spans.starts)
        self._moves.append(moves.reshape(-1, 4))

    def add_made(self, field: str, values: Ints) -> None:
        """A column that no block holds."""
        place = self._place((field, None), values.dtype, len(values))
        self._moves.append(np.array([[len(self._sources), 0, place, values.nbytes]]))
        self._sources.append(values)

    def filled(self) -> Tensor:
        """The memory (bytes,) of the batch."""
        whole = _memory(max(ALIGNMENT, self._size))
        copy_slices(whole.numpy(), self._sources, np.concatenate(self._moves))
        return whole

    def _place(self, column: Column, dtype: Any, count: int) -> int:
        place = -(-self._size // ALIGNMENT) * ALIGNMENT
        self._size = place + count * dtype.itemsize
        self.columns.append((*column, _torch_dtype(dtype), place, count))
        return place


def _memory(size: int) -> Tensor:
    """Bytes (at least `size`,): in a worker process shared with the main process, else memory of a batch that is gone."""
    if get_worker_info() is None:
        return torch.from_numpy(POOL.take(size))
    if (lent := slots.take(size)) is not None:
        return lent
    storage = torch.UntypedStorage._new_shared(size)  # type: ignore[no-untyped-call]
    return torch.empty(0, dtype=torch.uint8).set_(storage)


@lru_cache
def _torch_dtype(dtype: Any) -> torch.dtype:
    return torch.from_numpy(np.empty(0, dtype=dtype)).dtype
