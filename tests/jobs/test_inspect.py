"""Descriptions of datasets, and a user's request with the strings of hashed ids."""

from __future__ import annotations

from pathlib import Path

import polars as pl
import pytest

from longbatch.jobs.build import build
from longbatch.jobs.inspect import describe, describe_user
from longbatch.jobs.user_ids import user_ids
from longbatch.pipelines.arrays.hashing import hash_string
from longbatch.schemas.errors import DatasetError, SpecError
from longbatch.schemas.format.dataset import Dataset, open_dataset
from longbatch.schemas.spec.build_spec import parse_spec

T = 1_700_000_000
SPEC = """
name = "small"
history_length = 20
compression = "lz4"
[sources.plays]
path = "PLAYS"
[sources.shown]
path = "SHOWN"
[history]
source = "plays"
user_id = { column = "user", type = "USERS" }
item_id = { column = "item", type = "string" }
event_time = { column = "time", unit = "s" }
features = { ratio = "float32" }
[requests]
source = "shown"
user_id = { column = "user", type = "USERS" }
item_id = { column = "item", type = "string" }
request_time = { column = "time", unit = "s" }
request_id = "request"
labels = { click = "bool" }
"""


def build_small(folder: Path, users: tuple[object, object], user_type: str) -> Dataset:
    """Build a dataset: the first user has 12 plays and two requests, the second one has no play and one request."""
    seconds = list(range(12))
    plays = {
        "user": [users[0]] * 12,
        "item": [f"song {n}" for n in seconds],
        "time": [T + n for n in seconds],
        "ratio": [0.5] * 12,
    }
    shown = {
        "user": [users[0], users[0], users[1]],
        "item": ["song 5", "new", "new"],
        "time": [T + 3, T + 60, T + 9],
        "request": [7, 8, 9],
        "click": [True, False, True],
    }
    pl.DataFrame(plays).write_parquet(folder / "plays.parquet")
    pl.DataFrame(shown).write_parquet(folder / "shown.parquet")
    spec = SPEC.replace("PLAYS", str(folder / "plays.parquet")).replace("SHOWN", str(folder / "shown.parquet"))
    build(parse_spec(spec.replace("USERS", user_type)), folder / "out")
    return open_dataset(folder / "out")


@pytest.fixture
def dataset(tmp_path: Path) -> Dataset:
    return build_small(tmp_path, ("ann", "bob"), "string")


def test_a_dataset_is_described_in_numbers(dataset: Dataset) -> None:
    description = describe(dataset).as_dict()
    assert {
        name: description[name] for name in ("name", "snapshot", "history_length", "compression", "shards", "blocks")
    } == {
        "name": "small",
        "snapshot": 1,
        "history_length": 20,
        "compression": "lz4",
        "shards": 1,
        "blocks": 1,
    }
    assert (description["counts"]["requests"], description["targets_per_request"], description["mean_history"]) == (
        3,
        1.0,
        5.0,
    )
    assert description["first_request_time"] == "2023-11-14T22:13:23+00:00"
    assert description["last_request_time"] == "2023-11-14T22:14:20+00:00"
    assert description["row_accounting"]["plays"]["accepted"] == 12
    assert description["bytes"]["timelines"] == dataset.shards[0].timelines.size_bytes
    assert description["timelines_schema"]["user_id"] == "int64"
    assert "content_hash" not in description


def test_the_content_hash_is_computed_on_request(dataset: Dataset) -> None:
    assert len(describe(dataset, hash_content=True).as_dict()["content_hash"]) == 32


def test_the_last_request_of_a_user_is_described_with_strings(dataset: Dataset) -> None:
    description = describe_user(dataset, "ann")
    assert (
        description["request_id"],
        description["user_id"],
        description["history_length"],
        description["requests_of_user"],
    ) == (
        8,
        "ann",
        12,
        2,
    )
    assert description["targets"] == [{"item_id": "new", "click": False}]
    assert len(description["newest_events"]) == 10
    assert description["newest_events"][-1] == {
        "item_id": "song 11",
        "event_time": "2023-11-14T22:13:31+00:00",
        "ratio": 0.5,
    }


@pytest.mark.parametrize(("number", "request_id", "events"), [(0, 7, 3), (1, 8, 12), (-2, 7, 3)])
def test_any_request_of_a_user_can_be_described(dataset: Dataset, number: int, request_id: int, events: int) -> None:
    description = describe_user(dataset, "ann", number)
    assert (description["request_id"], description["history_length"]) == (request_id, events)


def test_a_user_without_events_has_an_empty_history(dataset: Dataset) -> None:
    assert describe_user(dataset, "bob")["newest_events"] == []


@pytest.mark.parametrize("number", [2, -3])
def test_a_request_that_the_user_does_not_have_is_refused(dataset: Dataset, number: int) -> None:
    with pytest.raises(SpecError, match=rf"user ann has 2 requests, none with index {number}"):
        describe_user(dataset, "ann", number)


def test_a_user_without_requests_is_refused(dataset: Dataset) -> None:
    with pytest.raises(DatasetError, match=r"user nobody has no request in .*out"):
        describe_user(dataset, "nobody")


def test_users_are_numbers_or_hashed_strings(tmp_path: Path, dataset: Dataset) -> None:
    assert user_ids(dataset.spec, ["ann"]).tolist() == hash_string(pl.Series(["ann"])).to_list()
    (tmp_path / "numbers").mkdir()
    numbers = build_small(tmp_path / "numbers", (5, 6), "int64")
    assert user_ids(numbers.spec, ["5"]).tolist() == [5]
    assert describe_user(numbers, "5")["user_id"] == 5
    with pytest.raises(SpecError, match=r"user 'ann' is not an integer, but the users of this dataset are integers"):
        describe_user(numbers, "ann")


def test_a_number_equal_to_the_hash_of_a_string_stays_a_number(tmp_path: Path) -> None:
    """The empty string hashes to 0, but labels of 0 are not strings."""
    request = describe_user(build_small(tmp_path, ("", "bob"), "string"), "bob")
    assert request["targets"] == [{"item_id": "new", "click": True}]
    assert describe_user(open_dataset(tmp_path / "out"), "")["user_id"] == ""
    assert describe_user(open_dataset(tmp_path / "out"), "bob")["history_length"] == 0
