"""Which users an audit compares with the raw log, and in what groups: pure functions of numbers."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import polars as pl

from longbatch.schemas.types import Int64Array

from .structure import Users

GROUP_ROWS = 400_000


def draw_users(stored: Users, asked: pl.DataFrame, users: int, seed: int) -> Int64Array:
    """Draw users of the dataset, and users who ask in the raw log but are not in it, up to `users` of each, (U,).

    Of the first half are drawn evenly, half in proportion to their stored events, so that long histories are among
    them; of the others, who may all have been rejected, all are drawn evenly. `asked` is the census of requests.
    """
    random = np.random.default_rng(seed)
    count = min(users, len(stored.user_id))
    weight = stored.events + 1
    long = random.choice(stored.user_id, count // 2, replace=False, p=weight / weight.sum()) if count else ()
    others = np.setdiff1d(stored.user_id, np.asarray(long, dtype=np.int64))
    even = random.choice(others, count - count // 2, replace=False)
    askers = asked.filter(pl.col("asked") > 0)["user_id"].drop_nulls().to_numpy()
    absent = np.setdiff1d(askers, stored.user_id)
    missed = random.choice(absent, min(users, len(absent)), replace=False)
    return np.unique(np.concatenate([long, even, missed]).astype(np.int64))


def everybody(stored: Users, censuses: Mapping[str, pl.DataFrame]) -> Int64Array:
    """Return every user of the dataset or of the raw log, (U,)."""
    known = [census["user_id"].drop_nulls().to_numpy() for census in censuses.values()]
    return np.unique(np.concatenate([stored.user_id, *known]))


def group_users(users: Int64Array, censuses: Mapping[str, pl.DataFrame]) -> list[Int64Array]:
    """Cut users into groups of about GROUP_ROWS raw rows: of more only by one user's, and never of none.

    A source without a census (its ids stand in lists) is read whole each time, so there is one group.
    """
    counted = pl.concat(census.select("user_id", "rows") for census in censuses.values())
    sizes = counted.drop_nulls("user_id").group_by("user_id").agg(pl.col("rows").sum())
    rows = pl.DataFrame({"user_id": users}).join(sizes, on="user_id", how="left", maintain_order="left")["rows"]
    if any(census.is_empty() for census in censuses.values()):
        return [users]
    before = np.cumsum(rows.fill_null(0).to_numpy()) - rows.fill_null(0).to_numpy()
    return np.split(users, np.flatnonzero(np.diff(before // GROUP_ROWS)) + 1)
