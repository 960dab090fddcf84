"""What a model costs: floating point operations of the forward pass, two per multiplication and addition.

Counted are matrix products and attention, as papers do, not norms, activations or look-ups. A training step costs
about three times as much. L is a history's length, m the targets of its request, D the width, r the expansion.

Both sides are those of `model.py`: `history` is done once per request, and not at all where serving kept it.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from longbatch.trainer.config import ModelConfig, ModelName

from .attention import prefers_reorder
from .head import HEAD_TOKENS
from .longer import SHARED_GLOBALS
from .pooling import HIDDEN_UNITS


@dataclass(frozen=True)
class Flops:
    """Of one request: `history` whatever its targets are, `target` for each of `targets`."""

    history: int
    target: int
    targets: int

    @property
    def request(self) -> int:
        """All of a request."""
        return self.history + self.targets * self.target

    @property
    def shared_share(self) -> float:
        """The part of a request's cost that does not depend on its targets."""
        return self.history / self.request


def layer_flops(length: int, width: int) -> int:
    """One Transformer layer over a sequence: `24 L D^2 + 4 L^2 D` (LONGER, arXiv 2505.04421)."""
    return _asking(length, length, width) + 4 * length * width**2


def merged_layer_flops(length: int, width: int, merge: int) -> int:
    """The same after a merge of K adjacent tokens into one of K times the width: `24 L D^2 K + 4 L^2 D / K`."""
    return layer_flops(length // merge, width * merge)


def request_flops(config: ModelConfig, length: int, targets: int, labels: int = 1) -> Flops:
    """The cost of a request with this history length and so many targets; token look-ups are free."""
    history, target = _COUNTS[config.name](config, length, targets)
    return Flops(history, target + _head(config, labels), targets)


def _head(config: ModelConfig, labels: int) -> int:
    width, hidden = config.width, config.expansion * config.width
    if config.head == "mlp":
        return 2 * HEAD_TOKENS * width * hidden + 2 * hidden * labels
    return 4 * HEAD_TOKENS * hidden * width + 2 * width * labels


def _asking(queries: int, seen: int, width: int) -> int:
    """A Transformer layer for some queries, keys and values given: Q, output, FFN and attention."""
    return 20 * queries * width**2 + 4 * queries * seen * width


def _swiglu(config: ModelConfig) -> int:
    return 6 * config.expansion * config.width**2


def _stca(config: ModelConfig, length: int, targets: int) -> tuple[int, int]:
    width, layers = config.width, config.layers
    swiglu, square = _swiglu(config), 2 * width**2
    reorder = prefers_reorder(width, config.heads, targets)
    history = length * (swiglu + (0 if reorder else 2 * square))
    attention = 4 * length * width * (config.heads if reorder else 1) + (4 if reorder else 2) * square
    fusions = sum(place + 1 for place in range(1, layers + 1)) * square
    return layers * history, layers * (swiglu + attention) + fusions + swiglu


def _transformer(config: ModelConfig, length: int, targets: int) -> tuple[int, int]:
    width = config.width
    history = (config.layers - 1) * layer_flops(length, width) + 4 * length * width**2
    return history, config.layers * (_asking(1, length + targets, width) + 4 * width**2) + _swiglu(config)


def _longer(config: ModelConfig, length: int, targets: int) -> tuple[int, int]:
    width, wide, groups = config.width, config.width * config.merge, max(1, -(-length // config.merge))
    asking = min(SHARED_GLOBALS + config.newest, SHARED_GLOBALS + groups)
    seen = [SHARED_GLOBALS + groups, *[asking] * (config.layers - 1)]
    inner = groups * layer_flops(config.merge, width)
    history = inner + 8 * length * width**2 + 2 * width * wide
    history += sum(4 * tokens * wide**2 for tokens in seen)
    history += sum(_asking(asking, tokens, wide) for tokens in seen[:-1])
    target = sum(_asking(1, tokens + targets, wide) + 4 * wide**2 for tokens in seen)
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
