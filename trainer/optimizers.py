"""The optimizers: AdamW (arXiv 1711.05101) for dense weights, SparseAdam for large embedding tables."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from .config import TrainConfig
from .devices import device_of


def make_optimizers(model: nn.Module, config: TrainConfig) -> list[torch.optim.Optimizer]:
    """Make the optimizers of a model. Every parameter belongs to exactly one.

    Args:
        model: The model, already on its device.
        config: Learning rates and weight decay.

    Returns:
        AdamW for dense weights, with weight decay for the matrices of layers only; then, if the model has tables with
        sparse gradients, SparseAdam for them.
    """
    tables = [module.weight for module in model.modules() if isinstance(module, nn.Embedding)]
    sparse = sparse_tables(model)
    sparse_ids = {id(weight) for weight in sparse}
    small_tables = [weight for weight in tables if id(weight) not in sparse_ids]
    table_ids = {id(weight) for weight in tables}
    # parameters are compared by id, because == of tensors is elementwise
    layers = [parameter for parameter in model.parameters() if id(parameter) not in table_ids]
    groups: list[dict[str, Any]] = [
        {"params": [p for p in layers if p.ndim > 1], "weight_decay": config.weight_decay},
        {"params": [p for p in layers if p.ndim <= 1]},  # norms and biases, which decay would pull to zero
        {"params": small_tables, "lr": config.embedding_learning_rate},
    ]
    # one kernel for many weights; not on the CPU, where it rounds otherwise than the plain implementation
    fused = device_of(model).type == "cuda"
    dense = torch.optim.AdamW(groups, lr=config.learning_rate, weight_decay=0.0, fused=fused)
    return [dense, torch.optim.SparseAdam(sparse, lr=config.embedding_learning_rate)] if sparse else [dense]


def dense_parameters(model: nn.Module) -> list[nn.Parameter]:
    """List the parameters with dense gradients: all except the tables with sparse gradients.

    Args:
        model: The model.

    Returns:
        The parameters.
    """
    sparse = {id(weight) for weight in sparse_tables(model)}
    return [parameter for parameter in model.parameters() if id(parameter) not in sparse]


def sparse_tables(model: nn.Module) -> list[nn.Parameter]:
    """List the embedding tables with sparse gradients, which contain only the rows that a batch read.

    Args:
        model: The model.

    Returns:
        The tables' weights.
    """
    tables = (module for module in model.modules() if isinstance(module, nn.Embedding) and module.sparse)
    return [parameter for table in tables for parameter in table.parameters()]
