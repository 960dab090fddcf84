"""The cost model: predictions from means, and rates per record."""

from __future__ import annotations

from pathlib import Path

import pytest

from longbatch.jobs.savings.results import Savings
from longbatch.schemas.format.dataset import Dataset


def test_the_formula_predicts_the_memory_bytes(exact: tuple[Path, Savings]) -> None:
    for layout in exact[1].layouts:
        # the rest is list offsets, counted per list and not per table
        assert layout.predicted_per_target == pytest.approx(layout.memory_per_target, rel=0.02)


def test_rates_are_bytes_of_records_and_of_shuffled_rows(measured: tuple[Path, Savings], tiny: Dataset) -> None:
    rates = measured[1].rates
    assert rates.log_rows == 8
    # item, user, request, two times (8 bytes each), action and tab and position and click, two roles
    assert rates.row_bytes == 4 * 8 + 2 + 1 + 1 + 1 + 2 / 8
    assert rates.row_shuffle_bytes == tiny.snapshot.shuffled_bytes / 8
    assert 8 < rates.row_shuffle_bytes < rates.row_bytes
    assert min(vars(rates).values()) > 0
