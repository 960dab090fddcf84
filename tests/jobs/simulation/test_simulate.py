import json
import tomllib
from pathlib import Path

import numpy as np
import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from polars.testing import assert_frame_equal

from longbatch.jobs.simulation.corrupt_rows import Recipe, kinds, mingle, plan_copies
from longbatch.jobs.simulation.expected_counts import expected_accounting
from longbatch.jobs.simulation.ground_truth import Sample, attainable_auc, auc, count_topics, fit_logistic, read_truth
from longbatch.jobs.simulation.outliers import BOTS, NEWCOMERS, Limits, draw_outliers, regular_limits
from longbatch.jobs.simulation.rows import LABELS
from longbatch.jobs.simulation.simulate import Simulation, SimulationReport, simulate
from longbatch.jobs.simulation.world import (
    DAY_MS,
    EPOCH_MS,
    LARGEST_REQUEST,
    cut_files,
    draw_requests,
    draw_sizes,
    window_start_ms,
)
from longbatch.schemas.accounting import POLICIES, RowAccounting
from longbatch.schemas.errors import SpecError
from longbatch.schemas.spec.build_spec import load_spec

SMALL = Simulation(users=60, events=300_000, seed=7, days=30)
CORRUPT = Simulation(users=60, events=300_000, seed=7, days=30, corrupt=0.02)
COLUMNS = {
    "request_id": pl.Int64,
    "user_id": pl.Int64,
    "item_id": pl.Int64,
    "author_id": pl.Int32,
    "topic": pl.Int16,
    "position": pl.Int8,
    "tab": pl.Int8,
    "request_time": pl.Int64,
    "event_time": pl.Int64,
    "arrival_time": pl.Int64,
    "dwell_ms": pl.Int32,
    "click": pl.Int8,
    "long_view": pl.Int8,
    "like": pl.Int8,
}
END_MS = EPOCH_MS + 30 * DAY_MS  # of SMALL and CORRUPT
CSV = Recipe(0.02, "csv", END_MS)


def read_log(out: Path) -> pl.DataFrame:
    return pl.concat(pl.read_parquet(path) for path in sorted((out / "log").iterdir()))


@pytest.fixture(scope="module")
def clean(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, SimulationReport]:
    out = tmp_path_factory.mktemp("simulated") / "clean"
    return out, simulate(out, SMALL)


@pytest.fixture(scope="module")
def corrupt(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, SimulationReport]:
    out = tmp_path_factory.mktemp("simulated") / "corrupt"
    return out, simulate(out, CORRUPT)


@pytest.fixture(scope="module")
def log(clean: tuple[Path, SimulationReport]) -> pl.DataFrame:
    return read_log(clean[0])


def test_the_log_has_the_asked_number_of_rows_and_the_documented_columns(
    clean: tuple[Path, SimulationReport], log: pl.DataFrame
) -> None:
    assert dict(log.schema) == COLUMNS
    assert log.height == SMALL.events == clean[1].rows == clean[1].events
    assert log["user_id"].n_unique() == SMALL.users
    assert log.null_count().sum_horizontal().item() == 0


def test_the_same_seed_gives_the_same_log_on_any_number_of_threads(log: pl.DataFrame, tmp_path: Path) -> None:
    simulate(tmp_path / "again", SMALL, threads=3)
    assert_frame_equal(read_log(tmp_path / "again"), log)


def test_another_seed_gives_another_log(tmp_path: Path) -> None:
    for seed in (1, 2):
        simulate(tmp_path / str(seed), Simulation(users=5, events=5_000, seed=seed))
    assert not read_log(tmp_path / "1").equals(read_log(tmp_path / "2"))


def test_the_log_is_in_time_order_and_mixes_users(log: pl.DataFrame) -> None:
    assert log["request_time"].is_sorted()
    assert log["user_id"].rle_id().max() > SMALL.users * 10
    assert log["request_time"].min() >= EPOCH_MS
    assert log["request_time"].max() < EPOCH_MS + SMALL.days * DAY_MS


