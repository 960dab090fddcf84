"""Every preset builds from small files of the published layout, pitfalls included, and agrees with the reference."""

from __future__ import annotations

import re
import subprocess
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import polars as pl
import pytest
from paths import ROOT

from longbatch.jobs.build import BuildSummary, build
from longbatch.jobs.engines.local import LocalEngine
from longbatch.jobs.inspect import describe_user
from longbatch.jobs.presets import load_preset, preset_toml
from longbatch.schemas.errors import DataError
from longbatch.schemas.format.dataset import Dataset, open_dataset
from longbatch.schemas.spec.build_spec import parse_spec
from longbatch.validation.audit.audit import audit

ALL_USERS = None
DAY = 86_400


def built(name: str, raw: Path) -> tuple[BuildSummary, Dataset]:
    """Build a preset, and compare all of it with the raw files."""
    summary = build(load_preset(name, raw), raw / "out", engine=LocalEngine(1))
    audited = audit(raw / "out", None, ALL_USERS)
    assert audited.findings == []
    assert audited.requests_checked == summary.counts.requests > 0
    assert {source: accounting.rejected for source, accounting in summary.row_accounting.items()} == dict.fromkeys(
        summary.row_accounting, 0
    )
    return summary, open_dataset(raw / "out")


def shown(dataset: Dataset, user: str, request: int, *features: str) -> tuple[list[Any], list[Any]]:
    """The history of a user's request as item ids, and its targets as item ids or tuples of item id and features."""
    described = describe_user(dataset, user, request)
    events = [event["item_id"] for event in described["newest_events"]]
    targets = [tuple(target[name] for name in ("item_id", *features)) for target in described["targets"]]
    return events, targets if features else [item for (item,) in targets]


def published(given: pl.DataFrame, columns: str) -> pl.DataFrame:
    """All columns in the published order; columns that are not given are 0."""
    zeros = given.with_columns(pl.lit(0).alias(name) for name in columns.split() if name not in given.columns)
    return zeros.select(columns.split())


def write(raw: Path, name: str, frame: pl.DataFrame) -> None:
    path = raw / name
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.suffix == ".csv":
        frame.write_csv(path)
    elif path.suffix == ".feather":
        frame.write_ipc(path, compression="lz4", compat_level=pl.CompatLevel.oldest())
    else:
        frame.write_parquet(path)


# KuaiRand

KUAIRAND = (
    "user_id video_id date hourmin time_ms is_click is_like is_follow is_comment is_forward is_hate long_view "
    "play_time_ms duration_ms profile_stay_time comment_stay_time is_profile_enter is_rand tab"
)
APRIL_8, APRIL_22 = 1_649_390_400_000, 1_650_600_000_000


def exposures(start_ms: int, rows: list[tuple[int, int, float, int]], *, rand: int = 0) -> pl.DataFrame:
    """Rows (user, video, seconds after the start, milliseconds played) in the columns of KuaiRand."""
    columns = ["user_id", "video_id", "seconds", "play_time_ms"]
    frame = pl.DataFrame(rows, schema=dict.fromkeys(columns, pl.Float64), orient="row").cast(pl.Int64)
    given = frame.with_columns(
        time_ms=start_ms + 1000 * pl.col("seconds"),
        date=20220408,
        hourmin=1200,
        is_click=(pl.col("play_time_ms") > 7000).cast(pl.Int8),
        long_view=(pl.col("play_time_ms") > 18_000).cast(pl.Int8),
        duration_ms=30_000,
        is_rand=rand,
        tab=1,
    )
    return published(given, KUAIRAND)


def kuairand(raw: Path, early: list[str], late: list[str], random: str) -> None:
    """User 3 has every pitfall, users 100 to 119 add volume; users are split between the parts."""
    others = [(100 + n % 20, n, n * 7919 % 90_000, n * 31 % 20_000) for n in range(200)]
    before = [(3, 10, 0, 9_000), (3, 11, 20, 0), (3, 12, 400, 2_000)]
    after = [(3, 20 + n, 10 * n, 1_000) for n in range(11) if n != 4] + [(3, 5, 100, 500)]
    write(raw, random, exposures(APRIL_22, [(3, 24, 40, 19_000)], rand=1))
    for start, rows, names in ((APRIL_8, before + others, early), (APRIL_22, [*others, *reversed(after)], late)):
        for part, name in enumerate(names):
            write(raw, name, exposures(start, [row for row in rows if row[0] % len(names) == part]))


