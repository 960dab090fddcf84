"""From a dataset on disk to batches of tensors: plan (pure numbers), batch, dataset."""

from longbatch.loaders.batch import RequestBatch
from longbatch.loaders.dataset import RequestDataset, make_dataloader
from longbatch.loaders.plan import StochasticLength

__all__ = ["RequestBatch", "RequestDataset", "StochasticLength", "make_dataloader"]
