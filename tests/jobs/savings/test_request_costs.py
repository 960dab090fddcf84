"""Requests to an object store: hand-computed numbers, prices, and how layouts compare."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
from command_line import run_command

from longbatch.cli.text_output import format_request_costs
from longbatch.jobs.savings.capacity_plan import CapacityPlan, Demand, PlannedLayout, plan_capacity, steady_volume
from longbatch.jobs.savings.request_costs import LayoutRequests, ObjectStore, plan_requests
from longbatch.jobs.savings.results import Savings, write_savings
from longbatch.schemas.spec.build_spec import BuildSpec

STORE = ObjectStore(
    put_price=5.0,
    get_price=0.4,
    list_price=2.0,
    read_bytes=1e6,
    part_bytes=1e6,
    file_bytes=10e6,
    block_events=1_000,
    block_targets=1_000,
)


@pytest.fixture
def small(savings: Savings) -> tuple[Savings, CapacityPlan]:
    """A plan with round numbers: 1,000 users, 2 requests a day of 5 targets, 10 days, histories of 100 events."""
    rates = replace(
        savings.rates,
        event_disk_bytes=10.0,
        request_disk_bytes=50.0,
        target_disk_bytes=20.0,
        parquet_event_bytes=30.0,
        row_bytes=40.0,
    )
    measured = replace(savings, rates=rates)
    volume = steady_volume(users=1_000, requests_per_user_day=2, targets=5, length=100, days=10, events_per_user_day=10)
    # 20,000 requests and 0.5 requests per second and trainer: 2 trainers read 4.32 epochs a day
    plan = plan_capacity(measured, volume, Demand(trainers=2, requests_per_second=0.5))
    layout = PlannedLayout("sample_level_by_user", "sample level", disk_bytes=40e6, memory_bytes=0.0)
    build = replace(plan.build, day_rows=50_000.0, buckets=4)
    return measured, replace(plan, layouts=[layout, plan.layouts[-1]], build=build)


def planned(small: tuple[Savings, CapacityPlan], store: ObjectStore = STORE) -> list[LayoutRequests]:
    return plan_requests(*small, days=10, store=store)


def test_training_requests_two_ranges_of_each_block_once_an_epoch(small: tuple[Savings, CapacityPlan]) -> None:
    training = planned(small)[-1].training_day
    # 1,000 * (100 + 10 * 10) stored events are 200 blocks; 100,000 targets would be 100
    assert training.gets == round(4.32 * 2 * 200)
    assert (training.puts, training.lists) == (0, 2)
    assert training.dollars == pytest.approx((1_728 * 0.4 + 2 * 2.0) / 1_000)


def test_blocks_are_limited_by_targets_too(small: tuple[Savings, CapacityPlan]) -> None:
    store = replace(STORE, block_targets=100)  # 100,000 targets are 1,000 blocks
    assert planned(small, store)[-1].training_day.gets == round(4.32 * 2 * 1_000)


def test_training_on_another_layout_requests_all_of_its_bytes(small: tuple[Savings, CapacityPlan]) -> None:
    training = planned(small)[0].training_day
    assert training.gets == 173  # 4.32 epochs of 40 MB in ranges of 1 MB: 172.8
    assert training.lists == 2  # 2 trainers, 4 files


def test_an_append_reads_log_and_state_and_writes_state_and_shards(small: tuple[Savings, CapacityPlan]) -> None:
    building = planned(small)[-1].building_day
    # log: 50,000 rows of 40 bytes are 2 ranges; state: 1,000 users with 100 events of 10 bytes are 1 MB in 4 files
    assert building.gets == 2 + 4
    # 4 files of state, and 4 shards of 2 files; no file is larger than a part
    assert building.puts == 4 + 8
    assert building.lists == 1
    assert building.dollars == pytest.approx((6 * 0.4 + 12 * 5.0 + 1 * 2.0) / 1_000)


def test_large_files_are_written_in_parts(small: tuple[Savings, CapacityPlan]) -> None:
    # Shards: (100,000 + 10,000) events of 10 bytes, 2,000 requests of 50 and 10,000 targets of 20: 1.4 MB in 8 files
    building = planned(small, replace(STORE, part_bytes=100_000))[-1].building_day
    # a state file of 250 kB has 3 parts, a shard file of 175 kB has 2, and each file has 2 more requests
    assert building.puts == 4 * (3 + 2) + 8 * (2 + 2)


def test_adding_a_day_to_another_layout_reads_the_histories(small: tuple[Savings, CapacityPlan]) -> None:
    building = planned(small)[0].building_day
    # log: 2 ranges; histories: 100,000 events of 30 bytes are 3 MB
    assert building.gets == 2 + 3
    assert building.puts == 4 + 2  # one file of 4 MB in 4 parts


def test_users_without_a_request_on_a_day_are_not_in_its_shards(small: tuple[Savings, CapacityPlan]) -> None:
    measured, plan = small
    rare = replace(plan.volume, requests=5_000.0, targets=25_000.0, history_events=500_000.0)
    (*_, dataset) = plan_requests(measured, replace(plan, volume=rare), 10, replace(STORE, part_bytes=100_000))
    # 500 users have a request: (50,000 + 17,500) events, 500 requests and 2,500 targets are 0.75 MB in 8 files
    assert dataset.building_day.puts == 4 * (3 + 2) + 8 * 1


def test_the_default_block_sizes_are_those_of_the_spec() -> None:
    fields, store = BuildSpec.model_fields, ObjectStore()
    assert (store.block_events, store.block_targets) == (
        fields["block_events"].default,
        fields["block_targets"].default,
    )


def test_the_text_has_a_line_for_each_layout_and_purpose(small: tuple[Savings, CapacityPlan]) -> None:
    header, *lines = format_request_costs(planned(small)).splitlines()
    assert header.split()[-4:] == ["GET", "PUT", "LIST", "dollars"]
    assert [line.split()[-4:] for line in lines] == [
        ["173", "0", "2", "0.07"],
        ["5", "6", "1", "0.03"],
        ["1,728", "0", "2", "0.70"],
        ["6", "12", "1", "0.06"],
    ]


def test_the_command_prices_requests_with_the_given_prices(savings: Savings, tmp_path: Path) -> None:
    write_savings(savings, tmp_path / "savings.json")
    prices = ("--put-price", "1", "--get-price", "0", "--list-price", "0", "--json")
    plan = json.loads(run_command("plan", str(tmp_path / "savings.json"), *prices).stdout)
    store = plan["object_store"]
    assert (store["put_price"], store["get_price"]) == (1, 0)
    assert [layout["name"] for layout in store["layouts"]] == [layout["name"] for layout in plan["layouts"]]
    for layout in store["layouts"]:
        assert layout["training_day"]["dollars"] == 0
        assert layout["building_day"]["dollars"] == pytest.approx(layout["building_day"]["puts"] / 1_000)
