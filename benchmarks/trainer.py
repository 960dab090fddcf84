"""`longbatch bench trainer`: requests against point-wise samples, cost against length, and scoring with what was encoded before."""

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
from longbatch.trainer.models.flops import request_flops
from longbatch.trainer.models.request_model import loss_sum
from longbatch.trainer.optimizers import make_optimizers
from longbatch.trainer.serving import Scorer
from longbatch.trainer.train import new_model, train, train_step

from . import loader_data
from .checks import Check, Figure, all_of, medians
from .loader_data import Size

WIDTH, HEADS, LAYERS, REQUESTS, TARGETS = 32, 4, 2, 8, 8  # requests of each user, targets of each request
TRAINED = {"history_length": 10_000, "batch_size": 4, "num_workers": 2, "train_before": None, "epochs": 4}


def bench_trainer(*, quick: bool, repeats: int, progress: ProgressCallback) -> tuple[list[Check], list[Figure]]:
    """Measure training steps and scorings of models of width 32 on simulated histories of 10,000 events."""
    with tempfile.TemporaryDirectory(prefix="longbatch-") as folder:
        path = loader_data.write(Path(folder) / "d", Size(users=8, requests=REQUESTS, targets=TARGETS), "none")
        steps = (
            lambda: _against_points(path, quick, repeats),
            lambda: _peaks(path, 2_000),
            *(() if quick else (lambda: _peaks(path, loader_data.LENGTH),)),
            lambda: _shared(path, 2_000 if quick else loader_data.LENGTH, repeats),
            lambda: _waiting(path),
            lambda: _cost_of_length(path, quick, repeats),
            lambda: _scorings(path, quick, repeats),
        )
        return all_of("trainer", steps, progress)


def _config(name: ModelName = "stca", elapsed: Literal["event", "attention"] = "event") -> TrainConfig:
    return TrainConfig(model=ModelConfig(name=name, width=WIDTH, heads=HEADS, layers=LAYERS, elapsed=elapsed))


def _batch(path: Path, length: int, requests: int, histories: Histories = "per_request") -> RequestBatch:
    return next(iter(RequestDataset(path, batch_size=requests, history_length=length, histories=histories)))


def _stepper(path: Path, config: TrainConfig, parts: list[RequestBatch]) -> Callable[[], object]:
    """One call trains on each of the batches."""
    model = new_model(RequestDataset(path), config)
    optimizers = make_optimizers(model, config)

    def run() -> None:
        for part in parts:
            train_step(model, optimizers, [part], config)

    run()
    return run


def _against_points(path: Path, quick: bool, repeats: int) -> tuple[list[Check], list[Figure]]:
    """The same targets as requests of 8, and as samples with a history each, at equal events in memory at once."""
    checks, figures = [], []
    for length, limit in ((2_000, 4),) if quick else ((2_000, 4), (10_000, 5)):
        batch = _batch(path, length, 4)
        samples = batch.expand()
        size = batch.num_requests
        parts = [samples[first : first + size] for first in range(0, samples.num_requests, size)]
        ours, theirs = medians([_stepper(path, _config(), [batch]), _stepper(path, _config(), parts)], repeats)
        figures += [
            Figure(f"L = {length:,}: targets/s, requests", batch.num_targets / ours, "targets/s"),
            Figure(f"L = {length:,}: targets/s, samples", batch.num_targets / theirs, "targets/s"),
        ]
        checks.append(Check(f"L = {length:,}: targets/s over point-wise training", theirs / ours, limit, ">="))
    return checks, figures


