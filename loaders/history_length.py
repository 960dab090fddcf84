"""How many of its newest events a history keeps: a fixed number, or one drawn per request and epoch."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from longbatch.schemas.types import Int64Array

from .rng import Purpose, generator

MULTIPLE = 8  # drawn lengths are multiples of it, the sizes that GPU kernels handle best


@dataclass(frozen=True)
class StochasticLength:
    """History lengths drawn at random, to train on short histories and serve long ones.

    `L = minimum + s * (maximum - minimum)` with `s ~ Beta(alpha, beta)`, rounded to a multiple of 8; a history keeps
    its newest L events. The distribution is U-shaped because alpha and beta are below 1. The mean length is
    `minimum + (maximum - minimum) * alpha / (alpha + beta)`. Source: STCA, arXiv 2511.06077, which does not publish
    alpha and beta.

    Args:
        minimum: Lower bound of the lengths, in events.
        maximum: Upper bound of the lengths, in events, at most the history length that the dataset was built with.
        alpha: First parameter of the Beta distribution, between 0 and 1.
        beta: Second parameter of the Beta distribution, between 0 and 1.

    Raises:
        ValueError: The bounds are reversed or contain no multiple of 8, or the distribution would not be U-shaped.

    Example:
        >>> StochasticLength(100, 2_000).lengths(seed=0, epoch=0, block=0, num_requests=3)
        array([ 256, 2000,  264])
    """

    minimum: int
    maximum: int
    alpha: float = 0.5
    beta: float = 0.5

    def __post_init__(self) -> None:
        if not 0 <= self.minimum <= self.maximum:
            raise ValueError(f"history lengths {self.minimum} to {self.maximum}: give 0 <= minimum <= maximum")
        if self._lowest > self.maximum:
            raise ValueError(f"there is no multiple of 8 from {self.minimum} to {self.maximum}; widen the range")
        if not (0 < self.alpha < 1 and 0 < self.beta < 1):
            raise ValueError(f"alpha {self.alpha}, beta {self.beta}: a U shape needs both between 0 and 1")

    @property
    def _lowest(self) -> int:
        return -(-self.minimum // MULTIPLE) * MULTIPLE

    def lengths(self, seed: int, epoch: int, block: int, num_requests: int) -> Int64Array:
        """Draw the lengths of all requests of one block; every process that reads the block draws the same ones.

        Args:
            seed: Seed of the dataset.
            epoch: Number of the epoch.
            block: Number of the block in the dataset.
            num_requests: How many requests the block has.

        Returns:
            Lengths in events, (num_requests,).
        """
        # Keyed by block, not by rank or worker, and drawn for all its requests, whatever the time range selects:
        # a request has the same length in the plan that adds up costs and in the batch that is read.
        share = generator(seed, epoch, Purpose.HISTORY_LENGTHS, block).beta(self.alpha, self.beta, num_requests)
        rounded = np.rint((self.minimum + share * (self.maximum - self.minimum)) / MULTIPLE) * MULTIPLE
        # Rounding may leave the range by half a multiple; clipping to multiples inside keeps the bounds.
        lengths: Int64Array = np.clip(rounded, self._lowest, self.maximum // MULTIPLE * MULTIPLE).astype(np.int64)
        return lengths


HistoryLength = int | StochasticLength


def block_lengths(length: HistoryLength, seed: int, epoch: int, block: int, num_requests: int) -> Int64Array:
    """Return the history length of each request of one block.

    Args:
        length: A fixed number of events, or the distribution to draw from.
        seed: Seed of the dataset.
        epoch: Number of the epoch.
        block: Number of the block in the dataset.
        num_requests: How many requests the block has.

    Returns:
        Lengths in events, (num_requests,).
    """
    if isinstance(length, StochasticLength):
        return length.lengths(seed, epoch, block, num_requests)
    return np.full(num_requests, length, dtype=np.int64)


def longest(length: HistoryLength) -> int:
    """Return the longest history, in events, that a history length allows."""
    return length.maximum if isinstance(length, StochasticLength) else length
