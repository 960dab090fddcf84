"""Capacity plans: each formula of docs/planning.md, and a measured volume gives back what was measured."""

from __future__ import annotations

from dataclasses import replace

import pytest

from longbatch.cli.text_output import format_capacity_plan
from longbatch.jobs.savings.capacity_plan import Demand, Volume, plan_capacity, steady_volume
from longbatch.jobs.savings.results import Savings


def measured_volume(savings: Savings, times: int = 1) -> Volume:
    measured = savings.dataset
    counts = (measured.users, measured.requests, measured.targets, measured.stored_events, measured.history_events)
    return Volume(*(times * count for count in counts))


def test_users_start_with_complete_histories() -> None:
    volume = steady_volume(users=10, requests_per_user_day=3, targets=8, length=100, days=2, events_per_user_day=24)
    expected = Volume(users=10, requests=60, targets=480, stored_events=10 * (100 + 48), history_events=6_000)
    assert volume == replace(expected, day_records=10 * (24 + 24))


def test_the_measured_volume_gives_the_measured_bytes(savings: Savings) -> None:
    plan = plan_capacity(savings, measured_volume(savings), Demand())
    for layout in savings.layouts:
        if layout.name.endswith("level_by_user"):
            planned = plan.layout(layout.name)
            assert planned.disk_bytes == pytest.approx(layout.file("Parquet zstd").disk_bytes)
            assert planned.memory_bytes == pytest.approx(layout.memory_bytes, rel=0.02)
    assert plan.layout("dataset").disk_bytes == pytest.approx(savings.stored.disk_bytes)


def test_a_shuffled_history_costs_what_its_events_cost_once(savings: Savings) -> None:
    volume, rates = measured_volume(savings), savings.rates
    plan = plan_capacity(savings, volume, Demand())
    once = sum(column.parquet or 0 for column in savings.columns if column.name.startswith("events."))
    copies = volume.history_events / volume.stored_events
    targets = volume.targets * rates.target_disk_bytes
    own = volume.requests * rates.request_disk_bytes + targets
    assert plan.layout("request_level_shuffled").disk_bytes == pytest.approx(once * copies + own, rel=0.02)
    own = volume.targets * rates.request_disk_bytes + targets
    assert plan.layout("sample_level_shuffled").disk_bytes == pytest.approx(2 * once * copies + own, rel=0.02)


def test_sorted_by_user_a_longer_history_costs_its_copies_but_no_more_events(savings: Savings) -> None:
    name = "request_level_by_user"
    layout = savings.layout(name)
    expensive = replace(layout, files=[replace(file, disk_bytes=10 * file.disk_bytes) for file in layout.files])
    others = [other for other in savings.layouts if other.name != name]
    expensive_savings = replace(savings, layouts=[*others, expensive])
    volume = measured_volume(savings)
    longer = replace(volume, history_events=3 * volume.history_events)
    rates = savings.rates
    own = volume.requests * rates.request_disk_bytes + volume.targets * rates.target_disk_bytes
    fixed = volume.stored_events * rates.parquet_event_bytes + own
    for results, copies in ((expensive_savings, 3), (savings, 1)):  # free copies stay free when histories get longer
        once, three_times = (plan_capacity(results, v, Demand()).layout(name).disk_bytes for v in (volume, longer))
        assert three_times - fixed == pytest.approx(copies * (once - fixed))


def test_a_plan_far_from_its_sample_has_cautions(savings: Savings) -> None:
    volume = measured_volume(savings)
    assert plan_capacity(savings, volume, Demand()).cautions == [
        "the sample has 40 users; rates of fewer than 1,000 users vary"
    ]
    far = replace(volume, history_events=9 * volume.history_events, targets=2 * volume.targets, stored_events=1e13)
    text = format_capacity_plan(plan_capacity(savings, far, Demand()))
    assert "caution: history events per request: " in text
    assert "caution: targets per request: 4 planned, 2 in the sample. " in text
    assert "caution: 65,536 buckets is the maximum, so tasks are large; build day by day" in text


def test_ten_times_the_volume_is_ten_times_the_bytes_rows_and_shuffle(savings: Savings) -> None:
    one, ten = (plan_capacity(savings, measured_volume(savings, times), Demand()) for times in (1, 10))
    for small, large in zip(one.layouts, ten.layouts, strict=True):
        assert large.disk_bytes == pytest.approx(10 * small.disk_bytes)
    assert ten.build.log_rows == pytest.approx(10 * one.build.log_rows)
    assert ten.build.shuffle_bytes == pytest.approx(10 * one.build.shuffle_bytes)
    assert one.build.log_rows == pytest.approx(40 * 60)


def test_reading_is_the_request_rate_times_the_cost_of_a_request(savings: Savings) -> None:
    volume = measured_volume(savings)
    reading = plan_capacity(savings, volume, Demand(trainers=3, requests_per_second=50, cores_per_host=4)).reading
    assert reading.requests_per_second == 150
    assert reading.read_bytes_per_second == pytest.approx(150 * savings.stored.disk_bytes / volume.requests)
    history = volume.history_events / volume.requests
    assert reading.batch_bytes_per_second == pytest.approx(150 * history * savings.means.event_bytes)
    assert reading.hosts == -(-reading.cores // 4)


def test_a_plan_is_printed_as_text(savings: Savings) -> None:
    text = format_capacity_plan(plan_capacity(savings, measured_volume(savings), Demand()))
    assert text.startswith("40 users, 1,200 requests, 2,400 targets, ")
    for phrase in (
        "sample level, shuffled, Parquet zstd",
        "longbatch, Arrow zstd",
        "shuffled",
        "memory per task",
        "loader hosts",
    ):
        assert phrase in text
