"""Predictions of a model over many batches, and the metrics of the predictions.

Each batch is read once, at the longest history length, and truncated to each of the others.

Shapes: G targets, R requests of a batch, B labels.
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import NotRequired, TypedDict

import numpy as np
import torch
from numpy.typing import NDArray

from longbatch.loaders.batch import RequestBatch
from longbatch.schemas.types import BoolArray, Int64Array
from longbatch.trainer.models.request_model import RequestModel

from . import metrics
from .devices import device_of
from .progress import TrainingProgress, TrainingProgressCallback

Float32Array = NDArray[np.float32]
HISTORY_EDGES = (0, 100, 500, 2_000, 5_000, 10_000)  # events at which the bins of history lengths begin


class Metrics(TypedDict):
    """The metrics of one label at one history length; see `metrics` for their definitions.

    Attributes:
        history_length: Newest events that the model saw of each history.
        label: The label's name.
        auc: Area under the ROC curve.
        log_loss: Mean binary cross entropy, in nats.
        ne: Normalized entropy.
        gauc: Mean AUC of users, weighted by their targets.
        gauc_by_request: Mean AUC of requests, weighted by their targets.
        targets: Number of targets.
        events: The bin of history lengths, such as "500-1999"; only in `Scores.metrics_by_history`.
    """

    history_length: int
    label: str
    auc: float
    log_loss: float
    ne: float
    gauc: float
    gauc_by_request: float
    targets: int
    events: NotRequired[str]


@dataclass(frozen=True)
class Scores:
    """The predictions of G targets.

    Attributes:
        logits: By history length, (G, B).
        labels: By label name, (G,).
        users: The user of each target (G,).
        requests: The request of each target (G,), numbered from 0 in the order of scoring.
        events: Number of events of each target's history (G,), as far as it was read.
    """

    logits: dict[int, Float32Array]
    labels: dict[str, Float32Array]
    users: Int64Array
    requests: Int64Array
    events: Int64Array

    @property
    def num_targets(self) -> int:
        """G, the number of targets."""
        return len(self.users)

    def metrics(self, length: int, label: str) -> Metrics:
        """Compute the metrics of all targets.

        Args:
            length: A history length that was scored.
            label: A label's name.

        Returns:
            The metrics.
        """
        return self._metrics(length, label, np.ones(self.num_targets, dtype=np.bool_))

    def metrics_by_history(self, length: int, label: str) -> list[Metrics]:
        """Compute the metrics of each bin of history lengths (HISTORY_EDGES) that has targets.

        Args:
            length: A history length that was scored.
            label: A label's name.

        Returns:
            The metrics by bin, from short to long; `events` names the bin.
        """
        bin_G = np.searchsorted(HISTORY_EDGES, self.events, side="right") - 1
        ends = [f"-{end - 1}" for end in HISTORY_EDGES[1:]] + ["-"]
        rows = []
        for length_bin in np.unique(bin_G).tolist():
            row = self._metrics(length, label, bin_G == length_bin)
            row["events"] = f"{HISTORY_EDGES[length_bin]}{ends[length_bin]}"
            rows.append(row)
        return rows

    def _metrics(self, length: int, label: str, mask: BoolArray) -> Metrics:
        logits = self.logits[length][mask, list(self.labels).index(label)]
        labels = self.labels[label][mask]
        return {
            "history_length": length,
            "label": label,
            "auc": metrics.auc(labels, logits),
            "log_loss": metrics.log_loss(labels, logits),
            "ne": metrics.normalized_entropy(labels, logits),
            "gauc": metrics.gauc(labels, logits, self.users[mask]),
            "gauc_by_request": metrics.gauc(labels, logits, self.requests[mask]),
            "targets": int(mask.sum()),
        }


@torch.inference_mode()
def predict(
    model: RequestModel,
    batches: Iterable[RequestBatch],
    history_lengths: Sequence[int],
    *,
    total_steps: int = 0,
    progress: TrainingProgressCallback | None = None,
) -> Scores:
    """Score all targets at each history length.

    Args:
        model: The model; set to evaluation mode.
        batches: Batches on the CPU, read at the longest of the lengths.
        history_lengths: Newest events of each history to score with.
        total_steps: Number of batches, for the progress; 0 where unknown.
        progress: Called after each batch.

    Returns:
        The predictions, in the order of the batches.
    """
    model.eval()
    logits: dict[int, list[Float32Array]] = {length: [] for length in history_lengths}
    labels: dict[str, list[Float32Array]] = {name: [] for name in model.columns.labels}
    users: list[Int64Array] = []
    target_counts: list[Int64Array] = []
    events: list[Int64Array] = []
    started, targets = time.perf_counter(), 0
    for step, batch in enumerate(batches, start=1):
        for name, label_parts in labels.items():
            label_parts.append(batch.labels[name].float().numpy().copy())  # a view would keep the whole batch in memory
        count_R, (starts_R, ends_R) = batch.target_offsets.diff(), batch.spans
        target_counts.append(count_R.numpy())
        events.append((ends_R - starts_R).repeat_interleave(count_R).numpy())
        users.append(batch.user_id.repeat_interleave(count_R).numpy())
        on_device = batch.to(device_of(model), non_blocking=True)
        for length, logit_parts in logits.items():
            logit_parts.append(model(on_device.newest(length)).float().cpu().numpy())
        targets += batch.num_targets
        if progress:
            progress(TrainingProgress("evaluate", step, total_steps, time.perf_counter() - started, targets))
    empty = np.zeros((0, len(labels)), dtype=np.float32)
    targets_by_request = _concatenate(target_counts)
    return Scores(
        logits={length: np.concatenate([empty, *parts]) for length, parts in logits.items()},
        labels={name: np.concatenate([empty[:, 0], *parts]) for name, parts in labels.items()},
        users=_concatenate(users),
        requests=np.repeat(np.arange(len(targets_by_request)), targets_by_request),
        events=_concatenate(events),
    )


def _concatenate(parts: Sequence[Int64Array]) -> Int64Array:
    return np.concatenate([np.zeros(0, dtype=np.int64), *parts])
