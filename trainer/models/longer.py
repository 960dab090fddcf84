"""LONGER: adjacent events merged to wide tokens, the newest tokens as queries, global tokens first.

Source: LONGER (arXiv 2505.04421), sections on global tokens, token merge with InnerTrans, and hybrid (cross-causal,
then self-causal) attention.

Shapes: R requests, G targets, T events, L the longest history, D width, K events per token, W = K D, S = L / K merged
tokens and two globals, Q = the newest k tokens and the globals, M the maximum number of targets of a request,
N = R * L / K groups.

The order of the tokens is [target, CLS, user; newest group, .., oldest group]. Token i attends to itself and all tokens
after it: a group attends to itself and older ones, globals attend to the sequence, and nothing attends to the target.
So the targets of a request share all rows but the target's own. The first layer is cross-causal: the globals and the
newest k tokens are queries over all tokens. The other layers are self-causal among those k + 2.

Choices where the paper is silent: groups start at the newest event and the oldest group is padded with zeros; positions
count from the newest event in two bins per octave, so any length has one; InnerTrans is one block without a mask;
globals come to width W by one linear map each, initially a target is K copies of itself; z comes back to width D by
STCA's output map. The event MLP has 2 D hidden units and starts as the identity. From random weights it hid
from attention which events are similar to the target (AUC .52 instead of .63 after 200 steps at 1,000 events).
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor, nn

from longbatch.trainer.config import NUMERIC_ROWS, ModelColumns, ModelConfig

from .embedding import numeric_rows
from .request_model import HistoryCache, HistoryStates, RequestModel
from .swiglu import make_output_map, signed_bases
from .transformer import Block, make_blocks, pad_ragged, rows_and_positions, valid_positions

SHARED_GLOBALS = 2  # CLS and user; the target is the third global token


class Longer(RequestModel):
    """The LONGER model (arXiv 2505.04421).

    A layer in which all tokens are queries costs `24 L D^2 K + 4 L^2 D / K`; here only k of them are.

    Args:
        config: The model's size; `events_per_token` is K and `query_tokens` is k.
        columns: The columns that it reads.
    """

    def __init__(self, config: ModelConfig, columns: ModelColumns) -> None:
        super().__init__(config, columns)
        width, wide = config.width, config.width * config.events_per_token
        self.position = nn.Embedding(NUMERIC_ROWS, width)
        self.event_mlp = _identity_mlp(width)
        self.inner_trans = Block(width, config.heads)
        self.cls_token = nn.Parameter(torch.randn(wide) * 0.1)
        self.user_map, self.target_map = nn.Linear(width, wide), nn.Linear(width, wide)
        self.layers = make_blocks(wide, config)
        self.norm = nn.LayerNorm(wide)
        self.output_map = make_output_map(wide, width, config.expansion)
        nn.init.normal_(self.position.weight, std=0.03)
        with torch.no_grad():  # K copies of the target, comparable with groups of K events
            self.target_map.weight.copy_(torch.eye(width).repeat(config.events_per_token, 1))

    def rowwise_modules(self) -> Iterator[nn.Module]:
        """Iterate over the head, the event MLP, the feed-forward layers and the output map.

        Yields:
            Modules whose only dynamic size is the number of rows.
        """
        yield from super().rowwise_modules()
        yield from (self.event_mlp, self.inner_trans.ffn, *(layer.ffn for layer in self.layers), self.output_map)

    def history_states(
        self, history_TD: Tensor, offsets: Tensor, user_RD: Tensor, targets_per_event: float
    ) -> HistoryStates:
        """Compute the keys and values (R, S or Q, 2 W) of each layer and, last, which tokens are valid (R, S).

        See `RequestModel.history_states`.
        """
        merged_RSW, valid_RS = self._merge(history_TD, offsets)
        globals_RSW = torch.stack([self.cls_token.expand(len(user_RD), -1), self.user_map(user_RD)], dim=1)
        valid_RS = torch.cat([valid_RS.new_ones(len(user_RD), SHARED_GLOBALS), valid_RS], dim=1)
        tokens, states = torch.cat([globals_RSW, merged_RSW], dim=1), []
        queries = SHARED_GLOBALS + self.config.query_tokens
        for index, layer in enumerate(self.layers):
            # the first layer has keys for all tokens, later layers only for the queries of the layer before
            states.append(layer.keys_and_values(tokens))
            # targets read only the keys and values of the last layer, so its outputs are not computed
            if index + 1 < len(self.layers):
                mask = _causal_mask(valid_RS[:, : tokens.shape[1]], queries)
                tokens = layer(tokens[:, :queries], states[-1], mask)
        return (*states, valid_RS)

    def attend_targets(self, cache: HistoryCache, target_GD: Tensor, target_offsets: Tensor) -> Tensor:
        """Compute z (G, D), the target's row after the last layer; see `RequestModel.attend_targets`."""
        target_RMW = self.target_map(pad_ragged(target_GD, target_offsets))
        *key_values, valid_RS = cache.states
        # later layers have fewer keys, the first of valid_RS, because the queries are the newest tokens
        for layer, key_value_RSW2 in zip(self.layers, key_values, strict=True):
            target_RMW = layer.forward_targets(target_RMW, key_value_RSW2, valid_RS[:, : key_value_RSW2.shape[1]])
        z_GD: Tensor = self.output_map(self.norm(target_RMW[rows_and_positions(target_offsets)]))
        return z_GD

    def _merge(self, history_TD: Tensor, offsets: Tensor) -> tuple[Tensor, Tensor]:
        """Groups of K events after InnerTrans, newest first (R, S, W), and which contain an event (R, S).

        Example with K = 2, histories [a b c] and [d], oldest first:
            age_T = [2 1 0] and [0]; events by age: [c b a 0] and [d 0 0 0]
            groups: [[c b] [a 0]] and [[d 0] [0 0]]; which contain an event: [[1 1] [1 0]]
        """
        size, (row_T, position_T) = self.config.events_per_token, rows_and_positions(offsets)
        # counted from the newest event, so only the oldest group of a history can contain padding
        age_T = offsets.diff()[row_T] - 1 - position_T
        event_TD = self.event_mlp(history_TD + self.position(numeric_rows(age_T + 1)))
        longest = max(1, int(offsets.diff().max())) if len(offsets) > 1 else 1
        rows, groups, width = len(offsets) - 1, -(-longest // size), history_TD.shape[-1]
        event_RLD = event_TD.new_zeros(rows, groups * size, width).index_put((row_T, age_T), event_TD)
        valid_RSK = valid_positions(offsets, groups * size).view(rows, groups, size)
        group_NKD = self._inner(event_RLD.view(rows * groups, size, width), valid_RSK.flatten(0, 1))
        return group_NKD.view(rows, groups, size * width), valid_RSK.any(dim=-1)

    def _inner(self, group_NKD: Tensor, valid_NK: Tensor) -> Tensor:
        """InnerTrans: the events of a group attend to each other; padding stays zero."""
        # padding attends to itself, because the softmax of a row without keys would be NaN
        itself_KK = torch.eye(self.config.events_per_token, dtype=torch.bool, device=valid_NK.device)
        key_values = self.inner_trans.keys_and_values(group_NKD)
        output_NKD: Tensor = self.inner_trans(group_NKD, key_values, valid_NK[:, None] | itself_KK)
        return output_NKD * valid_NK[..., None]


def _identity_mlp(width: int) -> nn.Sequential:
    """Linear, GELU, Linear, initially the identity because `gelu(v) - gelu(-v) = v`: similar tokens stay similar."""
    up, down = nn.Linear(width, 2 * width), nn.Linear(2 * width, width)
    with torch.no_grad():
        signed_KD = signed_bases(width, 2)
        up.weight.copy_(signed_KD)
        down.weight.copy_(signed_KD.T)
        for linear in (up, down):
            linear.bias.zero_()
    return nn.Sequential(up, nn.GELU(), down)


def _causal_mask(valid_RS: Tensor, queries: int) -> Tensor:
    """Whether each of the first `queries` tokens attends to each token (R, Q, S): itself and valid ones after it.

    Example for 3 tokens of which the last is padding, all of them queries:
        [[1 1 0]
         [0 1 0]
         [0 0 1]]   padding attends to itself, because the softmax of a row without keys would be NaN
    """
    tokens = valid_RS.shape[1]
    position_S = torch.arange(tokens, device=valid_RS.device)
    position_Q = position_S[:queries, None]
    return (valid_RS[:, None] & (position_S >= position_Q)) | (position_S == position_Q)
