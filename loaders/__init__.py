"""From a dataset on disk to batches of tensors: plan (pure numbers), batch, dataset, loader."""

from .batch import RequestBatch
from .dataset import RequestDataset, make_dataloader
from .history_length import StochasticLength
from .loader import RequestLoader

__all__ = ["RequestBatch", "RequestDataset", "RequestLoader", "StochasticLength", "make_dataloader"]
