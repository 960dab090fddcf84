"""Ragged target-to-history cross attention: each target attends to the history of its own request.

Sources: STCA (arXiv 2511.06077), "reorder" for a single query; the bias by time is HSTU's (arXiv 2402.17152). Joining
the softmaxes of tiles by their maxima and sums is the online softmax of FlashAttention (arXiv 2205.14135).

Shapes: R requests, G targets, T events, D width, H heads, E width of one head's query and key, S heads of keys and
values (H, or 1 where all heads share them), K buckets of the time delta. Tiling: Q tiles of A targets, I items (a tile
of targets with a tile of B events of the same request), C = A * H / S rows of a score matrix.
Requests read spans of the events: their own, or overlapping ones where timelines are shared.

Three implementations compute the same numbers:
* `attend_naive` loops over targets and heads. It is the reference.
* `attend_projected` projects keys and values once per history, shared by its targets: 4 T D^2 + 4 T D m operations.
* `attend_reordered` computes scores `((q WQ) WK^T) X^T` and values `(a X) WV`, so K and V are never materialized: 4 T
  D H m operations. It keeps one D-vector per head, because averaging heads before WV is not the same.

With m targets per history the reordered implementation is cheaper below `m = D / (H - 1)`.

Histories are split into tiles of 64 events and targets into tiles of at most 16 (`tiling.py`), so the padding is at
most one tile per request, whatever the longest history is. A target with an empty history gets zeros.

With a bias by the time delta, one number per bucket and head, an event's key and value do not depend on the request, so
requests of one user share them.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial
from itertools import pairwise

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from longbatch.trainer.config import NUMERIC_ROWS

from .spans import Spans
from .tiling import EVENTS_PER_TILE, TileChunk, Tiling, make_tiling

AttentionFunction = Callable[[Tensor, Tensor, Tensor, float, Tensor | None], Tensor]
"""Softmax attention of each target over its history.