def test_a_request_is_one_user_at_one_time_with_4_to_12_different_items(log: pl.DataFrame) -> None:
    requests = log.group_by("request_id").agg(
        pl.len(),
        pl.col("user_id", "request_time", "tab").n_unique(),
        items=pl.col("item_id").n_unique(),
        places=pl.col("position").sort(),
    )
    assert set(requests["len"]) == set(range(4, 13))
    assert requests.select(pl.col("user_id", "request_time", "tab").max()).row(0) == (1, 1, 1)
    assert (requests["items"] == requests["len"]).all()
    assert (requests["places"] == requests.select(pl.int_ranges(0, "len", dtype=pl.Int8)).to_series()).all()


def test_events_follow_their_request_in_order_of_position_and_some_arrive_late(log: pl.DataFrame) -> None:
    late = log["arrival_time"] - log["event_time"]
    assert (log["event_time"] > log["request_time"]).all()
    assert (log["event_time"].diff().filter(log["request_id"].diff() == 0) > 0).all()
    assert late.min() >= 0
    assert 0.02 < (late > 60_000).mean() < 0.04
    assert late.max() > 3 * 3_600_000


def test_requests_come_in_sessions(log: pl.DataFrame) -> None:
    times = log.unique("request_id").sort("user_id", "request_time")
    gaps = times.filter(pl.col("user_id").diff() == 0)["request_time"].len()
    gap = times["request_time"].diff().filter(times["user_id"].diff() == 0)
    assert gaps > 0
    assert gap.min() > 0
    assert 30_000 < gap.median() < 180_000
    assert 0.05 < (gap > 1_800_000).mean() < 0.12


def test_items_are_zipf_within_their_topic(log: pl.DataFrame) -> None:
    ranked = log.group_by("topic", "item_id").len().sort("len", descending=True)
    share = ranked.group_by("topic", maintain_order=True).agg(pl.col("len").head(12).sum() / pl.col("len").sum())
    # 12 items share the first of 416 steps of a log-uniform draw: log 2 / log 417 of the views.
    assert share["len"].mean() == pytest.approx(np.log(2) / np.log(417), abs=0.02)
    assert log.group_by("author_id").agg(pl.col("topic").n_unique())["topic"].max() == 1


def test_long_views_and_likes_are_clicks_and_are_watched_longer(log: pl.DataFrame) -> None:
    assert log.filter(pl.max_horizontal("long_view", "like") > pl.col("click")).is_empty()
    dwell = log.group_by("click", "long_view").agg(pl.col("dwell_ms").mean()).sort("dwell_ms")
    assert dwell.select("click", "long_view").rows() == [(0, 0), (1, 0), (1, 1)]
    assert log["dwell_ms"].min() > 0


def test_some_users_have_more_than_10000_events_at_a_mean_of_4000() -> None:
    plan, population = draw_requests(300, 1_200_000, 60, 40, np.random.SeedSequence(0))
    assert population.events.sum() == plan.size.sum(dtype=np.int64) == 1_200_000
    assert 3 <= (population.events > 10_000).sum() <= 40
    assert population.events.max() < 42_000


def test_targets_are_about_40_requests_a_user_at_the_end(log: pl.DataFrame) -> None:
    targets = log.filter(pl.col("tab") > 0).unique("request_id")
    per_user = targets.group_by("user_id").len()
    assert targets["request_time"].min() >= window_start_ms(SMALL.days)
    assert per_user.height > 55
    assert 30 < per_user["len"].mean() < 42
    assert per_user["len"].max() < 80


def test_feed_goes_on_between_the_targets(log: pl.DataFrame) -> None:
    window = log.filter(pl.col("request_time") >= window_start_ms(SMALL.days))
    assert 0.2 < (window["tab"] == 0).mean() < 0.9


def test_the_truth_has_one_probability_per_target_and_label(
    clean: tuple[Path, SimulationReport], log: pl.DataFrame
) -> None:
    truth = read_truth(clean[0])
    keys = ["request_id", "item_id", "position"]
    targets = log.filter(pl.col("tab") > 0)
    assert_frame_equal(truth.targets.select(keys), targets.select(keys), check_row_order=False)
    joined = targets.join(truth.targets, on=keys, validate="1:1")
    for label in LABELS:
        assert joined[f"p_{label}"].is_between(0, 1).all()
        assert joined[label].mean() == pytest.approx(joined[f"p_{label}"].mean(), abs=0.015)
        likely = joined.filter(pl.col(f"p_{label}") > pl.col(f"p_{label}").median())
        assert likely[label].mean() == pytest.approx(likely[f"p_{label}"].mean(), abs=0.02)


