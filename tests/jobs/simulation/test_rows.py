"""The rows of a simulated log have the planted structure."""

from __future__ import annotations

import numpy as np
import polars as pl
import pytest
from simulated_logs import SMALL, number

from longbatch.jobs.simulation.world import (
    target_start_ms,
)


def test_a_request_is_one_user_at_one_time_with_4_to_12_different_items(clean_log: pl.DataFrame) -> None:
    requests = clean_log.group_by("request_id").agg(
        pl.len(),
        pl.col("user_id", "request_time", "tab").n_unique(),
        items=pl.col("item_id").n_unique(),
        positions=pl.col("position").sort(),
    )
    assert set(requests["len"]) == set(range(4, 13))
    assert requests.select(pl.col("user_id", "request_time", "tab").max()).row(0) == (1, 1, 1)
    assert (requests["items"] == requests["len"]).all()
    assert (requests["positions"] == requests.select(pl.int_ranges(0, "len", dtype=pl.Int8)).to_series()).all()


def test_events_follow_their_request_in_order_of_position_and_some_arrive_late(clean_log: pl.DataFrame) -> None:
    late = clean_log["arrival_time"] - clean_log["event_time"]
    assert (clean_log["event_time"] > clean_log["request_time"]).all()
    assert (clean_log["event_time"].diff().filter(clean_log["request_id"].diff() == 0) > 0).all()
    assert number(late.min()) >= 0
    assert 0.02 < number((late > 60_000).mean()) < 0.04
    assert number(late.max()) > 3 * 3_600_000


def test_requests_come_in_sessions(clean_log: pl.DataFrame) -> None:
    times = clean_log.unique("request_id").sort("user_id", "request_time")
    gaps = times.filter(pl.col("user_id").diff() == 0)["request_time"].len()
    gap = times["request_time"].diff().filter(times["user_id"].diff() == 0)
    assert gaps > 0
    assert number(gap.min()) > 0
    assert 30_000 < number(gap.median()) < 180_000
    assert 0.05 < number((gap > 1_800_000).mean()) < 0.12


def test_items_are_zipf_within_their_topic(clean_log: pl.DataFrame) -> None:
    ranked = clean_log.group_by("topic", "item_id").len().sort("len", descending=True)
    share = ranked.group_by("topic", maintain_order=True).agg(pl.col("len").head(12).sum() / pl.col("len").sum())
    # 12 items share the first of 416 steps of a log-uniform draw: log 2 / log 417 of the views.
    assert share["len"].mean() == pytest.approx(np.log(2) / np.log(417), abs=0.02)
    assert clean_log.group_by("author_id").agg(pl.col("topic").n_unique())["topic"].max() == 1


def test_long_views_and_likes_are_clicks_and_are_watched_longer(clean_log: pl.DataFrame) -> None:
    assert clean_log.filter(pl.max_horizontal("long_view", "like") > pl.col("click")).is_empty()
    dwell = clean_log.group_by("click", "long_view").agg(pl.col("dwell_ms").mean()).sort("dwell_ms")
    assert dwell.select("click", "long_view").rows() == [(0, 0), (1, 0), (1, 1)]
    assert number(clean_log["dwell_ms"].min()) > 0


def test_targets_are_about_40_requests_a_user_at_the_end(clean_log: pl.DataFrame) -> None:
    targets = clean_log.filter(pl.col("tab") > 0).unique("request_id")
    per_user = targets.group_by("user_id").len()
    assert number(targets["request_time"].min()) >= target_start_ms(SMALL.days)
    assert per_user.height > 55
    assert 30 < number(per_user["len"].mean()) < 42
    assert number(per_user["len"].max()) < 80


def test_feed_requests_continue_between_the_targets(clean_log: pl.DataFrame) -> None:
    late = clean_log.filter(pl.col("request_time") >= target_start_ms(SMALL.days))
    assert 0.2 < number((late["tab"] == 0).mean()) < 0.9


def test_feed_clicks_contain_no_affinity_beyond_the_topics_shown(clean_log: pl.DataFrame) -> None:
    # Per user and topic: among topics shown often, the click rate does not depend on how often.
    feed = clean_log.filter(pl.col("tab") == 0).group_by("user_id", "topic").agg(pl.len(), pl.col("click").mean())
    often = feed.filter(pl.col("len") > 400)
    assert often.height > 100
    assert abs(often.select(pl.corr("len", "click")).item()) < 0.35
