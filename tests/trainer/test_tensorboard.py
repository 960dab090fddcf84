from __future__ import annotations

import sys

import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from training_data import tiny

from longbatch.schemas.errors import MachineError
from longbatch.trainer.train import train


def test_tensorboard_shows_the_loss_the_speed_and_the_metrics_of_a_run(dataset, tmp_path):
    seen = []
    report = train(dataset, tmp_path, tiny(tensorboard=True), progress=seen.append)
    board = EventAccumulator(str(tmp_path / "tensorboard")).Reload()
    losses = [(event.step, event.value) for event in board.Scalars("train/loss")]
    assert losses == [(step, pytest.approx(loss)) for step, loss in report.losses]
    (auc,) = board.Scalars("evaluation/auc/click/16")
    assert (auc.step, auc.value) == (report.steps, pytest.approx(report.metrics[0]["auc"]))
    rates = [event.value for event in board.Scalars("train/events_per_second")]
    assert min(rates) > 0
    assert 0 <= board.Scalars("train/waiting")[-1].value <= 1
    assert {now.stage for now in seen} == {"train", "evaluate"}


def test_a_machine_without_tensorboard_is_told_what_to_install(dataset, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", None)
    with pytest.raises(MachineError, match=r"needs TensorBoard; install longbatch\[tensorboard\]"):
        train(dataset, tmp_path, tiny(tensorboard=True))
