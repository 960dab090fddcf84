from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from training_data import make_batch, small_model

from longbatch.trainer.predictions import predict


def test_without_targets_metrics_are_undefined() -> None:
    scores = predict(small_model(), [], [8])
    assert scores.num_targets == 0
    assert np.isnan(scores.metrics(8, "like")["auc"])


def test_gauc_by_request_groups_the_targets_of_each_request() -> None:
    scores = predict(small_model(), [make_batch([3, 2], [2, 3]), make_batch([4], [4])], [8])
    assert scores.requests.tolist() == [0, 0, 1, 1, 1, 2, 2, 2, 2]
    ranked = replace(
        scores,
        logits={8: np.array([[1, 2, 1, 2, 2, 4, 3, 2, 1], [0] * 9], dtype=np.float32).T},
        labels={"click": np.array([0, 1, 0, 0, 1, 1, 1, 1, 1], dtype=np.float32), "like": scores.labels["like"]},
    )
    # request 0 has AUC 1.0 and 2 targets; request 1 has 0.75 (one of two pairs is a tie) and 3; request 2 has one class
    assert ranked.metrics(8, "click")["gauc_by_request"] == pytest.approx((2 * 1.0 + 3 * 0.75) / 5)


def test_metrics_by_history_group_targets_by_the_length_of_their_history() -> None:
    scores = predict(small_model(), [make_batch([0, 99, 100], [2, 3, 4]), make_batch([600], [5])], [1_000])
    rows = scores.metrics_by_history(1_000, "click")
    assert [(row["events"], row["targets"]) for row in rows] == [("0-99", 5), ("100-499", 4), ("500-1999", 5)]
    total = scores.metrics(1_000, "click")
    assert sum(r["log_loss"] * r["targets"] for r in rows) == pytest.approx(total["log_loss"] * total["targets"])
