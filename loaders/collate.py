"""From rows of open blocks to a batch: the only copy on the way, made of whole slices.

Where the slices begin and end is worked out for all requests at once, for events, for targets and for requests; `slices` then joins
those of all columns of each kind in one call. All columns of a batch lie in one piece of memory; in a worker process that is shared, and
goes to the main process without another copy.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate, chain, repeat

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import get_worker_info

from . import buffer_pool as slots
from .batch import Layout, RequestBatch, unpacked
from .blocks import Column, OpenBlock
from .copy_slices import join_slices
from .plan import edges_of
from .rng import Ints
from .shared_memory import POOL

Piece = tuple[OpenBlock, Ints]  # a block and row numbers of requests in it
_POINTERS = ("history_starts", "history_ends", "history_rows")
ALIGNMENT = 64  # bytes, for the first value of a column in memory that columns share


@dataclass(frozen=True)
class _Spans:
    """Slices of columns, in the order of the batch: values [starts, ends) of the blocks with the numbers `owner`, (S,) each.

    offsets: (S + 1,) where each slice begins in the batch, and the last one ends.
    """

    owner: Ints
    starts: Ints
    ends: Ints
    offsets: Ints


class Gatherer:
    """Makes batches of rows of open blocks.

    empty: a block without rows, of the columns that the others have.  shared: each timeline once, requests point into it.
    A batch's columns lie one after another: those of events, of targets, of requests, and those that no block holds.
    """

    def __init__(self, empty: OpenBlock, *, shared: bool) -> None:
        self._empty, self._shared = empty, shared
        made = ("history_offsets", "target_offsets", *(_POINTERS if shared else ()))
        arrays = [np.empty_like(values) for columns in empty.kinds for values in columns.values()]
        columns: list[Column] = [*chain.from_iterable(empty.kinds), *((field, None) for field in made)]
        self._fields, self._names = zip(*columns, strict=True)
        self._dtypes = [*(torch.from_numpy(array).dtype for array in arrays), *(torch.int64 for _ in made)]
        self._widths = np.array([dtype.itemsize for dtype in self._dtypes])
        self._kinds = [len(columns) for columns in empty.kinds]
        self._ranges = [slice(end - kind, end) for kind, end in zip(self._kinds, accumulate(self._kinds), strict=True)]

    def batch(self, pieces: Sequence[Piece], *, skipped: int = 0) -> RequestBatch:
        """A batch of the requests with these row numbers of blocks; none are padding."""
        is_padding, pieces = not pieces, pieces or [(self._empty, self._empty.eligible)]
        blocks = list({id(block): block for block, _ in pieces}.values())
        number = {id(block): place for place, block in enumerate(blocks)}
        owner = np.repeat([number[id(block)] for block, _ in pieces], [len(rows) for _, rows in pieces])
        rows = np.concatenate([rows for _, rows in pieces])
        timelines, starts, ends, *inside = np.concatenate(
            [block.spans.take(rows, axis=1) for block, rows in pieces], axis=1
        )
        events, targets, requests = _spans(owner, starts, ends), _spans(owner, *inside), _spans(owner, rows, rows + 1)
        pointers: list[Ints] = []
        if self._shared:
            events, pointers = _timelines(owner, timelines, starts, ends)
        made = [events.offsets, targets.offsets, *pointers]
        return unpacked(*self._joined(blocks, [events, targets, requests], made), is_padding, skipped)

    def _joined(
        self, blocks: Sequence[OpenBlock], spans: Sequence[_Spans], made: Sequence[Ints]
    ) -> tuple[Tensor, Layout]:
        """Memory with these slices of events, targets and requests, and with the columns that no block holds."""
        totals = [each.offsets[-1] for each in spans]
        counts = np.array([*chain.from_iterable(map(repeat, totals, self._kinds)), *map(len, made)])
        sizes = -(-self._widths * counts // ALIGNMENT) * ALIGNMENT
        places = sizes.cumsum() - sizes
        size = max(ALIGNMENT, int(sizes.sum()))
        whole = _memory(size)
        out = whole.numpy()[:size]
        for kind, (each, mine) in enumerate(zip(spans, self._ranges, strict=True)):
            sources = [*chain.from_iterable(block.kinds[kind].values() for block in blocks)]
            join_slices(out, places[mine], sources, each.owner, each.starts, each.ends)
        for place, values in zip(places[-len(made) :].tolist(), made, strict=True):
            out[place : place + values.nbytes].view(np.int64)[:] = values
        return whole, [*zip(self._fields, self._names, self._dtypes, places.tolist(), counts.tolist(), strict=True)]


def _spans(owner: Ints, starts: Ints, ends: Ints) -> _Spans:
    return _Spans(owner, starts, ends, edges_of(ends - starts))


def _timelines(owner: Ints, timelines: Ints, starts: Ints, ends: Ints) -> tuple[_Spans, list[Ints]]:
    """Each timeline of the batch from the first event that a request needs to the last, and where the requests point.

    history_rows: (R,) the timeline of each request.  history_starts, history_ends: (R,) places in the copied events.
    """
    keys = (owner << 32) | timelines
    order = keys.argsort(kind="stable")
    keys, sorted_starts, sorted_ends = keys[order], starts[order], ends[order]
    begins = np.ones(len(keys), dtype=np.bool_)
    np.not_equal(keys[1:], keys[:-1], out=begins[1:])
    first = begins.nonzero()[0]
    low, high = np.minimum.reduceat(sorted_starts, first), np.maximum.reduceat(sorted_ends, first)
    row = np.empty_like(order)
    row[order] = begins.cumsum() - 1
    spans = _spans(keys[first] >> 32, low, high)
    shift = (spans.offsets[:-1] - low)[row]
    return spans, [starts + shift, ends + shift, row]


def _memory(size: int) -> Tensor:
    """Bytes (at least `size`,): in a worker process shared with the main process, else memory of a batch that is gone."""
    if get_worker_info() is None:
        return torch.from_numpy(POOL.take(size))
    if (lent := slots.take(size)) is not None:
        return lent
    storage = torch.UntypedStorage._new_shared(size)  # type: ignore[no-untyped-call]
    return torch.empty(0, dtype=torch.uint8).set_(storage)
