"""Plans: each formula of docs/planning.md by hand, and what is measured of a dataset comes back for the same volume."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import polars as pl
import pytest

from longbatch.cli.text_output import format_capacity_plan
from longbatch.jobs.build import build
from longbatch.jobs.savings.capacity_plan import Demand, Volume, project, steady_volume
from longbatch.jobs.savings.measure import measure
from longbatch.jobs.savings.results_file import read_savings
from longbatch.schemas.errors import SpecError
from longbatch.schemas.format.dataset import open_dataset
from longbatch.schemas.spec.build_spec import parse_spec

SPEC = """
history_length = 5
[sources.log]
path = "log.parquet"
[history]
source = "log"
user_id = "user"
item_id = "item"
event_time = { column = "time", unit = "s" }
[requests]
source = "log"
user_id = "user"
item_id = "item"
request_time = { column = "time", unit = "s" }
request_id = "request"
labels = { click = "int8" }
"""


@pytest.fixture(scope="module")
def savings(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    folder = tmp_path_factory.mktemp("plan")
    rows = [(user, 100 * user + k // 2, k % 17, 1_700_000_000 + k // 2, k % 2) for user in range(40) for k in range(60)]
    pl.DataFrame(rows, ["user", "request", "item", "time", "click"], orient="row").write_parquet(folder / "log.parquet")
    build(parse_spec(SPEC).with_paths_from(folder), folder / "dataset")
    measure(open_dataset(folder / "dataset"), folder / "out")
    return read_savings(folder / "out" / "savings.json")


def measured_volume(savings: dict[str, Any], times: int = 1) -> Volume:
    d = savings["dataset"]
    return Volume(*(times * d[name] for name in ("users", "requests", "targets", "events", "history_events")))


def test_users_come_with_full_histories() -> None:
    volume = steady_volume(users=10, requests_per_user_day=3, targets=8, length=100, days=2, events_per_user_day=24)
    whole = Volume(users=10, requests=60, targets=480, stored_events=10 * (100 + 48), history_events=6_000)
    assert volume == replace(whole, day_records=10 * (24 + 24))


def test_the_volume_that_was_measured_gives_the_bytes_that_were_measured(savings: dict[str, Any]) -> None:
    planned = project(savings, measured_volume(savings), Demand())
    found = {layout["name"]: layout for layout in planned["layouts"]}
    for layout in savings["layouts"]:
        if layout["name"].endswith("level_by_user"):
            (parquet,) = (f["bytes"] for f in layout["files"] if (f["format"], f["codec"]) == ("Parquet", "zstd"))
            assert found[layout["name"]]["bytes"] == pytest.approx(parquet)
            assert found[layout["name"]]["decoded_bytes"] == pytest.approx(layout["decoded_bytes"], rel=0.02)
    assert found["dataset"]["bytes"] == pytest.approx(savings["on_disk"]["bytes"])


def test_a_shuffled_history_costs_what_its_events_cost_once(savings: dict[str, Any]) -> None:
    volume, rates = measured_volume(savings), savings["rates"]
    found = {layout["name"]: layout["bytes"] for layout in project(savings, volume, Demand())["layouts"]}
    once = sum(column["parquet"] or 0 for column in savings["columns"] if column["name"].startswith("events."))
    copies = volume.history_events / volume.stored_events
    targets = volume.targets * rates["target_at_rest"]
    own = volume.requests * rates["request_at_rest"] + targets
    assert found["request_level_shuffled"] == pytest.approx(once * copies + own, rel=0.02)
    own = volume.targets * rates["request_at_rest"] + targets
    assert found["sample_level_shuffled"] == pytest.approx(2 * once * copies + own, rel=0.02)


def test_sorted_by_user_a_longer_history_costs_its_copies_and_no_event_more(savings: dict[str, Any]) -> None:
    dear = json.loads(json.dumps(savings))
    for file in next(x for x in dear["layouts"] if x["name"] == "request_level_by_user")["files"]:
        file["bytes"] *= 10
    volume = measured_volume(savings)
    longer = replace(volume, history_events=3 * volume.history_events)
    rates = savings["rates"]
    own = volume.requests * rates["request_at_rest"] + volume.targets * rates["target_at_rest"]
    fixed = volume.stored_events * rates["parquet_event_at_rest"] + own
    for of, copies in ((dear, 3), (savings, 1)):  # where the copies cost nothing, longer ones cost nothing either
        layouts = [project(of, v, Demand())["layouts"] for v in (volume, longer)]
        one, three = (next(x["bytes"] for x in each if x["name"] == "request_level_by_user") for each in layouts)
        assert three - fixed == pytest.approx(copies * (one - fixed))


def test_a_plan_far_from_its_sample_says_so(savings: dict[str, Any]) -> None:
    volume = measured_volume(savings)
    assert project(savings, volume, Demand())["cautions"] == ["the sample has 40 users; rates of fewer than 1,000 vary"]
    far = replace(volume, history_events=9 * volume.history_events, targets=2 * volume.targets, stored_events=1e13)
    told = format_capacity_plan(project(savings, far, Demand()))
    assert "caution: history events per request: " in told
    assert "caution: targets per request: 4, the sample has 2; " in told
    assert "caution: 8,192 buckets is the most there are, so tasks are large: build day by day" in told


def test_ten_times_the_volume_is_ten_times_the_bytes_rows_and_shuffle(savings: dict[str, Any]) -> None:
    one, ten = (project(savings, measured_volume(savings, times), Demand()) for times in (1, 10))
    for small, large in zip(one["layouts"], ten["layouts"], strict=True):
        assert large["bytes"] == pytest.approx(10 * small["bytes"])
    for name in ("log_rows", "shuffle_bytes"):
        assert ten["build"][name] == pytest.approx(10 * one["build"][name])
    assert one["build"]["log_rows"] == pytest.approx(40 * 60)


def test_reading_is_requests_times_what_each_takes(savings: dict[str, Any]) -> None:
    volume = measured_volume(savings)
    reading = project(savings, volume, Demand(trainers=3, requests_per_second=50, cores_per_host=4))["reading"]
    assert reading["requests_per_second"] == 150
    assert reading["read_bytes_per_second"] == pytest.approx(150 * savings["on_disk"]["bytes"] / volume.requests)
    history = volume.history_events / volume.requests
    assert reading["batch_bytes_per_second"] == pytest.approx(150 * history * savings["formula"]["event_bytes"])
    assert reading["hosts"] == -(-reading["cores"] // 4)


def test_a_plan_is_told_in_words(savings: dict[str, Any]) -> None:
    text = format_capacity_plan(project(savings, measured_volume(savings), Demand()))
    assert text.startswith("40 users, 1,200 requests, 2,400 targets, ")
    for word in (
        "sample level, shuffled, Parquet zstd",
        "longbatch, Arrow zstd",
        "shuffled",
        "memory per task",
        "loader hosts",
    ):
        assert word in text


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, r"cannot read .*savings\.json: No such file or directory; make one with `longbatch measure`"),
        ("{", r"savings\.json is no savings\.json; make one"),
        (json.dumps({"version": 1}), r"savings\.json is of version 1, this longbatch reads 2; measure again"),
    ],
)
def test_what_is_no_savings_file_is_refused(tmp_path: Path, content: str | None, message: str) -> None:
    path = tmp_path / "savings.json"
    if content is not None:
        path.write_text(content)
    with pytest.raises(SpecError, match=message):
        read_savings(path)


@pytest.mark.parametrize(
    ("place", "value", "message"),
    [
        (("rates",), None, r"was damaged: rates: .*; measure again"),
        (("rates", "log_rows"), float("nan"), r"was damaged: rates.log_rows: Input should be a finite number"),
        (("rates", "log_rows"), "many", r"was damaged: rates.log_rows: Input should be a valid number"),
        (("rates", "event_at_rest"), -1.0, r"was damaged: rates.event_at_rest: .* greater than or equal to 0"),
        (("rates", "copied_bytes_per_second"), 0, r"rates.copied_bytes_per_second: .* greater than 0"),
        (("dataset", "requests"), 0, r"dataset.requests: .* greater than 0"),
        (
            ("layouts",),
            [],
            r"was damaged: sample_level_by_user, request_level_by_user was not measured as Parquet zstd",
        ),
    ],
)
def test_a_damaged_savings_file_is_refused_by_the_figure(
    savings: dict[str, Any], tmp_path: Path, place: tuple[str, ...], value: Any, message: str
) -> None:
    document = json.loads(json.dumps(savings))
    at = document
    for key in place[:-1]:
        at = at[key]
    at[place[-1]] = value
    (tmp_path / "savings.json").write_text(json.dumps(document))
    with pytest.raises(SpecError, match=message):
        read_savings(tmp_path / "savings.json")
