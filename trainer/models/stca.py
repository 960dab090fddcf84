"""STCA (arXiv 2511.06077): stacked target-to-history cross attention, history encoded once per request.

Shapes: R requests, G targets, T events, D width, I layers, N tokens of the head, B labels.

Layer i: `X_i = LN(SwiGLU_i(X))` of the raw event tokens, never chained, so it does not depend on the
target; `q_1 = LN(SwiGLU_1(x))` of the target token, `q_i = LN(SwiGLU_i([o_1 || .. || o_(i-1) || x] WC))`
after (dense fusion, no residual); `o_i` is the attention of q_i over X_i. At last
`z = SwiGLU([o_1 || .. || o_I || x] WZ)`, without a LayerNorm.

Choices where the paper is silent: the history's and the query's SwiGLU have their own weights, expansion
r = 2, no biases in the linear maps; the head is that of `head.py`.

Initial weights are chosen so that attention starts by similarity: a query's SwiGLU starts as a copy of the
history's, fusion starts near x alone, and WK as a copy of WQ. From independent random weights, that events
like the target matter took thousands of steps to be found, where it was found at all.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import cast

import torch
from torch import Tensor, nn

from longbatch.trainer.config import ModelColumns, ModelConfig

from .attention import Attend, TargetAttention, tiled
from .flex_attention import FlexAttend
from .request_model import Encoded, Kept, RequestModel
from .spans import Spans
from .swiglu import SwiGLU, output_map


class Layer(nn.Module):
    """One layer: its own view of the history, a query from all that came before, attention."""

    def __init__(self, config: ModelConfig, before: int) -> None:
        super().__init__()
        width = config.width
        history = SwiGLU(width, width, config.expansion)
        query = SwiGLU((before + 1) * width, width, config.expansion)
        self.history = nn.Sequential(history, nn.LayerNorm(width))
        self.query = nn.Sequential(query, nn.LayerNorm(width))
        self.attention = TargetAttention(width, config.heads, config.elapsed == "attention")
        query.start_as(history)

    def keys_and_values(self, history_TD: Tensor, targets_per_event: float) -> tuple[Tensor, Tensor]:
        """What this layer's queries read of the raw event tokens (T, D)."""
        return self.attention.keys_and_values(self.history(history_TD), targets_per_event)

    def forward(self, seen_GD: list[Tensor], key_TSE: Tensor, value_TSE: Tensor, attend: Attend) -> Tensor:
        """o_i (G, D), from [o_1, .., o_(i-1), x] and what `keys_and_values` returned."""
        output_GD: Tensor = self.attention.read(self.query(torch.cat(seen_GD, dim=-1)), key_TSE, value_TSE, attend)
        return output_GD


class STCA(RequestModel):
    """The model: a RequestBatch to one logit per target and label."""

    def __init__(self, config: ModelConfig, columns: ModelColumns) -> None:
        super().__init__(config, columns)
        layers = nn.ModuleList(Layer(config, before) for before in range(config.layers))
        self.layers = cast("Sequence[Layer]", layers)  # which type checkers cannot know of a ModuleList
        self.final = output_map((config.layers + 1) * config.width, config.width, config.expansion)

    def row_modules(self) -> Iterator[nn.Module]:
        """Besides the head all encodings of events and queries, and the map to z."""
        yield from super().row_modules()
        for layer in self.layers:
            yield from (layer.history, layer.query)
        yield self.final

    def history_side(self, history_TD: Tensor, offsets: Tensor, user_RD: Tensor, targets_per_event: float) -> Kept:
        """Keys and values of each layer: the layer's own encoding, projected or, for few targets, as it is."""
        return tuple(part for layer in self.layers for part in layer.keys_and_values(history_TD, targets_per_event))

    def target_side(self, encoded: Encoded, target_GD: Tensor, target_offsets: Tensor) -> Tensor:
        """z (G, D), from all layers' outputs and the target."""
        kept, attend = encoded.kept, self._attend(encoded.spans, target_offsets)
        outputs_GD: list[Tensor] = []
        for place, layer in enumerate(self.layers):
            seen_GD = [*outputs_GD, target_GD]
            outputs_GD.append(layer(seen_GD, kept[2 * place], kept[2 * place + 1], attend))
        z_GD: Tensor = self.final(torch.cat([*outputs_GD, target_GD], dim=-1))
        return z_GD

    def _attend(self, spans: Spans, target_offsets: Tensor) -> Attend:
        if self.config.attention == "flex" and target_offsets.is_cuda:
            return FlexAttend(spans, target_offsets)
        return tiled(spans, target_offsets, self.config.heads, self.config.width)
