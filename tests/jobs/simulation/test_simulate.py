"""Simulating a log: files, seeds, parameters, interruptions."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import polars as pl
import pytest
from polars.testing import assert_frame_equal
from simulated_logs import COLUMNS, SMALL, number, read_log

from longbatch.jobs.simulation.simulate import Simulation, SimulationReport, simulate
from longbatch.jobs.simulation.world import (
    DAY_MS,
    EPOCH_MS,
)
from longbatch.schemas.errors import SpecError


def test_the_log_has_the_given_number_of_rows_and_the_documented_columns(
    clean: tuple[Path, SimulationReport], clean_log: pl.DataFrame
) -> None:
    assert dict(clean_log.schema) == COLUMNS
    assert clean_log.height == SMALL.events == clean[1].rows == clean[1].events
    assert clean_log["user_id"].n_unique() == SMALL.users
    assert clean_log.null_count().sum_horizontal().item() == 0


def test_the_same_seed_gives_the_same_log_on_any_number_of_threads(clean_log: pl.DataFrame, tmp_path: Path) -> None:
    simulate(tmp_path / "again", SMALL, threads=3)
    assert_frame_equal(read_log(tmp_path / "again"), clean_log)


def test_another_seed_gives_another_log(tmp_path: Path) -> None:
    for seed in (1, 2):
        simulate(tmp_path / str(seed), Simulation(users=5, events=5_000, seed=seed))
    assert not read_log(tmp_path / "1").equals(read_log(tmp_path / "2"))


def test_the_log_is_in_time_order_and_mixes_users(clean_log: pl.DataFrame) -> None:
    assert clean_log["request_time"].is_sorted()
    assert number(clean_log["user_id"].rle_id().max()) > SMALL.users * 10
    assert number(clean_log["request_time"].min()) >= EPOCH_MS
    assert number(clean_log["request_time"].max()) < EPOCH_MS + SMALL.days * DAY_MS


def test_a_clean_csv_log_equals_the_parquet_log(tmp_path: Path) -> None:
    for suffix in ("csv", "parquet"):
        simulate(tmp_path / suffix, Simulation(users=5, events=5_000, format=suffix))
    read = pl.concat(pl.read_csv(p, schema=COLUMNS) for p in sorted((tmp_path / "csv" / "log").iterdir()))
    assert_frame_equal(read, read_log(tmp_path / "parquet"))


def test_progress_ends_with_all_rows(tmp_path: Path) -> None:
    seen: list[tuple[str, float, float]] = []
    simulate(tmp_path / "log", Simulation(users=5, events=5_000), lambda *progress: seen.append(progress))
    assert seen[-1] == ("simulate", 5_000, 5_000)
    assert seen == sorted(seen)


def test_a_folder_that_is_not_empty_is_rejected(tmp_path: Path) -> None:
    (tmp_path / "note.txt").write_text("a note")
    with pytest.raises(SpecError, match="is not empty"):
        simulate(tmp_path, Simulation(users=5, events=5_000))
    with pytest.raises(SpecError, match=r"has no truth\.json"):
        simulate(tmp_path, Simulation(users=5, events=5_000), overwrite=True)
    assert [path.name for path in tmp_path.iterdir()] == ["note.txt"]


def test_overwrite_replaces_an_earlier_simulation_completely(tmp_path: Path) -> None:
    out = tmp_path / "log"
    out.mkdir()
    simulate(out, Simulation(users=5, events=20_000, days=60))
    simulate(out, Simulation(users=5, events=5_000, days=14), overwrite=True)
    assert read_log(out).height == 5_000
    assert [path.name for path in tmp_path.iterdir()] == ["log"]


def test_a_simulation_that_fails_leaves_nothing_behind(tmp_path: Path) -> None:
    def stop(stage: str, done: float, total: float) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        simulate(tmp_path / "log", Simulation(users=5, events=5_000), stop)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"users": 0}, "users is 0; it must be 1 or more"),
        ({"users": 100, "events": 500}, "5 per user; there must be 100 to 20000"),
        ({"users": 1, "events": 100_000}, "100000 per user"),
        ({"seed": -1}, "seed is -1"),
        ({"corrupt": 0.5}, r"corrupt is 0\.5"),
        ({"format": "xml"}, "format is 'xml'"),
        ({"days": 2}, "days is 2"),
        ({"targets_per_user": 0}, "targets_per_user"),
    ],
)
def test_impossible_parameters_are_rejected(wrong: dict[str, Any], message: str) -> None:
    with pytest.raises(SpecError, match=message):
        Simulation(**wrong)
