"""`longbatch bench trainer`: requests compared with point-wise samples, cost by history length, and cached scoring.

Point-wise training has a copy of the history in every sample; see `RequestBatch.expand`.
"""

from __future__ import annotations

import math
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Literal

import torch

from longbatch.loaders import RequestBatch, RequestDataset
from longbatch.loaders.batch import Histories
from longbatch.schemas.types import ProgressCallback
from longbatch.trainer.config import ModelConfig, ModelName, TrainConfig
from longbatch.trainer.fit import train_step
from longbatch.trainer.models.flops import request_flops
from longbatch.trainer.models.request_model import loss_sum
from longbatch.trainer.optimizers import make_optimizers
from longbatch.trainer.serving import Scorer
from longbatch.trainer.train import new_model, train

from . import loader_data
from .checks import WORK_PREFIX, Check, Figure, Results, medians, run_parts
from .loader_data import Size

WIDTH, HEADS, LAYERS, REQUESTS, TARGETS = 32, 4, 2, 8, 8  # requests of each user, targets of each request
TRAINED = {"history_length": 10_000, "batch_size": 4, "num_workers": 2, "train_before": None, "epochs": 4}


def bench_trainer(*, quick: bool, repeats: int, progress: ProgressCallback) -> Results:
    """Measure training steps and scoring of models of width 32 on simulated histories of 10,000 events.

    Args:
        quick: Use shorter histories for most measurements.
        repeats: Timings of each step; medians are reported.
        progress: Called after each part.

    Returns:
        Ratios of throughput and memory as checks, absolute values as figures.
    """
    with tempfile.TemporaryDirectory(prefix=WORK_PREFIX) as folder:
        path = loader_data.write(Path(folder) / "d", Size(users=8, requests=REQUESTS, targets=TARGETS), "none")
        parts = (
            lambda: _against_samples(path, quick, repeats),
            lambda: _peaks(path, 2_000),
            *(() if quick else (lambda: _peaks(path, loader_data.LENGTH),)),
            lambda: _shared_timelines(path, 2_000 if quick else loader_data.LENGTH, repeats),
            lambda: _waiting(path),
            lambda: _cost_of_length(path, quick, repeats),
            lambda: _scorings(path, quick, repeats),
        )
        return run_parts("trainer", parts, progress)


def _config(
    name: ModelName = "stca", time_encoding: Literal["event_feature", "attention_bias"] = "event_feature"
) -> TrainConfig:
    return TrainConfig(
        model=ModelConfig(name=name, width=WIDTH, heads=HEADS, layers=LAYERS, time_encoding=time_encoding)
    )


def _batch(path: Path, length: int, requests: int, histories: Histories = "per_request") -> RequestBatch:
    return next(iter(RequestDataset(path, batch_size=requests, history_length=length, histories=histories)))


def _stepper(path: Path, config: TrainConfig, batches: list[RequestBatch]) -> Callable[[], object]:
    """Return a function that trains one step on each batch, after a step to warm up."""
    model = new_model(RequestDataset(path), config)
    optimizers = make_optimizers(model, config)

    def run() -> None:
        for batch in batches:
            train_step(model, optimizers, [batch], config)

    run()
    return run


def _against_samples(path: Path, quick: bool, repeats: int) -> Results:
    """The same targets as requests of 8, and as samples with a history each, with equally many events per batch."""
    checks, figures = [], []
    for length, limit in ((2_000, 4),) if quick else ((2_000, 4), (10_000, 5)):
        batch = _batch(path, length, 4)
        samples = batch.expand()
        size = batch.num_requests
        parts = [samples[first : first + size] for first in range(0, samples.num_requests, size)]
        requests, point_wise = medians([_stepper(path, _config(), [batch]), _stepper(path, _config(), parts)], repeats)
        figures += [
            Figure(f"L = {length:,}: targets/s, requests", batch.num_targets / requests, "targets/s"),
            Figure(f"L = {length:,}: targets/s, samples", batch.num_targets / point_wise, "targets/s"),
        ]
        checks.append(Check(f"L = {length:,}: targets/s over point-wise training", point_wise / requests, limit, ">="))
    return Results(checks, figures)