def test_truth_is_not_in_the_log_and_the_document_says_what_was_asked(
    clean: tuple[Path, SimulationReport],
) -> None:
    truth = read_truth(clean[0])
    assert truth.document["parameters"]["seed"] == 7
    assert truth.document["rows"] == 300_000
    assert truth.document["targets"] == truth.targets.height == clean[1].targets
    assert truth.document["target_start_ms"] == window_start_ms(30)
    assert truth.attainable == clean[1].attainable


def test_a_longer_history_makes_a_better_prediction_attainable(clean: tuple[Path, SimulationReport]) -> None:
    for label in ("click", "long_view"):
        table = clean[1].attainable[label]
        lengths = [table[length] for length in ("100", "500", "2000", "10000")]
        assert lengths == sorted(lengths)
        assert 0.52 < table["100"] < 0.61
        assert table["10000"] > table["100"] + 0.1
        assert table["10000"] < table["true_probability"] < 0.9


def test_feed_clicks_say_nothing_about_long_run_affinity_beyond_the_topic(log: pl.DataFrame) -> None:
    # Per user and topic: among topics shown often, the click rate does not depend on how often.
    feed = log.filter(pl.col("tab") == 0).group_by("user_id", "topic").agg(pl.len(), pl.col("click").mean())
    often = feed.filter(pl.col("len") > 400)
    assert often.height > 100
    assert abs(often.select(pl.corr("len", "click")).item()) < 0.35


def test_the_spec_builds_the_log(clean: tuple[Path, SimulationReport]) -> None:
    spec = load_spec(clean[0] / "spec.toml")
    assert spec.sources["log"].path == (str(clean[0].resolve() / "log" / "*.parquet"),)
    assert spec.history.where == "tab = 0"
    assert set(spec.requests.labels) == set(LABELS)
    raw = tomllib.loads((clean[0] / "spec.toml").read_text())
    mapped = raw["history"]["features"] | raw["requests"]["target_features"] | raw["requests"]["labels"]
    for name, type_name in mapped.items():
        declared = type_name if isinstance(type_name, str) else type_name["type"]
        assert COLUMNS[name] == getattr(pl, declared.capitalize())


def test_the_spec_declares_what_the_clean_log_keeps(clean: tuple[Path, SimulationReport], log: pl.DataFrame) -> None:
    spec = load_spec(clean[0] / "spec.toml")
    targets = log.filter(pl.col("tab") > 0)
    asked = spec.requests
    for rows, features in ((log, spec.history.features), (targets, asked.target_features | asked.features)):
        for name, feature in features.items():
            if feature.min is not None:
                assert rows[name].is_between(feature.min, feature.max).all()
            if feature.values:
                assert set(rows[name]) == set(feature.values)
    assert spec.users.max_events is None
    assert spec.actions is None


def planted_by_table(out: Path) -> dict[str, dict[str, int]]:
    planted: dict[str, dict[str, int]] = read_truth(out).document["planted_by_table"]
    return planted


def test_dirt_is_added_among_the_clean_rows_which_stay_in_order(
    corrupt: tuple[Path, SimulationReport], log: pl.DataFrame
) -> None:
    everything, report = read_log(corrupt[0]), corrupt[1]
    assert dict(everything.schema) == COLUMNS | {"topic": pl.Int32}
    assert everything.height == report.rows == log.height + sum(report.planted.values())
    dirt = sum(rows for kind, rows in report.planted.items() if kind not in ("rejected_user", "short_history"))
    assert dirt == pytest.approx(0.02 * log.height, rel=0.02)
    wide = log.with_columns(pl.col("topic").cast(pl.Int32)).with_row_index("clean")
    kept = everything.with_row_index("place").unique(list(COLUMNS), keep="first").sort("place")
    found = kept.join(wide, on=list(COLUMNS), how="inner", maintain_order="left")
    assert found.height == log.height
    late = found["clean"].cast(pl.Int64).diff() < 0
    assert late.sum() < 0.01 * log.height, "but for copies that come before the row they copy"


