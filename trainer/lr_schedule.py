"""Learning rates as a function of the step alone, so a resumed run needs no state for them.

Source: linear warm-up, then a cosine to 0 without restarts (SGDR, arXiv 1608.03983).
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch

from .config import TrainConfig


def lr_factor(step: int, total_steps: int, config: TrainConfig) -> float:
    """Compute the factor of all learning rates in one step.

    Args:
        step: The step, 0 for the first.
        total_steps: Steps of the whole run, at which a cosine reaches 0.
        config: `warmup_steps` and `lr_schedule`.

    Returns:
        A factor between 0 and 1.

    Example:
        >>> config = TrainConfig(warmup_steps=4, lr_schedule="cosine")
        >>> [round(lr_factor(step, 12, config), 3) for step in (0, 3, 4, 8, 12)]
        [0.25, 1.0, 1.0, 0.5, 0.0]
    """
    rise = min(1.0, (step + 1) / config.warmup_steps) if config.warmup_steps else 1.0
    if config.lr_schedule == "constant":
        return rise
    share = (step - config.warmup_steps) / max(1, total_steps - config.warmup_steps)
    return rise * 0.5 * (1 + math.cos(math.pi * min(1.0, max(0.0, share))))


def set_learning_rates(optimizers: Sequence[torch.optim.Optimizer], factor: float) -> None:
    """Set the learning rate of each parameter group to its configured rate times a factor.

    Args:
        optimizers: The optimizers, changed in place; the configured rate is kept as `initial_lr`.
        factor: The factor.
    """
    for optimizer in optimizers:
        for group in optimizer.param_groups:
            group["lr"] = group.setdefault("initial_lr", group["lr"]) * factor
