"""LONGER (arXiv 2505.04421): adjacent events merged to wide tokens, the newest of them asking, globals first.

Shapes: R requests, G targets, T events, L the longest history, D width, K events per token, W = K D, S = L / K merged
tokens and two globals, Q = the newest k tokens and the globals, M most targets of a request.

Tokens lie [target, CLS, user; newest group, .., oldest group] and i sees j where j >= i: a group sees itself and
older ones, globals see the sequence, and nothing sees the target. So all but the target's own row is shared by the
targets of a request. The first layer is cross-causal: the globals and the newest k ask all tokens. The others are
self-causal among those k + 2.

Choices where the paper is silent: groups start at the newest event, the oldest is filled up with zeros; positions
count from the newest event in two buckets per octave, so that any length has one; InnerTrans is one block without
mask; globals come to width W by a linear map each, a target as K of itself; z goes back to D by the output map that STCA has. The MLP of events
has 2 D hidden units and starts as the identity: from random weights it hid from attention which events are like the target (AUC .52 in place of .63
after 200 steps at 1,000 events).
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor, nn

from longbatch.trainer.config import MEASURE_ROWS, ModelColumns, ModelConfig

from .embedding import measure_rows
from .request_model import Encoded, Kept, RequestModel
from .swiglu import output_map, signed_bases
from .transformer import Block, filled, make_blocks, padded, places

SHARED_GLOBALS = 2  # CLS and user; the target is the third


class Longer(RequestModel):
    """The model: cost `24 L D^2 K + 4 L^2 D / K` per layer were all tokens to ask; here k of them do."""

    def __init__(self, config: ModelConfig, columns: ModelColumns) -> None:
        super().__init__(config, columns)
        width, wide = config.width, config.width * config.merge
        self.position = nn.Embedding(MEASURE_ROWS, width)
        self.side = _side_map(width)
        self.inner = Block(width, config.heads)
        self.cls = nn.Parameter(torch.randn(wide) * 0.1)
        self.user, self.target = nn.Linear(width, wide), nn.Linear(width, wide)
        self.layers = make_blocks(wide, config)
        self.norm = nn.LayerNorm(wide)
        self.final = output_map(wide, width, config.expansion)
        nn.init.normal_(self.position.weight, std=0.03)
        with torch.no_grad():  # a target starts as K of itself, to be compared with groups of K events
            self.target.weight.copy_(torch.eye(width).repeat(config.merge, 1))

    def row_modules(self) -> Iterator[nn.Module]:
        """Besides the head what each block does to its tokens."""
        yield from super().row_modules()
        yield from (self.side, self.inner.ffn, *(layer.ffn for layer in self.layers), self.final)

    def history_side(self, history_TD: Tensor, offsets: Tensor, user_RD: Tensor, targets_per_event: float) -> Kept:
        """Per layer keys and values (R, S or Q, 2 W); at last which of the S tokens are there (R, S)."""
        merged_RSW, there_RS = self._merged(history_TD, offsets)
        globals_RSW = torch.stack([self.cls.expand(len(user_RD), -1), self.user(user_RD)], dim=1)
        there_RS = torch.cat([there_RS.new_ones(len(user_RD), SHARED_GLOBALS), there_RS], dim=1)
        tokens, kept = torch.cat([globals_RSW, merged_RSW], dim=1), []
        asking = SHARED_GLOBALS + self.config.newest
        for place, layer in enumerate(self.layers):
            kept.append(layer.keys_and_values(tokens))
            if place + 1 < len(self.layers):
                sees = _sees(there_RS[:, : tokens.shape[1]], asking)
                tokens = layer(tokens[:, :asking], kept[-1], sees)
        return (*kept, there_RS)

    def target_side(self, encoded: Encoded, target_GD: Tensor, target_offsets: Tensor) -> Tensor:
        """z (G, D), the target's row after the last layer."""
        target_RMW = self.target(padded(target_GD, target_offsets))
        *kept_by_layer, there_RS = encoded.kept
        for layer, kept_RSW2 in zip(self.layers, kept_by_layer, strict=True):
            target_RMW = layer.targets(target_RMW, kept_RSW2, there_RS[:, : kept_RSW2.shape[1]])
        z_GD: Tensor = self.final(self.norm(target_RMW[places(target_offsets)]))
        return z_GD

    def _merged(self, history_TD: Tensor, offsets: Tensor) -> tuple[Tensor, Tensor]:
        """Groups of K events after InnerTrans, newest first (R, S, W), and which hold an event (R, S)."""
        merge, (row_T, place_T) = self.config.merge, places(offsets)
        age_T = offsets.diff()[row_T] - 1 - place_T
        event_TD = self.side(history_TD + self.position(measure_rows(age_T + 1)))
        longest = max(1, int(offsets.diff().max())) if len(offsets) > 1 else 1
        rows, groups, width = len(offsets) - 1, -(-longest // merge), history_TD.shape[-1]
        event_RLD = event_TD.new_zeros(rows, groups * merge, width).index_put((row_T, age_T), event_TD)
        full_RSK = filled(offsets, groups * merge).view(rows, groups, merge)
        inner_NKD = self._inside(event_RLD.view(rows * groups, merge, width), full_RSK.flatten(0, 1))
        return inner_NKD.view(rows, groups, merge * width), full_RSK.any(dim=-1)

    def _inside(self, groups_NKD: Tensor, full_NK: Tensor) -> Tensor:
        """InnerTrans; empty slots stay zero, and only what is in a group sees each other."""
        itself_KK = torch.eye(self.config.merge, dtype=torch.bool, device=full_NK.device)
        after_NKD: Tensor = self.inner(groups_NKD, self.inner.keys_and_values(groups_NKD), full_NK[:, None] | itself_KK)
        return after_NKD * full_NK[..., None]


def _side_map(width: int) -> nn.Sequential:
    """Linear, GELU, Linear that starts as the identity, for `gelu(v) - gelu(-v) = v`: events and targets stay alike."""
    up, down = nn.Linear(width, 2 * width), nn.Linear(2 * width, width)
    with torch.no_grad():
        signed_KD = signed_bases(width, 2)
        up.weight.copy_(signed_KD)
        down.weight.copy_(signed_KD.T)
        for linear in (up, down):
            linear.bias.zero_()
    return nn.Sequential(up, nn.GELU(), down)


def _sees(there_RS: Tensor, asking: int) -> Tensor:
    """Whether each of the first `asking` tokens sees each token (R, Q, S): those from itself on that are there."""
    tokens = there_RS.shape[1]
    place_S = torch.arange(tokens, device=there_RS.device)
    place_Q = place_S[:asking, None]
    return (there_RS[:, None] & (place_S >= place_Q)) | (place_S == place_Q)
