"""Training and evaluation: a dataset in, a checkpoint and a report out.

Dense weights learn by AdamW, large embedding tables by SparseAdam, which touches only the rows a batch
read. The loss is a sum over targets divided by their number, so requests with many targets weigh as in
point-wise training. Requests are split by time: what trains is older than all that evaluates.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime, timedelta
from itertools import islice
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from longbatch.loaders.batch import RequestBatch
from longbatch.loaders.dataset import RequestDataset
from longbatch.loaders.history_length import StochasticLength
from longbatch.loaders.loader import make_dataloader
from longbatch.schemas.errors import DataError, DatasetError, SpecError
from longbatch.schemas.json_text import as_json
from longbatch.schemas.time import to_microseconds
from longbatch.trainer.models.registry import make_model
from longbatch.trainer.models.request_model import RequestModel, loss_sum

from . import checkpoint
from . import distributed as ranks
from . import lr_schedule as schedule
from . import resume as resuming
from .compile import compile_rows
from .config import Length, TrainConfig, model_columns
from .optimizers import dense_parameters, make_optimizers, sparse_tables
from .predictions import Metrics, Progress, ProgressCallback, best_device, device_of, predict
from .tensorboard import Board

REPORT_STEPS = 10  # losses are read from the device, and progress told, this often
EVENTS_PER_EVALUATED_BATCH = 131_072


@dataclass(frozen=True)
class TrainReport:
    """What a run did. losses: (step, mean loss per target since the last entry).

    first_step: the steps that the run had before; what follows is of those since.  targets, events: of all ranks, trained on.  waiting_seconds: of `seconds`, spent waiting for batches.
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
        """Targets trained on per second of training, evaluation not counted."""
        return self.targets / self.seconds if self.seconds else 0.0


def train(
    dataset_path: Path | str,
    run_dir: Path | str,
    config: TrainConfig | None = None,
    *,
    resume: bool = False,
    progress: ProgressCallback | None = None,
) -> TrainReport:
    """Train on the older requests, save `RUN/checkpoint.pt`, evaluate on the newer ones.

    Writes `RUN/report.json` too. Under torchrun all ranks train as one, and the first of them saves and evaluates. `resume` goes on from the run's checkpoint as if it had never stopped. Ctrl-C ends
    training after the step at hand, saves and does not evaluate. Raises SpecError for a config that the dataset or
    the run to resume cannot meet and DatasetError where no request is left to train or evaluate on.
    """
    with ranks.joined() as rank:
        return _train(
            dataset_path, Path(run_dir), config or TrainConfig(), resume, progress if rank == 0 else None, rank
        )


def _train(
    dataset_path: Path | str,
    run_dir: Path,
    config: TrainConfig,
    resume: bool,
    progress: ProgressCallback | None,
    rank: int,
) -> TrainReport:
    split_us = _split_us(dataset_path, config)
    dataset = _training_data(dataset_path, config, split_us)
    fresh, world_size = new_model(dataset, config), ranks.world_size()
    start = resuming.start(run_dir, fresh, config, dataset.fingerprint, split_us, resume, rank, world_size)
    board = Board(run_dir, progress) if config.tensorboard and rank == 0 else None
    if config.compile:
        compile_rows(start.model)

    def save(step: int) -> None:
        random = tuple(ranks.gathered(torch.get_rng_state()))
        if rank == 0:
            states = tuple(optimizer.state_dict() for optimizer in start.optimizers)
            run = checkpoint.Run(start.model, config, split_us, dataset.fingerprint, step, states, random)
            checkpoint.save(run, run_dir)

    report = fit(
        start.model,
        _epochs(dataset, config, start.step),
        config,
        total_steps=_total_steps(dataset, config),
        progress=board or progress,
        optimizers=start.optimizers,
        first_step=start.step,
        save=save,
    )
    if not report.steps:
        raise DatasetError(f"{dataset_path} has no requests before {_text(split_us)}; move train_before")
    save(report.steps)
    if rank:
        return report
    results: list[Metrics] = []
    if split_us is not None and report.stopped_by != "interrupt":
        results = evaluate(
            run_dir,
            dataset_path,
            before=config.evaluate_before,
            max_requests=config.evaluate_requests,
            progress=progress,
        )
    if board:
        board.close(results, report.steps)
    report = TrainReport(**{**vars(report), "metrics": results, "train_before": _text(split_us)})
    summary = {**asdict(report), "targets_per_second": report.targets_per_second}
    (run_dir / "report.json").write_text(as_json(summary) + "\n")
    return report


