from __future__ import annotations

import sys
from importlib import import_module
from pathlib import Path

import pytest
from training_data import tiny

from longbatch.schemas.errors import MachineError
from longbatch.trainer.progress import TrainingProgress
from longbatch.trainer.train import train


@pytest.mark.slow
def test_tensorboard_shows_the_loss_the_speed_and_the_metrics_of_a_run(dataset: Path, tmp_path: Path) -> None:
    reports: list[TrainingProgress] = []
    config = tiny(tensorboard=True, max_steps=30, evaluate_requests=32)
    report = train(dataset, tmp_path, config, progress=reports.append)
    # imported by name, because TensorBoard has no type hints
    reader = import_module("tensorboard.backend.event_processing.event_accumulator")
    log = reader.EventAccumulator(str(tmp_path / "tensorboard")).Reload()
    losses = [(event.step, event.value) for event in log.Scalars("train/loss")]
    assert losses == [(step, pytest.approx(loss)) for step, loss in report.losses]
    (auc,) = log.Scalars("evaluation/auc/click/16")
    assert (auc.step, auc.value) == (report.steps, pytest.approx(report.metrics[0]["auc"]))
    rates = [event.value for event in log.Scalars("train/events_per_second")]
    assert min(rates) > 0
    assert 0 <= log.Scalars("train/waiting")[-1].value <= 1
    assert {progress.stage for progress in reports} == {"train", "evaluate"}


def test_without_tensorboard_the_error_names_the_extra_to_install(
    dataset: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", None)
    with pytest.raises(MachineError, match=r"requires TensorBoard.*pip install 'longbatch\[tensorboard\]'"):
        train(dataset, tmp_path, tiny(tensorboard=True))