def test_every_planted_kind_is_in_the_log_as_often_as_counted(
    corrupt: tuple[Path, SimulationReport], log: pl.DataFrame
) -> None:
    everything, planted = read_log(corrupt[0]), planted_by_table(corrupt[0])
    is_feed, is_target = pl.col("tab") == 0, pl.col("tab") > 0
    regular = pl.col("request_id").is_null() | (pl.col("request_id") <= 2 * corrupt[1].requests)
    events, targets = everything.filter(is_feed & regular), everything.filter(is_target & regular)
    fresh = targets.filter(pl.col("request_id") > corrupt[1].requests)
    users = fresh.group_by("request_id").agg(
        pl.col("user_id", "request_time").n_unique(), pl.len(), late=pl.col("request_time").max() > END_MS
    )
    wrong_dwell = (pl.col("dwell_ms") < 0) | (pl.col("dwell_ms") > 86_400_000)
    no_item, no_time = pl.col("item_id").is_null(), pl.col("request_time").is_null()
    found = {
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
    assert found == {kind: rows for kind, rows in planted["history"].items() if kind not in left_out}
    found = {
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
        "conflicting_request": users.filter(pl.col("user_id") == 2)["len"].sum(),
        "differing_request_time": users.filter(pl.col("request_time") == 2)["len"].sum(),
        "pending_label": users.filter("late")["len"].sum(),
        "action": everything.filter(pl.col("tab") < 0).height,
    }
    assert found == {kind: rows for kind, rows in planted["requests"].items() if kind not in left_out}
    filtered = planted["history"]["filtered"] + planted["requests"]["filtered"]
    assert everything["tab"].null_count() == filtered
    assert min(rows for table in planted.values() for rows in table.values()) > 0
    assert set(users["len"]) == {2}


def impossible(time: str) -> pl.Expr:
    return (pl.col(time) <= 0) | (pl.col(time) > 4_102_444_800_000)


def test_bots_have_an_event_a_millisecond_and_more_than_anybody_and_newcomers_hardly_any(
    corrupt: tuple[Path, SimulationReport], log: pl.DataFrame
) -> None:
    everything, planted = read_log(corrupt[0]), planted_by_table(corrupt[0])
    limits = load_spec(corrupt[0] / "spec.toml").users
    regular = log.filter(pl.col("tab") == 0).group_by("user_id").len()["len"]
    assert limits.max_events == regular.max()
    assert limits.over_max_events == "reject_user"
    assert 2 <= limits.min_events <= regular.min()
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
    } == {kind: planted["requests"][kind] for kind in ("rejected_user", "short_history")}
    first = outliers.filter(pl.col("user_id") == SMALL.users + 1).sort("event_time")["event_time"]
    assert set(first.diff().drop_nulls()) == {1}


def test_a_user_without_any_event_leaves_no_room_for_newcomers(log: pl.DataFrame) -> None:
    plan, _ = draw_requests(20, 20_000, 14, 10, np.random.SeedSequence(0))
    everybody = regular_limits(plan, 20)
    assert everybody.min_events > 0
    assert regular_limits(plan, 21) == Limits(everybody.max_events, 0)
    rows, planted = draw_outliers(log, Limits(100, 0), 1_000, 1, np.random.default_rng(0))
    assert rows["user_id"].n_unique() == BOTS
    assert planted["history"] == {"rejected_user": BOTS * 101, "short_history": 0}


def test_the_truth_has_the_fate_of_every_row(corrupt: tuple[Path, SimulationReport]) -> None:
    document = read_truth(corrupt[0]).document
    accounting = RowAccounting(**document["accounting"])
    accounting.check("log")
    assert accounting.rows == document["rows"]
    assert set(accounting.policies) == set(POLICIES) - {"heavy_user_cap"}
    assert document["counts"]["targets"] == document["targets"]
    assert sum(accounting.reasons.values()) > accounting.rejected, "some rows are rejected for two reasons"


def test_a_row_with_two_faults_is_one_rejected_row() -> None:
    planted = {
        "history": {"duplicate": 3, "filtered": 4, "missing_user": 5, "missing_user+missing_item": 2},
        "requests": {"missing_user": 1, "pending_label": 6, "action": 7},
    }
    assert expected_accounting(100, planted) == RowAccounting(
        rows=128,
        filtered=4,
        rejected=8,
        duplicate=3,
        accepted=107,
        reasons={"missing_item": 2, "missing_user": 8},
        policies={"pending_label": 6},
    )


