from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from longbatch.trainer.metrics import auc, gauc, log_loss, normalized_entropy

Row = tuple[int, int, int]  # label, score, group
rows_of_targets = st.lists(st.tuples(st.integers(0, 1), st.integers(-3, 3), st.integers(0, 3)), max_size=40)


def auc_by_counting(rows: list[Row]) -> float:
    """Brute force over all pairs of a positive and a negative."""
    pairs = [(p[1], n[1]) for p in rows if p[0] for n in rows if not n[0]]
    return sum((p > n) + (p == n) / 2 for p, n in pairs) / len(pairs) if pairs else math.nan


def column(rows: list[Row], index: int) -> NDArray[np.float64]:
    return np.array([row[index] for row in rows], dtype=np.float64)


@given(rows_of_targets)
def test_auc_counts_pairs_and_half_of_the_ties(rows: list[Row]) -> None:
    np.testing.assert_allclose(auc(column(rows, 0), column(rows, 1)), auc_by_counting(rows), atol=1e-12)


@given(rows_of_targets)
def test_gauc_is_the_mean_of_the_groups_weighted_by_size(rows: list[Row]) -> None:
    groups = [[row for row in rows if row[2] == group] for group in range(4)]
    areas = [(auc_by_counting(group), len(group)) for group in groups]
    defined = [(area, size) for area, size in areas if not math.isnan(area)]
    total = sum(size for _, size in defined)
    expected = sum(area * size for area, size in defined) / total if total else math.nan
    result = gauc(column(rows, 0), column(rows, 1), column(rows, 2))
    np.testing.assert_allclose(result, expected, atol=1e-12)


def test_auc_of_a_worked_example_with_a_tie() -> None:
    assert auc([0, 0, 1, 1], [0.1, 0.4, 0.4, 0.8]) == (1 + 0.5 + 1 + 1) / 4


def test_log_loss_and_normalized_entropy_of_a_worked_example() -> None:
    labels, logits = [1, 0, 0, 0], [math.log(0.5 / 0.5)] * 4
    assert log_loss(labels, logits) == pytest.approx(math.log(2))
    base = -(0.25 * math.log(0.25) + 0.75 * math.log(0.75))
    assert normalized_entropy(labels, logits) == pytest.approx(math.log(2) / base)
    assert normalized_entropy(labels, [math.log(1 / 3)] * 4) == pytest.approx(1)


def test_large_logits_do_not_overflow() -> None:
    assert log_loss([1, 0], [-1000.0, 1000.0]) == 1000.0


def test_metrics_without_both_classes_are_undefined() -> None:
    assert math.isnan(auc([1, 1], [0.0, 1.0]))
    assert math.isnan(normalized_entropy([0, 0], [0.0, 1.0]))
    assert math.isnan(gauc([1, 0], [0.0, 1.0], [7, 8]))
    assert math.isnan(log_loss([], []))


def test_invalid_labels_and_scores_are_rejected() -> None:
    with pytest.raises(ValueError, match="labels have shape \\(2,\\) and scores \\(1,\\)"):
        auc([0, 1], [0.5])
    with pytest.raises(ValueError, match="values other than 0 and 1"):
        auc([0, 2], [0.5, 0.1])
    with pytest.raises(ValueError, match="1 of 2 scores are NaN"):
        auc([0, 1], [0.5, math.nan])
