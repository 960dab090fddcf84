"""The tiling of a ragged batch for attention: which tiles of targets are paired with which tiles of events.

Shapes: R requests, G targets, Q tiles of A targets, P tile pairs (a tile of targets with a tile of B events of the same
request), N tiles of either.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from longbatch.loaders.ragged_tensors import offsets_of, ragged_index

from .spans import Spans

EVENTS_PER_TILE = 64
TARGETS_PER_TILE = 16
# scores, keys and values in memory at once. On a GPU chunks are larger, because each chunk starts a few hundred kernels
# and adds a gradient of the size of all events
VALUES_PER_CHUNK = 1 << 25  # 128 MiB of float32
VALUES_PER_GPU_CHUNK = 1 << 28


@dataclass(frozen=True)
class TileChunk:
    """Consecutive target tiles with all their event tiles: the unit that is computed at once.

    Attributes:
        targets_QA: Targets of each tile. Positions beyond a request's targets contain arbitrary targets, whose outputs
            are not read.
        target_tile_P: The target tile of each pair, as an index into targets_QA, ascending.
        events_PB: Events of each pair, 0 where hidden.
        hidden_PB: Whether a position is beyond the history.
        time_bin_PB: Time bins of the time from each event to the request, or None.
    """

    targets_QA: Tensor
    target_tile_P: Tensor
    events_PB: Tensor
    hidden_PB: Tensor
    time_bin_PB: Tensor | None


@dataclass(frozen=True)
class Tiling:
    """Which tiles of targets are paired with which tiles of events; computed once per batch, used by every layer.

    Attributes:
        chunks: The tiles, in chunks whose values fit VALUES_PER_CHUNK or, on a GPU, VALUES_PER_GPU_CHUNK.
        padded_index_G: Index of each target among the padded targets: targets_QA of all chunks, flattened.
    """

    chunks: tuple[TileChunk, ...]
    padded_index_G: Tensor


def _split_rows(length_R: Tensor, size: int) -> tuple[Tensor, Tensor]:
    """Split ragged rows into tiles: the number of tiles of each row (R,) and the row of each tile.

    Lengths [5, 2] and size 4 give the counts [2, 1] and the rows [0, 0, 1].
    """
    tiles_R = (length_R + size - 1) // size
    rows = torch.arange(tiles_R.shape[0], device=length_R.device)
    return tiles_R, torch.repeat_interleave(rows, tiles_R)


def _tile_members(start_N: Tensor, length_N: Tensor, rank_N: Tensor, size: int) -> tuple[Tensor, Tensor]:
    """Members (N, size) of each tile, the rank_N-th of its row, and whether each position is beyond the row.

    Tile 1 of a row that starts at 10 and has 5 values, size 4: members [14 15 16 17], beyond [0 1 1 1].
    """
    position = rank_N[:, None] * size + torch.arange(size, device=start_N.device)
    return start_N[:, None] + position, position >= length_N[:, None]


def make_tiling(spans: Spans, target_offsets: Tensor, heads: int, width: int) -> Tiling:
    """Tile the histories and targets of a batch.

    Example, with tiles of 2 targets and 4 events:
        request 0 has 3 targets and 5 events, request 1 has 1 target and 2 events
        target tiles: [0 1] [2 -] of request 0, [3 -] of request 1; event tiles: [0..3] [4] and [5 6]
        tile pairs: (0, [0..3]) (0, [4]) (1, [0..3]) (1, [4]) (2, [5 6]); padded_index_G = [0 1 2 4]

    Args:
        spans: Where the histories are among the events.
        target_offsets: Offsets (R + 1,) int64 of each request's targets.
        heads: Number of heads H.
        width: Width D, which bounds the memory of keys.

    Returns:
        The tiling.
    """
    device, requests = target_offsets.device, len(spans.start_R)
    # The sizes below depend on these numbers. They are read from the device at once, and all that has one row per
    # request or tile is computed on the CPU, because every size that is read from a GPU waits until the GPU is idle.
    edges = torch.cat([spans.start_R, spans.end_R, target_offsets]).cpu()
    start_R, end_R, target_offsets = edges[:requests], edges[requests : 2 * requests], edges[2 * requests :]
    count_R, length_R = target_offsets.diff(), end_R - start_R
    max_targets = int(count_R.max()) if len(count_R) else 0
    # smaller tiles where no request has 16 targets, so that scores of padding are not computed
    size = max(1, min(TARGETS_PER_TILE, max_targets))
    target_tiles_R, request_Q = _split_rows(count_R, size)
    rank_Q = ragged_index(torch.zeros_like(target_tiles_R), target_tiles_R)
    targets_QA, beyond_QA = _tile_members(target_offsets[request_Q], count_R[request_Q], rank_Q, size)
    # padding of the last tile would be beyond all targets; any valid index will do
    targets_QA = targets_QA.clamp(max=max(0, int(target_offsets[-1]) - 1))
    # each target tile of a request is paired with each event tile of the request
    pairs_Q = _split_rows(length_R, EVENTS_PER_TILE)[0][request_Q]
    target_tile_P = torch.repeat_interleave(torch.arange(len(request_Q)), pairs_Q)
    event_tile_P = ragged_index(torch.zeros_like(pairs_Q), pairs_Q)
    pairs_NP = torch.stack([target_tile_P, event_tile_P, request_Q[target_tile_P]])
    target_tile_P, event_tile_P, request_P = pairs_NP.to(device, non_blocking=True)
    start_P, length_P = spans.start_R[request_P], spans.length_R[request_P]
    events_PB, hidden_PB = _tile_members(start_P, length_P, event_tile_P, EVENTS_PER_TILE)
    events_PB = events_PB.masked_fill(hidden_PB, 0)
    time_bin_PB = spans.time_bins(request_P, events_PB)
    chunks, padded_index_G = [], torch.nonzero(~beyond_QA.flatten()).flatten().to(device, non_blocking=True)
    targets_QA = targets_QA.to(device, non_blocking=True)
    # a pair needs its scores (A * H, B), and at most D numbers of key and of value for each event
    values_per_pair = EVENTS_PER_TILE * (size * heads + 2 * width)
    values_per_chunk = VALUES_PER_CHUNK if device.type == "cpu" else VALUES_PER_GPU_CHUNK
    for tiles, pairs in _chunk_slices(pairs_Q, max(1, values_per_chunk // values_per_pair)):
        time_bins = None if time_bin_PB is None else time_bin_PB[pairs]
        # a chunk has its own targets_QA, so its tiles are numbered from 0
        chunk_tile_P = target_tile_P[pairs] - tiles.start
        chunks.append(TileChunk(targets_QA[tiles], chunk_tile_P, events_PB[pairs], hidden_PB[pairs], time_bins))
    return Tiling(tuple(chunks), padded_index_G)


def _chunk_slices(pairs_Q: Tensor, max_pairs: int) -> list[tuple[slice, slice]]:
    """Group consecutive target tiles into chunks of at most max_pairs pairs: slices of target tiles and of their pairs.

    Example, at most 5 pairs, and 4 target tiles with pairs_Q = [2, 3, 9, 1]:
        chunks of tiles: [0, 2) with 5 pairs, [2, 3) with 9 (a tile over the limit is a chunk of its own), [3, 4)
        result: [(0:2, 0:5), (2:3, 5:14), (3:4, 14:15)]
    """
    pair_offsets = offsets_of(pairs_Q).tolist()
    target_tiles = len(pair_offsets) - 1
    chunks, start = [], 0
    while start < target_tiles:
        end = start + 1  # at least one tile, whatever its pairs
        while end < target_tiles and pair_offsets[end + 1] - pair_offsets[start] <= max_pairs:
            end += 1
        chunks.append((slice(start, end), slice(pair_offsets[start], pair_offsets[end])))
        start = end
    return chunks
