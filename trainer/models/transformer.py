"""A full Transformer over the history and a target; the targets of a request share the history's part.

Sources: the pre-norm Transformer with a feed-forward layer of four times the width, as in LONGER's count
`24 L D^2 + 4 L^2 D` per layer (arXiv 2505.04421). The mask and the initial weights are this library's choice.

Shapes: R requests, G targets, T events, L the longest history, M the maximum number of targets of a request, D width,
H heads, E = D / H, Q queries, S keys, N ragged values.

Attention is causal in time with the target last: an event attends to itself and older ones, a target to its whole
history and itself, never to another target. So encoding a history needs no target, and m targets share it. The queries
of the last layer's events are not computed, because only the keys and values of these events are read. Attention
starts by similarity and the output with products, as in STCA.

The histories are padded to the longest one of the batch. Example with lengths 3 and 1, L = 3:
    offsets [0, 3, 4], events [a b c d]
    padded  [[a b c], [d 0 0]], valid positions [[1 1 1], [1 0 0]]
    a target of request 1 attends to d and itself
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import cast

import torch
from torch import Tensor, nn

from longbatch.trainer.config import ModelColumns, ModelConfig

from .attention import start_by_similarity
from .request_model import HistoryCache, HistoryStates, RequestModel, segment_ids
from .swiglu import make_output_map


def rows_and_positions(offsets: Tensor) -> tuple[Tensor, Tensor]:
    """Find the row of each ragged value and its position in the row.

    Args:
        offsets: Offsets (R + 1,).

    Returns:
        Rows and positions, (N,) int64 each.

    Example:
        >>> [index.tolist() for index in rows_and_positions(torch.tensor([0, 3, 4]))]
        [[0, 0, 0, 1], [0, 1, 2, 0]]
    """
    row_N = segment_ids(offsets)
    return row_N, torch.arange(row_N.shape[0], device=offsets.device) - offsets[row_N]


def pad_ragged(values_ND: Tensor, offsets: Tensor) -> Tensor:
    """Pad ragged values to the longest row, with zeros at the end.

    Args:
        values_ND: Values (N, D).
        offsets: Offsets (R + 1,).

    Returns:
        Padded rows (R, L, D), L at least 1.
    """
    rows = offsets.shape[0] - 1
    # at least 1, because attention over no positions would be NaN
    longest = max(1, int(offsets.diff().max())) if rows else 1
    return values_ND.new_zeros(rows, longest, values_ND.shape[-1]).index_put(rows_and_positions(offsets), values_ND)


def valid_positions(offsets: Tensor, length: int) -> Tensor:
    """Mark the positions of padded rows that contain a value.

    Args:
        offsets: Offsets (R + 1,).
        length: Length L of the padded rows.

    Returns:
        (R, L) bool.
    """
    return torch.arange(length, device=offsets.device) < offsets.diff()[:, None]


class Block(nn.Module):
    """One pre-norm Transformer layer whose keys and values are computed separately, so that they can be cached.

    Args:
        width: Width D.
        heads: Number of heads H.
    """

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.attention_norm, self.ffn_norm = nn.LayerNorm(width), nn.LayerNorm(width)
        self.query, self.output = nn.Linear(width, width, bias=False), nn.Linear(width, width, bias=False)
        self.key_value = nn.Linear(width, 2 * width, bias=False)
        self.ffn = nn.Sequential(nn.Linear(width, 4 * width), nn.GELU(), nn.Linear(4 * width, width))
        # chunks are views, so the two halves of the joint weight are initialized in place
        key, value = self.key_value.weight.chunk(2)
        start_by_similarity(self.query.weight, key, value, self.output.weight)

    def keys_and_values(self, tokens_RSD: Tensor) -> Tensor:
        """Project tokens to keys and values.

        Args:
            tokens_RSD: Tokens (R, S, D).

        Returns:
            Keys and values, concatenated (R, S, 2 D).
        """
        key_value_RSD2: Tensor = self.key_value(self.attention_norm(tokens_RSD))
        return key_value_RSD2

    def forward(self, tokens_RQD: Tensor, key_value_RSD2: Tensor, mask_RQS: Tensor | None) -> Tensor:
        """Apply the layer to some tokens.

        Args:
            tokens_RQD: The tokens that are queries (R, Q, D).
            key_value_RSD2: Keys and values of the tokens they attend to (R, S, 2 D).
            mask_RQS: Whether a query attends to a key (R or 1, Q, S); None for the causal mask (query i, keys 0 to i).

        Returns:
            Tokens (R, Q, D).
        """
        key_RSD, value_RSD = key_value_RSD2.chunk(2, dim=-1)
        query, key, value = map(self._split_heads, (self.query(self.attention_norm(tokens_RQD)), key_RSD, value_RSD))
        # is_causal needs no mask in memory and lets PyTorch choose its fused kernels
        mask = None if mask_RQS is None else mask_RQS[:, None]
        mean_RHQE = nn.functional.scaled_dot_product_attention(query, key, value, mask, is_causal=mask is None)
        attended_RQD = tokens_RQD + self.output(mean_RHQE.transpose(1, 2).flatten(2))
        output_RQD: Tensor = attended_RQD + self.ffn(self.ffn_norm(attended_RQD))
        return output_RQD

    def forward_targets(self, target_RMD: Tensor, key_value_RSD2: Tensor, valid_RS: Tensor) -> Tensor:
        """Apply the layer to targets, each of which attends to the history and itself.

        Args:
            target_RMD: Padded targets (R, M, D).
            key_value_RSD2: Keys and values of the history (R, S, 2 D).
            valid_RS: Which positions of the history contain an event (R, S).

        Returns:
            Targets (R, M, D).
        """
        requests, targets = target_RMD.shape[:2]
        # the mask (R, M, S + M): the valid history, then the identity, so that no target attends to another
        itself_RMM = torch.eye(targets, dtype=torch.bool, device=valid_RS.device).expand(requests, -1, -1)
        mask_RMS = torch.cat([valid_RS[:, None].expand(-1, targets, -1), itself_RMM], dim=2)
        # a target's own key is computed here, so the cached part does not depend on targets
        key_values = torch.cat([key_value_RSD2, self.keys_and_values(target_RMD)], dim=1)
        output_RMD: Tensor = self(target_RMD, key_values, mask_RMS)
        return output_RMD

    def _split_heads(self, values_RSD: Tensor) -> Tensor:
        rows, tokens, width = values_RSD.shape
        return values_RSD.view(rows, tokens, self.heads, width // self.heads).transpose(1, 2)


def make_blocks(width: int, config: ModelConfig) -> Sequence[Block]:
    """Make the layers of a model.

    Args:
        width: Width of the tokens.
        config: Numbers of layers and heads.

    Returns:
        A ModuleList, typed as a sequence because type checkers do not know what a ModuleList contains.
    """
    return cast("Sequence[Block]", nn.ModuleList(Block(width, config.heads) for _ in range(config.layers)))


class Transformer(RequestModel):
    """Self-attention over all events, then each target attends to them; quadratic in the history's length.

    Args:
        config: The model's size.
        columns: The columns that it reads.
    """

    def __init__(self, config: ModelConfig, columns: ModelColumns) -> None:
        super().__init__(config, columns)
        self.layers = make_blocks(config.width, config)
        self.norm = nn.LayerNorm(config.width)
        self.output_map = make_output_map(config.width, config.width, config.expansion)

    def rowwise_modules(self) -> Iterator[nn.Module]:
        """Iterate over the head, the feed-forward layers and the output map.

        Yields:
            Modules whose only dynamic size is the number of rows.
        """
        yield from super().rowwise_modules()
        for layer in self.layers:
            yield layer.ffn
        yield self.output_map

    def history_states(
        self, history_TD: Tensor, offsets: Tensor, user_RD: Tensor, targets_per_event: float
    ) -> HistoryStates:
        """Compute the keys and values (R, L, 2 D) of each layer; see `RequestModel.history_states`."""
        # rows are padded at their end, so no valid event attends to padding under the causal mask
        tokens_RLD, states = pad_ragged(history_TD, offsets), []
        for index, layer in enumerate(self.layers):
            states.append(layer.keys_and_values(tokens_RLD))
            if index + 1 < len(self.layers):
                tokens_RLD = layer(tokens_RLD, states[-1], None)
        return tuple(states)

    def attend_targets(self, cache: HistoryCache, target_GD: Tensor, target_offsets: Tensor) -> Tensor:
        """Compute z (G, D), the targets after the last layer; see `RequestModel.attend_targets`."""
        target_RMD = pad_ragged(target_GD, target_offsets)
        # targets come after the padding, so here a mask must hide it
        valid_RL = valid_positions(cache.history_offsets, cache.states[0].shape[1])
        for layer, key_value_RLD2 in zip(self.layers, cache.states, strict=True):
            target_RMD = layer.forward_targets(target_RMD, key_value_RLD2, valid_RL)
        z_GD: Tensor = self.output_map(self.norm(target_RMD[rows_and_positions(target_offsets)]))
        return z_GD
