"""The tiling of a ragged batch for attention: which tiles of targets meet which tiles of events.

Shapes: R requests, G targets, Q tiles of A targets, I items (a tile of targets with a tile of B events of the same
request).
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise

import torch
from torch import Tensor

from longbatch.loaders.batch import offsets_of, ragged_index

from .spans import Spans

EVENTS_PER_TILE = 64
TARGETS_PER_TILE = 16
VALUES_PER_CHUNK = 1 << 25  # of scores, keys and values in memory at once: 128 MiB of float32


@dataclass(frozen=True)
class TileChunk:
    """A run of target tiles with all their event tiles: the unit that is computed at once.

    Attributes:
        targets_QA: Targets of each tile. Slots beyond a request's targets contain arbitrary targets, whose outputs are
            not read.
        tile_I: The target tile of each item, ascending from 0.
        events_IB: Events of each item, 0 where hidden.
        hidden_IB: Whether a slot is beyond the history.
        time_delta_IB: Buckets of the time from each event to the request, or None.
    """

    targets_QA: Tensor
    tile_I: Tensor
    events_IB: Tensor
    hidden_IB: Tensor
    time_delta_IB: Tensor | None


@dataclass(frozen=True)
class Tiling:
    """Which tiles of targets meet which tiles of events; computed once per batch and used by every layer.

    Attributes:
        chunks: The tiles, in chunks whose values fit VALUES_PER_CHUNK.
        slot_G: Position of each target in the flattened targets_QA of all chunks.
    """

    chunks: tuple[TileChunk, ...]
    slot_G: Tensor


def _split_rows(length_R: Tensor, size: int) -> tuple[Tensor, Tensor]:
    """Split ragged rows into tiles: the number of tiles of each row (R,) and the row of each tile."""
    tiles_R = (length_R + size - 1) // size
    rows = torch.arange(tiles_R.shape[0], device=length_R.device)
    return tiles_R, torch.repeat_interleave(rows, tiles_R)


def _tile_members(start_N: Tensor, length_N: Tensor, rank_N: Tensor, size: int) -> tuple[Tensor, Tensor]:
    """Values (N, size) of each tile, the rank_N-th of its row, and whether each slot is beyond the row."""
    position = rank_N[:, None] * size + torch.arange(size, device=start_N.device)
    return start_N[:, None] + position, position >= length_N[:, None]


def make_tiling(spans: Spans, target_offsets: Tensor, heads: int, width: int) -> Tiling:
    """Tile the histories and targets of a batch.

    Example, with tiles of 2 targets and 4 events:
        request 0 has 3 targets and 5 events, request 1 has 1 target and 2 events
        target tiles Q: [0 1] [2 -] of request 0, [3 -] of request 1; event tiles: [0..3] [4] and [5 6]
        items I: (tile 0, [0..3]) (tile 0, [4]) (tile 1, [0..3]) (tile 1, [4]) (tile 2, [5 6]); slot_G = [0 1 2 4]

    Args:
        spans: Where the histories are among the events.
        target_offsets: Offsets (R + 1,) int64 of each request's targets.
        heads: Number of heads H.
        width: Width D, which bounds the memory of keys.

    Returns:
        The tiling.
    """
    count_R, length_R = target_offsets.diff(), spans.length_R
    max_targets = int(count_R.max()) if len(count_R) else 0
    size = max(1, min(TARGETS_PER_TILE, max_targets))
    target_tiles_R, request_Q = _split_rows(count_R, size)
    rank_Q = ragged_index(torch.zeros_like(target_tiles_R), target_tiles_R)
    targets_QA, beyond_QA = _tile_members(target_offsets[request_Q], count_R[request_Q], rank_Q, size)
    targets_QA = targets_QA.clamp(max=max(0, int(target_offsets[-1]) - 1))
    # every target tile of a request meets every event tile of the request
    event_tiles_Q = _split_rows(length_R, EVENTS_PER_TILE)[0][request_Q]
    tile_I = torch.repeat_interleave(torch.arange(len(request_Q), device=request_Q.device), event_tiles_Q)
    rank_I = ragged_index(torch.zeros_like(event_tiles_Q), event_tiles_Q)
    request_I = request_Q[tile_I]
    events_IB, hidden_IB = _tile_members(spans.start_R[request_I], length_R[request_I], rank_I, EVENTS_PER_TILE)
    events_IB = events_IB.masked_fill(hidden_IB, 0)
    time_delta_IB = spans.time_delta_rows(request_I, events_IB)
    chunks = []
    for tiles, items in _chunk_slices(event_tiles_Q, EVENTS_PER_TILE * (size * heads + 2 * width)):
        time_deltas = None if time_delta_IB is None else time_delta_IB[items]
        chunk_tile_I = tile_I[items] - tiles.start
        chunks.append(TileChunk(targets_QA[tiles], chunk_tile_I, events_IB[items], hidden_IB[items], time_deltas))
    return Tiling(tuple(chunks), torch.nonzero(~beyond_QA.flatten()).flatten())


def _chunk_slices(items_Q: Tensor, values_per_item: int) -> list[tuple[slice, slice]]:
    """Slices of target tiles and of their items that fit VALUES_PER_CHUNK; a larger tile is a chunk of its own."""
    item_ends = offsets_of(items_Q).tolist()
    budget = max(1, VALUES_PER_CHUNK // values_per_item)
    splits = [0]
    for tile in range(1, len(item_ends)):
        if item_ends[tile] - item_ends[splits[-1]] > budget and tile - 1 > splits[-1]:
            splits.append(tile - 1)
    splits.append(len(item_ends) - 1)
    return [(slice(a, b), slice(item_ends[a], item_ends[b])) for a, b in pairwise(splits) if a < b]
