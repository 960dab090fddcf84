"""The training loop: batches in, updated weights out.

Dense weights are trained by AdamW, large embedding tables by SparseAdam, which updates only the rows that a batch
read. The loss is the sum over targets divided by their number, so requests with many targets weigh the same as in
point-wise training.
"""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import islice

import torch
from torch import Tensor

from longbatch.loaders.batch import RequestBatch
from longbatch.schemas.errors import DataError, SpecError
from longbatch.trainer.models.request_model import RequestModel, loss_sum

from .config import TrainConfig
from .devices import device_of
from .distributed import all_reduce_gradients, all_reduce_sum, any_rank
from .interrupts import deferred_interrupt
from .lr_schedule import lr_factor, set_learning_rates
from .optimizers import dense_parameters, make_optimizers, sparse_tables
from .predictions import Metrics
from .progress import TrainingProgress, TrainingProgressCallback

logger = logging.getLogger(__name__)

REPORT_STEPS = 10  # reading the loss waits for the device, so it is read, and progress reported, only this often


@dataclass(frozen=True)
class TrainReport:
    """The result of a run.

    Attributes:
        steps: Steps done since the start of the run.
        targets: Targets trained on, of all ranks, since `first_step`.
        seconds: Duration of training, without evaluation.
        stopped_by: "epochs", "max_steps", "max_seconds", "interrupt" or "another rank".
        first_step: Steps that the run had done before it was resumed.
        events: History events trained on, of all ranks, since `first_step`.
        waiting_seconds: Part of `seconds` spent waiting for batches.
        losses: Pairs of a step and the mean loss per target since the previous pair, in nats.
        metrics: Metrics on the evaluated requests.
        train_before: The request time before which requests were trained on, in ISO format; None for all.
    """

    steps: int
    targets: int
    seconds: float
    stopped_by: str
    first_step: int = 0
    events: int = 0
    waiting_seconds: float = 0.0
    losses: list[tuple[int, float]] = field(default_factory=list)
    metrics: list[Metrics] = field(default_factory=list)
    train_before: str | None = None

    @property
    def targets_per_second(self) -> float:
        """Targets trained on per second of training, without evaluation."""
        return self.targets / self.seconds if self.seconds else 0.0


@dataclass(frozen=True)
class TrainingState:
    """A model in training.

    Attributes:
        model: The model on its device.
        optimizers: Its optimizers, in the order of `make_optimizers`.
        step: Steps done.
    """

    model: RequestModel
    optimizers: Sequence[torch.optim.Optimizer]
    step: int = 0

    @classmethod
    def initial(cls, model: RequestModel, config: TrainConfig) -> TrainingState:
        """Make the state of a model at step 0.

        Args:
            model: The model on its device.
            config: The learning rates.

        Returns:
            The state, with new optimizers.
        """
        return cls(model, make_optimizers(model, config))


def fit(
    state: TrainingState,
    batches: Iterable[RequestBatch],
    config: TrainConfig,
    *,
    total_steps: int = 0,
    progress: TrainingProgressCallback | None = None,
    save: Callable[[int], None] | None = None,
) -> TrainReport:
    """Train a model until the batches, `max_steps` or `max_seconds` are exhausted, or Ctrl-C is pressed.

    Args:
        state: The model, its optimizers and the steps done, which `max_steps` counts too.
        batches: Batches of this rank.
        config: The limits, learning rates and precision.
        total_steps: Steps of the whole run, for the learning rates and the progress; 0 where unknown.
        progress: Called at each report.
        save: Called with the number of steps done, every `checkpoint_steps`.

    Returns:
        The report.

    Raises:
        SpecError: A label has values other than 0 and 1.
        DataError: The loss is not finite.

    Example:
        >>> from longbatch.loaders import RequestDataset
        >>> from longbatch.trainer.train import new_model
        >>> dataset, config = RequestDataset("dataset", batch_size=8), TrainConfig(max_steps=2)
        >>> state = TrainingState.initial(new_model(dataset, config), config)
        >>> fit(state, dataset, config).steps
        2
    """
    model = state.model
    model.train()
    reporter, step = _Reporter(total_steps, progress), state.step
    stopped_by = _exhausted_limit(step, 0.0, config) or "epochs"
    groups = _BatchGroups(batches, config.gradient_accumulation_steps)
    with deferred_interrupt() as interrupted:
        for group in groups if stopped_by == "epochs" else ():
            set_learning_rates(state.optimizers, lr_factor(step, total_steps, config))
            reporter.add(train_step(model, state.optimizers, group, config))
            step += 1
            # every rank decides at the same step: a rank that left alone would leave the others waiting for it
            stop = "interrupt" if interrupted() else _exhausted_limit(step, reporter.seconds, config)
            stopped_by = _agree_to_stop(stop, model) or stopped_by
            if stopped_by != "epochs" or step % REPORT_STEPS == 0:
                reporter.report(step, groups.waiting_seconds)
            if stopped_by != "epochs":
                break
            if save and config.checkpoint_steps and step % config.checkpoint_steps == 0:
                reporter.report(step, groups.waiting_seconds)  # raises if the loss is not finite: do not save that
                save(step)
    seconds = reporter.seconds
    reporter.report(step, groups.waiting_seconds)
    return TrainReport(
        steps=step,
        targets=reporter.targets,
        seconds=seconds,
        stopped_by=stopped_by,
        first_step=state.step,
        events=reporter.events,
        waiting_seconds=groups.waiting_seconds,
        losses=reporter.losses,
    )


