"""From a dataset on disk to batches of tensors: plan (pure numbers), batch, dataset, loader."""

from longbatch.loaders.batch import RequestBatch
from longbatch.loaders.dataset import RequestDataset, make_dataloader
from longbatch.loaders.lengths import StochasticLength
from longbatch.loaders.loader import RequestLoader

__all__ = ["RequestBatch", "RequestDataset", "RequestLoader", "StochasticLength", "make_dataloader"]
