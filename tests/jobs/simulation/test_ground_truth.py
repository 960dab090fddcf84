"""The ground truth: probabilities, and the attainable AUC."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from polars.testing import assert_frame_equal
from simulated_logs import number, read_log

from longbatch.jobs.simulation.ground_truth import Sample, attainable_auc, auc, count_topics, fit_logistic, read_truth
from longbatch.jobs.simulation.rows import LABELS
from longbatch.jobs.simulation.simulate import Simulation, SimulationReport, simulate
from longbatch.jobs.simulation.world import (
    target_start_ms,
)


def test_the_truth_has_one_probability_per_target_and_label(
    clean: tuple[Path, SimulationReport], clean_log: pl.DataFrame
) -> None:
    truth = read_truth(clean[0])
    keys = ["request_id", "item_id", "position"]
    targets = clean_log.filter(pl.col("tab") > 0)
    assert_frame_equal(truth.targets.select(keys), targets.select(keys), check_row_order=False)
    joined = targets.join(truth.targets, on=keys, validate="1:1")
    for label in LABELS:
        assert joined[f"p_{label}"].is_between(0, 1).all()
        assert joined[label].mean() == pytest.approx(joined[f"p_{label}"].mean(), abs=0.015)
        likely = joined.filter(pl.col(f"p_{label}") > pl.col(f"p_{label}").median())
        assert likely[label].mean() == pytest.approx(likely[f"p_{label}"].mean(), abs=0.02)


def test_the_truth_document_has_the_parameters_and_counts(
    clean: tuple[Path, SimulationReport],
) -> None:
    truth = read_truth(clean[0])
    assert truth.document["parameters"]["seed"] == 7
    assert truth.document["rows"] == 300_000
    assert truth.document["targets"] == truth.targets.height == clean[1].targets
    assert truth.document["target_start_ms"] == target_start_ms(30)
    assert truth.attainable == clean[1].attainable


def test_a_longer_history_has_a_higher_attainable_auc(clean: tuple[Path, SimulationReport]) -> None:
    for label in ("click", "long_view"):
        auc_by_length = {length: number(value) for length, value in clean[1].attainable[label].items()}
        increasing = [auc_by_length[length] for length in ("100", "500", "2000", "10000")]
        assert increasing == sorted(increasing)
        assert 0.52 < auc_by_length["100"] < 0.61
        assert auc_by_length["10000"] > auc_by_length["100"] + 0.1
        assert auc_by_length["10000"] < auc_by_length["true_probability"] < 0.9


def test_a_log_of_one_user_has_no_attainable_auc(tmp_path: Path) -> None:
    report = simulate(tmp_path / "log", Simulation(users=1, events=3_000))
    assert read_log(tmp_path / "log").height == 3_000
    assert report.attainable["click"]["100"] is None


def test_a_missing_truth_and_another_version_are_rejected(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="is not a simulated log"):
        read_truth(tmp_path)
    (tmp_path / "truth.json").write_text(json.dumps({"version": 99}))
    with pytest.raises(ValueError, match="has version 99"):
        read_truth(tmp_path)


def random_sample(rng: np.random.Generator, events: int, targets: int) -> Sample:
    """Two users, three topics, few distinct times: ties everywhere."""
    return Sample(
        event_user=rng.integers(1, 3, events),
        event_topic=rng.integers(0, 3, events, dtype=np.int8),
        visible_ms=rng.integers(0, 10, events),
        user=rng.integers(1, 4, targets),
        topic=rng.integers(0, 3, targets, dtype=np.int8),
        request_ms=rng.integers(0, 12, targets),
        shift=np.zeros(targets, np.float32),
        probability=rng.random((targets, 3), np.float32),
        labels=rng.integers(0, 2, (targets, 3), dtype=np.int8),
    )


def count_slowly(sample: Sample, target: int, length: int) -> tuple[int, int]:
    """The newest `length` events of the target's user strictly before it, one by one."""
    order = np.lexsort((sample.visible_ms, sample.event_user))
    visible = [
        int(sample.event_topic[e])
        for e in order
        if sample.event_user[e] == sample.user[target] and sample.visible_ms[e] < sample.request_ms[target]
    ]
    newest = visible[max(0, len(visible) - length) :]
    return newest.count(int(sample.topic[target])), len(newest)


@settings(max_examples=50, deadline=None)
@given(st.integers(0, 10_000), st.integers(0, 30))
def test_topic_counts_equal_counting_one_by_one(seed: int, events: int) -> None:
    sample = random_sample(np.random.default_rng(seed), events, 10)
    for length, (count, total) in count_topics(sample, (0, 2, 100)).items():
        expected = [count_slowly(sample, target, length) for target in range(10)]
        assert list(zip(count.tolist(), total.tolist(), strict=True)) == expected


@given(st.lists(st.tuples(st.integers(0, 4), st.booleans()), max_size=30))
def test_auc_equals_comparing_every_pair(rows: list[tuple[int, bool]]) -> None:
    pairs = [(a > b) + (a == b) / 2 for a, liked in rows if liked for b, other in rows if not other]
    area = auc(np.array([s for s, _ in rows], float), np.array([y for _, y in rows], bool))
    assert area == (pytest.approx(sum(pairs) / len(pairs)) if pairs else None)


def test_logistic_regression_recovers_the_weights_of_its_model() -> None:
    rng = np.random.default_rng(0)
    inputs = np.stack([rng.normal(size=50_000), np.ones(50_000)], axis=1)
    outcome = rng.random(50_000) < 1 / (1 + np.exp(-inputs @ [1.5, -1.0]))
    assert fit_logistic(inputs, outcome) == pytest.approx([1.5, -1.0], abs=0.05)


def test_there_is_no_auc_if_all_outcomes_are_equal() -> None:
    sample = random_sample(np.random.default_rng(0), 20, 10)
    sample.labels[:, 0] = 1
    assert set(attainable_auc(sample)["click"].values()) == {None}