def train_step(
    model: RequestModel,
    optimizers: Sequence[torch.optim.Optimizer],
    batches: Sequence[RequestBatch],
    config: TrainConfig,
) -> Tensor:
    """Update the weights once, from the batches of all ranks.

    Args:
        model: The model, changed in place.
        optimizers: Its optimizers.
        batches: This rank's batches; their gradients are summed.
        config: Precision and the maximum norm of gradients.

    Returns:
        (3,) float64 on the model's device: the summed loss, the targets and the events of all ranks.

    Raises:
        SpecError: A label has values other than 0 and 1.
    """
    device = device_of(model)
    for optimizer in optimizers:
        optimizer.zero_grad()
    totals = torch.zeros(3, dtype=torch.float64, device=device)
    for batch in batches:
        # a rank without targets still takes part in the sums below, with zeros
        if batch.num_targets:
            # before the copy to the device, so that a GPU need not finish the step before for the answer
            _check_labels(batch, model.columns.labels)
            totals += _backward(model, batch.to(device, non_blocking=True), config)
    dense, sparse = dense_parameters(model), sparse_tables(model)
    all_reduce_gradients(dense, sparse)
    all_reduce_sum(totals)
    # gradients were of the sum over targets; the number of targets of all ranks is known only now
    targets = totals[1].clamp(min=1).to(dense[0].dtype)
    for parameter in (*dense, *sparse):
        if parameter.grad is not None:
            parameter.grad /= targets
    if config.max_grad_norm is not None:
        torch.nn.utils.clip_grad_norm_(dense, config.max_grad_norm)
    for optimizer in optimizers:
        optimizer.step()
    return totals


def _backward(model: RequestModel, batch: RequestBatch, config: TrainConfig) -> Tensor:
    """Add a batch's gradients of the loss summed over targets; returns loss, targets and events (3,)."""
    with torch.autocast(batch.request_id.device.type, torch.bfloat16, enabled=config.bf16):
        logits_GB = model(batch)
    # bfloat16 logits would round the loss and its gradient to three digits
    loss = loss_sum(logits_GB.float() if config.bf16 else logits_GB, batch, model.columns.labels)
    torch.autograd.backward(loss)
    counts = (torch.full_like(loss, count, dtype=torch.float64) for count in (batch.num_targets, batch.num_events))
    return torch.stack([loss.detach().double(), *counts])


def _check_labels(batch: RequestBatch, labels: tuple[str, ...]) -> None:
    for name in labels:
        values = batch.labels[name]
        if not bool(((values == 0) | (values == 1)).all()):
            raise SpecError(
                f"label {name!r} must be 0 or 1, found values from {values.min()} to {values.max()}; "
                "remove it from `labels`, or make it binary in the build spec"
            )


class _BatchGroups:
    """Groups of `size` batches, the last one possibly smaller, with the seconds spent waiting for them."""

    def __init__(self, batches: Iterable[RequestBatch], size: int) -> None:
        self._batches, self._size, self.waiting_seconds = iter(batches), size, 0.0

    def __iter__(self) -> Iterator[list[RequestBatch]]:
        while True:
            started = time.perf_counter()
            group = list(islice(self._batches, self._size))
            self.waiting_seconds += time.perf_counter() - started
            if not group:
                return
            yield group


class _Reporter:
    """Sums the losses of steps on the device, and reads and reports them every REPORT_STEPS steps."""

    def __init__(self, total_steps: int, progress: TrainingProgressCallback | None) -> None:
        self.losses: list[tuple[int, float]] = []
        self.targets = self.events = 0
        self._pending: list[Tensor] = []
        self._total_steps, self._progress, self._started = total_steps, progress, time.perf_counter()

    @property
    def seconds(self) -> float:
        """Seconds since training started."""
        return time.perf_counter() - self._started

    def add(self, totals: Tensor) -> None:
        """Add what `train_step` returned."""
        self._pending.append(totals)

    def report(self, step: int, waiting_seconds: float) -> None:
        """Report the steps since the last report, if there were any; DataError if their loss is not finite."""
        if not self._pending:
            return
        # one read from the device for many steps: each read waits until the device has finished
        loss_total, targets, events = torch.stack(self._pending).sum(0).tolist()
        self._pending = []
        self.targets, self.events = self.targets + int(targets), self.events + int(events)
        loss, seconds = loss_total / max(1, targets), self.seconds
        if not math.isfinite(loss):
            raise DataError(f"the loss is {loss} at step {step}; lower the learning rates or check the data")
        self.losses.append((step, loss))
        logger.debug(  # every second or so on small models, so not INFO: the progress shows the same
            "train: step %d of %d, loss %.4f, %d targets, %.1f s", step, self._total_steps, loss, self.targets, seconds
        )
        if self._progress:
            waiting = waiting_seconds / seconds
            total_steps, targets_done, events_done = self._total_steps, self.targets, self.events
            self._progress(
                TrainingProgress("train", step, total_steps, seconds, targets_done, loss, events_done, waiting)
            )


def _agree_to_stop(stop: str | None, model: RequestModel) -> str | None:
    """Why training stops on all ranks: this rank's reason, "another rank", or None to continue."""
    return stop or "another rank" if any_rank(stop is not None, device_of(model)) else None


def _exhausted_limit(step: int, seconds: float, config: TrainConfig) -> str | None:
    if config.max_steps is not None and step >= config.max_steps:
        return "max_steps"
    if config.max_seconds is not None and seconds >= config.max_seconds:
        return "max_seconds"
    return None