def _peaks(path: Path, length: int) -> Results:
    """Peak memory of one step, minus that of a step without histories, which has the same tables and optimizers."""
    command = [sys.executable, "-m", "longbatch.benchmarks.trainer_memory", str(path), str(length)]
    peaks = {
        rows: int(subprocess.run([*command, rows], check=True, capture_output=True, text=True).stdout)
        for rows in ("no history", "requests", "samples")
    }
    figures = [Figure(f"L = {length:,}: peak memory, {rows}", peak / 1e6, "MB") for rows, peak in peaks.items()]
    requests, samples = (peaks[rows] - peaks["no history"] for rows in ("requests", "samples"))
    of_processes = Figure(
        f"L = {length:,}: peak memory of requests over samples, of the processes",
        peaks["requests"] / peaks["samples"],
        "",
    )
    check = Check(f"L = {length:,}: peak memory of histories, requests over samples", requests / samples, 1 / 3)
    return Results([check], [*figures, of_processes])


def _shared_timelines(path: Path, length: int, repeats: int) -> Results:
    """The same requests, 8 of each user, with per-request histories and with shared timelines."""
    config = _config(time_encoding="attention_bias")
    histories: tuple[Histories, ...] = ("per_request", "shared")
    batches = [_batch(path, length, 2 * REQUESTS, each) for each in histories]
    losses = [_loss(path, config, batch) for batch in batches]
    seconds = medians([_stepper(path, config, [batch]) for batch in batches], repeats)
    figures = [
        Figure(f"L = {length:,}, 8 requests a user: histories {each}", batch.num_requests / duration, "requests/s")
        for each, batch, duration in zip(histories, batches, seconds, strict=True)
    ]
    return Results(
        [
            Check("shared timelines: requests/s over per-request histories", seconds[0] / seconds[1], 2, ">="),
            Check("shared timelines: relative difference of the loss", abs(losses[1] / losses[0] - 1), 1e-5),
        ],
        figures,
    )


@torch.inference_mode()
def _loss(path: Path, config: TrainConfig, batch: RequestBatch) -> float:
    model = new_model(RequestDataset(path), config)
    return float(loss_sum(model(batch), batch, model.columns.labels))


def _waiting(path: Path) -> Results:
    """The share of the time that training waits for batches that two workers prepare."""
    config = TrainConfig(**{**_config().model_dump(), **TRAINED})
    with tempfile.TemporaryDirectory(prefix=WORK_PREFIX) as run:
        report = train(path, run, config)
    share = report.waiting_seconds / report.seconds
    return Results(
        [Check("2 workers: share of the time waiting for batches", share, 0.05)],
        [Figure("2 workers: training", report.targets_per_second, "targets/s")],
    )


def _cost_of_length(path: Path, quick: bool, repeats: int) -> Results:
    """Exponent of a step's time in the history length: the slope of a line through the logarithms."""
    lengths = (1_000, 2_000, 4_000) if quick else (1_000, 2_000, 4_000, 10_000)
    names: tuple[ModelName, ...] = ("stca", "longer", "transformer")
    figures, slopes = [], {}
    for name in names:
        seconds = medians([_stepper(path, _config(name), [_batch(path, length, 2)]) for length in lengths], repeats)
        logs = [[math.log(value) for value in values] for values in (lengths, seconds)]
        slopes[name] = statistics.linear_regression(*logs).slope
        figures += [
            Figure(f"{name}, L = {length:,}: a step of 2 requests", s, "s")
            for length, s in zip(lengths, seconds, strict=True)
        ]
        figures.append(Figure(f"{name}: exponent of a step's time in the length", slopes[name], ""))
    return Results([Check("stca: exponent of a step's time in the length", slopes["stca"], 1.1)], figures)


def _scorings(path: Path, quick: bool, repeats: int) -> Results:
    """Candidates scored per second, with the history encoded for each call, or once before all calls."""
    names: tuple[ModelName, ...] = ("stca", "longer")
    length = 2_000 if quick else loader_data.LENGTH
    request, figures = _batch(path, length, 1), []
    for name in names:
        scorer = Scorer(new_model(RequestDataset(path), _config(name)))
        cache = scorer.encode_history(request)
        for count in (10, 100, 500):
            picks = torch.arange(count) % request.num_targets
            candidates = {column: values[picks] for column, values in request.targets.items()}
            both = [
                partial(_encode_and_score, scorer, request, candidates),
                partial(scorer.score_targets, cache, candidates),
            ]
            uncached, cached = medians(both, repeats)
            cost = request_flops(scorer.model.config, length, count)
            figures += [
                Figure(f"{name}, {count} candidates: encoded for each call", count / uncached, "scorings/s"),
                Figure(f"{name}, {count} candidates: encoded before", count / cached, "scorings/s"),
                Figure(f"{name}, {count} candidates: operations that encoding once saves", cost.shared_share, "of all"),
            ]
    return Results([], figures)


def _encode_and_score(scorer: Scorer, request: RequestBatch, candidates: dict[str, torch.Tensor]) -> torch.Tensor:
    return scorer.score_targets(scorer.encode_history(request), candidates)
