"""Throughput of training on a device, and request-level training compared with samples on it."""

from __future__ import annotations

import time
import warnings
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Literal

import torch
from torch import Tensor
from torch.profiler import ProfilerActivity, profile

from longbatch.loaders import RequestBatch, RequestDataset, make_dataloader
from longbatch.trainer.compile import compile_rowwise_modules
from longbatch.trainer.config import ModelConfig, TrainConfig
from longbatch.trainer.devices import best_device
from longbatch.trainer.fit import TrainingState, TrainReport, fit, train_step
from longbatch.trainer.models.flops import request_flops
from longbatch.trainer.models.request_model import loss_sum
from longbatch.trainer.train import new_model

from .checks import Check, Figure, Results, combined, medians, timed
from .gpu_attention import Attention, relative_error

Precision = Literal["fp32", "tf32", "bf16"]

PEAK_TFLOPS = {"fp32": 67.0, "tf32": 495.0, "bf16": 989.0}  # dense, from the data sheet of the H100 SXM and the H200
SHUFFLE_RUN = 8  # neighboring requests of one user, where they share a timeline
WARMUP_STEPS = 3  # in which kernels are compiled and the allocator reserves memory
SLOWEST_KERNELS = 5


@dataclass(frozen=True)
class Amount:
    """How much is measured.

    Attributes:
        length: Events of each history.
        steps: Steps that are timed.
        workers: Processes that load batches.
    """

    length: int
    steps: int
    workers: int


@dataclass(frozen=True)
class TrainingCase:
    """A model and how it is trained.

    Attributes:
        width: Width D.
        heads: Number of heads.
        layers: Number of layers.
        requests: Requests of a batch.
        attention: As in `ModelConfig`.
        precision: Of matrix products: "tf32" is float32 with PyTorch's matmul precision "high".
        time_encoding: As in `ModelConfig`; with "attention_bias" requests share timelines.
        compile: As in `TrainConfig`.
    """

    width: int
    heads: int
    layers: int
    requests: int
    attention: Attention = "tiled"
    precision: Precision = "fp32"
    time_encoding: Literal["event_feature", "attention_bias"] = "event_feature"
    compile: bool = False

    @property
    def title(self) -> str:
        """The model and how it is trained, in words."""
        options = ", shared timelines" if self.time_encoding == "attention_bias" else ""
        options += ", compiled" if self.compile else ""
        size = f"width {self.width}, {self.layers} layers, {self.requests} requests"
        return f"train: {size}, {self.attention}, {self.precision}{options}"

    def config(self, length: int) -> TrainConfig:
        """Make the config.

        Args:
            length: Events of each history.

        Returns:
            The config.
        """
        model = ModelConfig(
            width=self.width,
            heads=self.heads,
            layers=self.layers,
            attention=self.attention,
            time_encoding=self.time_encoding,
        )
        return TrainConfig(
            model=model,
            history_length=length,
            batch_size=self.requests,
            bf16=self.precision == "bf16",
            compile=self.compile,
            learning_rate=1e-4,
            embedding_learning_rate=1e-4,
        )


def training(path: Path, case: TrainingCase, amount: Amount) -> Results:
    """Measure training from a loader with worker processes, then a single step in detail.

    Args:
        path: The dataset.
        case: The model and how it is trained.
        amount: How much is measured.

    Returns:
        The share of waiting and the number of host synchronizations as checks, everything else as figures.
    """
    config = case.config(amount.length)
    shared = config.model.shares_timelines
    dataset = RequestDataset(
        path,
        batch_size=config.batch_size,
        history_length=amount.length,
        shuffle=True,
        histories="shared" if shared else "per_request",
        shuffle_run=SHUFFLE_RUN if shared else 1,
    )
    state = _new_state(dataset, config)
    # closed here: a loader that the garbage collector closes after an error waits seconds for each worker
    with _matmul_precision(case.precision), closing(_batches(dataset, amount.workers)) as batches:
        batch = next(batches)
        warmup = timed(lambda: _fit(state, config, islice(batches, WARMUP_STEPS)))
        throughput = _throughput(case, amount, state, islice(batches, amount.steps))
        one_step = partial(train_step, state.model, state.optimizers, [batch], config)
        parts = [throughput, _synchronizations(case, one_step), _kernels(case, one_step)]
    return combined([*parts, Results([], [Figure(f"{case.title}: first {WARMUP_STEPS} steps", warmup, "s")])])


def requests_against_samples(title: str, path: Path, attention: Attention, amount: Amount) -> Results:
    """Train the same targets as requests, and as samples with a history each, in batches of as many events.

    Args:
        title: Start of the names of the results.
        path: The dataset.
        attention: As in `ModelConfig`.
        amount: How much is measured; of histories at most 2,000 events.

    Returns:
        The difference of loss and gradients as a check, times and their ratio as figures.
    """
    case = TrainingCase(width=32, heads=4, layers=2, requests=16, attention=attention)
    config = case.config(min(amount.length, 2_000))
    dataset = RequestDataset(path, batch_size=case.requests, history_length=config.max_history_length, shuffle=True)
    requests = next(iter(dataset)).to(best_device())
    samples = requests.expand()
    parts = [samples[first : first + case.requests] for first in range(0, samples.num_requests, case.requests)]
    error = relative_error(*(_loss_and_gradients(dataset, config, batch) for batch in (samples, requests)))
    state = _new_state(dataset, config)

    def run(batches: Sequence[RequestBatch]) -> None:
        for batch in batches:
            train_step(state.model, state.optimizers, [batch], config)
        _synchronize()

    for batches in ([requests], parts):
        run(batches)  # the first time, kernels are compiled
    seconds = medians([partial(run, [requests]), partial(run, parts)], amount.steps)
    targets = requests.num_targets
    return Results(
        [Check(f"{title}: relative difference of loss and gradients", error, 1e-4)],
        [
            Figure(f"{title}: requests", targets / seconds[0], "targets/s"),
            Figure(f"{title}: samples", targets / seconds[1], "targets/s"),
            Figure(f"{title}: targets/s of requests over samples", seconds[1] / seconds[0], ""),
        ],
    )


