"""Which device trains and scores."""

from __future__ import annotations

import os

import torch
from torch import nn


def best_device() -> torch.device:
    """Choose this process's device.

    Returns:
        The CUDA device of torchrun's `LOCAL_RANK` (0 without torchrun), or the CPU where there is none.
    """
    if not torch.cuda.is_available():
        return torch.device("cpu")
    return torch.device("cuda", int(os.environ.get("LOCAL_RANK", "0")))


def device_of(model: nn.Module) -> torch.device:
    """Find the device of a model.

    Args:
        model: A module with all parameters on one device.

    Returns:
        The device.
    """
    return next(model.parameters()).device
