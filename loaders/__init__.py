"""From a dataset on disk to batches of tensors.

`plan` decides which requests form a batch, `batch` defines what a batch contains, `dataset` and `loader` iterate. The
names below are imported on first use, so that `longbatch.loaders.plan` can be imported without torch.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from .batch import RequestBatch
    from .dataset import RequestDataset
    from .history_length import StochasticLength
    from .loader import RequestLoader, make_dataloader

__all__ = ["RequestBatch", "RequestDataset", "RequestLoader", "StochasticLength", "make_dataloader"]

# PEP 562: importing torch takes seconds, which commands that never iterate should not wait for.
_MODULES = {
    "RequestBatch": "batch",
    "RequestDataset": "dataset",
    "RequestLoader": "loader",
    "StochasticLength": "history_length",
    "make_dataloader": "loader",
}


def __getattr__(name: str) -> object:
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(import_module(f".{_MODULES[name]}", __name__), name)
    globals()[name] = value  # the next access does not come here
    return value
