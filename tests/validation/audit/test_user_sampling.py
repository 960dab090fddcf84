"""Which users an audit compares with the raw log, and in what groups."""

from __future__ import annotations

import numpy as np
import polars as pl
import pytest

from longbatch.validation.audit.structure import StoredUsers
from longbatch.validation.audit.user_sampling import all_users, draw_users, group_users


def row_counts(rows: list[int]) -> pl.DataFrame:
    """Return row counts of users 0, 1, ...; all of their rows are requests."""
    users = range(len(rows))
    return pl.DataFrame({"raw_id": map(str, users), "rows": rows, "request_rows": rows, "user_id": users})


def test_a_sample_has_users_of_the_dataset_and_users_missing_from_it() -> None:
    stored = StoredUsers(np.arange(100), np.full(100, 5))
    drawn = draw_users(stored, row_counts([1] * 150), 20, seed=0)
    assert (len(drawn), (drawn < 100).sum()) == (40, 20)
    assert (drawn == draw_users(stored, row_counts([1] * 150), 20, seed=0)).all()
    assert len(set(drawn) & set(draw_users(stored, row_counts([1] * 150), 20, seed=1))) < 40


def test_a_sample_prefers_users_with_long_histories() -> None:
    events = np.where(np.arange(1_000) % 100 == 0, 1_000_000, 1)
    drawn = draw_users(StoredUsers(np.arange(1_000), events), row_counts([0]), 20, seed=0)
    assert (drawn % 100 == 0).sum() >= 8


def test_a_group_has_a_limited_number_of_rows_or_one_user(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("longbatch.validation.audit.user_sampling.GROUP_ROWS", 10)
    groups = group_users(np.arange(7), {"log": row_counts([4, 4, 4, 99, 1, 1]), "more": row_counts([1, 1, 1])})
    assert [group.tolist() for group in groups] == [[0, 1], [2, 3], [4, 5, 6]]
    assert all_users(StoredUsers(np.array([9]), np.array([1])), {"log": row_counts([1, 1])}).tolist() == [0, 1, 9]


def test_a_source_with_users_in_lists_makes_one_group(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("longbatch.validation.audit.user_sampling.GROUP_ROWS", 1)
    assert len(group_users(np.arange(3), {"log": row_counts([4, 4, 4]), "lists": row_counts([])})) == 1
