"""Ragged attention in one fused kernel: PyTorch's FlexAttention over all targets and events of a batch at once.

Source: PyTorch's `torch.nn.attention.flex_attention`; the scores are those of `attention.py`.

Shapes: R requests, G targets, T events, H heads, S heads of keys and values, C = H / S rows of a target, E width of a
head, N = G * C rows, K time bins, P blocks of rows, B blocks of events.

A target's C heads that share keys are consecutive rows of one score matrix, so that one tensor-core operation covers
all of them. Which block of rows attends to which block of events follows from the spans by a difference array
(`attended_blocks`), so a mask of rows times events is never built; inside a block the kernel compares positions. Scores
are never stored, forward or backward. The bias by the time delta is looked up inside the kernel, from the times alone.

For CUDA devices only: PyTorch has no backward pass of it for CPUs. The tests compare it, not compiled, with attention
by tiles, gradients included. `longbatch bench gpu` compares the compiled kernel with the naive loop; PyTorch 2.11 fails
to compile the gradient of the bias.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache

import torch
from torch import Tensor, nn
from torch.nn.attention.flex_attention import BlockMask, flex_attention

from .embedding import time_delta_rows
from .spans import Spans

ROWS_PER_BLOCK = EVENTS_PER_BLOCK = 128
# combinations of: with gradients, with bias, one request, one target, a single block, projected or reordered
MAX_GRAPHS = 64
MIN_WIDTH = 16  # of queries, keys and values in the kernel
# of a head: blocks of wider keys and values do not fit the shared memory of a multiprocessor, 227 KB on an H100 or H200
MAX_HEAD_WIDTH = 256


class FlexAttention:
    """Attention over one batch, called as an `attention.AttentionFunction`.

    Args:
        spans: Where the histories are among the events; with times if there is a bias.
        request_G: The request of each target, ascending.
    """

    def __init__(self, spans: Spans, request_G: Tensor) -> None:
        self._request_G, self._spans = request_G, spans
        self._start_G, self._end_G = spans.start_R[self._request_G], spans.end_R[self._request_G]
        self._masks: dict[int, BlockMask] = {}

    def __call__(
        self, query_GHE: Tensor, key_TSE: Tensor, value_TSE: Tensor, scale: float, bias_KH: Tensor | None = None
    ) -> Tensor:
        """Compute softmax attention of each target over its history.

        Args:
            query_GHE: Queries (G, H, E).
            key_TSE: Keys (T, S, E).
            value_TSE: Values (T, S, E).
            scale: Factor of the scores.
            bias_KH: Bias (K, H) by time bin, or None.

        Returns:
            Outputs (G, H, E), zeros where the history is empty.

        Raises:
            ValueError: There is a bias but the spans have no times.
        """
        (targets, heads, width), kv_heads = query_GHE.shape, key_TSE.shape[1]
        if not targets or not len(key_TSE):
            return query_GHE * 0  # the kernel cannot reduce over no events; a product has gradients, zeros would not
        rows = heads // kv_heads
        query_GSCE = query_GHE.view(targets, kv_heads, rows, width)
        query_SNE = query_GSCE.transpose(0, 1).reshape(kv_heads, targets * rows, width)
        query, key, value = _kernel_inputs(query_SNE, key_TSE.transpose(0, 1), value_TSE.transpose(0, 1))
        # layers of one batch share the mask; it depends only on the rows of a target
        if rows not in self._masks:
            self._masks[rows] = self._mask(rows)
        score_mod = None if bias_KH is None else self._bias_function(bias_KH, rows)
        # the default limit is below MAX_GRAPHS, and beyond the limit a fullgraph kernel raises an error
        with torch._dynamo.config.patch(recompile_limit=MAX_GRAPHS):
            output_1SNE = _kernel()(query[None], key[None], value[None], score_mod, self._masks[rows], scale)
        output_GSCE = output_1SNE[0, ..., :width].reshape(kv_heads, targets, rows, width).transpose(0, 1)
        return output_GSCE.reshape(query_GHE.shape).to(query_GHE.dtype)

    def _mask(self, rows: int) -> BlockMask:
        """Which rows attend to which events: those of their target's history."""
        start_N, end_N = (edge_G.repeat_interleave(rows) for edge_G in (self._start_G, self._end_G))

        def is_attended(batch: Tensor, head: Tensor, row: Tensor, event: Tensor) -> Tensor:
            return (event >= start_N[row]) & (event < end_N[row])

        attended_PB = attended_blocks(start_N, end_N, self._spans.num_events)
        # the kernel wants, for each block of rows, the attended blocks first, then the others in any order
        order_PB = attended_PB.to(torch.int32).argsort(dim=1, descending=True, stable=True).to(torch.int32)
        counts_P = attended_PB.sum(dim=1, dtype=torch.int32)
        return BlockMask.from_kv_blocks(
            counts_P[None, None],
            order_PB[None, None],
            BLOCK_SIZE=(ROWS_PER_BLOCK, EVENTS_PER_BLOCK),
            mask_mod=is_attended,
            seq_lengths=(len(start_N), self._spans.num_events),
        )

    def _bias_function(self, bias_KH: Tensor, rows: int) -> Callable[[Tensor, Tensor, Tensor, Tensor, Tensor], Tensor]:
        """The kernel's score modification: adds the bias of a row's head and of the time from event to request."""
        if self._spans.request_time_R is None or self._spans.event_time_T is None:
            raise ValueError(
                "a bias by the time delta needs the times of requests and events, but these spans have none; "
                "pass request_time_R and event_time_T to Spans"
            )
        time_N = self._spans.request_time_R[self._request_G].repeat_interleave(rows)
        event_time_T = self._spans.event_time_T
        # row n of key head s belongs to query head s * C + n % C
        head_SN = torch.arange(bias_KH.shape[1], device=time_N.device).view(-1, rows).repeat(1, len(self._start_G))

        def add_bias(score: Tensor, batch: Tensor, head: Tensor, row: Tensor, event: Tensor) -> Tensor:
            time_bin = time_delta_rows(time_N[row], event_time_T[event])
            return score + bias_KH[time_bin, head_SN[head, row]]

        return add_bias


