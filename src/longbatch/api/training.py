"""Training and evaluating the reference models."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import TYPE_CHECKING

from longbatch.schemas.storage.open_store import FileLocation, Location

from .arguments import read_time, read_train_config

if TYPE_CHECKING:
    from longbatch.trainer.config import TrainConfig
    from longbatch.trainer.fit import TrainReport
    from longbatch.trainer.models.request_model import RequestModel
    from longbatch.trainer.predictions import Metrics
    from longbatch.trainer.progress import TrainingProgressCallback


def train(
    dataset: Location,
    run: Location,
    *,
    config: FileLocation | TrainConfig | Mapping[str, object] | None = None,
    seconds: float | None = None,
    steps: int | None = None,
    history_length: int | None = None,
    resume: bool = False,
    progress: TrainingProgressCallback | None = None,
) -> TrainReport:
    """Train a reference model on the older requests of a dataset, and evaluate it on the newer ones.

    Under torchrun all ranks train one model; the first rank saves and evaluates it.

    Args:
        dataset: A dataset.
        run: Folder or URL for checkpoints and report.json.
        config: A `TrainConfig`, its keys as a mapping, or path or URL of a TOML file of them. Default: `TrainConfig()`.
        seconds: Stop training after this time. Overrides the config, as do the next two.
        steps: Stop training after this many steps.
        history_length: The newest events that the model sees.
        resume: Continue from the checkpoint in `run`.
        progress: Called with the progress of training and evaluation.

    Returns:
        Steps, targets, the loss over time, and the metrics of the evaluation.

    Raises:
        SpecError: The config is invalid or does not fit the dataset.
        DatasetError: No request is left to train or to evaluate on.
        MachineError: The disk is full, or a store cannot be reached or written.

    Example:
        >>> import longbatch as lb
        >>> report = lb.train("dataset", "run", steps=2, history_length=50)
        >>> report.steps
        2
    """
    from longbatch.trainer.train import train as run_training

    chosen = read_train_config(config, max_seconds=seconds, max_steps=steps, history_length=history_length)
    return run_training(dataset, run, chosen, resume=resume, progress=progress)


def evaluate(
    run: Location,
    dataset: Location,
    *,
    history_lengths: Sequence[int] | None = None,
    after: str | datetime | None = None,
    before: str | datetime | None = None,
    max_requests: int | None = None,
    by_history: bool = False,
    progress: TrainingProgressCallback | None = None,
) -> list[Metrics]:
    """Evaluate a trained model on later requests, at several history lengths.

    Args:
        run: Folder or URL written by `train`, or one of its checkpoint files.
        dataset: A dataset.
        history_lengths: The newest events that the model sees. Default: the longest history it was trained with.
        after: Evaluate requests from this time on. Default: the end of the training requests.
        before: Evaluate requests before this time.
        max_requests: Evaluate about this many requests, drawn at random. Default: all.
        by_history: Report metrics by the number of events in a request's history.
        progress: Called with the progress of the evaluation.

    Returns:
        One record per history length and label: AUC, GAUC, log loss, normalized entropy, targets.

    Raises:
        DatasetError: The time range has no targets.

    Example:
        >>> import longbatch as lb
        >>> metrics = lb.evaluate("run", "dataset", history_lengths=[10, 50], max_requests=64)
        >>> len(metrics)  # two history lengths, three labels
        6
    """
    from longbatch.trainer.evaluate import RequestSelection
    from longbatch.trainer.evaluate import evaluate as run_evaluation

    return run_evaluation(
        run,
        dataset,
        history_lengths=history_lengths,
        requests=RequestSelection(read_time(after), read_time(before), max_requests),
        by_history=by_history,
        progress=progress,
    )


def load_model(run: Location, *, device: str = "cpu") -> RequestModel:
    """Load the model of a training run, for `Scorer` or a program of your own.

    Args:
        run: Folder or URL written by `train`, for its newest checkpoint, or one of its checkpoint files.
        device: Where to put the model, such as "cuda".

    Returns:
        The model.

    Raises:
        DatasetError: There is no checkpoint, or it is damaged.

    Example:
        >>> import longbatch as lb
        >>> model = lb.load_model("run")
        >>> request = next(iter(lb.RequestDataset("dataset", batch_size=1, history_length=50)))
        >>> model(request).shape[0] == request.num_targets
        True
    """
    from longbatch.trainer.checkpoint import load

    return load(run, device).model