Takes queries (G, H, E), keys and values (T, S, E), the scale of the scores and the bias (K, H) that each bucket of the
time delta adds to the scores of each head, or None. Returns (G, H, E) of the values' E.
"""


def tiled_attention(spans: Spans, target_offsets: Tensor, heads: int, width: int) -> AttentionFunction:
    """Make the attention by tiles over a batch.

    Args:
        spans: Where the histories are among the events.
        target_offsets: Offsets (R + 1,) of each request's targets.
        heads: Number of heads H.
        width: Width D.

    Returns:
        The attention function, for any number of layers.
    """
    return partial(_attend, make_tiling(spans, target_offsets, heads, width))


def _attend(
    tiling: Tiling, query_GHE: Tensor, key_TSE: Tensor, value_TSE: Tensor, scale: float, bias_KH: Tensor | None = None
) -> Tensor:
    """Attention over all chunks; see `AttentionFunction`."""
    # several chunks are recomputed in the backward pass, so that the scores of only one are in memory
    recompute = len(tiling.chunks) > 1 and torch.is_grad_enabled()
    outputs = [query_GHE.new_zeros(0, *query_GHE.shape[1:-1], value_TSE.shape[-1])]
    for chunk in tiling.chunks:
        arguments = (query_GHE, key_TSE, value_TSE, chunk, scale, bias_KH)
        if recompute:
            outputs.append(checkpoint(_attend_chunk, *arguments, use_reentrant=False, preserve_rng_state=False))
        else:
            outputs.append(_attend_chunk(*arguments))
    return torch.cat(outputs).index_select(0, tiling.slot_G)


def _attend_chunk(
    query_GHE: Tensor, key_TSE: Tensor, value_TSE: Tensor, chunk: TileChunk, scale: float, bias_KH: Tensor | None
) -> Tensor:
    """Outputs (tiles * A, H, E) of one chunk.

    Example, one tile of targets whose history has two tiles of events: items 0 and 1 have scores (C, B) each
        maximum over both items:  m = max(max(score_0), max(score_1))
        sums of both items:       total = sum(exp(score_0 - m)) + sum(exp(score_1 - m)), likewise for exp(..) @ value
        output:                   (exp(score_0 - m) @ value_0 + exp(score_1 - m) @ value_1) / total
    """
    heads, shared = query_GHE.shape[1], key_TSE.shape[1]
    tiles, size = chunk.targets_QA.shape
    items, rows = len(chunk.tile_I), size * heads // shared
    # heads that share keys become rows of one score matrix: (Q, A, H, E) -> (Q, S, A * H / S, E)
    query_QASHE = query_GHE[chunk.targets_QA].view(tiles, size, shared, heads // shared, -1) * scale
    query_QSCE = query_QASHE.transpose(1, 2).reshape(tiles, shared, rows, -1)
    key_ISBE = _gather(key_TSE, chunk.events_IB)
    value_ISBE = key_ISBE if value_TSE is key_TSE else _gather(value_TSE, chunk.events_IB)
    score_ISCB = query_QSCE[chunk.tile_I] @ key_ISBE.transpose(-1, -2)
    # bfloat16 is too coarse for sums over many tiles
    score_ISCB = score_ISCB.to(torch.promote_types(score_ISCB.dtype, torch.float32))
    bias_ISAHB = _bias(chunk, shared, bias_KH, score_ISCB.dtype)
    score_ISAHB = score_ISCB.view(items, shared, size, heads // shared, EVENTS_PER_TILE)
    score_ISCB = (score_ISAHB + bias_ISAHB).view_as(score_ISCB)
    weight_ISCB = torch.exp(score_ISCB - _maxima(score_ISCB.detach(), chunk.tile_I, tiles)[chunk.tile_I])
    total_QSC = weight_ISCB.new_zeros(tiles, shared, rows).index_add(0, chunk.tile_I, weight_ISCB.sum(-1))
    output_QSCE = weight_ISCB.new_zeros(tiles, shared, rows, value_TSE.shape[-1])
    output_QSCE = output_QSCE.index_add(0, chunk.tile_I, (weight_ISCB @ value_ISBE).to(weight_ISCB.dtype))
    # the maximum contributes exp(0) = 1, so a total is at least 1 unless the history is empty
    output_QSCE = output_QSCE / total_QSC.clamp(min=1)[..., None]
    output_QASHE = output_QSCE.view(tiles, shared, size, heads // shared, -1).transpose(1, 2)
    return output_QASHE.reshape(tiles * size, heads, -1).to(query_GHE.dtype)


def _bias(chunk: TileChunk, shared: int, bias_KH: Tensor | None, dtype: torch.dtype) -> Tensor:
    """The bias of the scores (I, S, A, H / S, B), minus infinity where hidden; sizes that broadcast are 1."""
    if bias_KH is None or chunk.time_delta_IB is None:
        zeros_IB = torch.zeros_like(chunk.hidden_IB, dtype=dtype)
        return zeros_IB.masked_fill(chunk.hidden_IB, -math.inf)[:, None, None, None]
    bias_IBH = nn.functional.embedding(chunk.time_delta_IB, bias_KH).to(dtype)
    bias_IBH = bias_IBH.masked_fill(chunk.hidden_IB[..., None], -math.inf)
    return bias_IBH.view(*chunk.hidden_IB.shape, shared, 1, bias_IBH.shape[-1] // shared).permute(0, 2, 3, 4, 1)


def _gather(values_TSE: Tensor, events_IB: Tensor) -> Tensor:
    """Values (I, S, B, E) of the events of each item."""
    values_NSE = values_TSE.index_select(0, events_IB.flatten())
    return values_NSE.view(*events_IB.shape, *values_TSE.shape[1:]).transpose(1, 2)


def _maxima(score_ISCB: Tensor, tile_I: Tensor, tiles: int) -> Tensor:
    """The highest score (Q, S, C, 1) of each row over all items of its tile."""
    best_ISC = score_ISCB.amax(-1) if len(score_ISCB) else score_ISCB[..., 0]
    maxima = best_ISC.new_full((tiles, *best_ISC.shape[1:]), -math.inf)
    return maxima.scatter_reduce(0, tile_I[:, None, None].expand_as(best_ISC), best_ISC, "amax")[..., None]


def prefers_reorder(width: int, heads: int, targets_per_event: float) -> bool:
    """Decide whether the reordered implementation needs fewer operations: m < D / (H - 1).

    Args:
        width: Width D.
        heads: Number of heads H.
        targets_per_event: Mean number of targets that attend to an event (m).

    Returns:
        True for reordered, False for projected keys and values.
    """
    return heads == 1 or targets_per_event < width / (heads - 1)


@torch.no_grad()
def start_by_similarity(query: Tensor, key: Tensor, value: Tensor, output: Tensor) -> None:
    """Set initial weights of attention, in place: WQ and WV orthogonal, WK equal to WQ, and WO the inverse of WV.

    A target then reads the mean of the events most similar to it, in their own coordinates. From independent random
    weights it takes thousands of steps to learn that similar events deserve attention.

    Args:
        query: WQ (D, D).
        key: WK (D, D).
        value: WV (D, D).
        output: WO (D, D).
    """
    nn.init.orthogonal_(query)
    nn.init.orthogonal_(value)
    key.copy_(query)
    output.copy_(value.T)


class TargetAttention(nn.Module):
    """Multi-head attention of targets over their histories, with weights WQ, WK, WV, WO (D, D) and no biases.

    Args:
        width: Width D.
        heads: Number of heads H.
        time_bias: Add a bias by the time delta to the scores, one number per bucket and head, initially 0.
    """

    def __init__(self, width: int, heads: int, time_bias: bool = False) -> None:
        super().__init__()
        self.time_bias = nn.Embedding(NUMERIC_ROWS, heads) if time_bias else None
        self.width, self.heads = width, heads
        self.query, self.key, self.value, self.output = (nn.Linear(width, width, bias=False) for _ in range(4))
        start_by_similarity(self.query.weight, self.key.weight, self.value.weight, self.output.weight)
        if self.time_bias is not None:
            nn.init.zeros_(self.time_bias.weight)

    def keys_and_values(self, history_TD: Tensor, targets_per_event: float) -> tuple[Tensor, Tensor]:
        """Compute what `attend` reads of the histories.

        Args:
            history_TD: Encoded events (T, D).
            targets_per_event: Mean number of targets that attend to an event (m).

        Returns:
            Projected keys and values (T, H, D / H), or twice the same tensor, the history itself (T, 1, D).
        """
        if prefers_reorder(self.width, self.heads, targets_per_event):
            shared_T1D = history_TD[:, None]
            return shared_T1D, shared_T1D
        return self._project(history_TD)

    def attend(self, query_GD: Tensor, key_TSE: Tensor, value_TSE: Tensor, attend: AttentionFunction) -> Tensor:
        """Attend to what `keys_and_values` returned.

        Args:
            query_GD: Queries (G, D).
            key_TSE: Keys.
            value_TSE: Values; the same tensor as the keys for the reordered implementation.
            attend: The attention over this batch.

        Returns:
            Outputs (G, D).
        """
        query_GHE, bias_KH = self._split_heads(self.query(query_GD)), self._bias_KH
        if key_TSE is not value_TSE:
            return self._join_heads(attend(query_GHE, key_TSE, value_TSE, self._scale, bias_KH))
        key_HED, value_HED = (
            w.weight.view(self.heads, self.width // self.heads, self.width) for w in (self.key, self.value)
        )
        query_GHD = torch.einsum("ghe,hed->ghd", query_GHE, key_HED)
        mean_GHD = attend(query_GHD, key_TSE, value_TSE, self._scale, bias_KH)
        return self._join_heads(torch.einsum("ghd,hed->ghe", mean_GHD, value_HED))

    def attend_projected(self, query_GD: Tensor, history_TD: Tensor, attend: AttentionFunction) -> Tensor:
        """Attend with keys and values projected once per history.

        Args:
            query_GD: Queries (G, D).
            history_TD: Encoded events (T, D).
            attend: The attention over this batch.

        Returns:
            Outputs (G, D).
        """
        return self.attend(query_GD, *self._project(history_TD), attend)

    def attend_reordered(self, query_GD: Tensor, history_TD: Tensor, attend: AttentionFunction) -> Tensor:
        """Attend without keys and values: each head's query meets the encoded events directly.

        Args:
            query_GD: Queries (G, D).
            history_TD: Encoded events (T, D).
            attend: The attention over this batch.

        Returns:
            Outputs (G, D).
        """
        shared_T1D = history_TD[:, None]
        return self.attend(query_GD, shared_T1D, shared_T1D, attend)

    def attend_naive(self, query_GD: Tensor, history_TD: Tensor, spans: Spans, target_offsets: Tensor) -> Tensor:
        """Attend one target and one head at a time: the reference of the other implementations.

        Args:
            query_GD: Queries (G, D).
            history_TD: Encoded events (T, D).
            spans: Where the histories are among the events.
            target_offsets: Offsets (R + 1,) of each request's targets.

        Returns:
            Outputs (G, D).
        """
        rows = []
        for request, (first, end) in enumerate(pairwise(target_offsets.tolist())):
            event_L = torch.arange(int(spans.start_R[request]), int(spans.end_R[request]))
            time_delta_1L = spans.time_delta_rows(torch.tensor([request]), event_L[None])
            time_delta_L = None if time_delta_1L is None else time_delta_1L[0]
            for target in range(first, end):
                heads = [
                    self._attend_one(query_GD[target], history_TD[event_L], time_delta_L, head)
                    for head in range(self.heads)
                ]
                rows.append(torch.cat(heads))
        output_GD: Tensor = self.output(torch.stack(rows) if rows else query_GD)
        return output_GD

    def _attend_one(self, query_D: Tensor, history_LD: Tensor, time_delta_L: Tensor | None, head: int) -> Tensor:
        """One head (E,) of one target over its L events."""
        size = self.width // self.heads
        part = slice(head * size, (head + 1) * size)
        query_E = self.query.weight[part] @ query_D
        key_LE, value_LE = (history_LD @ w.weight[part].T for w in (self.key, self.value))
        score_L = key_LE @ query_E * self._scale
        if self.time_bias is not None and time_delta_L is not None:
            score_L = score_L + self.time_bias.weight[time_delta_L, head]
        return torch.softmax(score_L, 0) @ value_LE

    def _project(self, history_TD: Tensor) -> tuple[Tensor, Tensor]:
        return self._split_heads(self.key(history_TD)), self._split_heads(self.value(history_TD))

    @property
    def _scale(self) -> float:
        return 1 / math.sqrt(self.width // self.heads)

    @property
    def _bias_KH(self) -> Tensor | None:
        return None if self.time_bias is None else self.time_bias.weight

    def _split_heads(self, values_ND: Tensor) -> Tensor:
        return values_ND.view(len(values_ND), self.heads, self.width // self.heads)

    def _join_heads(self, output_GHE: Tensor) -> Tensor:
        output_GD: Tensor = self.output(output_GHE.flatten(1))
        return output_GD
