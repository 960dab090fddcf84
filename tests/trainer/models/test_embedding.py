from __future__ import annotations

import math

import torch

from longbatch.trainer.config import NUMERIC_ROWS, Column
from longbatch.trainer.models.embedding import column_rows, hashed_rows, numeric_rows


def test_numbers_are_divided_into_two_bins_per_octave() -> None:
    values = torch.tensor([0.0, 1e-9, 2.0**-10, 1.0, 1.5, 2.0, 1e30, math.inf])
    assert numeric_rows(values).tolist() == [0, 0, 1, 21, 22, 23, 80, 80]


def test_negative_numbers_and_nulls_have_their_own_rows() -> None:
    values = torch.tensor([-1e-9, -(2.0**-10), -2.0, -1e30, math.nan])
    assert numeric_rows(values).tolist() == [81, 82, 104, 161, NUMERIC_ROWS - 1]


def test_integers_have_the_rows_of_equal_floats() -> None:
    values = torch.arange(-1000, 1000)
    assert torch.equal(numeric_rows(values), numeric_rows(values.double()))


def test_ids_are_spread_evenly_over_the_rows_and_may_be_negative() -> None:
    counts = torch.bincount(hashed_rows(torch.arange(-50_000, 50_000), 1000), minlength=1000)
    assert counts.shape == (1000,)
    assert counts.min() > 50
    assert counts.max() < 200


def test_large_ids_are_hashed_without_error() -> None:
    ids = torch.tensor([2**63 - 1, -(2**63), 0])
    assert ((hashed_rows(ids, 7) >= 0) & (hashed_rows(ids, 7) < 7)).all()


def test_categories_of_eight_bits_do_not_collide() -> None:
    column = Column(name="tab", feature_type="category", rows=256)
    values = torch.arange(-128, 128).to(torch.int8)
    assert len(set(column_rows(column, values).tolist())) == 256
    assert column_rows(column, torch.tensor([False, True])).tolist() == [0, 1]
