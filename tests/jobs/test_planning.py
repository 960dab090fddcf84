"""Plans: each formula of docs/planning.md by hand, and what is measured of a dataset comes back for the same volume."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import polars as pl
import pytest

from longbatch.jobs.build import build
from longbatch.jobs.measure import measure
from longbatch.jobs.planning import Demand, Volume, project, read_savings, steady_volume
from longbatch.jobs.summary import plan_text
from longbatch.schemas.dataset import open_dataset
from longbatch.schemas.errors import SpecError
from longbatch.schemas.spec import parse_spec

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
    assert volume == Volume(users=10, requests=60, targets=480, stored_events=10 * (100 + 48), history_events=6_000)


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
    volume = measured_volume(savings)
    found = {layout["name"]: layout["bytes"] for layout in project(savings, volume, Demand())["layouts"]}
    once = sum(column["parquet"] or 0 for column in savings["columns"] if column["name"].startswith("events."))
    copies = volume.history_events / volume.stored_events
    assert found["request_level_shuffled"] == pytest.approx(once * copies, rel=0.02)
    assert found["sample_level_shuffled"] == pytest.approx(2 * once * copies, rel=0.02)


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
    text = plan_text(project(savings, measured_volume(savings), Demand()))
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
