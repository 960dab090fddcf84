from __future__ import annotations

from pathlib import Path

import pytest
from training_data import DAY, START, TrainedRun

from longbatch.schemas.errors import DatasetError
from longbatch.trainer.evaluate import RequestSelection, evaluate


def test_evaluating_a_run_again_gives_the_metrics_of_its_report(trained: TrainedRun, dataset: Path) -> None:
    assert evaluate(trained.folder, dataset) == trained.report.metrics


def test_a_run_is_evaluated_at_any_history_length(trained: TrainedRun, dataset: Path) -> None:
    results = evaluate(trained.folder, dataset, history_lengths=[16, 0, 4])
    assert [(row["history_length"], row["label"]) for row in results] == [
        (length, label) for length in (0, 4, 16) for label in ("click", "like")
    ]
    assert results[4:] == trained.report.metrics
    assert results[2:4] == evaluate(trained.folder, dataset, history_lengths=[4])
    assert results[0]["auc"] < results[2]["auc"]


def test_a_time_range_selects_the_requests_to_evaluate(trained: TrainedRun, dataset: Path) -> None:
    results = evaluate(trained.folder, dataset, requests=RequestSelection(START + DAY * 2, START + DAY * 5))
    assert results[0]["targets"] == 40 * 3 * 4
    with pytest.raises(DatasetError, match=r"has no targets from .*; choose another time range"):
        evaluate(trained.folder, dataset, requests=RequestSelection(after=START + DAY * 100))


def test_metrics_can_be_split_by_the_length_of_the_history(trained: TrainedRun, dataset: Path) -> None:
    (click, like) = evaluate(trained.folder, dataset, by_history=True)
    assert (click.pop("events"), like.pop("events")) == ("0-99", "0-99")
    assert [click, like] == trained.report.metrics
