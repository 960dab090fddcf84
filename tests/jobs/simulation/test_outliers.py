"""Outlier users exceed the limits that all regular users keep."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import polars as pl
from simulated_logs import SMALL, number, planted_by_table, read_log

from longbatch.jobs.simulation.outliers import BOTS, NEWCOMERS, Limits, draw_outliers, regular_limits
from longbatch.jobs.simulation.simulate import SimulationReport
from longbatch.jobs.simulation.world import (
    draw_requests,
)
from longbatch.schemas.spec.build_spec import load_spec


def test_bots_have_more_events_than_any_regular_user_and_newcomers_too_few(
    corrupt: tuple[Path, SimulationReport], clean_log: pl.DataFrame
) -> None:
    everything, planted = read_log(corrupt[0]), planted_by_table(corrupt[0])
    limits = load_spec(corrupt[0] / "spec.toml").users
    assert limits.max_events is not None
    regular = clean_log.filter(pl.col("tab") == 0).group_by("user_id").len()["len"]
    assert limits.max_events == regular.max()
    assert limits.over_max_events == "reject_user"
    assert 2 <= limits.min_events <= number(regular.min())
    outliers = everything.filter(pl.col("request_id") > 2 * corrupt[1].requests)
    bots, newcomers = (
        outliers.filter((pl.col("user_id") <= SMALL.users + BOTS) == is_bot).group_by("user_id", "tab").len()
        for is_bot in (True, False)
    )
    assert bots.filter(pl.col("tab") == 0)["len"].to_list() == [limits.max_events + 1] * BOTS
    assert newcomers.filter(pl.col("tab") == 0)["len"].to_list() == [limits.min_events - 1] * NEWCOMERS
    assert {
        "rejected_user": bots.filter(pl.col("tab") > 0)["len"].sum(),
        "short_history": newcomers.filter(pl.col("tab") > 0)["len"].sum(),
    } == {policy: planted["requests"][policy] for policy in ("rejected_user", "short_history")}
    first = outliers.filter(pl.col("user_id") == SMALL.users + 1).sort("event_time")["event_time"]
    assert set(first.diff().drop_nulls()) == {1}


def test_there_are_no_newcomers_if_a_regular_user_has_no_events(clean_log: pl.DataFrame) -> None:
    plan, _ = draw_requests(20, 20_000, 14, 10, np.random.SeedSequence(0))
    limits_of_all = regular_limits(plan, 20)
    assert limits_of_all.min_events > 0
    assert regular_limits(plan, 21) == Limits(limits_of_all.max_events, 0)
    rows, planted = draw_outliers(clean_log, Limits(100, 0), 1_000, 1, np.random.default_rng(0))
    assert rows["user_id"].n_unique() == BOTS
    assert planted["history"] == {"rejected_user": BOTS * 101, "short_history": 0}
