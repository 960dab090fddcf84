"""Which users an audit compares with the raw log, and in what groups: pure functions of numbers."""

from __future__ import annotations

import numpy as np
import polars as pl

from longbatch.schemas.types import Int64Array
from longbatch.validation.reference.user_counts import UserCounts

from .structure import StoredUsers

GROUP_ROWS = 400_000


def draw_users(stored: StoredUsers, log_users: pl.DataFrame, users: int, seed: int) -> Int64Array:
    """Draw users of the dataset, and users of the raw log that are not in it.

    Of the dataset's users half are drawn uniformly and half in proportion to their stored events, so that long
    histories are among them. Users who are missing from the dataset are drawn uniformly; all of their rows may have
    been rejected.

    Args:
        stored: The users of the dataset.
        log_users: Row counts of the users in the source of requests, from `count_user_rows`.
        users: How many users to draw of each of the two, at most.
        seed: Seed of the random generator.

    Returns:
        User ids, (U,) ascending.
    """
    random = np.random.default_rng(seed)
    count = min(users, len(stored.user_id))
    weights = stored.events + 1
    by_events = np.empty(0, dtype=np.int64)
    if count:
        by_events = random.choice(stored.user_id, count // 2, replace=False, p=weights / weights.sum())
    others = np.setdiff1d(stored.user_id, by_events)
    uniform = random.choice(others, count - count // 2, replace=False)
    with_requests = log_users.filter(pl.col("request_rows") > 0)["user_id"].drop_nulls().to_numpy()
    absent = np.setdiff1d(with_requests, stored.user_id)
    missing = random.choice(absent, min(users, len(absent)), replace=False)
    return np.unique(np.concatenate([by_events, uniform, missing]).astype(np.int64))


def all_users(stored: StoredUsers, counts: UserCounts) -> Int64Array:
    """Return every user of the dataset or of the raw log, (U,) ascending.

    Args:
        stored: The users of the dataset.
        counts: Row counts of the raw log's users, by source.
    """
    log_users = [source_counts["user_id"].drop_nulls().to_numpy() for source_counts in counts.values()]
    return np.unique(np.concatenate([stored.user_id, *log_users]))


def group_users(users: Int64Array, counts: UserCounts) -> list[Int64Array]:
    """Split users into groups of about GROUP_ROWS raw rows together, so that a group fits into memory.

    A group exceeds GROUP_ROWS only by the rows of one user, and is never empty. A source without counts (its user ids
    are elements of lists) is read completely for each group, so there is one group only.

    Args:
        users: User ids, (U,).
        counts: Row counts of the raw log's users, by source.

    Returns:
        The groups, in the order of `users`.
    """
    if any(source_counts.is_empty() for source_counts in counts.values()):
        return [users]
    all_counts = pl.concat(source_counts.select("user_id", "rows") for source_counts in counts.values())
    user_rows = all_counts.drop_nulls("user_id").group_by("user_id").agg(pl.col("rows").sum())
    joined = pl.DataFrame({"user_id": users}).join(user_rows, on="user_id", how="left", maintain_order="left")
    rows = joined["rows"].fill_null(0).to_numpy()
    rows_before = np.cumsum(rows) - rows
    return np.split(users, np.flatnonzero(np.diff(rows_before // GROUP_ROWS)) + 1)
