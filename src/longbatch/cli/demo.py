"""`longbatch demo`: all stages from a simulated log to a trained model, and one page that shows the results."""

from __future__ import annotations

import shutil
import time
from pathlib import Path

from longbatch.jobs.build import build
from longbatch.jobs.savings.measure import measure
from longbatch.jobs.simulation.simulate import Simulation, simulate
from longbatch.schemas.errors import DataError, DatasetError
from longbatch.schemas.format.dataset import open_dataset
from longbatch.schemas.json_text import as_json
from longbatch.schemas.spec.build_spec import load_spec
from longbatch.trainer.config import ModelConfig, TrainConfig
from longbatch.trainer.evaluate import RequestSelection, evaluate
from longbatch.trainer.train import train
from longbatch.validation.audit.audit import audit

from .console import ProgressDisplay
from .report import DemoResults, make_document, make_page
from .training_commands import training_progress

HISTORY_LENGTHS = (100, 500, 2_000, 10_000)
DEMO_LOG = Simulation(users=1_200, events=7_200_000, seed=0)
DEMO_MODEL = ModelConfig(id_table_rows=4_096)  # the log has few users: larger id tables would only memorize them
AUDITED_USERS = 20
MEASURED_BYTES = 200_000_000
EVALUATED_REQUESTS = 1_500


def run_demo(out: Path, *, train_seconds: float, overwrite: bool, progress: ProgressDisplay) -> DemoResults:
    """Simulate, build, audit, measure, train and evaluate; write OUT/report.html and OUT/demo.json.

    Args:
        out: The folder to write.
        train_seconds: The time to train for.
        overwrite: Remove an earlier demo first.
        progress: Shows the progress of each stage.

    Returns:
        The results of all stages.

    Raises:
        DatasetError: `out` is not empty.
        DataError: The audit has findings.
    """
    _make_empty(out, overwrite)
    raw, dataset, run = out / "raw", out / "dataset", out / "run"
    timer = _StageTimer()
    simulated = simulate(raw, DEMO_LOG, progress)
    timer.finish("simulate")
    built = build(load_spec(raw / "spec.toml"), dataset, progress=progress)
    timer.finish("build")
    audited = audit(
        dataset, None, AUDITED_USERS, 0, lambda part, done, total: progress(f"audit: {part}", done, total or 1)
    )
    if audited.findings:
        raise DataError(f"the audit of {dataset} has findings: {'; '.join(audited.findings[:3])}")
    timer.finish("audit")
    savings = measure(open_dataset(dataset), out / "savings", budget_bytes=MEASURED_BYTES, progress=progress)
    timer.finish("measure")
    config = TrainConfig(model=DEMO_MODEL, max_seconds=train_seconds, epochs=100, evaluate_requests=300)
    trained = train(dataset, run, config, progress=training_progress(progress, config.max_seconds))
    timer.finish("train")
    metrics = evaluate(
        run,
        dataset,
        history_lengths=HISTORY_LENGTHS,
        requests=RequestSelection(max_requests=EVALUATED_REQUESTS),
        progress=training_progress(progress),
    )
    timer.finish("evaluate")
    results = DemoResults(simulated, built, audited, savings, trained, metrics, timer.seconds)
    (out / "report.html").write_text(make_page(results), encoding="utf-8")
    (out / "demo.json").write_text(as_json(make_document(results)), encoding="utf-8")
    return results


class _StageTimer:
    """Measures the wall seconds of stages that follow each other."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}
        self._started = time.monotonic()

    def finish(self, stage: str) -> None:
        """End a stage; the next one starts now."""
        now = time.monotonic()
        self.seconds[stage], self._started = now - self._started, now


def _make_empty(out: Path, overwrite: bool) -> None:
    """Create an empty folder, removing an earlier demo if `overwrite`."""
    if out.exists() and any(out.iterdir()):
        if not overwrite or not (out / "raw" / "truth.json").exists():
            raise DatasetError(
                f"{out} is not empty. Choose another folder, or pass --overwrite to replace an earlier demo."
            )
        shutil.rmtree(out)
    out.mkdir(parents=True, exist_ok=True)
