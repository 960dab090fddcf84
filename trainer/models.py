"""The models by name, as `ModelConfig.name` chooses them."""

from __future__ import annotations

from longbatch.trainer.config import ModelColumns, ModelConfig, ModelName
from longbatch.trainer.longer import Longer
from longbatch.trainer.model import RequestModel
from longbatch.trainer.pooling import DIN, MeanPooling
from longbatch.trainer.stca import STCA
from longbatch.trainer.transformer import Transformer

MODELS: dict[ModelName, type[RequestModel]] = {
    "stca": STCA,
    "longer": Longer,
    "transformer": Transformer,
    "din": DIN,
    "mean": MeanPooling,
}


def make_model(config: ModelConfig, columns: ModelColumns) -> RequestModel:
    """The model that the config names, with random initial weights."""
    return MODELS[config.name](config, columns)
