"""`longbatch bench studies`: the effect of history length, training length, model and size, on simulated users.

Every run uses the trainer's own loop. It trains on older requests and evaluates on later ones, on one core, and as many
runs are active at a time as there are cores. Results are saved one by one (`OUT/runs/*.json`), so an interrupted study
can be continued. `OUT` also contains the plots.
"""

from __future__ import annotations

import json
import math
import multiprocessing
import os
import shutil
from collections.abc import Iterable
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from itertools import pairwise
from pathlib import Path

import torch

from longbatch.jobs.build import build
from longbatch.jobs.simulation.simulate import Simulation, simulate
from longbatch.loaders import RequestDataset
from longbatch.schemas.json_text import as_json
from longbatch.schemas.spec.build_spec import load_spec
from longbatch.schemas.types import ProgressCallback
from longbatch.trainer.evaluate import RequestSelection, evaluate
from longbatch.trainer.train import train

from .checks import Check, Figure, Results
from .studies_data import (
    COMPARED,
    EQUAL_COMPUTE_MOST,
    FULL,
    LABEL,
    LENGTHS,
    PAR,
    SHORT,
    Arm,
    StudyRun,
    arms,
    least_lead,
    least_rise,
    summary,
    training_flops,
)
from .studies_plots import draw


@dataclass(frozen=True)
class Size:
    """Amount of data and training.

    Attributes:
        users: Simulated users.
        events: Simulated events.
        steps: Training steps of a run.
        seeds: Runs of each arm.
    """

    users: int = 800
    events: int = 12_000_000
    steps: int = 200
    seeds: int = 3


TRAINED_SHARE = 0.8  # of the requests, in order of time: the default of TrainConfig
QUICK = Size(users=60, events=900_000, steps=4, seeds=1)


def bench_studies(*, quick: bool, out: Path, progress: ProgressCallback) -> Results:
    """Run what is not in `out` yet, draw the plots, and check the results.

    Args:
        quick: Use few users, steps and seeds.
        out: Folder for data, runs and plots.
        progress: Called after each run.

    Returns:
        Comparisons of arms as checks, AUC and compute of each arm as figures.
    """
    size = QUICK if quick else Size()
    out = out / "quick" if quick else out
    attainable = _data(out, size)
    todo = [(arm, seed) for seed in range(size.seeds) for arm in arms(size.steps)]
    runs = list(_run_all(out, todo, progress))
    (out / "studies.json").write_text(as_json({"attainable": attainable, "runs": [asdict(run) for run in runs]}))
    draw(runs, attainable, out)
    return Results(_checks(runs), _figures(runs, attainable))


def _data(out: Path, size: Size) -> dict[str, float]:
    """Simulate and build unless done; return the AUC that counting topics attains, by history length."""
    raw, dataset = out / "raw", out / "dataset"
    if not (dataset / "snapshots").exists():
        simulate(raw, Simulation(users=size.users, events=size.events), overwrite=True)
        build(load_spec(raw / "spec.toml"), dataset)
    attainable: dict[str, float] = json.loads((raw / "truth.json").read_text())["attainable"][LABEL]
    return attainable


def _run_all(out: Path, todo: list[tuple[Arm, int]], progress: ProgressCallback) -> Iterable[StudyRun]:
    """Run arms with their seeds, as many at a time as there are cores, and yield each as it ends."""
    (out / "runs").mkdir(exist_ok=True)
    with ProcessPoolExecutor(os.cpu_count(), multiprocessing.get_context("spawn"), torch.set_num_threads, (1,)) as pool:
        runs = [pool.submit(_run, out, arm, seed) for arm, seed in todo]
        for done, run in enumerate(as_completed(runs), start=1):
            yield run.result()
            progress("studies", done, len(runs))