def _new_state(dataset: RequestDataset, config: TrainConfig) -> TrainingState:
    model = new_model(dataset, config).to(best_device())
    if config.compile:
        compile_rowwise_modules(model)
    return TrainingState.initial(model, config)


def _batches(dataset: RequestDataset, workers: int) -> Generator[RequestBatch, None, None]:
    yield from make_dataloader(dataset, num_workers=workers)


def _fit(state: TrainingState, config: TrainConfig, batches: Iterable[RequestBatch]) -> TrainReport:
    report = fit(state, batches, config)
    _synchronize()
    return report


def _throughput(case: TrainingCase, amount: Amount, state: TrainingState, batches: Iterable[RequestBatch]) -> Results:
    """Training from the loader, as `longbatch train` does it."""
    if torch.cuda.is_available():
        torch.cuda.reset_peak_memory_stats()
    operations: list[int] = []
    started = time.perf_counter()
    report = _fit(state, case.config(amount.length), _counting(case, state, batches, operations))
    seconds, title = time.perf_counter() - started, case.title
    tflops = sum(operations) / seconds / 1e12
    figures = [
        Figure(f"{title}: a step", 1e3 * seconds / report.steps, "ms"),
        Figure(f"{title}: stored events", report.events / seconds, "events/s"),
        Figure(f"{title}: targets", report.targets / seconds, "targets/s"),
        Figure(f"{title}: counted operations", tflops, "TFLOP/s"),
        Figure(f"{title}: loss after {WARMUP_STEPS + report.steps} steps", report.losses[-1][1], "nats"),
    ]
    if torch.cuda.is_available():
        share = tflops / PEAK_TFLOPS[case.precision]
        figures.append(Figure(f"{title}: counted operations over the peak of an H100 or H200 (MFU)", share, ""))
        figures.append(Figure(f"{title}: peak memory", torch.cuda.max_memory_allocated() / 1e9, "GB"))
    waiting = report.waiting_seconds / seconds
    return Results([Check(f"{title}: share of the time waiting for batches", waiting, 0.05)], figures)


def _counting(
    case: TrainingCase, state: TrainingState, batches: Iterable[RequestBatch], operations: list[int]
) -> Iterator[RequestBatch]:
    """The batches, adding the operations of a step on each to a list: three times those of the forward pass."""
    labels = len(state.model.columns.labels)
    for batch in batches:
        starts, ends = batch.spans
        sizes = zip((ends - starts).tolist(), batch.target_offsets.diff().tolist(), strict=True)
        costs = (request_flops(state.model.config, length, targets, labels) for length, targets in sizes)
        operations.append(3 * sum(cost.request for cost in costs))
        yield batch


def _synchronizations(case: TrainingCase, step: Callable[[], object]) -> Results:
    """How often the host waits for the device in a step, as far as PyTorch reports it."""
    if not torch.cuda.is_available():
        return Results([], [])
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        torch.cuda.set_sync_debug_mode("warn")
        try:
            step()
        finally:
            torch.cuda.set_sync_debug_mode("default")
    count = sum("synchroniz" in str(warning.message) for warning in caught)
    return Results([Check(f"{case.title}: host synchronizations of a step", count, 3)], [])


def _kernels(case: TrainingCase, step: Callable[[], object]) -> Results:
    """The time in which the device computes, the number of kernels, and the slowest; on a CPU, of operators."""
    on_gpu = torch.cuda.is_available()

    def synchronized_step() -> None:
        step()
        _synchronize()

    _synchronize()
    seconds = timed(synchronized_step)
    with profile(activities=[ProfilerActivity.CUDA if on_gpu else ProfilerActivity.CPU]) as profiled:
        synchronized_step()
    rows = [
        (float(row.self_device_time_total if on_gpu else row.self_cpu_time_total) / 1e3, row.count, row.key)
        for row in profiled.key_averages()
    ]
    busy, title = sum(row[0] for row in rows), case.title
    return Results(
        [],
        [
            Figure(f"{title}: share of a step in which the device computes", busy / 1e3 / seconds, ""),
            Figure(f"{title}: kernels of a step", sum(row[1] for row in rows), ""),
            *(
                Figure(f"{title}: kernel {name[:80]}", milliseconds, f"ms, {count} times")
                for milliseconds, count, name in sorted(rows, reverse=True)[:SLOWEST_KERNELS]
            ),
        ],
    )


def _loss_and_gradients(dataset: RequestDataset, config: TrainConfig, batch: RequestBatch) -> list[Tensor]:
    model = new_model(dataset, config).to(best_device())
    loss = loss_sum(model(batch), batch, model.columns.labels)
    torch.autograd.backward(loss)
    return [loss, *(weight.grad.to_dense() for weight in model.parameters() if weight.grad is not None)]


@contextmanager
def _matmul_precision(precision: Precision) -> Iterator[None]:
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("high" if precision == "tf32" else "highest")
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(before)


def _synchronize() -> None:
    if torch.cuda.is_available():
        torch.cuda.synchronize()
