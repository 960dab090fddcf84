"""STCA: stacked target-to-history cross attention, the history encoded once per request.

Source: STCA (arXiv 2511.06077), sections on history encoding, query fusion and the reordered attention.

Shapes: R requests, G targets, T events, D width, M layers, S heads of keys and values, E width of one head.

Layer i encodes the history by `X_i = LN(SwiGLU_i(X))` of the raw event tokens X. Layers are not chained, so X_i does
not depend on the target. The query is `q_1 = LN(SwiGLU_1(x))` of the target token x, then
`q_i = LN(SwiGLU_i([o_1 || .. || o_(i-1) || x] WC))` (dense fusion, no residual). `o_i` is the attention of q_i over
X_i. The output is `z = SwiGLU([o_1 || .. || o_M || x] WZ)`, without a LayerNorm.

Choices where the paper is silent: SwiGLU of history and query have separate weights, expansion r = 2, no biases in the
linear maps; `head.py` is the head.

The initial weights make attention start by similarity: the query's SwiGLU starts as a copy of the history's, the fusion
starts close to x alone, and WK starts as a copy of WQ. From independent random weights it took thousands of steps to
learn that events similar to the target matter, if it was learned at all.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import cast

import torch
from torch import Tensor, nn

from longbatch.trainer.config import ModelColumns, ModelConfig

from .attention import AttentionFunction, TargetAttention, prefers_reorder, tiled_attention
from .flex_attention import MAX_HEAD_WIDTH, FlexAttention
from .request_model import HistoryCache, HistoryStates, RequestModel, segment_ids
from .spans import Spans
from .swiglu import SwiGLU, make_output_map


class Layer(nn.Module):
    """One layer: its own encoding of the history, a query from all previous outputs, and attention.

    Args:
        config: The model's size.
        index: Number of layers before this one.
    """

    def __init__(self, config: ModelConfig, index: int) -> None:
        super().__init__()
        width = config.width
        history = SwiGLU(width, width, config.expansion)
        query = SwiGLU((index + 1) * width, width, config.expansion)
        self.history_encoder = nn.Sequential(history, nn.LayerNorm(width))
        self.query_encoder = nn.Sequential(query, nn.LayerNorm(width))
        self.attention = TargetAttention(width, config.heads, config.time_encoding == "attention_bias")
        # with equal encoders, a query and the events similar to its target start with similar encodings
        query.copy_initial_weights(history)

    def keys_and_values(self, history_TD: Tensor, reorder: bool) -> tuple[Tensor, Tensor]:
        """Encode the raw event tokens for this layer's queries.

        Args:
            history_TD: Event tokens (T, D).
            reorder: How to attend; see `reorders_attention`.

        Returns:
            Keys and values (T, S, E); see `TargetAttention.keys_and_values`.
        """
        return self.attention.keys_and_values(self.history_encoder(history_TD), reorder)

    def forward(self, inputs_GD: list[Tensor], key_TSE: Tensor, value_TSE: Tensor, attend: AttentionFunction) -> Tensor:
        """Compute the layer's output for each target.

        Args:
            inputs_GD: [o_1, .., o_(i-1), x], each (G, D).
            key_TSE: Keys of this layer.
            value_TSE: Values of this layer.
            attend: The attention over this batch.

        Returns:
            o_i (G, D).
        """
        query_GD = self.query_encoder(torch.cat(inputs_GD, dim=-1))
        output_GD: Tensor = self.attention.attend(query_GD, key_TSE, value_TSE, attend)
        return output_GD


class STCA(RequestModel):
    """The STCA model (arXiv 2511.06077).

    Args:
        config: The model's size.
        columns: The columns that it reads.

    Example:
        >>> from longbatch.trainer.config import Column, ModelColumns, ModelConfig
        >>> author = Column(name="author_id", feature_type="id", rows=1_000)
        >>> columns = ModelColumns(history=(author,), targets=(author,), requests=(), labels=("click",))
        >>> model = STCA(ModelConfig(width=16, heads=2, layers=2), columns)
        >>> model.output_map.fuse.in_features  # two layers' outputs and the target
        48
    """

    def __init__(self, config: ModelConfig, columns: ModelColumns) -> None:
        super().__init__(config, columns)
        layers = nn.ModuleList(Layer(config, index) for index in range(config.layers))
        self.layers = cast("Sequence[Layer]", layers)  # type checkers do not know what a ModuleList contains
        self.output_map = make_output_map((config.layers + 1) * config.width, config.width, config.expansion)

    def rowwise_modules(self) -> Iterator[nn.Module]:
        """Iterate over the head, the encoders of events and queries, and the output map.

        Yields:
            Modules whose only dynamic size is the number of rows.
        """
        yield from super().rowwise_modules()
        for layer in self.layers:
            yield from (layer.history_encoder, layer.query_encoder)
        yield self.output_map

    def history_states(
        self, history_TD: Tensor, offsets: Tensor, user_RD: Tensor, targets_per_event: float
    ) -> HistoryStates:
        """Compute the keys and values of each layer, alternating; see `RequestModel.history_states`."""
        reorder = reorders_attention(self.config, targets_per_event)
        return tuple(state for layer in self.layers for state in layer.keys_and_values(history_TD, reorder))

    def attend_targets(self, cache: HistoryCache, target_GD: Tensor, target_offsets: Tensor) -> Tensor:
        """Compute z (G, D) from all layers' outputs and the target; see `RequestModel.attend_targets`."""
        # the tiling or the masks are computed once here, and all layers use them
        attend = self._attention(cache.spans, target_offsets, len(target_GD))
        outputs_GD: list[Tensor] = []
        for layer, key_TSE, value_TSE in zip(self.layers, cache.states[::2], cache.states[1::2], strict=True):
            # dense fusion: each layer's query sees all earlier outputs and the target
            outputs_GD.append(layer([*outputs_GD, target_GD], key_TSE, value_TSE, attend))
        z_GD: Tensor = self.output_map(torch.cat([*outputs_GD, target_GD], dim=-1))
        return z_GD

    def _attention(self, spans: Spans, target_offsets: Tensor, targets: int) -> AttentionFunction:
        """The configured implementation. Only CUDA devices have FlexAttention's backward pass; others use tiles."""
        if self.config.attention == "flex" and target_offsets.is_cuda:
            return FlexAttention(spans, segment_ids(target_offsets, targets))
        return tiled_attention(spans, target_offsets, self.config.heads, self.config.width)


def reorders_attention(config: ModelConfig, targets_per_event: float) -> bool:
    """Decide how STCA attends: reordered where that is cheaper and the attention implementation allows it.

    Args:
        config: The model's size and its attention implementation.
        targets_per_event: Mean number of targets that attend to an event (m).

    Returns:
        True for reordered, False for projected keys and values.
    """
    # reordered heads are as wide as the model
    if config.attention == "flex" and config.width > MAX_HEAD_WIDTH:
        return False
    return prefers_reorder(config.width, config.heads, targets_per_event)
