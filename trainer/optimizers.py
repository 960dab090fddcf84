"""What updates the weights: AdamW for dense ones, SparseAdam for large embedding tables."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from .config import TrainConfig


def make_optimizers(model: nn.Module, config: TrainConfig) -> list[torch.optim.Optimizer]:
    """SparseAdam for tables with sparse gradients; AdamW for the rest, decaying only matrices of layers."""
    tables = [module.weight for module in model.modules() if isinstance(module, nn.Embedding)]
    sparse = sparse_tables(model)
    sparse_ids = {id(weight) for weight in sparse}
    small = [weight for weight in tables if id(weight) not in sparse_ids]
    table_ids = {id(weight) for weight in tables}
    layers = [parameter for parameter in model.parameters() if id(parameter) not in table_ids]
    groups: list[dict[str, Any]] = [
        {"params": [p for p in layers if p.ndim > 1], "weight_decay": config.weight_decay},
        {"params": [p for p in layers if p.ndim <= 1]},
        {"params": small, "lr": config.embedding_learning_rate},
    ]
    dense = torch.optim.AdamW(groups, lr=config.learning_rate, weight_decay=0.0)
    return [dense, torch.optim.SparseAdam(sparse, lr=config.embedding_learning_rate)] if sparse else [dense]


def dense_parameters(model: nn.Module) -> list[nn.Parameter]:
    """All parameters but the tables with sparse gradients."""
    sparse = {id(weight) for weight in sparse_tables(model)}
    return [parameter for parameter in model.parameters() if id(parameter) not in sparse]


def sparse_tables(model: nn.Module) -> list[nn.Parameter]:
    """The embedding tables whose gradients are rows."""
    tables = (module for module in model.modules() if isinstance(module, nn.Embedding) and module.sparse)
    return [parameter for table in tables for parameter in table.parameters()]
