"""Ragged target-to-history cross attention: each target attends to the history of its own request.

Shapes: R requests, G targets, T events, D width, H heads, E width of one head's query and key, S heads
that keys and values have (H, or 1 where all heads share them). Tiling: Q tiles of A targets, I items (a
tile of targets with a tile of B events of the same request), C rows of a score matrix (A * H / S).
Requests read spans of the events, their own or, in the shared form, overlapping ones.

Three forms compute the same numbers (STCA, arXiv 2511.06077):
* `naive`: loops over targets and heads; the reference;
* `projected`: keys and values once per history, shared by its targets: 4 T D^2 + 4 T D m operations;
* `reordered`: scores `((q WQ) WK^T) X^T`, value `(a X) WV`, so that K and V are never materialised; one
  D-vector per head, since averaging heads before WV is not the same: 4 T D H m operations.
With m targets per history the reordered form costs less below `m = D / (H - 1)`.

Histories are cut into tiles of 64 events and targets into tiles of at most 16, whose softmaxes are joined
by their maxima and sums, so padding never exceeds one tile per request, however long the longest is.
A target with an empty history gets zeros.

Scores may have a bias by the time from event to request, one number per head and bucket (as HSTU has, arXiv
2402.17152). Then an event's key and value need not know the request, and requests of one user share them.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from itertools import pairwise

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from longbatch.loaders.batch import offsets_of, ragged_index
from longbatch.trainer.config import MEASURE_ROWS

from .spans import Spans

# From queries (G, H, E), keys and values (T, S, E), a scale, and what each bucket of the time from event to request adds to the scores of
# each head (K, H) or None: softmax attention of each target over its history, (G, H, E) of the values' E.
Attend = Callable[[Tensor, Tensor, Tensor, float, Tensor | None], Tensor]
EVENTS_PER_TILE = 64
TARGETS_PER_TILE = 16
VALUES_PER_CHUNK = 1 << 25  # of scores, keys and values at once: 128 MiB of float32


@dataclass(frozen=True)
class Tiling:
    """Which tiles of targets meet which tiles of events; computed once per batch, used by every layer.

    targets_QA: target numbers; a tile's slots beyond its request's targets hold any, whose outputs nobody reads.  slot_G: where each target
    lies in the flattened targets_QA.  tile_I: the target tile of each item, ascending.  events_IB: event
    numbers, padded with 0 where hidden_IB.  elapsed_IB: buckets of the time from each to the request, where asked for.
    chunks: (first, end) target tile and item of each chunk.
    """

    targets_QA: Tensor
    slot_G: Tensor
    tile_I: Tensor
    events_IB: Tensor
    hidden_IB: Tensor
    elapsed_IB: Tensor | None
    chunks: tuple[tuple[int, int, int, int], ...]


def _cut(length_R: Tensor, size: int) -> tuple[Tensor, Tensor]:
    """Cut ragged rows into tiles: tiles per row (R,), and for each tile its row's number."""
    tiles_R = (length_R + size - 1) // size
    rows = torch.arange(tiles_R.shape[0], device=length_R.device)
    return tiles_R, torch.repeat_interleave(rows, tiles_R)


def _members(start_N: Tensor, length_N: Tensor, rank_N: Tensor, size: int) -> tuple[Tensor, Tensor]:
    """Numbers (N, size) of the values in each tile, the rank_N-th of its row, and whether the slot is beyond the row."""
    place = rank_N[:, None] * size + torch.arange(size, device=start_N.device)
    return start_N[:, None] + place, place >= length_N[:, None]


