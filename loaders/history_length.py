"""How many of its newest events a history keeps: a number, or one drawn per request and epoch."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from .rng import LENGTHS, Ints, generator


@dataclass(frozen=True)
class StochasticLength:
    """Sampled history lengths for training short and serving long (STCA, arXiv 2511.06077).

    `L = minimum + s * (maximum - minimum)` with s ~ Beta(alpha, beta), U-shaped since both are below 1,
    rounded to a multiple of 8; a history keeps its newest L events. The paper does not publish alpha and
    beta; the mean length is `minimum + (maximum - minimum) * alpha / (alpha + beta)`.
    """

    minimum: int
    maximum: int
    alpha: float = 0.5
    beta: float = 0.5

    def __post_init__(self) -> None:
        if not 0 <= self.minimum <= self.maximum:
            raise ValueError(f"lengths {self.minimum} to {self.maximum}: give 0 <= minimum <= maximum")
        if -(-self.minimum // 8) * 8 > self.maximum:
            raise ValueError(f"no multiple of 8 lies in {self.minimum} to {self.maximum}; widen the range")
        if not (0 < self.alpha < 1 and 0 < self.beta < 1):
            raise ValueError(f"alpha {self.alpha}, beta {self.beta}: a U shape needs both between 0 and 1")

    def lengths(self, seed: int, epoch: int, block: int, num_requests: int) -> Ints:
        """Lengths (num_requests,) of all requests of one block; the same whoever reads the block."""
        share = generator(seed, epoch, LENGTHS, block).beta(self.alpha, self.beta, num_requests)
        raw: NDArray[np.float64] = np.rint((self.minimum + share * (self.maximum - self.minimum)) / 8) * 8
        lengths: Ints = np.clip(raw, -(-self.minimum // 8) * 8, self.maximum // 8 * 8).astype(np.int64)
        return lengths


def lengths_of(rule: int | StochasticLength, seed: int, epoch: int, block: int, num_requests: int) -> Ints:
    """Each request's length (num_requests,) in one block."""
    if isinstance(rule, StochasticLength):
        return rule.lengths(seed, epoch, block, num_requests)
    return np.full(num_requests, rule, dtype=np.int64)


def longest(rule: int | StochasticLength) -> int:
    """The longest history that the rule lets through."""
    return rule.maximum if isinstance(rule, StochasticLength) else rule
