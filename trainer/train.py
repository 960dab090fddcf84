"""A training run: a dataset in, a checkpoint and a report out.

Requests are split by time: those that are trained on are older than all that are evaluated.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import nullcontext
from dataclasses import asdict, replace
from datetime import datetime

import torch

from longbatch.loaders.batch import RequestBatch
from longbatch.loaders.dataset import RequestDataset
from longbatch.loaders.history_length import StochasticLength
from longbatch.loaders.loader import make_dataloader
from longbatch.schemas.errors import DatasetError
from longbatch.schemas.json_text import as_json
from longbatch.schemas.stage_log import logged_stage
from longbatch.schemas.storage.open_store import Location, open_store
from longbatch.schemas.time import from_microseconds, to_microseconds
from longbatch.trainer.models.registry import make_model
from longbatch.trainer.models.request_model import RequestModel

from . import checkpoint
from .checkpoint import Checkpoint
from .compile import compile_rowwise_modules
from .config import SampledLength, TrainConfig, model_columns
from .distributed import all_gather, process_group, world_size
from .evaluate import RequestSelection, evaluate
from .fit import TrainingState, TrainReport, fit
from .predictions import Metrics
from .progress import TrainingProgressCallback
from .resume import RunContext, resume_run, start_run
from .tensorboard import TensorBoardLog

logger = logging.getLogger(__name__)


def train(
    dataset_path: Location,
    run: Location,
    config: TrainConfig | None = None,
    *,
    resume: bool = False,
    progress: TrainingProgressCallback | None = None,
) -> TrainReport:
    """Train a model on the older requests of a dataset and evaluate it on the newer ones.

    Writes `RUN/checkpoint.pt` and `RUN/report.json`. Under torchrun all ranks train one model, and rank 0 saves and
    evaluates. Ctrl-C ends training after the current step, saves, and does not evaluate.

    Args:
        dataset_path: The dataset.
        run: Folder or URL to write.
        config: The model and the training config; by default STCA with the default sizes.
        resume: Continue from the run's checkpoint, exactly as if it had not stopped.
        progress: Called at each report of training and after each batch of evaluation, on rank 0.

    Returns:
        The report; its metrics are empty on other ranks, and if nothing was evaluated.

    Raises:
        SpecError: The config does not fit the dataset or the run to resume, or the folder already contains a run.
        DatasetError: There are no requests to train on or to evaluate.
        DataError: The loss is not finite.
        MachineError: The disk is full, or the store of the run cannot be reached or written.

    Example:
        >>> report = train("dataset", "short_run", TrainConfig(history_length=10, max_steps=2))
        >>> report.steps, [row["label"] for row in report.metrics]
        (2, ['click', 'like'])
    """
    config = config or TrainConfig()
    with process_group() as rank:
        evaluate_from_us = _split_time_us(dataset_path, config)
        dataset = _training_dataset(dataset_path, config, evaluate_from_us)
        context = RunContext(open_store(run), config, dataset.fingerprint, evaluate_from_us, rank, world_size())
        model = new_model(dataset, config)
        state = resume_run(context) if resume else start_run(context, model)
        if rank:
            return _fit_and_save(context, state, dataset, None)
        with TensorBoardLog(context.store, progress) if config.tensorboard else nullcontext() as tensorboard:
            report = _fit_and_save(context, state, dataset, tensorboard or progress)
            report = _evaluate(context, report, dataset_path, progress)
            if tensorboard:
                tensorboard.write_metrics(report.metrics, report.steps)
        document = {**asdict(report), "targets_per_second": report.targets_per_second}
        context.store.replace("report.json", as_json(document).encode() + b"\n")
        return report


def new_model(dataset: RequestDataset, config: TrainConfig) -> RequestModel:
    """Make a model for a dataset's columns. Its initial weights depend on the config's seed alone.

    Args:
        dataset: The dataset.
        config: The model and the seed.

    Returns:
        The model on the CPU.

    Raises:
        SpecError: The dataset does not have the labels or columns that the config names.
    """
    columns = model_columns(dataset.column_types(), config.labels, config.model)
    # forked, so that the caller's random numbers do not depend on whether a model was made
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(config.seed)
        return make_model(config.model, columns)


def _fit_and_save(
    context: RunContext, state: TrainingState, dataset: RequestDataset, progress: TrainingProgressCallback | None
) -> TrainReport:
    """Train, saving every `checkpoint_steps` and at the end."""
    config = context.config
    if config.compile:
        compile_rowwise_modules(state.model)

    def save(step: int) -> None:
        rng_states = tuple(all_gather(torch.get_rng_state()))  # every rank takes part in the exchange
        if context.rank == 0:
            optimizer_states = tuple(optimizer.state_dict() for optimizer in state.optimizers)
            split_us, fingerprint = context.evaluate_from_us, context.fingerprint
            content = Checkpoint(state.model, config, split_us, fingerprint, step, optimizer_states, rng_states)
            checkpoint.save(content, context.store)

    batches = _batches(dataset, config, state.step)
    total_steps = _total_steps(dataset, config)
    with logged_stage(logger, "train") as stage:
        report = fit(state, batches, config, total_steps=total_steps, progress=progress, save=save)
        stage.rows = report.targets
    if not report.steps:
        raise DatasetError(
            f"the dataset has no requests before {_isoformat(context.evaluate_from_us)}; change train_before"
        )
    save(report.steps)
    return report


def _evaluate(
    context: RunContext, report: TrainReport, dataset_path: Location, progress: TrainingProgressCallback | None
) -> TrainReport:
    """The report with the metrics of the newer requests, unless there are none or training was interrupted."""
    metrics: list[Metrics] = []
    if context.evaluate_from_us is not None and report.stopped_by != "interrupt":
        config = context.config
        requests = RequestSelection(before=config.evaluate_before, max_requests=config.evaluate_requests)
        metrics = evaluate(context.store, dataset_path, requests=requests, progress=progress)
    return replace(report, metrics=metrics, train_before=_isoformat(context.evaluate_from_us))


def _split_time_us(dataset_path: Location, config: TrainConfig) -> int | None:
    """Where training ends and evaluation starts, in microseconds; None to train on everything."""
    if config.train_before is None or isinstance(config.train_before, datetime):
        return to_microseconds(config.train_before) if config.train_before else None
    return RequestDataset(dataset_path, before=config.evaluate_before).split_time_us(config.train_before)


def _training_dataset(dataset_path: Location, config: TrainConfig, split_us: int | None) -> RequestDataset:
    length = config.history_length
    return RequestDataset(
        dataset_path,
        batch_size=config.batch_size,
        history_length=StochasticLength(**length.model_dump()) if isinstance(length, SampledLength) else length,
        shuffle=True,
        shuffle_run=config.shuffle_run,
        histories="shared" if config.model.shares_timelines else "per_request",
        seed=config.seed,
        before=None if split_us is None else from_microseconds(split_us),
    )


def _batches(dataset: RequestDataset, config: TrainConfig, first_step: int) -> Iterator[RequestBatch]:
    """The batches of all epochs from a step on, without reading those before it."""
    loader = make_dataloader(dataset, num_workers=config.num_workers)
    batches_done = first_step * config.gradient_accumulation_steps
    for epoch in range(config.epochs):
        dataset.set_epoch(epoch)
        batches_in_epoch = len(dataset)
        # finished epochs are skipped by their length; the plan of an epoch needs only the seed and its number
        if batches_done < batches_in_epoch:
            logger.info("train: epoch %d of %d, %d batches", epoch + 1, config.epochs, batches_in_epoch - batches_done)
            dataset.resume(dataset.state_after(batches_done))
            yield from loader
        batches_done = max(0, batches_done - batches_in_epoch)


def _total_steps(dataset: RequestDataset, config: TrainConfig) -> int:
    steps = -(-len(dataset) * config.epochs // config.gradient_accumulation_steps)
    return steps if config.max_steps is None else min(steps, config.max_steps)


def _isoformat(time_us: int | None) -> str | None:
    return None if time_us is None else from_microseconds(time_us).isoformat()