def evaluate(
    run_dir: Path | str,
    dataset_path: Path | str,
    *,
    history_lengths: Sequence[int] | None = None,
    after: datetime | None = None,
    before: datetime | None = None,
    max_requests: int | None = None,
    by_history: bool = False,
    progress: ProgressCallback | None = None,
) -> list[Metrics]:
    """Metrics of a run by history length and label, on the requests with after <= request_time < before.

    by_history: instead, for each bucket of requests by how many events their history has, see `Scores.by_history`.

    `max_requests` evaluates on about so many of them, drawn at random.  history_lengths defaults to the longest one trained with; `after` to where its training ended (a run
    trained on all requests is evaluated on what it has seen, unless told otherwise). Each
    result has history_length, label, auc, log_loss, ne, gauc (by user), gauc_by_request and targets.
    """
    run = checkpoint.load(run_dir, best_device())
    lengths = sorted(set(history_lengths or [run.config.longest]))
    if after is None and run.evaluate_from_us is not None:
        after = _time(run.evaluate_from_us)
    batch_size = max(1, min(64, EVENTS_PER_EVALUATED_BATCH // max(1, lengths[-1])))
    dataset = RequestDataset(
        dataset_path,
        batch_size=batch_size,
        history_length=lengths[-1],
        after=after,
        before=before,
        shuffle=max_requests is not None,
        rank=0,
        world_size=1,
    )
    steps = len(dataset) if max_requests is None else min(len(dataset), -(-max_requests // batch_size))
    batches = islice(make_dataloader(dataset, num_workers=run.config.num_workers), steps)
    scores = predict(run.model, batches, lengths, total_steps=steps, progress=progress)
    if not scores.num_targets:
        raise DatasetError(f"{dataset_path} has no targets from {after} to {before}; choose another time range")
    labels = run.model.columns.labels
    if by_history:
        return [row for length in lengths for label in labels for row in scores.by_history(length, label)]
    return [scores.metrics(length, label) for length in lengths for label in labels]


def fit(
    model: RequestModel,
    batches: Iterable[RequestBatch],
    config: TrainConfig,
    *,
    total_steps: int = 0,
    progress: ProgressCallback | None = None,
    optimizers: Sequence[torch.optim.Optimizer] | None = None,
    first_step: int = 0,
    save: Callable[[int], None] | None = None,
) -> TrainReport:
    """Train a model on batches until they, `max_steps` or `max_seconds` end, or Ctrl-C does.

    first_step: the steps done before, which `max_steps` counts too.  save: called with the steps done, every
    `checkpoint_steps`.  Raises SpecError for labels other than 0 and 1 and DataError when the loss is not finite.
    """
    model.train()
    optimizers = make_optimizers(model, config) if optimizers is None else optimizers
    curve, started, step = _LossCurve(), time.perf_counter(), first_step
    stopped_by = _stop(step, 0.0, config) or "epochs"
    groups = _Groups(batches, config.accumulate)
    with resuming.interrupts() as interrupted:
        for group in groups if stopped_by == "epochs" else ():
            schedule.set_rates(optimizers, schedule.factor(step, total_steps, config))
            curve.add(train_step(model, optimizers, group, config))
            step += 1
            seconds = time.perf_counter() - started
            stopped_by = _agreed("interrupt" if interrupted() else _stop(step, seconds, config), model) or stopped_by
            if stopped_by != "epochs" or step % REPORT_STEPS == 0:
                curve.report(step, total_steps, seconds, groups.waited, progress)
            if stopped_by != "epochs":
                break
            if save and config.checkpoint_steps and step % config.checkpoint_steps == 0:
                curve.report(step, total_steps, seconds, groups.waited, progress)  # which looks at the loss before
                save(step)
    seconds = time.perf_counter() - started
    curve.report(step, total_steps, seconds, groups.waited, progress)
    return TrainReport(step, curve.targets, seconds, stopped_by, first_step, curve.events, groups.waited, curve.losses)


def train_step(
    model: RequestModel,
    optimizers: Sequence[torch.optim.Optimizer],
    batches: Sequence[RequestBatch],
    config: TrainConfig,
) -> Tensor:
    """One update from the batches of all ranks; returns their summed loss, targets and events, (3,) float64, on the device."""
    device = device_of(model)
    for optimizer in optimizers:
        optimizer.zero_grad()
    done = torch.zeros(3, dtype=torch.float64, device=device)
    for batch in batches:
        if batch.num_targets:
            done += _backward(model, batch.to(device, non_blocking=True), config)
    dense, sparse = dense_parameters(model), sparse_tables(model)
    ranks.sum_gradients(dense, sparse)
    ranks.summed(done)
    for parameter in (*dense, *sparse):
        if parameter.grad is not None:
            parameter.grad /= done[1].clamp(min=1).to(parameter.dtype)
    if config.clip_norm is not None:
        torch.nn.utils.clip_grad_norm_(dense, config.clip_norm)
    for optimizer in optimizers:
        optimizer.step()
    return done


def _backward(model: RequestModel, batch: RequestBatch, config: TrainConfig) -> Tensor:
    """Add a batch's gradients, of the loss summed over targets."""
    _check_labels(batch, model.columns.labels)
    with torch.autocast(batch.request_id.device.type, torch.bfloat16, enabled=config.bf16):
        logits_GB = model(batch)
    total = loss_sum(logits_GB.float() if config.bf16 else logits_GB, batch, model.columns.labels)
    total.backward()  # type: ignore[no-untyped-call]
    return torch.stack([total.detach().double(), *total.new_tensor([batch.num_targets, batch.num_events]).double()])


class _Groups:
    """Batches in groups of so many, the last may be shorter. waited: seconds spent waiting for them."""

    def __init__(self, batches: Iterable[RequestBatch], size: int) -> None:
        self._batches, self._size, self.waited = iter(batches), size, 0.0

    def __iter__(self) -> Iterator[list[RequestBatch]]:
        while True:
            started = time.perf_counter()
            group = list(islice(self._batches, self._size))
            self.waited += time.perf_counter() - started
            if not group:
                return
            yield group


def _agreed(stop: str | None, model: RequestModel) -> str | None:
    """Why this rank stops; "another rank" where one does and this would not."""
    return stop or "another rank" if ranks.any_of(stop is not None, device_of(model)) else None


def new_model(dataset: RequestDataset, config: TrainConfig) -> RequestModel:
    """A model for the dataset's columns, its initial weights a function of the config's seed alone."""
    columns = model_columns(dataset.column_types(), config.labels, config.model)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(config.seed)
        return make_model(config.model, columns)


class _LossCurve:
    """What steps did, summed on the device, read every REPORT_STEPS steps."""

    def __init__(self) -> None:
        self.losses: list[tuple[int, float]] = []
        self.targets = self.events = 0
        self._pending: list[Tensor] = []

    def add(self, done: Tensor) -> None:
        self._pending.append(done)

    def report(
        self, step: int, total_steps: int, seconds: float, waited: float, progress: ProgressCallback | None
    ) -> None:
        if not self._pending:
            return
        total, targets, events = torch.stack(self._pending).sum(0).tolist()
        self._pending = []
        self.targets, self.events = self.targets + int(targets), self.events + int(events)
        loss = total / max(1, targets)
        if not np.isfinite(loss):
            raise DataError(f"the loss is {loss} at step {step}; lower the learning rates or check the data")
        self.losses.append((step, loss))
        if progress:
            progress(Progress("train", step, total_steps, seconds, self.targets, loss, self.events, waited / seconds))


def _stop(step: int, seconds: float, config: TrainConfig) -> str | None:
    if config.max_steps is not None and step >= config.max_steps:
        return "max_steps"
    if config.max_seconds is not None and seconds >= config.max_seconds:
        return "max_seconds"
    return None


def _check_labels(batch: RequestBatch, labels: tuple[str, ...]) -> None:
    for name in labels:
        values = batch.labels[name]
        if not bool(((values == 0) | (values == 1)).all()):
            raise SpecError(
                f"label {name!r} has values other than 0 and 1, from {values.min()} to {values.max()}; leave it out"
            )


def _split_us(path: Path | str, config: TrainConfig) -> int | None:
    """Where training ends and evaluation starts, in microseconds; None to train on everything."""
    if config.train_before is None or isinstance(config.train_before, datetime):
        return to_microseconds(config.train_before) if config.train_before else None
    return RequestDataset(path, before=config.evaluate_before).split_time_us(config.train_before)


def _training_data(path: Path | str, config: TrainConfig, split_us: int | None) -> RequestDataset:
    length = config.history_length
    return RequestDataset(
        path,
        batch_size=config.batch_size,
        history_length=StochasticLength(**length.model_dump()) if isinstance(length, Length) else length,
        shuffle=True,
        shuffle_run=config.shuffle_run,
        histories="shared" if config.model.shares_timelines else "per_request",
        seed=config.seed,
        before=None if split_us is None else _time(split_us),
    )


def _epochs(dataset: RequestDataset, config: TrainConfig, first_step: int) -> Iterator[RequestBatch]:
    """All batches from a step on; none before it is read."""
    loader, before = make_dataloader(dataset, num_workers=config.num_workers), first_step * config.accumulate
    for epoch in range(config.epochs):
        dataset.set_epoch(epoch)
        batches = len(dataset)
        if before < batches:
            dataset.resume(dataset.state_after(before))
            yield from loader
        before = max(0, before - batches)


def _total_steps(dataset: RequestDataset, config: TrainConfig) -> int:
    steps = -(-len(dataset) * config.epochs // config.accumulate)
    return steps if config.max_steps is None else min(steps, config.max_steps)


def _time(time_us: int) -> datetime:
    return datetime(1970, 1, 1, tzinfo=UTC) + timedelta(microseconds=time_us)


def _text(time_us: int | None) -> str | None:
    return None if time_us is None else _time(time_us).isoformat()