def _peaks(path: Path, length: int) -> tuple[list[Check], list[Figure]]:
    """Peak memory of a step's process over that of one whose targets have no histories: tables and optimizers are in all."""
    command = [sys.executable, "-m", "longbatch.benchmarks.trainer_memory", str(path), str(length)]
    peaks = {
        form: int(subprocess.run([*command, form], check=True, capture_output=True, text=True).stdout)
        for form in ("no history", "requests", "samples")
    }
    figures = [Figure(f"L = {length:,}: peak memory, {form}", peak / 1e6, "MB") for form, peak in peaks.items()]
    ours, theirs = (peaks[form] - peaks["no history"] for form in ("requests", "samples"))
    whole = Figure(
        f"L = {length:,}: peak memory of requests over samples, whole processes",
        peaks["requests"] / peaks["samples"],
        "",
    )
    return [Check(f"L = {length:,}: peak memory of histories, requests over samples", ours / theirs, 1 / 3)], [
        *figures,
        whole,
    ]


def _shared(path: Path, length: int, repeats: int) -> tuple[list[Check], list[Figure]]:
    """The same requests, 8 of each user, with a history each and with each timeline once."""
    config = _config(elapsed="attention")
    forms: tuple[Histories, ...] = ("per_request", "shared")
    batches = [_batch(path, length, 2 * REQUESTS, form) for form in forms]
    losses = [_loss(path, config, batch) for batch in batches]
    seconds = medians([_stepper(path, config, [batch]) for batch in batches], repeats)
    figures = [
        Figure(f"L = {length:,}, 8 requests a user: {form} form", batch.num_requests / taken, "requests/s")
        for form, batch, taken in zip(forms, batches, seconds, strict=True)
    ]
    return [
        Check("shared form: requests/s over the windows form", seconds[0] / seconds[1], 2, ">="),
        Check("shared form: relative difference of the loss", abs(losses[1] / losses[0] - 1), 1e-5),
    ], figures


@torch.inference_mode()
def _loss(path: Path, config: TrainConfig, batch: RequestBatch) -> float:
    model = new_model(RequestDataset(path), config)
    return float(loss_sum(model(batch), batch, model.columns.labels))


def _waiting(path: Path) -> tuple[list[Check], list[Figure]]:
    """The share of the time that training waits for batches, two workers preparing them."""
    config = TrainConfig(**{**_config().model_dump(), **TRAINED})
    with tempfile.TemporaryDirectory(prefix="longbatch-") as run:
        report = train(path, run, config)
    share = report.waiting_seconds / report.seconds
    return [Check("2 workers: share of the time waiting for batches", share, 0.05)], [
        Figure("2 workers: training", report.targets_per_second, "targets/s")
    ]


def _cost_of_length(path: Path, quick: bool, repeats: int) -> tuple[list[Check], list[Figure]]:
    """Seconds of a step against the history's length: the slope of the line through their logarithms."""
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
    return [Check("stca: exponent of a step's time in the length", slopes["stca"], 1.1)], figures


def _scorings(path: Path, quick: bool, repeats: int) -> tuple[list[Check], list[Figure]]:
    """Candidates scored per second at the full length, the history encoded anew for each call or once before."""
    names: tuple[ModelName, ...] = ("stca", "longer")
    length = 2_000 if quick else loader_data.LENGTH
    request, figures = _batch(path, length, 1), []
    for name in names:
        scorer = Scorer(new_model(RequestDataset(path), _config(name)))
        kept = scorer.encode(request)
        for count in (10, 100, 500):
            picks = torch.arange(count) % request.num_targets
            candidates = {column: values[picks] for column, values in request.targets.items()}
            both = [partial(_encode_and_score, scorer, request, candidates), partial(scorer.score, kept, candidates)]
            anew, cached = medians(both, repeats)
            cost = request_flops(scorer.model.config, length, count)
            figures += [
                Figure(f"{name}, {count} candidates: encoded for each call", count / anew, "scorings/s"),
                Figure(f"{name}, {count} candidates: encoded before", count / cached, "scorings/s"),
                Figure(f"{name}, {count} candidates: operations that are saved", cost.shared_share, "of all"),
            ]
    return [], figures


def _encode_and_score(scorer: Scorer, request: RequestBatch, candidates: dict[str, torch.Tensor]) -> torch.Tensor:
    return scorer.score(scorer.encode(request), candidates)