@pytest.mark.parametrize(("size", "parts"), [("27k", ("_part1", "_part2")), ("1k", ("",)), ("pure", ("",))])
def test_kuairand_merges_its_logs_and_splits_them_into_requests(
    size: str, parts: tuple[str, ...], tmp_path: Path
) -> None:
    early, late = (
        [f"data/log_standard_{days}_{size}{part}.csv" for part in parts] for days in ("4_08_to_4_21", "4_22_to_5_08")
    )
    kuairand(tmp_path, early, late, f"data/log_random_4_22_to_5_08_{size}.csv")
    summary, dataset = built(f"kuairand-{size}", tmp_path)
    accounting = summary.row_accounting["log"]
    assert (accounting.rows, accounting.accepted, summary.counts.targets) == (415, 415, 415)
    # an exposure that was not played is a target, but not an event; a pause of 5 minutes starts another request
    assert shown(dataset, "3", 0, "is_click") == ([], [(10, 1), (11, 0)])
    assert shown(dataset, "3", 1, "is_click") == ([10], [(12, 0)])
    # ten exposures are a request; the random one is in a separate file
    wanted = [(20 + n, int(n == 4), int(n == 4)) for n in range(10)]
    assert shown(dataset, "3", 2, "is_rand", "long_view") == ([10, 12], wanted)
    # the eleventh and another one of the same millisecond: neither is in the history of the other
    events, targets = shown(dataset, "3", 3)
    assert targets == [5, 30]
    assert events == [20 + n for n in range(10)]
    assert describe_user(dataset, "3", 3)["history_length"] == 12


# Yambda

YAMBDA_EVENTS = pl.Enum(["listen", "like", "dislike", "unlike", "undislike"])
YAMBDA: dict[str, type[pl.DataType] | pl.DataType] = {
    "uid": pl.UInt32,
    "timestamp": pl.UInt32,
    "item_id": pl.UInt32,
    "is_organic": pl.UInt8,
    "played_ratio_pct": pl.UInt16,
    "track_length_seconds": pl.UInt32,
    "event_type": YAMBDA_EVENTS,
}


