"""What every model of the trainer is: tokens, a history side, a target side, a head.

Shapes: R requests, G targets, T events, D width, B labels.

A model says what of a history can be computed without knowing the targets (`history_side`), and how targets
read it (`target_side`). Training runs one after the other. Serving keeps the first and repeats the second
(`scorer.py`), so it scores with the very code that was trained. No model lets a history see its targets;
hence a batch of requests means what its expansion to one target per request means.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from longbatch.loaders.batch import RequestBatch
from longbatch.trainer.config import ModelColumns, ModelConfig

from .embedding import Tokens
from .head import make_head
from .spans import Spans

Kept = tuple[Tensor, ...]


@dataclass(frozen=True)
class Encoded:
    """All that R requests are to a model but for their targets.

    history_offsets: (R + 1,), of timelines where those are shared.  spans: where the histories lie among the events.
    user_RD, request_RD: their tokens.  kept: what the model's history side returned; its shapes are the model's own.
    """

    history_offsets: Tensor
    spans: Spans
    user_RD: Tensor
    request_RD: Tensor
    kept: Kept


class RequestModel(nn.Module, ABC):
    """A RequestBatch to one logit per target and label."""

    def __init__(self, config: ModelConfig, columns: ModelColumns) -> None:
        super().__init__()
        self.config, self.columns = config, columns
        self.tokens = Tokens(config, columns)
        self.head = make_head(config, len(columns.labels))

    @abstractmethod
    def history_side(self, history_TD: Tensor, offsets: Tensor, user_RD: Tensor, targets_per_event: float) -> Kept:
        """What targets will read of the histories; targets_per_event (m) may decide in which form."""

    @abstractmethod
    def target_side(self, encoded: Encoded, target_GD: Tensor, target_offsets: Tensor) -> Tensor:
        """z (G, D): each target in the light of its request's history."""

    def row_modules(self) -> Iterator[nn.Module]:
        """Modules that map rows (N, inputs) one by one, whatever N is: what can be compiled for ragged batches."""
        yield self.head

    def encode(self, batch: RequestBatch, target_offsets: Tensor | None = None) -> Encoded:
        """The requests without their targets, in the form that these targets want, or many.

        A batch of shared timelines is turned into windows where the model's events depend on the request.
        """
        batch = batch if self.config.shares_timelines else batch.to_per_request()
        times = (batch.request_time, batch.history["event_time"]) if self.config.shares_timelines else (None, None)
        spans, user_RD = Spans(*batch.spans, batch.num_events, *times), self.tokens.users(batch)
        targets_per_event = math.inf if target_offsets is None else spans.targets_per_event(target_offsets)
        kept = self.history_side(self.tokens.history(batch), batch.history_offsets, user_RD, targets_per_event)
        return Encoded(batch.history_offsets, spans, user_RD, self.tokens.requests(batch), kept)

    def score(self, encoded: Encoded, targets: Mapping[str, Tensor], target_offsets: Tensor) -> Tensor:
        """Logits (G, B) of targets, given as columns (G,) with offsets (R + 1,) into them."""
        target_GD = self.tokens.targets(targets)
        owner_G = owners(target_offsets)
        z_GD = self.target_side(encoded, target_GD, target_offsets)
        user_GD, request_GD = (token.index_select(0, owner_G) for token in (encoded.user_RD, encoded.request_RD))
        logits_GB: Tensor = self.head(z_GD, target_GD, user_GD, request_GD)
        return logits_GB

    def forward(self, batch: RequestBatch) -> Tensor:
        """Logits (G, B), labels in the order of `columns.labels`."""
        return self.score(self.encode(batch, batch.target_offsets), batch.targets, batch.target_offsets)


def owners(offsets: Tensor) -> Tensor:
    """The row (N,) that each of N ragged values belongs to, from offsets (R + 1,)."""
    rows = torch.arange(offsets.shape[0] - 1, device=offsets.device)
    return torch.repeat_interleave(rows, offsets.diff())


def loss_sum(logits_GB: Tensor, batch: RequestBatch, labels: tuple[str, ...]) -> Tensor:
    """Binary cross entropy summed over targets and averaged over labels.

    Divided by the number of targets (of all ranks) it is the loss of point-wise training, whatever the
    number of targets per request; per-request means would not be.
    """
    labels_GB = torch.stack([batch.labels[name] for name in labels], dim=1).to(logits_GB.dtype)
    total = nn.functional.binary_cross_entropy_with_logits(logits_GB, labels_GB, reduction="sum")
    return total / len(labels)


def parameter_count(model: nn.Module) -> tuple[int, int]:
    """Numbers of (dense, embedding) parameters."""
    tables = {id(table.weight) for table in model.modules() if isinstance(table, nn.Embedding)}
    sizes = [(parameter.numel(), id(parameter) in tables) for parameter in model.parameters()]
    return sum(n for n, is_table in sizes if not is_table), sum(n for n, is_table in sizes if is_table)
