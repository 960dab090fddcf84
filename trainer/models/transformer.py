"""The full Transformer over a history and a target, the history's part shared by the targets of a request.

Shapes: R requests, G targets, T events, L the longest history, M most targets of a request, D width, H heads,
E = D / H, Q queries, S tokens that they see.

Causal in time with the target last: an event sees itself and older ones, a target its whole history and itself,
never another target. So histories need no target, and m targets share them. Blocks are pre-norm with an FFN of
four times the width, as in LONGER's count `24 L D^2 + 4 L^2 D` per layer. The last layer's events are read by
nobody but as keys and values, so their queries are not computed. Attention starts by similarity and the output with products, as STCA's do.

Baselines are padded to the longest history of the batch; only STCA needs to be ragged to be affordable.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import cast

import torch
from torch import Tensor, nn

from longbatch.trainer.config import ModelColumns, ModelConfig

from .attention import start_by_similarity
from .request_model import Encoded, Kept, RequestModel, owners
from .swiglu import output_map


def places(offsets: Tensor) -> tuple[Tensor, Tensor]:
    """Row and place within its row, both (N,), of each of N ragged values."""
    row_N = owners(offsets)
    return row_N, torch.arange(row_N.shape[0], device=offsets.device) - offsets[row_N]


def padded(values_ND: Tensor, offsets: Tensor) -> Tensor:
    """Ragged values (N, D) as rows (R, L, D) with zeros behind them; L is at least 1."""
    rows = offsets.shape[0] - 1
    longest = max(1, int(offsets.diff().max())) if rows else 1
    return values_ND.new_zeros(rows, longest, values_ND.shape[-1]).index_put(places(offsets), values_ND)


def filled(offsets: Tensor, longest: int) -> Tensor:
    """Whether each slot (R, longest) of padded rows holds a value."""
    return torch.arange(longest, device=offsets.device) < offsets.diff()[:, None]


class Block(nn.Module):
    """One pre-norm Transformer layer, its keys and values apart so that they can be kept."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.before, self.between = nn.LayerNorm(width), nn.LayerNorm(width)
        self.query, self.output = nn.Linear(width, width, bias=False), nn.Linear(width, width, bias=False)
        self.key_value = nn.Linear(width, 2 * width, bias=False)
        self.ffn = nn.Sequential(nn.Linear(width, 4 * width), nn.GELU(), nn.Linear(4 * width, width))
        key, value = self.key_value.weight.chunk(2)
        start_by_similarity(self.query.weight, key, value, self.output.weight)

    def keys_and_values(self, tokens_RSD: Tensor) -> Tensor:
        """(R, S, 2 D)."""
        kept: Tensor = self.key_value(self.before(tokens_RSD))
        return kept

    def forward(self, tokens_RQD: Tensor, kept_RSD2: Tensor, sees_RQS: Tensor | None) -> Tensor:
        """Tokens (R, Q, D) after reading what they may see (R or 1, Q, S); None: token i the first i."""
        key_RSD, value_RSD = kept_RSD2.chunk(2, dim=-1)
        query, key, value = map(self._by_head, (self.query(self.before(tokens_RQD)), key_RSD, value_RSD))
        mask = None if sees_RQS is None else sees_RQS[:, None]
        read_RHQE = nn.functional.scaled_dot_product_attention(query, key, value, mask, is_causal=mask is None)
        between_RQD = tokens_RQD + self.output(read_RHQE.transpose(1, 2).flatten(2))
        after_RQD: Tensor = between_RQD + self.ffn(self.between(between_RQD))
        return after_RQD

    def targets(self, target_RMD: Tensor, kept_RSD2: Tensor, filled_RS: Tensor) -> Tensor:
        """Targets (R, M, D) after reading the filled slots and, each, itself."""
        requests, targets = target_RMD.shape[:2]
        itself_RMM = torch.eye(targets, dtype=torch.bool, device=filled_RS.device).expand(requests, -1, -1)
        sees_RMS = torch.cat([filled_RS[:, None].expand(-1, targets, -1), itself_RMM], dim=2)
        seen = torch.cat([kept_RSD2, self.keys_and_values(target_RMD)], dim=1)
        after_RMD: Tensor = self(target_RMD, seen, sees_RMS)
        return after_RMD

    def _by_head(self, values_RSD: Tensor) -> Tensor:
        rows, tokens, width = values_RSD.shape
        return values_RSD.view(rows, tokens, self.heads, width // self.heads).transpose(1, 2)


def make_blocks(width: int, config: ModelConfig) -> Sequence[Block]:
    """The layers of a model, a ModuleList that type checkers know the content of."""
    return cast("Sequence[Block]", nn.ModuleList(Block(width, config.heads) for _ in range(config.layers)))


class Transformer(RequestModel):
    """Self-attention over all events, then each target among them; quadratic in the history's length."""

    def __init__(self, config: ModelConfig, columns: ModelColumns) -> None:
        super().__init__(config, columns)
        self.layers = make_blocks(config.width, config)
        self.norm = nn.LayerNorm(config.width)
        self.final = output_map(config.width, config.width, config.expansion)

    def row_modules(self) -> Iterator[nn.Module]:
        """Besides the head what each block does to its tokens."""
        yield from super().row_modules()
        for layer in self.layers:
            yield layer.ffn
        yield self.final

    def history_side(self, history_TD: Tensor, offsets: Tensor, user_RD: Tensor, targets_per_event: float) -> Kept:
        """Keys and values (R, L, 2 D) of each layer."""
        tokens_RLD, kept = padded(history_TD, offsets), []
        for place, layer in enumerate(self.layers):
            kept.append(layer.keys_and_values(tokens_RLD))
            if place + 1 < len(self.layers):
                tokens_RLD = layer(tokens_RLD, kept[-1], None)
        return tuple(kept)

    def target_side(self, encoded: Encoded, target_GD: Tensor, target_offsets: Tensor) -> Tensor:
        """z (G, D), the targets after the last layer."""
        target_RMD = padded(target_GD, target_offsets)
        filled_RL = filled(encoded.history_offsets, encoded.kept[0].shape[1])
        for layer, kept_RLD2 in zip(self.layers, encoded.kept, strict=True):
            target_RMD = layer.targets(target_RMD, kept_RLD2, filled_RL)
        z_GD: Tensor = self.final(self.norm(target_RMD[places(target_offsets)]))
        return z_GD