def _run(out: Path, arm: Arm, seed: int) -> StudyRun:
    """Train and evaluate one arm with one seed, or read the result of an earlier run with the same config."""
    folder = out / "runs" / f"{arm.name.replace(', ', '-').replace(' ', '-')}-seed{seed}"
    path, config = folder.with_suffix(".json"), arm.config(seed)
    config_values = config.model_dump(mode="json")
    if path.exists():
        earlier = StudyRun(**json.loads(path.read_text()))
        if earlier.config == config_values:
            return earlier
    shutil.rmtree(folder, ignore_errors=True)
    report = train(out / "dataset", folder, config)
    evaluated = RequestSelection(before=_test_ends(out / "dataset"))
    metrics = evaluate(folder, out / "dataset", history_lengths=arm.served, requests=evaluated)
    requests = report.steps * config.batch_size
    run = StudyRun(
        arm=arm.name,
        seed=seed,
        config=config_values,
        requests=requests,
        events=report.events,
        seconds=report.seconds,
        flops=training_flops(arm, requests, report.events, report.targets),
        auc={str(row["history_length"]): float(row["auc"]) for row in metrics},
        targets=int(metrics[0]["targets"]),
    )
    path.write_text(as_json(asdict(run)))
    return run


def _test_ends(dataset: Path) -> datetime:
    """End of the requests that all arms are evaluated on: the twentieth of all requests after those that train."""
    return datetime.fromtimestamp(RequestDataset(dataset).split_time_us(TRAINED_SHARE + 0.05) / 1e6, UTC)


def _checks(runs: list[StudyRun]) -> list[Check]:
    short, full, mixed = (summary(runs, f"train {name}") for name in ("2K", "10K", "mixed lengths"))
    rises = [least_rise(mixed, shorter, longer) for shorter, longer in pairwise(LENGTHS)]
    gain, all_gain = mixed.mean(FULL) - short.mean(SHORT), full.mean(FULL) - short.mean(SHORT)
    checks = [
        Check("least rise of AUC from length to length, less the spread of rises over seeds", min(rises), 0.0, ">="),
        Check(
            "mixed lengths: share of full-length training's gain over 2K trained and served",
            gain / all_gain if all_gain > 0 else math.nan,
            0.8,
            ">=",
        ),
        Check("mixed lengths: share of full-length training's events", mixed.events / full.events, 0.4),
    ]
    stca = summary(runs, "stca, equal data")
    for other in ("din", "mean"):
        lead = least_lead(stca, summary(runs, f"{other}, equal data"))
        checks.append(Check(f"least lead in AUC of STCA over {other} in a seed, equal data", lead, 0.0, ">="))
    more = summary(runs, f"stca, {EQUAL_COMPUTE_MOST} times the data")
    for other, arm in (("din", f"{EQUAL_COMPUTE_MOST} times the data"), ("mean", "equal compute")):
        lead = least_lead(more, summary(runs, f"{other}, {arm}"))
        checks.append(Check(f"the same over {other}, both {EQUAL_COMPUTE_MOST} times the data", lead, 0.0, ">="))
    for other in ("longer", "transformer"):
        ahead = summary(runs, f"{other}, equal data").mean(COMPARED) - stca.mean(COMPARED)
        checks.append(Check(f"AUC of {other} over STCA, equal data", ahead, PAR))
    return checks


def _figures(runs: list[StudyRun], attainable: dict[str, float]) -> list[Figure]:
    figures = [
        Figure(f"AUC that counting topics attains, {length:,}", attainable[str(length)])
        for length in sorted({*LENGTHS, COMPARED})
    ]
    for arm in dict.fromkeys(run.arm for run in runs):
        result = summary(runs, arm)
        figures += [
            Figure(f"{arm}: AUC at {length:,}", result.mean(length), f"+-{result.spread(length) / 2:.4f}")
            for length in result.auc
        ]
        figures.append(Figure(f"{arm}: training", result.flops / 1e12, f"TFLOP, {result.events / 1e6:.1f}M events"))
    return figures