def make_tiling(spans: Spans, target_offsets: Tensor, heads: int, width: int) -> Tiling:
    """Tile a batch with these histories and targets (R + 1,) int64, for so many heads and keys of this width."""
    count_R, length_R = target_offsets.diff(), spans.length_R
    most = int(count_R.max()) if len(count_R) else 0
    size = max(1, min(TARGETS_PER_TILE, most))
    target_tiles_R, request_Q = _cut(count_R, size)
    rank_Q = ragged_index(torch.zeros_like(target_tiles_R), target_tiles_R)
    targets_QA, beyond_QA = _members(target_offsets[request_Q], count_R[request_Q], rank_Q, size)
    event_tiles_Q = _cut(length_R, EVENTS_PER_TILE)[0][request_Q]
    tile_I = torch.repeat_interleave(torch.arange(len(request_Q), device=request_Q.device), event_tiles_Q)
    rank_I = ragged_index(torch.zeros_like(event_tiles_Q), event_tiles_Q)
    request_I = request_Q[tile_I]
    events_IB, hidden_IB = _members(spans.start_R[request_I], length_R[request_I], rank_I, EVENTS_PER_TILE)
    events_IB = events_IB.masked_fill(hidden_IB, 0)
    return Tiling(
        targets_QA=targets_QA.clamp(max=max(0, int(target_offsets[-1]) - 1)),
        slot_G=torch.nonzero(~beyond_QA.flatten()).flatten(),
        tile_I=tile_I,
        events_IB=events_IB,
        hidden_IB=hidden_IB,
        elapsed_IB=spans.elapsed(request_I, events_IB),
        chunks=_chunks(event_tiles_Q, EVENTS_PER_TILE * (size * heads + 2 * width)),
    )


