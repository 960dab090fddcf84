from __future__ import annotations

import json
import logging
from pathlib import Path

import pytest
from training_data import DAY, START, TrainedRun, tiny

from longbatch.schemas.errors import DatasetError, SpecError
from longbatch.trainer.config import SampledLength
from longbatch.trainer.evaluate import evaluate
from longbatch.trainer.train import train


def test_a_planted_signal_is_learned_and_predicts_newer_requests(trained: TrainedRun) -> None:
    click, like = trained.report.metrics
    assert (click["label"], like["label"]) == ("click", "like")
    assert click["auc"] > 0.95
    assert click["ne"] < 0.8
    assert abs(like["auc"] - 0.5) < 0.15
    assert trained.report.losses[-1][1] < trained.report.losses[0][1]
    assert click["history_length"] == 16


@pytest.mark.slow
def test_a_run_on_shared_timelines_reads_fewer_events_and_learns_as_well(
    trained: TrainedRun, dataset: Path, tmp_path: Path
) -> None:
    model = tiny().model.model_copy(update={"time_encoding": "attention_bias"})
    report = train(dataset, tmp_path, tiny(model=model, shuffle_run=8))
    assert report.metrics[0]["auc"] > 0.95
    assert report.targets == trained.report.targets
    assert report.events < trained.report.events / 2


def test_the_report_counts_steps_targets_events_and_waiting(trained: TrainedRun) -> None:
    report, progress = trained.report, trained.progress
    assert report.train_before == (START + DAY * 12).isoformat()
    assert report.targets == 4 * 40 * 12 * 4
    assert report.events == 4 * 40 * sum(range(1, 13))
    assert report.steps == 4 * (40 * 12 // 16)
    assert report.stopped_by == "epochs"
    assert report.metrics[0]["targets"] == 40 * 4 * 4
    assert report.targets_per_second > 0
    assert 0 < report.waiting_seconds < report.seconds
    assert [p.stage for p in progress] == ["train"] * (report.steps // 10) + ["evaluate"] * 3
    assert progress[0].total_steps == report.steps
    assert 0 < progress[0].waiting_share < 1
    assert json.loads((trained.folder / "report.json").read_text())["steps"] == report.steps


def test_the_same_config_trains_the_same_model(dataset: Path, tmp_path: Path) -> None:
    config = tiny(max_steps=5, history_length=SampledLength(minimum=0, maximum=16))
    reports = [train(dataset, tmp_path / name, config) for name in "ab"]
    assert reports[0].losses == reports[1].losses
    assert reports[0].metrics == reports[1].metrics
    other = train(dataset, tmp_path / "c", config.model_copy(update={"seed": 1}))
    assert other.losses != reports[0].losses


def test_training_on_everything_reports_no_metrics(dataset: Path, tmp_path: Path) -> None:
    report = train(dataset, tmp_path, tiny(train_before=None, max_steps=2, labels=("like",)))
    assert (report.metrics, report.train_before, report.stopped_by) == ([], None, "max_steps")
    assert evaluate(tmp_path, dataset)[0]["targets"] == 40 * 16 * 4


def test_a_config_that_does_not_fit_the_dataset_is_rejected(dataset: Path, tmp_path: Path) -> None:
    with pytest.raises(SpecError, match=r"labels: \['buy'\] are not in the dataset"):
        train(dataset, tmp_path, tiny(labels=("buy",)))
    with pytest.raises(SpecError, match="history_length"):
        train(dataset, tmp_path, tiny(history_length=500))
    with pytest.raises(DatasetError, match="has no requests before 2023-12-31"):
        train(dataset, tmp_path, tiny(train_before=START - DAY))


def test_training_logs_epochs_reports_and_the_evaluation(
    dataset: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG, logger="longbatch.trainer")
    train(dataset, tmp_path, tiny(max_steps=20, evaluate_requests=16))
    messages = [
        record.getMessage()
        for record in caplog.records
        if record.name.startswith("longbatch.trainer") and record.getMessage().startswith(("train", "stage"))
    ]
    assert messages[0] == "train: epoch 1 of 4, 30 batches"
    assert [message.split(",")[0] for message in messages[1:3]] == ["train: step 10 of 20", "train: step 20 of 20"]
    assert [message.partition(" rows,")[0] for message in messages[3:]] == ["stage train: 1280", "stage evaluate: 256"]