def attended_blocks(start_N: Tensor, end_N: Tensor, events: int) -> Tensor:
    """Find the blocks of events that some row of a block of rows attends to, by a difference array over event blocks.

    Example, with blocks of 128 events, one block of two rows that attend to the events [0, 100) and [300, 400):
        differences of row 0: +1 at block 0, -1 at block 1; of row 1: +1 at block 2, -1 at block 4
        running sum over blocks: [1, 0, 1, 1]; attended: [True, False, True, True]

    Args:
        start_N: First event of each row (N,).
        end_N: End of each row's events (exclusive).
        events: Number of events T.

    Returns:
        (P, B) bool.
    """
    row_blocks, event_blocks = -(-len(start_N) // ROWS_PER_BLOCK), -(-events // EVENTS_PER_BLOCK)
    row_block_N = torch.arange(len(start_N), device=start_N.device) // ROWS_PER_BLOCK
    one_N = (end_N > start_N).to(torch.int32)  # an empty history attends to nothing
    first_block_N, end_block_N = start_N // EVENTS_PER_BLOCK, (end_N + EVENTS_PER_BLOCK - 1) // EVENTS_PER_BLOCK
    # one column more than blocks, so that an interval up to the last block can end
    differences = torch.zeros(row_blocks, event_blocks + 1, dtype=torch.int32, device=start_N.device)
    differences.index_put_((row_block_N, first_block_N.clamp(max=event_blocks)), one_N, accumulate=True)
    differences.index_put_((row_block_N, end_block_N.clamp(max=event_blocks)), -one_N, accumulate=True)
    return differences.cumsum(dim=1)[:, :-1] > 0


def _kernel_inputs(*values_SNE: Tensor) -> tuple[Tensor, ...]:
    """Values in one dtype, autocast's or their own, padded to MIN_WIDTH by zeros, which change no score."""
    device, width = values_SNE[0].device.type, values_SNE[0].shape[-1]
    dtype = torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else values_SNE[0].dtype
    missing = max(0, MIN_WIDTH - width)
    return tuple(nn.functional.pad(values.to(dtype), (0, missing)) for values in values_SNE)


@lru_cache(maxsize=1)
def _kernel() -> Callable[..., Tensor]:
    """The compiled kernel. Beyond MAX_GRAPHS it raises an error; without fullgraph PyTorch would store all scores."""
    return torch.compile(flex_attention, fullgraph=True)
