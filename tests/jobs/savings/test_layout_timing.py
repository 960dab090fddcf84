"""Scaling measured slices up to the whole dataset."""

from __future__ import annotations

import pytest

from longbatch.jobs.savings.layout_timing import scale_up


def test_totals_are_scaled_up_with_their_standard_error() -> None:
    total, error = scale_up([10.0, 14.0], [100, 100], 1_000.0)
    assert total == pytest.approx(120)
    # residuals -2 and 2; (1 - 0.2) * 2/1 * 8 / 200^2 = 0.00032; times 1000
    assert error == pytest.approx(1_000 * 0.00032**0.5)
    assert scale_up([10.0, 14.0], [100, 100], 200.0) == (24.0, 0.0)
    assert scale_up([10.0], [100], 1_000.0) == (100.0, None)