def _chunks(items_Q: Tensor, values_per_item: int) -> tuple[tuple[int, int, int, int], ...]:
    """Runs of target tiles whose values fit VALUES_PER_CHUNK; a tile above it is a run of its own."""
    ends = offsets_of(items_Q).tolist()
    budget = max(1, VALUES_PER_CHUNK // values_per_item)
    cuts = [0]
    for tile in range(1, len(ends)):
        if ends[tile] - ends[cuts[-1]] > budget and tile - 1 > cuts[-1]:
            cuts.append(tile - 1)
    cuts.append(len(ends) - 1)
    return tuple((a, b, ends[a], ends[b]) for a, b in pairwise(cuts) if a < b)


def tiled(spans: Spans, target_offsets: Tensor, heads: int, width: int) -> Attend:
    """Attention by tiles over a batch with these histories and targets, for so many heads and keys of this width."""
    return partial(_attend, make_tiling(spans, target_offsets, heads, width))


def _attend(
    tiling: Tiling, query_GHE: Tensor, key_TSE: Tensor, value_TSE: Tensor, scale: float, bias_KH: Tensor | None = None
) -> Tensor:
    """Softmax attention of each target over its history; returns (G, H, E) of the values' E.

    bias_KH: what each of K buckets of `tiling.elapsed_IB` adds to the scores of each head.  Chunks beyond a single one are
    recomputed in the backward pass, so that memory stays bounded.
    """
    several = len(tiling.chunks) > 1 and torch.is_grad_enabled()
    outputs = [query_GHE.new_zeros(0, *query_GHE.shape[1:-1], value_TSE.shape[-1])]
    for chunk in tiling.chunks:
        arguments = (query_GHE, key_TSE, value_TSE, tiling, chunk, scale, bias_KH)
        if several:
            outputs.append(checkpoint(_attend_chunk, *arguments, use_reentrant=False, preserve_rng_state=False))
        else:
            outputs.append(_attend_chunk(*arguments))
    return torch.cat(outputs).index_select(0, tiling.slot_G)


def _attend_chunk(
    query_GHE: Tensor,
    key_TSE: Tensor,
    value_TSE: Tensor,
    tiling: Tiling,
    chunk: tuple[int, int, int, int],
    scale: float,
    bias_KH: Tensor | None,
) -> Tensor:
    """Outputs (tiles * A, H, E) of one run of target tiles."""
    first_tile, end_tile, first_item, end_item = chunk
    targets_QA, heads, shared = tiling.targets_QA[first_tile:end_tile], query_GHE.shape[1], key_TSE.shape[1]
    tile_I = tiling.tile_I[first_item:end_item] - first_tile
    events_IB = tiling.events_IB[first_item:end_item]
    tiles, size = targets_QA.shape
    rows = size * heads // shared
    query_QASHE = query_GHE[targets_QA].view(tiles, size, shared, heads // shared, -1) * scale
    query_QSCE = query_QASHE.transpose(1, 2).reshape(tiles, shared, rows, -1)
    key_ISBE = _gather(key_TSE, events_IB)
    value_ISBE = key_ISBE if value_TSE is key_TSE else _gather(value_TSE, events_IB)
    score_ISCB = query_QSCE[tile_I] @ key_ISBE.transpose(-1, -2)
    score_ISCB = score_ISCB.to(
        torch.promote_types(score_ISCB.dtype, torch.float32)
    )  # sums of many tiles, in bfloat16 too
    bias_ISAHB = _bias(tiling, slice(first_item, end_item), shared, bias_KH, score_ISCB.dtype)
    score_ISAHB = score_ISCB.view(len(tile_I), shared, size, heads // shared, EVENTS_PER_TILE)
    score_ISCB = (score_ISAHB + bias_ISAHB).view_as(score_ISCB)
    weight_ISCB = torch.exp(score_ISCB - _maxima(score_ISCB.detach(), tile_I, tiles)[tile_I])
    total_QSC = weight_ISCB.new_zeros(tiles, shared, rows).index_add(0, tile_I, weight_ISCB.sum(-1))
    output_QSCE = weight_ISCB.new_zeros(tiles, shared, rows, value_TSE.shape[-1])
    output_QSCE = output_QSCE.index_add(0, tile_I, (weight_ISCB @ value_ISBE).to(weight_ISCB.dtype))
    # the newest maximum contributes exp(0) = 1, so a total is at least 1 wherever there is a history
    output_QSCE = output_QSCE / total_QSC.clamp(min=1)[..., None]
    output_QASHE = output_QSCE.view(tiles, shared, size, heads // shared, -1).transpose(1, 2)
    return output_QASHE.reshape(tiles * size, heads, -1).to(query_GHE.dtype)


def _bias(tiling: Tiling, items: slice, shared: int, bias_KH: Tensor | None, dtype: torch.dtype) -> Tensor:
    """What is added to the scores (I, S, A, H / S, B) of some items, minus infinity where hidden; sizes may be 1."""
    hidden_IB = tiling.hidden_IB[items]
    if bias_KH is None or tiling.elapsed_IB is None:
        return torch.zeros_like(hidden_IB, dtype=dtype).masked_fill(hidden_IB, -math.inf)[:, None, None, None]
    bias_IBH = nn.functional.embedding(tiling.elapsed_IB[items], bias_KH).to(dtype)
    bias_IBH = bias_IBH.masked_fill(hidden_IB[..., None], -math.inf)
    return bias_IBH.view(*hidden_IB.shape, shared, 1, bias_IBH.shape[-1] // shared).permute(0, 2, 3, 4, 1)


def _gather(values_TSE: Tensor, events_IB: Tensor) -> Tensor:
    picked = values_TSE.index_select(0, events_IB.flatten())
    return picked.view(*events_IB.shape, *values_TSE.shape[1:]).transpose(1, 2)


def _maxima(score_ISCB: Tensor, tile_I: Tensor, tiles: int) -> Tensor:
    """The highest score (Q, S, C, 1) of each row over all items of its tile."""
    best_ISC = score_ISCB.amax(-1) if len(score_ISCB) else score_ISCB[..., 0]
    maxima = best_ISC.new_full((tiles, *best_ISC.shape[1:]), -math.inf)
    return maxima.scatter_reduce(0, tile_I[:, None, None].expand_as(best_ISC), best_ISC, "amax")[..., None]


def prefers_reorder(width: int, heads: int, targets_per_event: float) -> bool:
    """Whether the reordered form costs fewer operations: m < D / (H - 1)."""
    return heads == 1 or targets_per_event < width / (heads - 1)


@torch.no_grad()
def start_by_similarity(query: Tensor, key: Tensor, value: Tensor, output: Tensor) -> None:
    """Initial weights (D, D) of attention: WQ and WV orthogonal, WK equals WQ, and WO undoes WV.

    So a target sees the mean of the events most like it, in their own coordinates. From independent random weights, that
    events like the target deserve attention takes thousands of steps to be found.
    """
    nn.init.orthogonal_(query)
    nn.init.orthogonal_(value)
    key.copy_(query)
    output.copy_(value.T)


class TargetAttention(nn.Module):
    """Multi-head attention of targets over their histories, weights WQ, WK, WV, WO (D, D), no biases.

    elapsed: add a bias by the time from event to request, a number per bucket and head that starts at 0.
    """

    def __init__(self, width: int, heads: int, elapsed: bool = False) -> None:
        super().__init__()
        self.elapsed = nn.Embedding(MEASURE_ROWS, heads) if elapsed else None
        self.width, self.heads = width, heads
        self.query, self.key, self.value, self.output = (nn.Linear(width, width, bias=False) for _ in range(4))
        start_by_similarity(self.query.weight, self.key.weight, self.value.weight, self.output.weight)
        if self.elapsed is not None:
            nn.init.zeros_(self.elapsed.weight)

    def keys_and_values(self, history_TD: Tensor, targets_per_event: float) -> tuple[Tensor, Tensor]:
        """Keys and values (T, S, E) as `read` takes them: projected, or twice the history itself (S = 1, E = D)."""
        if prefers_reorder(self.width, self.heads, targets_per_event):
            shared_T1D = history_TD[:, None]
            return shared_T1D, shared_T1D
        return self._projected(history_TD)

    def read(self, query_GD: Tensor, key_TSE: Tensor, value_TSE: Tensor, attend: Attend) -> Tensor:
        """Outputs (G, D) from what `keys_and_values` returned, whichever form that has."""
        query_GHE, bias_KH = self._by_head(self.query(query_GD)), self._bias_KH
        if key_TSE is not value_TSE:
            return self._joined(attend(query_GHE, key_TSE, value_TSE, self._scale, bias_KH))
        key_HED, value_HED = (
            w.weight.view(self.heads, self.width // self.heads, self.width) for w in (self.key, self.value)
        )
        query_GHD = torch.einsum("ghe,hed->ghd", query_GHE, key_HED)
        seen_GHD = attend(query_GHD, key_TSE, value_TSE, self._scale, bias_KH)
        return self._joined(torch.einsum("ghd,hed->ghe", seen_GHD, value_HED))

    def projected(self, query_GD: Tensor, history_TD: Tensor, attend: Attend) -> Tensor:
        """Outputs (G, D), with keys and values projected once per history."""
        return self.read(query_GD, *self._projected(history_TD), attend)

    def reordered(self, query_GD: Tensor, history_TD: Tensor, attend: Attend) -> Tensor:
        """Outputs (G, D), without keys and values: each head's query meets the raw history."""
        shared_T1D = history_TD[:, None]
        return self.read(query_GD, shared_T1D, shared_T1D, attend)

    def naive(self, query_GD: Tensor, history_TD: Tensor, spans: Spans, target_offsets: Tensor) -> Tensor:
        """Outputs (G, D), one target and one head at a time: the reference of the other forms."""
        size = self.width // self.heads
        rows = []
        for request, (first, end) in enumerate(pairwise(target_offsets.tolist())):
            seen = torch.arange(int(spans.start_R[request]), int(spans.end_R[request]))
            seen_LD, elapsed_1L = history_TD[seen], spans.elapsed(torch.tensor([request]), seen[None])
            for target in range(first, end):
                heads = []
                for head in range(self.heads):
                    part = slice(head * size, (head + 1) * size)
                    query_E = self.query.weight[part] @ query_GD[target]
                    key_LE, value_LE = (seen_LD @ w.weight[part].T for w in (self.key, self.value))
                    score_L = key_LE @ query_E * self._scale
                    if self.elapsed is not None and elapsed_1L is not None:
                        score_L = score_L + self.elapsed.weight[elapsed_1L[0], head]
                    heads.append(torch.softmax(score_L, 0) @ value_LE)
                rows.append(torch.cat(heads))
        output_GD: Tensor = self.output(torch.stack(rows) if rows else query_GD)
        return output_GD

    def _projected(self, history_TD: Tensor) -> tuple[Tensor, Tensor]:
        return self._by_head(self.key(history_TD)), self._by_head(self.value(history_TD))

    @property
    def _scale(self) -> float:
        return 1 / math.sqrt(self.width // self.heads)

    @property
    def _bias_KH(self) -> Tensor | None:
        return None if self.elapsed is None else self.elapsed.weight

    def _by_head(self, values_ND: Tensor) -> Tensor:
        return values_ND.view(len(values_ND), self.heads, self.width // self.heads)

    def _joined(self, output_GHE: Tensor) -> Tensor:
        output_GD: Tensor = self.output(output_GHE.flatten(1))
        return output_GD
