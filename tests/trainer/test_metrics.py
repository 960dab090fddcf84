from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from longbatch.trainer.metrics import auc, gauc, log_loss, normalized_entropy

targets = st.lists(st.tuples(st.integers(0, 1), st.integers(-3, 3), st.integers(0, 3)), max_size=40)


def counted_auc(rows):
    """Brute force over all pairs of a positive and a negative."""
    pairs = [(p[1], n[1]) for p in rows if p[0] for n in rows if not n[0]]
    return sum((p > n) + (p == n) / 2 for p, n in pairs) / len(pairs) if pairs else math.nan


def columns(rows):
    return tuple(np.array([row[i] for row in rows], dtype=np.float64) for i in range(3))


@given(targets)
def test_auc_counts_pairs_and_half_of_the_ties(rows):
    labels, scores, _ = columns(rows)
    np.testing.assert_allclose(auc(labels, scores), counted_auc(rows), atol=1e-12)


@given(targets)
def test_gauc_is_the_mean_of_the_groups_weighted_by_size(rows):
    groups = [[row for row in rows if row[2] == group] for group in range(4)]
    areas = [(counted_auc(group), len(group)) for group in groups]
    defined = [(area, size) for area, size in areas if not math.isnan(area)]
    total = sum(size for _, size in defined)
    wanted = sum(area * size for area, size in defined) / total if total else math.nan
    np.testing.assert_allclose(gauc(*columns(rows)), wanted, atol=1e-12)


def test_auc_of_a_worked_example_with_a_tie():
    assert auc([0, 0, 1, 1], [0.1, 0.4, 0.4, 0.8]) == (1 + 0.5 + 1 + 1) / 4


def test_log_loss_and_normalised_entropy_of_a_worked_example():
    labels, logits = [1, 0, 0, 0], [math.log(0.5 / 0.5)] * 4
    assert log_loss(labels, logits) == pytest.approx(math.log(2))
    base = -(0.25 * math.log(0.25) + 0.75 * math.log(0.75))
    assert normalized_entropy(labels, logits) == pytest.approx(math.log(2) / base)
    assert normalized_entropy(labels, [math.log(1 / 3)] * 4) == pytest.approx(1)


def test_large_logits_do_not_overflow():
    assert log_loss([1, 0], [-1000.0, 1000.0]) == 1000.0


def test_metrics_without_both_classes_are_undefined():
    assert math.isnan(auc([1, 1], [0.0, 1.0]))
    assert math.isnan(normalized_entropy([0, 0], [0.0, 1.0]))
    assert math.isnan(gauc([1, 0], [0.0, 1.0], [7, 8]))
    assert math.isnan(log_loss([], []))


def test_wrong_input_is_refused():
    with pytest.raises(ValueError, match="labels are \\(2,\\) and scores \\(1,\\)"):
        auc([0, 1], [0.5])
    with pytest.raises(ValueError, match="other values than 0 and 1"):
        auc([0, 2], [0.5, 0.1])
    with pytest.raises(ValueError, match="1 of 2 scores are NaN"):
        auc([0, 1], [0.5, math.nan])
