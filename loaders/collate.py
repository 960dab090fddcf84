"""From rows of open blocks to a batch, with a single copy, made of slices.

Policy. The slice bounds are computed for all requests at once, for events, targets and requests; `copy_slices` then
joins those of all columns of each group in one call. All columns of a batch are in one piece of memory, each from a
multiple of 64 bytes on:

    | history columns ... | targets, labels ... | request columns ... | offsets ... |

In a worker process that memory is shared, and goes to the main process without another copy. Cost: half a millisecond
of Python per batch, whatever its size, and the copy of its bytes.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate, chain, repeat

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import get_worker_info

from longbatch.schemas.ragged import offsets_of
from longbatch.schemas.types import Int64Array

from .batch import Layout, RequestBatch, batch_in_memory
from .blocks import BlockView, Column
from .buffer_pool import take_buffer
from .copy_slices import join_slices
from .reused_memory import REUSED_MEMORY

BlockRows = tuple[BlockView, Int64Array]
"""A block, and row numbers of requests in it."""

_TIMELINE_COLUMNS = ("history_starts", "history_ends", "history_rows")
ALIGNMENT = 64  # bytes; a cache line, and the alignment that vector instructions prefer


@dataclass(frozen=True)
class _Slices:
    """Slices of columns in the order of the batch: values [starts, ends) of the blocks with these numbers, (S,) each.

    offsets: (S + 1,) where each slice begins in the joined column, and where the last one ends.
    """

    blocks: Int64Array
    starts: Int64Array
    ends: Int64Array
    offsets: Int64Array


class Collator:
    """Creates batches of rows of open blocks.

    Args:
        empty: A block without rows, with the columns that all others have.
        shared: Whether to store each timeline once, with requests that point into it, instead of a history per request.
    """

    def __init__(self, empty: BlockView, *, shared: bool) -> None:
        # `empty` has the columns and dtypes of every block, so the layout of a batch is known before any block is read.
        self._empty, self._shared = empty, shared
        # Everything about the columns that does not depend on the batch is computed here, once.
        computed = ("history_offsets", "target_offsets", *(_TIMELINE_COLUMNS if shared else ()))
        # `empty_like`, because torch.from_numpy warns about the read-only views of Arrow buffers.
        arrays = [np.empty_like(values) for columns in empty.column_groups for values in columns.values()]
        columns: list[Column] = [*chain.from_iterable(empty.column_groups), *((field, None) for field in computed)]
        self._fields, self._names = zip(*columns, strict=True)
        self._dtypes = [*(torch.from_numpy(array).dtype for array in arrays), *(torch.int64 for _ in computed)]
        self._widths = np.array([dtype.itemsize for dtype in self._dtypes])
        self._group_sizes = [len(columns) for columns in empty.column_groups]
        ends = accumulate(self._group_sizes)
        self._group_columns = [slice(end - size, end) for size, end in zip(self._group_sizes, ends, strict=True)]

    def batch(self, parts: Sequence[BlockRows], *, skipped: int = 0) -> RequestBatch:
        """Create the batch of these requests.

        Args:
            parts: Blocks and row numbers in them; none at all for a padding batch.
            skipped: Requests that are missing because their block is damaged.

        Returns:
            The batch, in the order of `parts`.

        Example:
            parts [(block A, rows [0 2]), (block B, rows [1])]:
            blocks [A B], slice_blocks [0 0 1], rows [0 2 1];
            events, targets and requests are three slices each.
        """
        # A padding batch takes the same path with an empty block, so it has all columns with the right dtypes.
        is_padding, parts = not parts, parts or [(self._empty, self._empty.selected)]
        # By id, because blocks cannot be hashed. A block occurs in several parts if requests are in the order of time.
        blocks = list({id(block): block for block, _ in parts}.values())
        numbers = {id(block): number for number, block in enumerate(blocks)}
        slice_blocks = np.repeat([numbers[id(block)] for block, _ in parts], [len(rows) for _, rows in parts])
        rows = np.concatenate([rows for _, rows in parts])
        timelines, starts, ends, *target_bounds = np.concatenate(
            [block.spans.take(rows, axis=1) for block, rows in parts], axis=1
        )
        events, targets = _slices(slice_blocks, starts, ends), _slices(slice_blocks, *target_bounds)
        requests = _slices(slice_blocks, rows, rows + 1)
        timeline_columns: list[Int64Array] = []
        if self._shared:
            events, timeline_columns = _shared_timelines(slice_blocks, timelines, starts, ends)
        computed = [events.offsets, targets.offsets, *timeline_columns]
        memory, layout = self._join(blocks, [events, targets, requests], computed)
        return batch_in_memory(memory, layout, is_padding, skipped)

    def _join(
        self, blocks: Sequence[BlockView], groups: Sequence[_Slices], computed: Sequence[Int64Array]
    ) -> tuple[Tensor, Layout]:
        """Write the slices of events, targets and requests, and the computed columns, to one piece of memory."""
        # Widths [8 4 8] bytes and counts [10 10 3] values need [80 40 24] bytes;
        # rounded up to multiples of 64 these are [128 64 64] bytes,
        # so the columns begin at bytes [0 128 192] of 256.
        totals = [slices.offsets[-1] for slices in groups]
        counts = np.array([*chain.from_iterable(map(repeat, totals, self._group_sizes)), *map(len, computed)])
        sizes = -(-self._widths * counts // ALIGNMENT) * ALIGNMENT
        offsets = sizes.cumsum() - sizes
        size = max(ALIGNMENT, int(sizes.sum()))  # not 0: a padding batch needs memory that can be shared
        memory = _memory(size)
        out = memory.numpy()[:size]
        for group, (slices, columns) in enumerate(zip(groups, self._group_columns, strict=True)):
            # Columns of block 0, then of block 1 and so on: the order that `join_slices` expects.
            sources = [*chain.from_iterable(block.column_groups[group].values() for block in blocks)]
            join_slices(out, offsets[columns], sources, slices.blocks, slices.starts, slices.ends)
        for offset, values in zip(offsets[-len(computed) :].tolist(), computed, strict=True):
            out[offset : offset + values.nbytes].view(np.int64)[:] = values
        layout = zip(self._fields, self._names, self._dtypes, offsets.tolist(), counts.tolist(), strict=True)
        return memory, [*layout]


def _slices(blocks: Int64Array, starts: Int64Array, ends: Int64Array) -> _Slices:
    return _Slices(blocks, starts, ends, offsets_of(ends - starts))


def _shared_timelines(
    blocks: Int64Array, timelines: Int64Array, starts: Int64Array, ends: Int64Array
) -> tuple[_Slices, list[Int64Array]]:
    """Each timeline once, from the first to the last event that a request needs, and where the requests point.

    The second result is history_starts, history_ends and history_rows, (R,) each: bounds in the copied events, and
    timeline.
    """
    # Requests of timelines [7 7 9] that need events [0 3), [2 5), [8 9) of one block:
    # the copied slices are [0 5) and [8 9), one after the other, with offsets [0 5 6];
    # history_starts [0 2 5], history_ends [3 5 6], history_rows [0 0 1].
    #
    # Group requests by (block, timeline): sort by one key, mark where it changes, reduce each group. Rows of timelines
    # are int32, so block and row fit one int64; sorting that takes a third of the time of a lexsort by two keys.
    keys = (blocks << 32) | timelines
    order = keys.argsort(kind="stable")
    keys, sorted_starts, sorted_ends = keys[order], starts[order], ends[order]
    is_first = np.ones(len(keys), dtype=np.bool_)
    np.not_equal(keys[1:], keys[:-1], out=is_first[1:])
    first = is_first.nonzero()[0]
    # Events between the first start and the last end are copied even if no request needs them: one slice per timeline.
    low, high = np.minimum.reduceat(sorted_starts, first), np.maximum.reduceat(sorted_ends, first)
    rows = np.empty_like(order)  # scatter through `order`: the inverse permutation, back to the order of the requests
    rows[order] = is_first.cumsum() - 1
    slices = _slices(keys[first] >> 32, low, high)
    shift = (slices.offsets[:-1] - low)[rows]
    return slices, [starts + shift, ends + shift, rows]


def _memory(size: int) -> Tensor:
    """Bytes (at least `size`,): shared with the main process in a worker process, else reused from earlier batches."""
    if get_worker_info() is None:
        return torch.from_numpy(REUSED_MEMORY.take(size))
    if (buffer := take_buffer(size)) is not None:
        return buffer
    # All buffers are in use, or the platform has no memfd: new shared memory, which is slower but never waits. Waiting
    # could deadlock, because the consumer may keep as many batches as it likes.
    storage = torch.UntypedStorage._new_shared(size)  # type: ignore[no-untyped-call]
    return torch.empty(0, dtype=torch.uint8).set_(storage)