def test_mingled_rows_keep_the_order_of_the_clean_ones() -> None:
    clean, dirt = pl.DataFrame({"row": range(1_000)}), pl.DataFrame({"row": range(-100, 0)})
    rows = mingle(clean, dirt, np.random.default_rng(0))["row"]
    assert rows.filter(rows >= 0).to_list() == list(range(1_000))
    assert sorted(rows.filter(rows < 0)) == list(range(-100, 0))
    assert (rows < 0).arg_true().diff().max() < 100, "they are everywhere"


def test_an_added_valid_request_has_its_truth(corrupt: tuple[Path, SimulationReport]) -> None:
    keys = ["request_id", "item_id", "position"]
    truth, everything = read_truth(corrupt[0]), read_log(corrupt[0])
    added = truth.targets.filter(pl.col("request_id") > corrupt[1].requests)
    assert added.height == corrupt[1].planted["differing_request_time"]
    assert added.join(everything, on=keys, how="semi").height == added.height
    assert truth.document["planted_but_valid"] == ["differing_request_time", "action"]


def test_a_csv_log_also_has_values_that_cannot_be_parsed_and_lines_that_are_no_rows(tmp_path: Path) -> None:
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


def test_a_clean_csv_log_equals_the_parquet_log(tmp_path: Path) -> None:
    for suffix in ("csv", "parquet"):
        simulate(tmp_path / suffix, Simulation(users=5, events=5_000, format=suffix))
    read = pl.concat(pl.read_csv(p, schema=COLUMNS) for p in sorted((tmp_path / "csv" / "log").iterdir()))
    assert_frame_equal(read, read_log(tmp_path / "parquet"))


@given(st.lists(st.integers(0, 5_000), max_size=8), st.sampled_from([0.001, 0.01, 0.2]))
def test_each_kind_gets_its_share_whatever_the_cut_into_files(files: list[int], fraction: float) -> None:
    planted = kinds("requests", CSV)
    before = np.cumsum([0, *files]).tolist()
    copies = [plan_copies(fraction, start, rows, planted) for start, rows in zip(before, files, strict=False)]
    whole = plan_copies(fraction, 0, before[-1], planted)
    assert [sum(column) for column in zip(*copies, strict=True)] == (whole if files else [])
    assert sum(n * kind.rows for n, kind in zip(whole, planted, strict=True)) == pytest.approx(
        fraction * before[-1], abs=2 * len(planted)
    )


def test_progress_ends_with_all_rows(tmp_path: Path) -> None:
    seen: list[tuple[str, float, float]] = []
    simulate(tmp_path / "log", Simulation(users=5, events=5_000), lambda *progress: seen.append(progress))
    assert seen[-1] == ("simulate", 5_000, 5_000)
    assert seen == sorted(seen)


def test_a_folder_with_anything_in_it_is_refused(tmp_path: Path) -> None:
    (tmp_path / "note.txt").write_text("mine")
    with pytest.raises(SpecError, match="is not empty"):
        simulate(tmp_path, Simulation(users=5, events=5_000))
    with pytest.raises(SpecError, match=r"no truth\.json"):
        simulate(tmp_path, Simulation(users=5, events=5_000), overwrite=True)
    assert [path.name for path in tmp_path.iterdir()] == ["note.txt"]


def test_overwrite_replaces_an_earlier_simulation_whole(tmp_path: Path) -> None:
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
        ({"users": 0}, "users is 0"),
        ({"users": 100, "events": 500}, "5 per user; ask for 100 to 20000"),
        ({"users": 1, "events": 100_000}, "100000 per user"),
        ({"seed": -1}, "seed is -1"),
        ({"corrupt": 0.5}, r"corrupt is 0\.5"),
        ({"format": "xml"}, "format is 'xml'"),
        ({"days": 2}, "days is 2"),
        ({"targets_per_user": 0}, "targets_per_user"),
    ],
)
def test_impossible_parameters_are_refused(wrong: dict[str, int], message: str) -> None:
    with pytest.raises(SpecError, match=message):
        Simulation(**wrong)  # type: ignore[arg-type]


def test_one_user_makes_a_log_without_a_yardstick(tmp_path: Path) -> None:
    report = simulate(tmp_path / "log", Simulation(users=1, events=3_000))
    assert read_log(tmp_path / "log").height == 3_000
    assert report.attainable["click"]["100"] is None


