"""Evaluation of a trained model on the requests after its training."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from itertools import islice

from longbatch.loaders.dataset import RequestDataset
from longbatch.loaders.loader import make_dataloader
from longbatch.schemas.errors import DatasetError
from longbatch.schemas.stage_log import logged_stage
from longbatch.schemas.storage.open_store import Location
from longbatch.schemas.time import from_microseconds

from . import checkpoint
from .devices import best_device
from .predictions import Metrics, predict
from .progress import TrainingProgressCallback

logger = logging.getLogger(__name__)

EVENTS_PER_BATCH = 131_072  # bounds the memory of a batch, whatever the history length
MAX_BATCH_SIZE = 64


@dataclass(frozen=True)
class RequestSelection:
    """Which requests of a dataset to evaluate.

    Attributes:
        after: Requests from this time on; None for where the run's training ended.
        before: Requests before this time; None for all.
        max_requests: About this many of them, drawn at random; None for all.
    """

    after: datetime | None = None
    before: datetime | None = None
    max_requests: int | None = None


def evaluate(
    run: Location,
    dataset_path: Location,
    *,
    history_lengths: Sequence[int] | None = None,
    requests: RequestSelection | None = None,
    by_history: bool = False,
    progress: TrainingProgressCallback | None = None,
) -> list[Metrics]:
    """Compute the metrics of a run by history length and label.

    Args:
        run: Folder or URL of the run, or of one of its checkpoint files.
        dataset_path: The dataset.
        history_lengths: Newest events of each history that the model sees; by default the longest of training.
        requests: The requests to evaluate; by default all after the run's training. A run that was trained on all
            requests is evaluated on the same requests.
        by_history: Split the metrics by how many events the history of a request has.
        progress: Called after each batch.

    Returns:
        The metrics for each length, from short to long, and label; with `by_history` also for each bin of history
        lengths.

    Raises:
        DatasetError: There are no targets to evaluate, or no readable checkpoint.

    Example:
        >>> metrics = evaluate("run", "dataset", history_lengths=[4, 16])
        >>> [row["history_length"] for row in metrics if row["label"] == "click"]
        [4, 16]
    """
    trained = checkpoint.load(run, best_device())
    lengths = sorted(set(history_lengths or [trained.config.max_history_length]))
    requests = requests or RequestSelection()
    after = requests.after
    if after is None and trained.evaluate_from_us is not None:
        after = from_microseconds(trained.evaluate_from_us)
    batch_size = max(1, min(MAX_BATCH_SIZE, EVENTS_PER_BATCH // max(1, lengths[-1])))
    dataset = RequestDataset(
        dataset_path,
        batch_size=batch_size,
        history_length=lengths[-1],
        after=after,
        before=requests.before,
        shuffle=requests.max_requests is not None,
        rank=0,
        world_size=1,
    )
    steps = len(dataset)
    if requests.max_requests is not None:
        steps = min(steps, -(-requests.max_requests // batch_size))
    batches = islice(make_dataloader(dataset, num_workers=trained.config.num_workers), steps)
    with logged_stage(logger, "evaluate") as stage:
        scores = predict(trained.model, batches, lengths, total_steps=steps, progress=progress)
        stage.rows = scores.num_targets
    if not scores.num_targets:
        raise DatasetError(
            f"{dataset_path} has no targets from {after} to {requests.before}; choose another time range"
        )
    labels = trained.model.columns.labels
    if by_history:
        return [row for length in lengths for label in labels for row in scores.metrics_by_history(length, label)]
    return [scores.metrics(length, label) for length in lengths for label in labels]
