"""Scoring targets with a model, and the metrics of the scores.

A batch is read once at the longest history length asked for and cut to each of the others.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from longbatch.loaders.batch import RequestBatch
from longbatch.trainer.models.request_model import RequestModel

from . import metrics

Metrics = dict[str, float | int | str]
HISTORY_EDGES = (0, 100, 500, 2_000, 5_000, 10_000)  # where buckets of history lengths begin


@dataclass(frozen=True)
class Progress:
    """Where a run stands. total_steps: 0 where unknown. loss: the mean since the last report.

    events: history events trained on.  waiting: the share of the time spent waiting for batches.
    """

    stage: str
    step: int
    total_steps: int
    seconds: float
    targets: int
    loss: float = float("nan")
    events: int = 0
    waiting: float = 0.0


ProgressCallback = Callable[[Progress], None]


@dataclass(frozen=True)
class Scores:
    """Predictions of G targets: logits by history length (G, labels), labels by name (G,), users (G,).

    requests: (G,), numbers that tell the requests apart, in the order in which they were scored.
    events: (G,), how many events the history of a target's request has, of the newest that were read.
    """

    logits: dict[int, NDArray[np.float32]]
    labels: dict[str, NDArray[np.float32]]
    users: NDArray[np.int64]
    requests: NDArray[np.int64]
    events: NDArray[np.int64]

    @property
    def num_targets(self) -> int:
        """G, the number of targets."""
        return len(self.users)

    def metrics(self, length: int, label: str) -> Metrics:
        """All metrics of one label at one history length."""
        return self._metrics(length, label, np.ones(self.num_targets, dtype=np.bool_))

    def by_history(self, length: int, label: str) -> list[Metrics]:
        """The same for the targets of each bucket of HISTORY_EDGES that has any; `events` says which, as "500-1999"."""
        bucket = np.searchsorted(HISTORY_EDGES, self.events, side="right") - 1
        ends = [f"-{end - 1}" for end in HISTORY_EDGES[1:]] + ["-"]
        return [
            {"events": f"{HISTORY_EDGES[place]}{ends[place]}", **self._metrics(length, label, bucket == place)}
            for place in np.unique(bucket).tolist()
        ]

    def _metrics(self, length: int, label: str, which: NDArray[np.bool_]) -> Metrics:
        logits = self.logits[length][which, list(self.labels).index(label)]
        truth = self.labels[label][which]
        return {
            "history_length": length,
            "label": label,
            "auc": metrics.auc(truth, logits),
            "log_loss": metrics.log_loss(truth, logits),
            "ne": metrics.normalized_entropy(truth, logits),
            "gauc": metrics.gauc(truth, logits, self.users[which]),
            "gauc_by_request": metrics.gauc(truth, logits, self.requests[which]),
            "targets": int(which.sum()),
        }


@torch.inference_mode()
def predict(
    model: RequestModel,
    batches: Iterable[RequestBatch],
    history_lengths: Sequence[int],
    *,
    total_steps: int = 0,
    progress: ProgressCallback | None = None,
) -> Scores:
    """Score all targets at each history length; each batch is read once and cut to each length."""
    model.eval()
    logits: dict[int, list[NDArray[np.float32]]] = {length: [] for length in history_lengths}
    labels: dict[str, list[NDArray[np.float32]]] = {name: [] for name in model.columns.labels}
    users: list[NDArray[np.int64]] = []
    counts: list[NDArray[np.int64]] = []
    events: list[NDArray[np.int64]] = []
    started, targets = time.perf_counter(), 0
    for step, batch in enumerate(batches, start=1):
        for name, parts in labels.items():
            parts.append(batch.labels[name].float().numpy().copy())  # else a view that keeps the batch
        count_R, (starts_R, ends_R) = batch.target_offsets.diff(), batch.spans
        counts.append(count_R.numpy())
        events.append((ends_R - starts_R).repeat_interleave(count_R).numpy())
        users.append(batch.user_id.repeat_interleave(count_R).numpy())
        on_device = batch.to(device_of(model), non_blocking=True)
        for length, parts in logits.items():
            parts.append(model(on_device.newest(length)).float().cpu().numpy())
        targets += batch.num_targets
        if progress:
            progress(Progress("evaluate", step, total_steps, time.perf_counter() - started, targets))
    empty = np.zeros((0, len(labels)), dtype=np.float32)
    count = np.concatenate([np.zeros(0, dtype=np.int64), *counts])
    return Scores(
        logits={length: np.concatenate([empty, *parts]) for length, parts in logits.items()},
        labels={name: np.concatenate([empty[:, 0], *parts]) for name, parts in labels.items()},
        users=np.concatenate([np.zeros(0, dtype=np.int64), *users]),
        requests=np.repeat(np.arange(len(count)), count),
        events=np.concatenate([np.zeros(0, dtype=np.int64), *events]),
    )


def device_of(model: nn.Module) -> torch.device:
    """The device that holds the model."""
    return next(model.parameters()).device


def best_device() -> torch.device:
    """The accelerator where there is one, else the CPU."""
    if not torch.cuda.is_available():
        return torch.device("cpu")
    return torch.device("cuda", int(os.environ.get("LOCAL_RANK", "0")))
