"""Learning rates as a function of the step alone, so that a run that goes on needs no state of it."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch

from .config import TrainConfig


def factor(step: int, total_steps: int, config: TrainConfig) -> float:
    """What the learning rates are multiplied by in step `step` (0 is the first): up over `warmup_steps`, then as `decay` says."""
    rise = min(1.0, (step + 1) / config.warmup_steps) if config.warmup_steps else 1.0
    if config.decay == "constant":
        return rise
    done = (step - config.warmup_steps) / max(1, total_steps - config.warmup_steps)
    return rise * 0.5 * (1 + math.cos(math.pi * min(1.0, max(0.0, done))))


def set_rates(optimizers: Sequence[torch.optim.Optimizer], scale: float) -> None:
    """Let each group of weights learn at its own first rate times `scale`."""
    for optimizer in optimizers:
        for group in optimizer.param_groups:
            group["lr"] = group.setdefault("initial_lr", group["lr"]) * scale
