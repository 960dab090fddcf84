"""Corrupt rows are planted as counted, among clean rows that keep their order."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import polars as pl
import pytest
from hypothesis import given
from hypothesis import strategies as st
from simulated_logs import COLUMNS, CSV, END_MS, number, planted_by_table, read_log

from longbatch.jobs.simulation.corrupt_rows import corruptions, plan_copies, shuffle_in
from longbatch.jobs.simulation.ground_truth import read_truth
from longbatch.jobs.simulation.simulate import Simulation, SimulationReport, simulate
from longbatch.schemas.spec.build_spec import load_spec


def test_corrupt_rows_are_added_among_the_clean_rows_which_keep_their_order(
    corrupt: tuple[Path, SimulationReport], clean_log: pl.DataFrame
) -> None:
    everything, report = read_log(corrupt[0]), corrupt[1]
    assert dict(everything.schema) == COLUMNS | {"topic": pl.Int32}
    assert everything.height == report.rows == clean_log.height + sum(report.planted.values())
    corrupt_rows = sum(rows for name, rows in report.planted.items() if name not in ("rejected_user", "short_history"))
    assert corrupt_rows == pytest.approx(0.02 * clean_log.height, rel=0.02)
    wide = clean_log.with_columns(pl.col("topic").cast(pl.Int32)).with_row_index("clean")
    kept = everything.with_row_index("position_in_log").unique(list(COLUMNS), keep="first").sort("position_in_log")
    matched = kept.join(wide, on=list(COLUMNS), how="inner", maintain_order="left")
    assert matched.height == clean_log.height
    late = matched["clean"].cast(pl.Int64).diff() < 0
    assert late.sum() < 0.01 * clean_log.height, "only copies that precede the row they copy are out of order"


def test_the_log_has_as_many_rows_of_each_corruption_as_counted(
    corrupt: tuple[Path, SimulationReport], clean_log: pl.DataFrame
) -> None:
    everything, planted = read_log(corrupt[0]), planted_by_table(corrupt[0])
    is_feed, is_target = pl.col("tab") == 0, pl.col("tab") > 0
    regular = pl.col("request_id").is_null() | (pl.col("request_id") <= 2 * corrupt[1].requests)
    events, targets = everything.filter(is_feed & regular), everything.filter(is_target & regular)
    added = targets.filter(pl.col("request_id") > corrupt[1].requests)
    users = added.group_by("request_id").agg(
        pl.col("user_id", "request_time").n_unique(), pl.len(), late=pl.col("request_time").max() > END_MS
    )
    wrong_dwell = (pl.col("dwell_ms") < 0) | (pl.col("dwell_ms") > 86_400_000)
    no_item, no_time = pl.col("item_id").is_null(), pl.col("request_time").is_null()
    counted = {
        "duplicate": events.height - events.unique().height,
        "missing_user": events["user_id"].null_count(),
        "missing_item": events.filter(no_item & ~wrong_dwell).height,
        "missing_time": events["event_time"].null_count(),
        "time_out_of_range": events.filter(impossible("event_time")).height,
        "unparsable:topic": events.filter(pl.col("topic").cast(pl.Int16, strict=False).is_null()).height,
        "out_of_range:dwell_ms": events.filter(wrong_dwell & ~no_item).height,
        "unknown:click": events.filter(~pl.col("click").is_in([0, 1])).height,
        "missing_item+out_of_range:dwell_ms": events.filter(wrong_dwell & no_item).height,
    }
    left_out = {"filtered", "rejected_user", "short_history"}
    assert counted == {name: rows for name, rows in planted["history"].items() if name not in left_out}
    counted = {
        "duplicate": targets.height - targets.unique().height,
        "missing_user": targets["user_id"].null_count(),
        "missing_item": targets["item_id"].null_count(),
        "missing_time": targets.filter(no_time & pl.col("click").is_not_null()).height,
        "time_out_of_range": targets.filter(impossible("request_time")).height,
        "unparsable:topic": targets.filter(pl.col("topic").cast(pl.Int16, strict=False).is_null()).height,
        "missing_request": targets["request_id"].null_count(),
        "missing_label:click": targets.filter(~no_time & pl.col("click").is_null()).height,
        "missing_label:long_view": targets["long_view"].null_count(),
        "missing_label:like": targets["like"].null_count(),
        "out_of_range:position": targets.filter(~pl.col("position").is_between(0, 11)).height,
        "unknown:tab": targets.filter(pl.col("tab") > 2).height,
        "unknown:like": targets.filter(~pl.col("like").is_in([0, 1])).height,
        "missing_time+missing_label:click": targets.filter(no_time & pl.col("click").is_null()).height,
        "conflicting_request": int(users.filter(pl.col("user_id") == 2)["len"].sum()),
        "differing_request_time": int(users.filter(pl.col("request_time") == 2)["len"].sum()),
        "pending_label": int(users.filter("late")["len"].sum()),
        "action": everything.filter(pl.col("tab") < 0).height,
    }
    assert counted == {name: rows for name, rows in planted["requests"].items() if name not in left_out}
    filtered = planted["history"]["filtered"] + planted["requests"]["filtered"]
    assert everything["tab"].null_count() == filtered
    assert min(rows for table in planted.values() for rows in table.values()) > 0
    assert set(users["len"]) == {2}


def impossible(time: str) -> pl.Expr:
    return (pl.col(time) <= 0) | (pl.col(time) > 4_102_444_800_000)


def test_shuffling_in_keeps_the_order_of_the_clean_rows() -> None:
    clean, corrupt_rows = pl.DataFrame({"row": range(1_000)}), pl.DataFrame({"row": range(-100, 0)})
    rows = shuffle_in(clean, corrupt_rows, np.random.default_rng(0))["row"]
    assert rows.filter(rows >= 0).to_list() == list(range(1_000))
    assert sorted(rows.filter(rows < 0)) == list(range(-100, 0))
    assert number((rows < 0).arg_true().diff().max()) < 100, "corrupt rows are everywhere"


def test_an_added_valid_request_has_its_truth(corrupt: tuple[Path, SimulationReport]) -> None:
    keys = ["request_id", "item_id", "position"]
    truth, everything = read_truth(corrupt[0]), read_log(corrupt[0])
    added = truth.targets.filter(pl.col("request_id") > corrupt[1].requests)
    assert added.height == corrupt[1].planted["differing_request_time"]
    assert added.join(everything, on=keys, how="semi").height == added.height
    assert truth.document["planted_but_valid"] == ["differing_request_time", "action"]


def test_a_corrupt_csv_log_has_unparsable_values_and_malformed_lines(tmp_path: Path) -> None:
    report = simulate(tmp_path / "csv", Simulation(users=20, events=60_000, corrupt=0.05, format="csv"))
    lines = [path.read_text().splitlines() for path in sorted((tmp_path / "csv" / "log").glob("*.csv"))]
    assert {file[0] for file in lines} == {",".join(COLUMNS)}
    fields = [line.split(",") for file in lines for line in file[1:]]
    assert len(fields) == report.rows
    malformed = [len(line) for line in fields if len(line) != len(COLUMNS)]
    assert len(malformed) == report.planted["malformed_row"] > 0
    assert set(malformed) == {13, 15}
    everything = pl.DataFrame([line for line in fields if len(line) == len(COLUMNS)], list(COLUMNS), orient="row")
    for column in ("event_time", "dwell_ms", "request_time", "click"):
        number = everything[column].replace("", "0").cast(pl.Int64, strict=False)
        assert number.null_count() == report.planted[f"unparsable:{column}"] > 0
    assert load_spec(tmp_path / "csv" / "spec.toml").max_rejected == 0.1


@given(st.lists(st.integers(0, 5_000), max_size=8), st.sampled_from([0.001, 0.01, 0.2]))
def test_each_corruption_gets_its_share_however_the_log_is_split(files: list[int], fraction: float) -> None:
    planted = corruptions("requests", CSV)
    before = np.cumsum([0, *files]).tolist()
    copies = [plan_copies(fraction, start, rows, planted) for start, rows in zip(before, files, strict=False)]
    at_once = plan_copies(fraction, 0, before[-1], planted)
    assert [sum(column) for column in zip(*copies, strict=True)] == (at_once if files else [])
    assert sum(n * corruption.rows for n, corruption in zip(at_once, planted, strict=True)) == pytest.approx(
        fraction * before[-1], abs=2 * len(planted)
    )
