"""`longbatch bench studies`: what history length, training length, model and size are worth, on simulated users.

Every run trains by the trainer's own loop on older requests and evaluates on later ones, on one core; as many run at a time as
there are cores. Results are kept one by one (`OUT/runs/*.json`), so a study that was stopped goes on; `OUT` also gets the plots.
"""

from __future__ import annotations

import json
import multiprocessing
import os
from collections.abc import Callable, Iterable
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import dataclass
from datetime import UTC, datetime
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch

from longbatch.benchmarks.checks import Check, Figure
from longbatch.benchmarks.studies_data import COMPARED, FULL, LABEL, LENGTHS, SHORT, Arm, arms, forward_flops, summary
from longbatch.benchmarks.studies_plots import draw
from longbatch.jobs.build import build
from longbatch.jobs.simulate import Simulation, simulate
from longbatch.loaders import RequestDataset
from longbatch.schemas.spec import load_spec
from longbatch.trainer.loop import evaluate, train

Progress = Callable[[str, float, float], None]


@dataclass(frozen=True)
class Size:
    """How much is simulated, trained and evaluated."""

    users: int = 800
    events: int = 12_000_000
    steps: int = 200
    seeds: int = 3


TRAINED_SHARE = 0.8  # of the requests, in order of time: the default of TrainConfig
QUICK = Size(users=60, events=900_000, steps=4, seeds=1)


def bench_studies(*, quick: bool, out: Path, progress: Progress) -> tuple[list[Check], list[Figure]]:
    """Run what is not yet in `out`, draw the plots, and judge."""
    size = QUICK if quick else Size()
    out = out / "quick" if quick else out
    attainable = _data(out, size)
    todo = [(arm, seed) for seed in range(size.seeds) for arm in arms(size.steps)]
    results = list(_results(out, todo, size, progress))
    (out / "studies.json").write_text(json.dumps({"attainable": attainable, "runs": results}, indent=1))
    draw(results, attainable, out)
    return _judged(results), _figures(results, attainable)


def _data(out: Path, size: Size) -> dict[str, float]:
    """Simulate and build unless done; what counting topics attains by history length."""
    raw, dataset = out / "raw", out / "dataset"
    if not (dataset / "snapshots").exists():
        simulate(raw, Simulation(users=size.users, events=size.events), overwrite=True)
        build(load_spec(raw / "spec.toml"), dataset)
    told: dict[str, float] = json.loads((raw / "truth.json").read_text())["attainable"][LABEL]
    return told


def _results(out: Path, todo: list[tuple[Arm, int]], size: Size, progress: Progress) -> Iterable[dict[str, Any]]:
    (out / "runs").mkdir(exist_ok=True)
    with ProcessPoolExecutor(os.cpu_count(), multiprocessing.get_context("spawn"), torch.set_num_threads, (1,)) as pool:
        runs = [pool.submit(_run, out, arm, seed) for arm, seed in todo]
        for done, run in enumerate(as_completed(runs), start=1):
            yield run.result()
            progress("studies", done, len(runs))


def _run(out: Path, arm: Arm, seed: int) -> dict[str, Any]:
    """Train and evaluate one arm with one seed, or read what an earlier call found."""
    folder = out / "runs" / f"{arm.name.replace(', ', '-').replace(' ', '-')}-seed{seed}"
    kept, config = folder.with_suffix(".json"), arm.config(seed)
    if kept.exists():
        told: dict[str, Any] = json.loads(kept.read_text())
        return told
    report = train(out / "dataset", folder, config)
    metrics = evaluate(folder, out / "dataset", history_lengths=arm.served, before=_test_ends(out / "dataset"))
    requests = report.steps * config.batch_size
    result = {
        "arm": arm.name,
        "seed": seed,
        "requests": requests,
        "events": report.events,
        "seconds": report.seconds,
        "flops": 3 * requests * forward_flops(arm.model, report.events / requests, round(report.targets / requests)),
        "auc": {str(row["history_length"]): row["auc"] for row in metrics},
        "targets": metrics[0]["targets"],
    }
    kept.write_text(json.dumps(result))
    return result


def _test_ends(dataset: Path) -> datetime:
    """All arms are evaluated on the same requests: the twentieth that follows what trains."""
    return datetime.fromtimestamp(RequestDataset(dataset).split_time_us(TRAINED_SHARE + 0.05) / 1e6, UTC)


def _judged(results: list[dict[str, Any]]) -> list[Check]:
    short, full, mixed = (summary(results, f"train {name}") for name in ("2K", "10K", "mixed lengths"))
    rises = [
        (mixed.auc[longer] - mixed.auc[shorter]) - max(mixed.spread(longer), mixed.spread(shorter))
        for shorter, longer in pairwise(LENGTHS)
    ]
    start = short.auc[SHORT]
    checks = [
        Check("least rise of AUC from length to length, less the seeds' spread", min(rises), 0.0, ">="),
        Check(
            "mixed lengths: share of full-length training's gain",
            (mixed.auc[FULL] - start) / (full.auc[FULL] - start),
            0.8,
            ">=",
        ),
        Check("mixed lengths: share of full-length training's events", mixed.events / full.events, 0.4),
    ]
    stca = summary(results, "stca, equal data")
    for other in ("din", "mean", "longer", "transformer"):
        for how in ("data", "compute"):
            rival = summary(results, f"{other}, equal {how}")
            ahead = stca.auc[COMPARED] - rival.auc[COMPARED]
            spread = max(stca.spread(COMPARED), rival.spread(COMPARED))
            least = spread if other in ("din", "mean") else -spread
            checks.append(Check(f"AUC of STCA over {other} at equal {how}", ahead, least, ">="))
    costs = [stca.flops / summary(results, f"{other}, equal data").flops for other in ("longer", "transformer")]
    return [*checks, Check("operations of STCA over the cheaper of LONGER and Transformer", max(costs), 1.0)]


def _figures(results: list[dict[str, Any]], attainable: dict[str, float]) -> list[Figure]:
    figures = [
        Figure(f"AUC that counting topics attains, {length:,}", attainable[str(length)], "")
        for length in sorted({*LENGTHS, COMPARED})
    ]
    for arm in dict.fromkeys(result["arm"] for result in results):
        told = summary(results, arm)
        figures += [
            Figure(f"{arm}: AUC at {length:,}", auc, f"+-{told.spread(length) / 2:.4f}")
            for length, auc in told.auc.items()
        ]
        figures.append(Figure(f"{arm}: training", told.flops / 1e12, f"TFLOP, {told.events / 1e6:.1f}M events"))
    return figures