def test_truth_of_no_simulation_and_of_another_version_are_refused(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="holds no simulated log"):
        read_truth(tmp_path)
    (tmp_path / "truth.json").write_text(json.dumps({"version": 99}))
    with pytest.raises(ValueError, match="has version 99"):
        read_truth(tmp_path)


@pytest.mark.parametrize("events", [400, 781, 1_200])
def test_sizes_add_up_exactly(events: int) -> None:
    sizes = draw_sizes(100, events, np.random.default_rng(0))
    assert sizes.sum(dtype=np.int64) == events
    assert sizes.min() >= 4
    assert sizes.max() <= LARGEST_REQUEST


def test_sizes_that_cannot_add_up_are_refused() -> None:
    with pytest.raises(SpecError, match="1300 events do not fit 100 requests"):
        draw_sizes(100, 1_300, np.random.default_rng(0))


def test_files_hold_all_requests_once_and_stay_below_their_limit() -> None:
    plan, _ = draw_requests(20, 100_000, 14, 10, np.random.SeedSequence(0))
    files = cut_files(plan, smallest=2_000, largest=5_000)
    assert [file.start for file in files] == [0, *(file.stop for file in files[:-1])]
    assert files[-1].stop == len(plan.user)
    assert len({file.name for file in files}) == len(files)
    assert [file.name for file in files] == sorted(file.name for file in files)
    assert max(plan.size[f.start : f.stop].sum(dtype=np.int64) for f in files) <= 5_000 + LARGEST_REQUEST


def random_sample(rng: np.random.Generator, events: int, targets: int) -> Sample:
    """Two users, three topics, few distinct times: ties everywhere."""
    return Sample(
        event_user=rng.integers(1, 3, events),
        event_topic=rng.integers(0, 3, events, dtype=np.int8),
        visible_ms=rng.integers(0, 10, events),
        user=rng.integers(1, 4, targets),
        topic=rng.integers(0, 3, targets, dtype=np.int8),
        request_ms=rng.integers(0, 12, targets),
        shift=np.zeros(targets, np.float32),
        probability=rng.random((targets, 3), np.float32),
        labels=rng.integers(0, 2, (targets, 3), dtype=np.int8),
    )


def count_slowly(sample: Sample, target: int, length: int) -> tuple[int, int]:
    """The newest `length` events of the target's user strictly before it, one by one."""
    order = np.lexsort((sample.visible_ms, sample.event_user))
    visible = [
        int(sample.event_topic[e])
        for e in order
        if sample.event_user[e] == sample.user[target] and sample.visible_ms[e] < sample.request_ms[target]
    ]
    newest = visible[max(0, len(visible) - length) :]
    return newest.count(int(sample.topic[target])), len(newest)


@settings(max_examples=50, deadline=None)
@given(st.integers(0, 10_000), st.integers(0, 30))
def test_topic_counts_equal_counting_one_by_one(seed: int, events: int) -> None:
    sample = random_sample(np.random.default_rng(seed), events, 10)
    for length, (count, total) in count_topics(sample, (0, 2, 100)).items():
        expected = [count_slowly(sample, target, length) for target in range(10)]
        assert list(zip(count.tolist(), total.tolist(), strict=True)) == expected


@given(st.lists(st.tuples(st.integers(0, 4), st.booleans()), max_size=30))
def test_auc_equals_comparing_every_pair(rows: list[tuple[int, bool]]) -> None:
    pairs = [(a > b) + (a == b) / 2 for a, liked in rows if liked for b, other in rows if not other]
    found = auc(np.array([s for s, _ in rows], float), np.array([y for _, y in rows], bool))
    assert found == (pytest.approx(sum(pairs) / len(pairs)) if pairs else None)


def test_logistic_regression_finds_the_weights_of_its_own_model() -> None:
    rng = np.random.default_rng(0)
    inputs = np.stack([rng.normal(size=50_000), np.ones(50_000)], axis=1)
    outcome = rng.random(50_000) < 1 / (1 + np.exp(-inputs @ [1.5, -1.0]))
    assert fit_logistic(inputs, outcome) == pytest.approx([1.5, -1.0], abs=0.05)


def test_no_auc_without_both_outcomes() -> None:
    sample = random_sample(np.random.default_rng(0), 20, 10)
    sample.labels[:, 0] = 1
    assert set(attainable_auc(sample)["click"].values()) == {None}
