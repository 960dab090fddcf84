"""The cost of a model: floating point operations of the forward pass, two per multiplication and addition.

Sources: LONGER (arXiv 2505.04421), complexity of a layer; STCA (arXiv 2511.06077), complexity of the reordered
attention.

Counted are matrix products and attention, as papers do, not norms, activations or table look-ups. A training step costs
about three times as much. L is the length of a history, m the number of targets of its request, D the width, r the
expansion.

The two counts follow `request_model.py`: `history` is the cost of `encode_history`, once per request and nothing where
serving has cached it; `target` is the cost of `score_targets` for one target.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from longbatch.trainer.config import HEAD_TOKENS, ModelConfig, ModelName

from .longer import SHARED_GLOBALS
from .pooling import HIDDEN_UNITS
from .stca import reorders_attention


@dataclass(frozen=True)
class Flops:
    """Operations of one request.

    Attributes:
        history: Operations that do not depend on the targets.
        target: Operations of each target.
        targets: Number of targets.
    """

    history: int
    target: int
    targets: int

    @property
    def request(self) -> int:
        """All operations of the request."""
        return self.history + self.targets * self.target

    @property
    def shared_share(self) -> float:
        """The share of the request's operations that does not depend on its targets."""
        return self.history / self.request


def layer_flops(length: int, width: int) -> int:
    """Count one Transformer layer over a sequence: `24 L D^2 + 4 L^2 D` (LONGER, arXiv 2505.04421).

    Args:
        length: Tokens L.
        width: Width D.

    Returns:
        Operations.
    """
    return _query_layer(length, length, width) + 4 * length * width**2


def merged_layer_flops(length: int, width: int, merge: int) -> int:
    """Count the same layer after merging K adjacent tokens into one of K times the width: `24 L D^2 K + 4 L^2 D / K`.

    Args:
        length: Tokens L before the merge.
        width: Width D before the merge.
        merge: Tokens per merged token, K.

    Returns:
        Operations.
    """
    return layer_flops(length // merge, width * merge)


def request_flops(config: ModelConfig, length: int, targets: int, labels: int = 1) -> Flops:
    """Count the operations of one request.

    Args:
        config: The model's name and size.
        length: Length of the history.
        targets: Number of targets.
        labels: Number of labels.

    Returns:
        The operations; table look-ups are not counted.

    Example:
        >>> large = ModelConfig(name="stca", width=1024, heads=16, layers=4)
        >>> request_flops(large, length=10_000, targets=8).shared_share > 0.95
        True
    """
    history, target = _COUNTS[config.name](config, length, targets)
    return Flops(history, target + _head(config, labels), targets)


def _head(config: ModelConfig, labels: int) -> int:
    width, hidden = config.width, config.expansion * config.width
    if config.head == "mlp":
        return 2 * HEAD_TOKENS * width * hidden + 2 * hidden * labels
    return 4 * HEAD_TOKENS * hidden * width + 2 * width * labels


def _query_layer(queries: int, keys: int, width: int) -> int:
    """A Transformer layer for some queries with keys and values given: Q, output, FFN and attention."""
    return 20 * queries * width**2 + 4 * queries * keys * width


def _swiglu(config: ModelConfig) -> int:
    return 6 * config.expansion * config.width**2


def _stca(config: ModelConfig, length: int, targets: int) -> tuple[int, int]:
    width, layers = config.width, config.layers
    swiglu, square = _swiglu(config), 2 * width**2
    # projected keys and values cost once per event; reordered, the targets take over both projections
    reorder = reorders_attention(config, targets)
    history = length * (swiglu + (0 if reorder else 2 * square))
    attention = 4 * length * width * (config.heads if reorder else 1) + (4 if reorder else 2) * square
    # layer i fuses i vectors, from layer 2 on, and the output map fuses one more than there are layers
    fusions = sum(index + 1 for index in range(1, layers + 1)) * square
    return layers * history, layers * (swiglu + attention) + fusions + swiglu


def _transformer(config: ModelConfig, length: int, targets: int) -> tuple[int, int]:
    width = config.width
    # the last layer only projects keys and values of the history
    history = (config.layers - 1) * layer_flops(length, width) + 4 * length * width**2
    return history, config.layers * (_query_layer(1, length + targets, width) + 4 * width**2) + _swiglu(config)


def _longer(config: ModelConfig, length: int, targets: int) -> tuple[int, int]:
    width, merge = config.width, config.events_per_token
    wide, groups = width * merge, max(1, -(-length // merge))
    # the first layer has keys for all groups, later layers for the queries of the layer before
    queries = min(SHARED_GLOBALS + config.query_tokens, SHARED_GLOBALS + groups)
    keys_by_layer = [SHARED_GLOBALS + groups, *[queries] * (config.layers - 1)]
    inner = groups * layer_flops(merge, width)
    history = inner + 8 * length * width**2 + 2 * width * wide
    history += sum(4 * keys * wide**2 for keys in keys_by_layer)
    history += sum(_query_layer(queries, keys, wide) for keys in keys_by_layer[:-1])
    target = sum(_query_layer(1, keys + targets, wide) + 4 * wide**2 for keys in keys_by_layer)
    return history, target + 4 * width * wide + _swiglu(config)


def _pooled(config: ModelConfig) -> int:
    return 2 * 4 * config.width * 2 * config.expansion * config.width


def _din(config: ModelConfig, length: int, targets: int) -> tuple[int, int]:
    hidden = 2 * config.width * HIDDEN_UNITS
    return 2 * length * hidden, 2 * hidden + length * (hidden + 2 * HIDDEN_UNITS) + _pooled(config)


def _mean(config: ModelConfig, length: int, targets: int) -> tuple[int, int]:
    return 0, _pooled(config)


_COUNTS: dict[ModelName, Callable[[ModelConfig, int, int], tuple[int, int]]] = {
    "stca": _stca,
    "longer": _longer,
    "transformer": _transformer,
    "din": _din,
    "mean": _mean,
}
