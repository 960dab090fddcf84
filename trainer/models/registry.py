"""The models by name, as `ModelConfig.name` chooses them."""

from __future__ import annotations

from longbatch.trainer.config import ModelColumns, ModelConfig, ModelName

from .longer import Longer
from .pooling import DIN, MeanPooling
from .request_model import RequestModel
from .stca import STCA
from .transformer import Transformer

MODELS: dict[ModelName, type[RequestModel]] = {
    "stca": STCA,
    "longer": Longer,
    "transformer": Transformer,
    "din": DIN,
    "mean": MeanPooling,
}


def make_model(config: ModelConfig, columns: ModelColumns) -> RequestModel:
    """Make the model that the config names.

    Args:
        config: The model's name and size.
        columns: The columns it reads; see `config.model_columns`.

    Returns:
        The model with random initial weights, on the CPU.
    """
    return MODELS[config.name](config, columns)
