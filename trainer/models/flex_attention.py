"""Ragged attention in one fused kernel: PyTorch's FlexAttention over all targets and events of a batch at once.

Shapes: R requests, G targets, T events, H heads, S heads that keys and values have, C = H / S rows of a target, E width, N = G C rows, K
buckets of elapsed time, P blocks of rows, B blocks of events.

A target's C heads that share keys are rows of one score matrix, one after another, so tensor cores see all of them at once.
Which block of rows meets which block of events follows from the spans: 1 is added to a row of blocks where a history begins and taken away
where it ends. So no mask of rows times events is ever made; inside a block the kernel compares places. Scores are never stored, forward or
backward; the bias by elapsed time is looked up inside the kernel, from times alone.

For CUDA devices: PyTorch has no backward pass of it for a CPU. Tests hold it, not compiled, against tiles, gradients included; no GPU has run it yet.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache

import torch
from torch import Tensor, nn
from torch.nn.attention.flex_attention import BlockMask, flex_attention

from .embedding import elapsed_rows
from .request_model import owners
from .spans import Spans

ROWS_PER_BLOCK = EVENTS_PER_BLOCK = 128
MOST_GRAPHS = 64  # with and without gradients, bias, one request, one target, a single block, either form
LEAST_WIDTH = 16  # of queries, keys and values in the kernel


class FlexAttend:
    """Attention over a batch with these histories and targets; called as `attention.Attend` says.

    targets' histories are [start_G, end_G) of the events.
    """

    def __init__(self, spans: Spans, target_offsets: Tensor) -> None:
        self._request_G = owners(target_offsets)
        self._spans = spans
        self._start_G, self._end_G = spans.start_R[self._request_G], spans.end_R[self._request_G]
        self._masks: dict[int, BlockMask] = {}

    def __call__(
        self, query_GHE: Tensor, key_TSE: Tensor, value_TSE: Tensor, scale: float, bias_KH: Tensor | None = None
    ) -> Tensor:
        """Softmax attention of each target over its history (G, H, E); zeros where that is empty."""
        (targets, heads, width), shared = query_GHE.shape, key_TSE.shape[1]
        if not targets or not len(key_TSE):
            return query_GHE * 0
        rows = heads // shared
        query_SNE = query_GHE.view(targets, shared, rows, width).transpose(0, 1).reshape(shared, targets * rows, width)
        query, key, value = _as_the_kernel_takes(query_SNE, key_TSE.transpose(0, 1), value_TSE.transpose(0, 1))
        if rows not in self._masks:
            self._masks[rows] = self._mask(rows)
        score_mod = None if bias_KH is None else self._biased(bias_KH, rows)
        with torch._dynamo.config.patch(recompile_limit=MOST_GRAPHS):
            output_1SNE = _kernel()(query[None], key[None], value[None], score_mod, self._masks[rows], scale)
        output_GSCE = output_1SNE[0, ..., :width].reshape(shared, targets, rows, width).transpose(0, 1)
        return output_GSCE.reshape(query_GHE.shape).to(query_GHE.dtype)

    def _mask(self, rows: int) -> BlockMask:
        """Which rows see which events: those of their target's history."""
        start_N, end_N = (side.repeat_interleave(rows) for side in (self._start_G, self._end_G))

        def seen(batch: Tensor, head: Tensor, row: Tensor, event: Tensor) -> Tensor:
            return (event >= start_N[row]) & (event < end_N[row])

        there_PB = meeting_blocks(start_N, end_N, self._spans.num_events)
        numbers_PB = there_PB.to(torch.int32).argsort(dim=1, descending=True, stable=True).to(torch.int32)
        counts_P = there_PB.sum(dim=1, dtype=torch.int32)
        return BlockMask.from_kv_blocks(
            counts_P[None, None],
            numbers_PB[None, None],
            BLOCK_SIZE=(ROWS_PER_BLOCK, EVENTS_PER_BLOCK),
            mask_mod=seen,
            seq_lengths=(len(start_N), self._spans.num_events),
        )

    def _biased(self, bias_KH: Tensor, rows: int) -> Callable[[Tensor, Tensor, Tensor, Tensor, Tensor], Tensor]:
        """What adds the bias of a row's head and the time from the event to its request."""
        if self._spans.request_time_R is None or self._spans.event_time_T is None:
            raise ValueError("a bias by elapsed time needs the times of requests and events, which these spans lack")
        time_N = self._spans.request_time_R[self._request_G].repeat_interleave(rows)
        event_time_T = self._spans.event_time_T
        head_SN = torch.arange(bias_KH.shape[1], device=time_N.device).view(-1, rows).repeat(1, len(self._start_G))

        def biased(score: Tensor, batch: Tensor, head: Tensor, row: Tensor, event: Tensor) -> Tensor:
            bucket = elapsed_rows(time_N[row], event_time_T[event])
            return score + bias_KH[bucket, head_SN[head, row]]

        return biased


def meeting_blocks(start_N: Tensor, end_N: Tensor, events: int) -> Tensor:
    """Whether any row of a block of rows sees any event of a block of events (P, B), from each row's [start, end)."""
    row_blocks, event_blocks = -(-len(start_N) // ROWS_PER_BLOCK), -(-events // EVENTS_PER_BLOCK)
    block_N = torch.arange(len(start_N), device=start_N.device) // ROWS_PER_BLOCK
    some_N = end_N > start_N
    first_N, end_N = start_N // EVENTS_PER_BLOCK, (end_N + EVENTS_PER_BLOCK - 1) // EVENTS_PER_BLOCK
    edges = torch.zeros(row_blocks, event_blocks + 1, dtype=torch.int32, device=start_N.device)
    one_N = some_N.to(torch.int32)
    edges.index_put_((block_N, first_N.clamp(max=event_blocks)), one_N, accumulate=True)
    edges.index_put_((block_N, end_N.clamp(max=event_blocks)), -one_N, accumulate=True)
    return edges.cumsum(dim=1)[:, :-1] > 0


def _as_the_kernel_takes(*values_SNE: Tensor) -> tuple[Tensor, ...]:
    """Values of one type, autocast's or their own, and wide enough: zeros behind them change no score."""
    device, width = values_SNE[0].device.type, values_SNE[0].shape[-1]
    dtype = torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else values_SNE[0].dtype
    missing = max(0, LEAST_WIDTH - width)
    return tuple(nn.functional.pad(values.to(dtype), (0, missing)) for values in values_SNE)


@lru_cache(maxsize=1)
def _kernel() -> Callable[..., Tensor]:
    """Compiled for the first batch, then for all sizes; beyond MOST_GRAPHS an error, where the default would store all scores."""
    return torch.compile(flex_attention, fullgraph=True)
