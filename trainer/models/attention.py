"""Ragged target-to-history cross attention: each target attends to the history of its own request.

Sources: STCA (arXiv 2511.06077), "reorder" for a single query; the bias by time is HSTU's (arXiv 2402.17152).

Shapes: R requests, G targets, T events, L events of one history, D width, H heads, S heads of keys and values (H, or 1
where all heads share them), E width of a head's queries, keys and values (D / H, or D where they are reordered), K time
bins, N rows of any values, m the mean number of targets that attend to an event.
Tiling (`tiling.py`): Q tiles of A targets, P tile pairs (a tile of targets with a tile of B events of the same
request), C = A * H / S rows of a score matrix.
Requests read spans of the events: their own, or overlapping ones where timelines are shared.

Three implementations compute the same numbers:
* `attend_naive` loops over targets and heads. It is the reference.
* `attend_projected` projects keys and values once per history, shared by its targets: 4 T D^2 + 4 T D m operations.
* `attend_reordered` absorbs the projections of keys and values into the targets, so K = X WK and V = X WV are never
  materialized: since `q K^T = q (X WK)^T = (q WK^T) X^T`, the query is multiplied by WK^T first and then attends to the
  encoded events X; since `a V = (a X) WV`, WV is applied to the weighted mean of events. That takes 4 T D H m
  operations, because each head attends with D numbers instead of D / H. The reordered implementation is cheaper below
  `m = D / (H - 1)`.

The softmax is a segment softmax by tiles, in two passes: first the maximum score of each target over all its tiles,
then the sums of exponentials, which are therefore never rescaled. Histories are split into tiles of 64 events and
targets into tiles of at most 16, so the padding is at most one tile per request, whatever the longest history is. A
target with an empty history gets zeros.

With a bias by the time delta, one number per time bin and head, an event's key and value do not depend on the request,
so requests of one user share them.
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

Takes queries (G, H, E), keys and values (T, S, E), the scale of the scores and the bias (K, H) that each time bin adds
to the scores of each head, or None. Returns (G, H, E) of the values' E.
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
    return torch.cat(outputs).index_select(0, tiling.padded_index_G)


def _attend_chunk(
    query_GHE: Tensor, key_TSE: Tensor, value_TSE: Tensor, chunk: TileChunk, scale: float, bias_KH: Tensor | None
) -> Tensor:
    """Outputs (Q * A, H, E) of one chunk.

    Example, one tile of targets whose history has two tiles of events: tile pairs 0 and 1, with scores (C, B) each
        maximum of each row:  top = max(max(score_0), max(score_1))
        sums of both pairs:   total = sum(exp(score_0 - top)) + sum(exp(score_1 - top)), likewise for exp(..) @ value
        output:               (exp(score_0 - top) @ value_0 + exp(score_1 - top) @ value_1) / total
    """
    heads, kv_heads = query_GHE.shape[1], key_TSE.shape[1]
    target_tiles, targets_per_tile = chunk.targets_QA.shape
    tile_pairs, rows = len(chunk.target_tile_P), targets_per_tile * heads // kv_heads
    # heads that share keys become rows of one score matrix: (Q, A, H, E) -> (Q, S, A * H / S, E)
    query_QASHE = query_GHE[chunk.targets_QA].view(target_tiles, targets_per_tile, kv_heads, heads // kv_heads, -1)
    query_QSCE = (query_QASHE * scale).transpose(1, 2).reshape(target_tiles, kv_heads, rows, -1)
    key_PSBE = _gather(key_TSE, chunk.events_PB)
    # reordered: keys and values are the same events, so they are gathered once
    value_PSBE = key_PSBE if value_TSE is key_TSE else _gather(value_TSE, chunk.events_PB)
    score_PSCB = query_QSCE[chunk.target_tile_P] @ key_PSBE.transpose(-1, -2)
    # bfloat16 is too coarse for sums over many tiles
    score_PSCB = score_PSCB.to(torch.promote_types(score_PSCB.dtype, torch.float32))
    bias_PSAHB = _bias_or_hidden(chunk, kv_heads, bias_KH, score_PSCB.dtype)
    score_PSAHB = score_PSCB.view(tile_pairs, kv_heads, targets_per_tile, heads // kv_heads, EVENTS_PER_TILE)
    score_PSCB = (score_PSAHB + bias_PSAHB).view_as(score_PSCB)
    # first pass: the maximum is a constant of the softmax, so it needs no gradient
    maximum_QSC1 = _maxima(score_PSCB.detach(), chunk.target_tile_P, target_tiles)
    # second pass: sums over all pairs of a target tile (segment sums)
    weight_PSCB = torch.exp(score_PSCB - maximum_QSC1[chunk.target_tile_P])
    total_QSC = weight_PSCB.new_zeros(target_tiles, kv_heads, rows)
    total_QSC = total_QSC.index_add(0, chunk.target_tile_P, weight_PSCB.sum(-1))
    output_QSCE = weight_PSCB.new_zeros(target_tiles, kv_heads, rows, value_TSE.shape[-1])
    output_QSCE = output_QSCE.index_add(0, chunk.target_tile_P, (weight_PSCB @ value_PSBE).to(weight_PSCB.dtype))
    # the maximum contributes exp(0) = 1, so a total is at least 1 unless the history is empty
    output_QSCE = output_QSCE / total_QSC.clamp(min=1)[..., None]
    output_QASHE = output_QSCE.view(target_tiles, kv_heads, targets_per_tile, heads // kv_heads, -1).transpose(1, 2)
    return output_QASHE.reshape(target_tiles * targets_per_tile, heads, -1).to(query_GHE.dtype)


def _bias_or_hidden(chunk: TileChunk, kv_heads: int, bias_KH: Tensor | None, dtype: torch.dtype) -> Tensor:
    """What is added to the scores (P, S, A, H / S, B): the bias, or minus infinity where hidden; 1 where it broadcasts.

    Example with one tile pair, two events and one hidden position, without a bias and with one of a single head:
        [0, 0, -inf] or [bias[bin of event 0], bias[bin of event 1], -inf]
    """
    if bias_KH is None or chunk.time_bin_PB is None:
        zeros_PB = torch.zeros_like(chunk.hidden_PB, dtype=dtype)
        return zeros_PB.masked_fill(chunk.hidden_PB, -math.inf)[:, None, None, None]
    bias_PBH = nn.functional.embedding(chunk.time_bin_PB, bias_KH).to(dtype)
    bias_PBH = bias_PBH.masked_fill(chunk.hidden_PB[..., None], -math.inf)
    # all targets of a tile have the same request, hence the same time deltas: A is 1
    return bias_PBH.view(*chunk.hidden_PB.shape, kv_heads, 1, bias_PBH.shape[-1] // kv_heads).permute(0, 2, 3, 4, 1)


def _gather(values_TSE: Tensor, events_PB: Tensor) -> Tensor:
    """Values (P, S, B, E) of the events of each tile pair."""
    values_NSE = values_TSE.index_select(0, events_PB.flatten())
    return values_NSE.view(*events_PB.shape, *values_TSE.shape[1:]).transpose(1, 2)


def _maxima(score_PSCB: Tensor, target_tile_P: Tensor, target_tiles: int) -> Tensor:
    """The highest score (Q, S, C, 1) of each row over all pairs of its target tile."""
    pair_maximum_PSC = score_PSCB.amax(-1)
    # tiles without a pair (empty histories) keep minus infinity; no weight is computed for them
    maxima = pair_maximum_PSC.new_full((target_tiles, *pair_maximum_PSC.shape[1:]), -math.inf)
    index_PSC = target_tile_P[:, None, None].expand_as(pair_maximum_PSC)
    return maxima.scatter_reduce(0, index_PSC, pair_maximum_PSC, "amax")[..., None]


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
        time_bias: Add a bias by the time delta to the scores, one number per time bin and head, initially 0.
    """

    def __init__(self, width: int, heads: int, time_bias: bool = False) -> None:
        super().__init__()
        self.time_bias = nn.Embedding(NUMERIC_ROWS, heads) if time_bias else None
        self.width, self.heads = width, heads
        self.query, self.key, self.value, self.output = (nn.Linear(width, width, bias=False) for _ in range(4))
        start_by_similarity(self.query.weight, self.key.weight, self.value.weight, self.output.weight)
        if self.time_bias is not None:
            nn.init.zeros_(self.time_bias.weight)

    def keys_and_values(self, history_TD: Tensor, reorder: bool) -> tuple[Tensor, Tensor]:
        """Compute what `attend` reads of the histories.

        Args:
            history_TD: Encoded events (T, D).
            reorder: Which implementation; see `prefers_reorder`.

        Returns:
            Twice the same tensor, the history itself (T, 1, D), if reordered; else projected keys and values
            (T, H, D / H).
        """
        if reorder:
            events_T1D = history_TD[:, None]  # one head of keys and values, which all query heads share
            return events_T1D, events_T1D
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
        # reordered: WK is applied to the queries before attention and WV to the means after it. There is one mean (D,)
        # per head, because averaging the heads before WV is not the same
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
        """Attend without keys and values: each head's query, times WK^T, attends to the encoded events directly.

        Args:
            query_GD: Queries (G, D).
            history_TD: Encoded events (T, D).
            attend: The attention over this batch.

        Returns:
            Outputs (G, D).
        """
        events_T1D = history_TD[:, None]
        return self.attend(query_GD, events_T1D, events_T1D, attend)

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
            time_bin_1L = spans.time_bins(torch.tensor([request]), event_L[None])
            time_bin_L = None if time_bin_1L is None else time_bin_1L[0]
            for target in range(first, end):
                heads = [
                    self._attend_one(query_GD[target], history_TD[event_L], time_bin_L, head)
                    for head in range(self.heads)
                ]
                rows.append(torch.cat(heads))
        # without targets query_GD is empty and has the right shape and dtype
        output_GD: Tensor = self.output(torch.stack(rows) if rows else query_GD)
        return output_GD

    def _attend_one(self, query_D: Tensor, history_LD: Tensor, time_bin_L: Tensor | None, head: int) -> Tensor:
        """One head (E,) of one target over its L events."""
        head_width = self.width // self.heads
        head_rows = slice(head * head_width, (head + 1) * head_width)
        query_E = self.query.weight[head_rows] @ query_D
        key_LE, value_LE = (history_LD @ w.weight[head_rows].T for w in (self.key, self.value))
        score_L = key_LE @ query_E * self._scale
        if self.time_bias is not None and time_bin_L is not None:
            score_L = score_L + self.time_bias.weight[time_bin_L, head]
        return torch.softmax(score_L, 0) @ value_LE

    def _project(self, history_TD: Tensor) -> tuple[Tensor, Tensor]:
        return self._split_heads(self.key(history_TD)), self._split_heads(self.value(history_TD))

    @property
    def _scale(self) -> float:
        # also reordered, where E is D: the dot products are the same numbers
        return 1 / math.sqrt(self.width // self.heads)

    @property
    def _bias_KH(self) -> Tensor | None:
        return None if self.time_bias is None else self.time_bias.weight

    def _split_heads(self, values_ND: Tensor) -> Tensor:
        return values_ND.view(len(values_ND), self.heads, self.width // self.heads)

    def _join_heads(self, output_GHE: Tensor) -> Tensor:
        output_GD: Tensor = self.output(output_GHE.flatten(1))
        return output_GD
