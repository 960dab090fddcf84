"""`longbatch demo`: the main job from raw log to trained model, and one page that shows what came of it."""

from __future__ import annotations

import shutil
import time
import tomllib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from longbatch.jobs.build import build
from longbatch.jobs.savings.measure import measure
from longbatch.jobs.simulation.simulate import Simulation, simulate
from longbatch.schemas.errors import DataError, DatasetError, SpecError
from longbatch.schemas.format.dataset import open_dataset
from longbatch.schemas.json_text import as_json
from longbatch.schemas.spec.build_spec import load_spec
from longbatch.trainer.config import ModelConfig, TrainConfig
from longbatch.trainer.predictions import Progress, ProgressCallback
from longbatch.trainer.train import evaluate, train
from longbatch.validation.audit.audit import audit

from . import report
from .console import Bars
from .report import Outcome

HISTORY_LENGTHS = (100, 500, 2_000, 10_000)
DEMO_LOG = Simulation(users=1_200, events=7_200_000, seed=0)
DEMO_MODEL = ModelConfig(id_rows=4_096)  # few users: larger id tables would only memorise them
AUDITED_USERS = 20
MEASURED_BYTES = 200_000_000
EVALUATED_REQUESTS = 1_500


@dataclass(frozen=True)
class DemoResult:
    """What the demo did: `text` for people, `document` for machines."""

    text: str
    document: dict[str, Any]


def load_config(path: Path | None, **given: Any) -> TrainConfig:
    """Read a TrainConfig from a TOML file (or the defaults), with the arguments that are not None on top."""
    try:
        values = tomllib.loads(path.read_text(encoding="utf-8")) if path else {}
        return TrainConfig(**{**values, **{name: value for name, value in given.items() if value is not None}})
    except (OSError, tomllib.TOMLDecodeError) as error:
        raise SpecError(f"cannot read the training config {path}: {error}") from None
    except ValidationError as error:
        problems = "; ".join(f"{'.'.join(map(str, e['loc']))}: {e['msg']}" for e in error.errors())
        raise SpecError(f"the training config is not one: {problems}") from None


def training_progress(progress: Bars, config: TrainConfig | None = None) -> ProgressCallback:
    """Show a run's progress as bars: training by time where time is its limit, else by steps."""
    limit = config.max_seconds if config else None

    def show(now: Progress) -> None:
        if now.stage == "train" and limit:
            progress(now.stage, min(now.seconds, limit), limit, _note(now))
        elif now.total_steps:
            progress(now.stage, now.step, now.total_steps, _note(now))

    return show


def _note(now: Progress) -> str:
    """Loss and speed so far, of training."""
    if now.stage != "train" or not now.seconds:
        return ""
    targets, events = now.targets / now.seconds, now.events / now.seconds
    return f"loss {now.loss:.4f}, {targets:,.0f} targets/s, {events:,.0f} events/s, waiting {now.waiting:.1%}"


def demo(out: Path, *, train_seconds: float, overwrite: bool, progress: Bars) -> DemoResult:
    """Simulate, build, audit, measure, train, evaluate; write OUT/report.html and OUT/demo.json.

    Raises DatasetError if OUT is there already (unless `overwrite`), DataError if the audit finds anything.
    """
    _make_room(out, overwrite)
    raw, dataset, run = out / "raw", out / "dataset", out / "run"
    stage = _Stages()
    simulated = simulate(raw, DEMO_LOG, progress)
    stage.ends("simulate")
    built = build(load_spec(raw / "spec.toml"), dataset, progress=progress)
    stage.ends("build")
    audited = audit(
        dataset, None, AUDITED_USERS, 0, lambda part, done, total: progress(f"audit: {part}", done, total or 1)
    )
    if audited.findings:
        raise DataError(f"the audit of {dataset} found: {'; '.join(audited.findings[:3])}")
    stage.ends("audit")
    savings = measure(open_dataset(dataset), out / "savings", budget_bytes=MEASURED_BYTES, progress=progress)
    stage.ends("measure")
    config = TrainConfig(model=DEMO_MODEL, max_seconds=train_seconds, epochs=100, evaluate_requests=300)
    trained = train(dataset, run, config, progress=training_progress(progress, config))
    stage.ends("train")
    metrics = evaluate(
        run,
        dataset,
        history_lengths=HISTORY_LENGTHS,
        max_requests=EVALUATED_REQUESTS,
        progress=training_progress(progress),
    )
    stage.ends("evaluate")
    outcome = Outcome(simulated, built, audited, savings, trained, metrics, stage.seconds)
    document = report.document(outcome)
    (out / "report.html").write_text(report.page(outcome), encoding="utf-8")
    (out / "demo.json").write_text(as_json(document), encoding="utf-8")
    return DemoResult(report.text(outcome, out), document)


class _Stages:
    """Wall seconds of each stage."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}
        self._since = time.monotonic()

    def ends(self, name: str) -> None:
        now = time.monotonic()
        self.seconds[name], self._since = now - self._since, now


def _make_room(out: Path, overwrite: bool) -> None:
    if out.exists() and any(out.iterdir()):
        if not overwrite or not (out / "raw" / "truth.json").exists():
            raise DatasetError(f"{out} is not empty; choose another folder, or --overwrite an earlier demo")
        shutil.rmtree(out)
    out.mkdir(parents=True, exist_ok=True)