@pytest.mark.parametrize("size", ["50m", "500m", "5b"])
def test_yambda_excludes_ties_from_histories_and_labels_what_was_listened_to(size: str, tmp_path: Path) -> None:
    listens = [(0, 1, 100), (180, 2, 10), (365, 3, 60), (365, 4, 5), (600, 5, 100), (800, 6, 90), (2000, 2, 70)]
    listens += [(10_000, 7, 130), (20_000, 8, 100)]
    rows: list[tuple[Any, ...]] = [(10, time, item, 1, ratio, 200, "listen") for time, item, ratio in listens]
    rows += [(10, 180, 1, 1, None, None, "like"), (10, 10_000, 7, 0, None, None, "dislike")]
    rows += [(10, 11_000, 7, 0, None, None, "undislike"), (10, 11_005, 1, 1, None, None, "unlike")]
    others = [(20 + n % 7, n * 431 % 15_000 // 5 * 5, n % 13, n % 2, n * 17 % 120, 150) for n in range(90)]
    rows += [(*row, "listen") for row in others]
    frame = pl.DataFrame(rows, schema=YAMBDA, orient="row").sort("uid", "timestamp")
    write(tmp_path, f"flat/{size}/multi_event.parquet", frame)
    summary, dataset = built(f"yambda-{size}", tmp_path)
    # five listens are a request; track 2 was skipped first, and played to 70 % later; 3 and 4 have the same time
    labels = ("listened", "liked", "disliked")
    first = [(1, 1, 1, 0), (2, 0, 0, 0), (3, 1, 0, 0), (4, 0, 0, 0), (5, 1, 0, 0)]
    assert shown(dataset, "10", 0, *labels) == ([], first)
    assert shown(dataset, "10", 1, *labels) == ([1, 1, 2, 3, 4, 5], [(6, 1, 0, 0)])
    # a pause of ten minutes starts another request; a dislike at the same time is its label, not in its history
    assert shown(dataset, "10", 2, *labels) == ([1, 1, 2, 3, 4, 5, 6], [(2, 1, 0, 0)])
    assert shown(dataset, "10", 3, *labels) == ([1, 1, 2, 3, 4, 5, 6, 2], [(7, 1, 0, 1)])
    # the label window of the last request was open when the log ended
    assert describe_user(dataset, "10")["requests_of_user"] == 4
    assert summary.counts.pending_requests == 1
    assert describe_user(dataset, "10", 0)["request_time"].startswith("1970-01-01T00:00:00")
    event_types = [event["event_type"] for event in describe_user(dataset, "10", 1)["newest_events"]]
    assert event_types == ["listen", "like", "listen", "listen", "listen", "listen"]


# RecFlow

RECFLOW = (
    "request_id request_timestamp user_id device_id age gender province video_id author_id category_level_one "
    "category_level_two upload_type upload_timestamp duration realshow rerank_pos rerank_neg rank_pos rank_neg "
    "coarse_neg prerank_neg rank_index rerank_index playing_time effective_view long_view like follow forward comment"
)
JANUARY_13 = 1_705_104_000_000


def recflow_day(rows: list[tuple[int, int, int, int, int]]) -> pl.DataFrame:
    """Rows (request, seconds, user, video, effective view) in the columns of RecFlow's realshow."""
    given = pl.DataFrame(
        rows, schema=["request_id", "seconds", "user_id", "video_id", "effective_view"], orient="row"
    ).with_columns(
        request_timestamp=JANUARY_13 + 1000 * pl.col("seconds"),
        realshow=1,
        duration=20_000,
        playing_time=7_000 * pl.col("effective_view"),
        upload_timestamp=JANUARY_13 // 1000 - 9_999,
        author_id=pl.col("video_id") % 7,
    )
    return published(given, RECFLOW)


def test_recflow_takes_the_requests_of_the_serving_system(tmp_path: Path) -> None:
    others = [(1000 + n // 4, n // 4 * 600, 50 + n // 4 % 6, n, n % 3 % 2) for n in range(96)]
    first = [(900, 50, 5, 31, 1), (900, 50, 5, 30, 0), (900, 50, 5, 32, 1)]
    second = [(902, DAY, 5, 35, 1), (901, DAY, 5, 33, 0), (903, DAY + 1, 5, 36, 0), (901, DAY, 5, 34, 1)]
    write(tmp_path, "realshow/2024-01-13.feather", recflow_day(others + first))
    write(tmp_path, "realshow/2024-01-14.feather", recflow_day(second))
    summary, dataset = built("recflow", tmp_path)
    assert (summary.counts.requests, summary.counts.targets) == (28, 103)
    assert shown(dataset, "5", 0, "effective_view") == ([], [(30, 0), (31, 1), (32, 1)])
    # requests 901 and 902 have the same time: neither sees what the other showed
    assert shown(dataset, "5", 1) == ([31, 32], [33, 34])
    assert shown(dataset, "5", 2) == ([31, 32], [35])
    assert shown(dataset, "5", 3) == ([31, 32, 34, 35], [36])


# VK-LSVD

VK_CONTEXT = ["place", "platform", "agent"]
VK_SIGNALS = ["like", "dislike", "share", "bookmark", "click_on_author", "open_comments"]


def vk_week(rows: list[tuple[int, int, int]]) -> pl.DataFrame:
    """Rows (user, item, seconds watched) in the columns of VK-LSVD; items with odd ids are liked."""
    ids = pl.DataFrame(rows, schema={"user_id": pl.UInt32, "item_id": pl.UInt32, "timespent": pl.UInt8}, orient="row")
    context = ids.with_columns(pl.lit(1, dtype=pl.UInt8).alias(name) for name in VK_CONTEXT)
    signals = context.with_columns(pl.lit(False).alias(name) for name in VK_SIGNALS)
    return signals.with_columns(like=pl.col("item_id") % 2 == 1).select(
        "user_id", "item_id", *VK_CONTEXT, "timespent", *VK_SIGNALS
    )


def test_vk_lsvd_keeps_the_order_of_its_rows(tmp_path: Path) -> None:
    others = [(500 + n % 9, 1000 + n, n % 5) for n in range(120)]
    week_0 = [(1, item, 40 - item) for item in (39, 7, 12, 3, 40, 8, 5)]
    write(tmp_path, "train/week_00.parquet", vk_week([*others[:50], *week_0[:3], *others[50:], *week_0[3:]]))
    write(tmp_path, "train/week_01.parquet", vk_week([(1, 20, 255), (500, 4, 1), (1, 2, 9)]))
    write(tmp_path, "validation/week_25.parquet", vk_week([(1, 50, 1), (1, 49, 0)]))
    summary, dataset = built("vk-lsvd", tmp_path)
    assert summary.counts.targets == 132
    # five rows are a request, and a request ends with the file of its week; item 40 was not played
    assert shown(dataset, "1", 0, "like") == ([], [(3, True), (7, True), (12, False), (39, True), (40, False)])
    assert shown(dataset, "1", 1) == ([39, 7, 12, 3], [5, 8])
    assert shown(dataset, "1", 2) == ([39, 7, 12, 3, 8, 5], [2, 20])
    assert shown(dataset, "1", 3) == ([39, 7, 12, 3, 8, 5, 20, 2], [49, 50])
    synthetic_time = datetime(2025, 1, 15, tzinfo=UTC)
    assert describe_user(dataset, "1", 3)["request_time"] == synthetic_time.isoformat()


def test_vk_lsvd_with_the_test_week_at_the_end_of_its_paths(tmp_path: Path) -> None:
    for number, week in enumerate(("train/week_00", "validation/week_25", "test/week_26")):
        write(tmp_path, f"{week}.parquet", vk_week([(1, 10 * number + item, 9) for item in (3, 1, 2)]))
    paths = '"validation/week_*.parquet", "test/week_*.parquet"'
    text = preset_toml("vk-lsvd").replace('"validation/week_*.parquet"', paths)
    build(parse_spec(text).with_paths_from(tmp_path), tmp_path / "out", engine=LocalEngine(1))
    assert audit(tmp_path / "out", None, ALL_USERS).findings == []
    assert shown(open_dataset(tmp_path / "out"), "1", 2) == ([3, 1, 2, 13, 11, 12], [21, 22, 23])


# EB-NeRD, MIND, MovieLens


def test_ebnerd_takes_lists_in_view_as_targets_and_earlier_clicks_as_history(tmp_path: Path) -> None:
    noon = datetime(2023, 5, 18, 12)
    minute = timedelta(minutes=1)
    behaviors = {
        "impression_id": pl.Series([70, 9], dtype=pl.UInt32),
        "article_id": pl.Series([None, 9_771_000], dtype=pl.Int32),
        "impression_time": [noon, noon - minute],
        "read_time": pl.Series([17.0, 3.0], dtype=pl.Float32),
        "scroll_percentage": pl.Series([None, 50.0], dtype=pl.Float32),
        "device_type": pl.Series([2, 1], dtype=pl.Int8),
        "article_ids_inview": pl.Series([[30, 10, 20], [40, 10]], dtype=pl.List(pl.Int32)),
        "article_ids_clicked": pl.Series([[10], [40]], dtype=pl.List(pl.Int32)),
        "user_id": pl.Series([8, 8], dtype=pl.UInt32),
        "is_sso_user": [True, True],
        "gender": pl.Series([None, None], dtype=pl.Int8),
        "postcode": pl.Series([None, None], dtype=pl.Int8),
        "age": pl.Series([None, None], dtype=pl.Int8),
        "is_subscriber": [False, False],
        "session_id": pl.Series([5, 5], dtype=pl.UInt32),
        "next_read_time": pl.Series([None, 17.0], dtype=pl.Float32),
        "next_scroll_percentage": pl.Series([None, None], dtype=pl.Float32),
    }
    history = {
        "user_id": pl.Series([8, 9], dtype=pl.UInt32),
        "impression_time_fixed": [[noon - timedelta(days=2), noon - 2 * minute, noon - minute], [noon]],
        "scroll_percentage_fixed": pl.Series([[100.0, None, 40.0], [1.0]], dtype=pl.List(pl.Float32)),
        "article_id_fixed": pl.Series([[7, 5, 6], [5]], dtype=pl.List(pl.Int32)),
        "read_time_fixed": pl.Series([[12.0, 0.0, 3.0], [2.0]], dtype=pl.List(pl.Float32)),
    }
    write(tmp_path, "behaviors.parquet", pl.DataFrame(behaviors))
    write(tmp_path, "history.parquet", pl.DataFrame(history))
    _, dataset = built("ebnerd", tmp_path)
    # the click at the time of the first request is not before it
    assert shown(dataset, "8", 0, "position", "clicked") == ([7, 5], [(10, 1, 0), (40, 0, 1)])
    assert shown(dataset, "8", 1, "position", "clicked") == ([7, 5, 6], [(10, 1, 1), (20, 2, 0), (30, 0, 0)])
    assert describe_user(dataset, "8", 0)["page_article_id"] == 9_771_000
    assert describe_user(dataset, "8", 1)["page_article_id"] == 0


def test_mind_takes_the_clicks_of_earlier_requests_as_history(tmp_path: Path) -> None:
    lines = [
        "3\tU7\t11/13/2019 12:30:00 AM\tN99\tN5-0 N6-1",
        "1\tU7\t11/9/2019 9:05:58 AM\tN99\tN1-1 N2-0 N3-1",
        "2\tU7\t11/11/2019 9:05:58 PM\t\tN4-0",
        "4\tU8\t11/11/2019 9:05:58 PM\t\tN1-1 N4-0",
    ]
    (tmp_path / "behaviors.tsv").write_text("\n".join(lines) + "\n")
    _, dataset = built("mind", tmp_path)
    requests = [describe_user(dataset, "U7", number) for number in range(3)]
    assert [request["request_id"] for request in requests] == [1, 2, 3]
    assert requests[2]["request_time"] == "2019-11-13T00:30:00+00:00"
    events, targets = shown(dataset, "U7", 2, "position", "clicked")
    assert sorted(events) == ["N1", "N3"]
    assert sorted(targets) == [("N5", 0, 0), ("N6", 1, 1)]
    assert shown(dataset, "U8", 0)[0] == []


def test_mind_without_clicks_has_no_labels(tmp_path: Path) -> None:
    (tmp_path / "behaviors.tsv").write_text("1\tU7\t11/16/2019 9:05:58 AM\tN99\tN1 N2 N3\n")
    with pytest.raises(DataError, match="missing_label:clicked"):
        build(load_preset("mind", tmp_path), tmp_path / "out", engine=LocalEngine(1))


def test_movielens_groups_consecutive_ratings_into_requests(tmp_path: Path) -> None:
    rated = [(60, 0, 5.0), (10, 0, 4.0), (20, 200, 3.5), (30, 600, 4.5), (5, 90_000, 0.5)]
    rows = [(1, movie, rating, 1_256_677_200 + time) for movie, time, rating in rated]
    rows += [(2, movie, movie % 10 / 2 + 0.5, 1_256_677_200 + 20 * movie) for movie in range(25)]
    rows += [(3, 1, 2.0, 1_256_877_200)]
    columns = {"userId": pl.Int64, "movieId": pl.Int64, "rating": pl.Float64, "timestamp": pl.Int64}
    write(tmp_path, "ratings.csv", pl.DataFrame(rows, schema=columns, orient="row").sort("userId", "movieId"))
    summary, dataset = built("movielens", tmp_path)
    # ratings of the same second are one request, and not in its history
    assert shown(dataset, "1", 0, "liked") == ([], [(10, 1), (20, 0), (60, 1)])
    assert shown(dataset, "1", 1, "liked") == ([10, 60, 20], [(30, 1)])
    assert shown(dataset, "1", 2, "liked") == ([10, 60, 20, 30], [(5, 0)])
    assert [len(shown(dataset, "2", number)[1]) for number in range(3)] == [10, 10, 5]
    assert summary.counts.pending_requests == 0


def test_movielens_1m_is_converted_by_the_command_in_the_documentation(tmp_path: Path) -> None:
    (tmp_path / "ml-1m").mkdir()
    (tmp_path / "ml-1m" / "ratings.dat").write_text("1::1193::5::978300760\n1::661::3::978824268\n")
    line = re.search(r"`(\(echo userId.*)`", (ROOT / "docs" / "presets.md").read_text(encoding="utf-8"))
    assert line
    subprocess.run(line[1], shell=True, check=True, cwd=tmp_path)
    _, dataset = built("movielens", tmp_path / "ml-1m")
    assert shown(dataset, "1", 0, "liked") == ([], [(1193, 1)])
