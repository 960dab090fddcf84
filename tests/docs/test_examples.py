"""The example specs parse, are shown in the documentation without changes, and build from the logs of this file."""

from __future__ import annotations

import gzip
import re
from collections.abc import Callable, Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path

import polars as pl
import pytest
from delta_tables import write_delta
from paths import ROOT

from longbatch.jobs.build import BuildSummary, build
from longbatch.jobs.engines.local import LocalEngine
from longbatch.schemas.format.dataset import Dataset, open_dataset
from longbatch.schemas.spec.build_spec import load_spec, parse_spec

EXAMPLES = ROOT / "examples"
SPEC_IN_DOCS = re.compile(r"`examples/(\w+\.toml)`[^\n]*\n+```toml\n(.*?)```", re.DOTALL)
NAMES = sorted(path.name for path in EXAMPLES.glob("*.toml"))
NOVEMBER_15 = 1_700_006_400_000
Columns = Mapping[str, Sequence[object]]


def specs_in_docs() -> list[tuple[str, str]]:
    """File name and content of every complete spec in docs/spec.md."""
    return SPEC_IN_DOCS.findall((ROOT / "docs" / "spec.md").read_text(encoding="utf-8"))


@pytest.mark.parametrize("name", NAMES)
def test_every_example_parses(name: str) -> None:
    assert load_spec(EXAMPLES / name).name == name.removesuffix(".toml")


def test_the_documentation_shows_every_example_without_changes() -> None:
    assert {name: (EXAMPLES / name).read_text(encoding="utf-8") for name in NAMES} == dict(specs_in_docs())


def test_every_complete_spec_in_the_documentation_is_an_example() -> None:
    blocks = re.findall(r"```toml\n(.*?)```", (ROOT / "docs" / "spec.md").read_text(encoding="utf-8"), re.DOTALL)
    specs = [block for block in blocks if "[sources." in block and "[requests]" in block]
    assert specs == [toml for _, toml in specs_in_docs()]
    for toml in specs:
        parse_spec(toml)


def write(folder: Path, name: str, columns: Columns) -> None:
    """Write a file of the raw log, in the format of its suffix."""
    path = folder / name
    path.parent.mkdir(parents=True, exist_ok=True)
    frame = pl.DataFrame(columns)
    if name.endswith(".parquet"):
        frame.write_parquet(path)
    elif name.endswith(".csv"):
        frame.write_csv(path)
    else:
        frame.write_ipc(path, compat_level=pl.CompatLevel.oldest())


def one_log(folder: Path) -> None:
    rows: Columns = {
        "user_id": [1, 1, 1, 1],
        "item_id": [10, 11, 12, 13],
        "time_ms": [NOVEMBER_15 - 2000, NOVEMBER_15 - 1000, NOVEMBER_15, NOVEMBER_15],
        "request_id": [1, 2, 3, 3],
        "dwell_ms": [500, 0, 700, 0],
        "tab": [0, 0, 0, 0],
        "author_id": [7, 8, 9, None],
        "click": [1, 0, 1, 0],
        "is_like": [0, 0, 1, None],
    }
    write(folder, "log/a.parquet", rows)


def two_logs(folder: Path) -> None:
    plays: Columns = {
        "uid": [1, 1, 2],
        "track_id": [10, 11, 10],
        "played_at": [1_700_000_000, 1_700_000_005, 1_700_000_000],
    }
    write(folder, "plays.parquet", {**plays, "played_ratio_pct": [99, 5, 50]})
    shown_rows: Columns = {
        "uid": [1, 1],
        "shown_track_id": [12, 13],
        "shown_at": [1_700_000_005] * 2,
        "impression_id": [5, 5],
    }
    write(folder, "impressions.parquet", {**shown_rows, "played": [1, 0]})


def csv(folder: Path) -> None:
    rows: Columns = {
        "user_id": [1, 1, 1],
        "video_id": [10, 11, 12],
        "time_ms": [NOVEMBER_15, NOVEMBER_15 + 5, NOVEMBER_15 + 5],
        "is_click": [1, 0, 1],
        "play_time_ms": [900, 0, 100],
        "tab": [1, 1, 2],
        "long_view": [1, 0, 0],
    }
    write(folder, "log_standard_1.csv", rows)
    write(folder, "log_random_1.csv", {name: values[:1] for name, values in {**rows, "video_id": [13]}.items()})


def jsonl(folder: Path) -> None:
    lines = [
        '{"user": "ann", "item": "tea", "at": "2024-05-01T10:00:00+02:00", "action": "buy"}',
        '{"user": "ann", "item": "cup", "at": "2024-05-01T08:00:01Z", "action": "show", "bought": true}',
        '{"user": "ann", "item": "jug", "at": "2024-05-01 08:00:01", "action": "show"}',
    ]
    (folder / "events.jsonl.gz").write_bytes(gzip.compress("\n".join(lines).encode()))


def arrow(folder: Path) -> None:
    rows: Columns = {
        "request_id": [1, 1, 2],
        "request_timestamp": [NOVEMBER_15, NOVEMBER_15, NOVEMBER_15 + 1],
        "user_id": [4, 4, 4],
        "video_id": [10, 11, 12],
        "author_id": [1, 2, 3],
        "playing_time": [10, 0, 20],
        "effective_view": [1, 0, 1],
        "like": [0, 0, 1],
    }
    write(folder, "days/01.feather", rows)


def times_numbers(folder: Path) -> None:
    events: Columns = {"user_id": [1, 1], "item_id": [10, 11], "time_s": [1_700_000_000.25, 1_700_000_000.5]}
    write(folder, "events.parquet", {**events, "arrival_ms": [1_700_000_000_250, 1_700_000_000_750]})
    write(folder, "requests.parquet", {"user_id": [1], "item_id": [12], "time_us": [1_700_000_000_600_000]})


def times_strings(folder: Path) -> None:
    events: Columns = {
        "user_id": [1, 1],
        "item_id": [10, 11],
        "time_iso": ["2024-07-01T12:00:00", "2024-07-01T10:00:00Z"],
    }
    arrived = [datetime(2024, 7, 1, 10, 0, 1, tzinfo=UTC), datetime(2024, 7, 1, 10, 0, 2, tzinfo=UTC)]
    write(folder, "events.parquet", {**events, "arrived_at": arrived})
    write(folder, "requests.parquet", {"user_id": [1], "item_id": [12], "time": ["01.07.2024 12:00:02"]})


def delay(folder: Path) -> None:
    minute = 60_000
    rows: Columns = {
        "user_id": [1, 1, 1],
        "item_id": [10, 11, 12],
        "event_ms": [NOVEMBER_15, NOVEMBER_15, NOVEMBER_15 + 31 * minute],
        "arrival_ms": [NOVEMBER_15 + 1, NOVEMBER_15 + 40 * minute, NOVEMBER_15 + 31 * minute],
        "request_ms": [NOVEMBER_15 - minute, NOVEMBER_15 - minute, NOVEMBER_15 + 31 * minute],
        "request_id": [1, 1, 2],
        "click": [1, 1, 0],
    }
    write(folder, "log.parquet", rows)


def actions(folder: Path) -> None:
    """User 1 plays five times and sees 12 items in a session, then one more, which is pending; user 2 plays once."""
    day, minute = 86_400_000, 60_000
    done: Columns = {
        "user_id": [1] * 7 + [2],
        "item_id": [1, 2, 3, 4, 5, 20, 20, 1],
        "time_ms": [NOVEMBER_15 - 1000 * n for n in range(5, 0, -1)]
        + [NOVEMBER_15 + minute, NOVEMBER_15 + 2 * minute, NOVEMBER_15],
        "action": ["play"] * 6 + ["buy", "play"],
        "watched_ms": [100] * 5 + [7_000, None, 100],
    }
    write(folder, "actions/a.parquet", done)
    shown_at = [NOVEMBER_15 + n * minute for n in range(12)] + [NOVEMBER_15 + 17 * day, NOVEMBER_15]
    seen: Columns = {"user_id": [1] * 13 + [2], "item_id": [20 + n for n in range(12)] + [50, 60], "time_ms": shown_at}
    write(folder, "impressions/a.parquet", seen)


def partitions(folder: Path) -> None:
    days = {"2023-10-31": 40, "2023-11-14": 1, "2023-11-15": 0}
    for day, days_before in days.items():
        rows: Columns = {
            "user_id": [1, 1],
            "item_id": [10, 11],
            "time_ms": [
                NOVEMBER_15 - days_before * 24 * 3_600_000,
                NOVEMBER_15 - days_before * 24 * 3_600_000 + 60_000,
            ],
            "event": ["play", "show"],
            "click": [None, 1],
        }
        newer: Columns = {"dwell_ms": [500, None]} if day == "2023-11-15" else {}
        write(folder, f"log/dt={day}/part-0.parquet", {**rows, **newer})
        (folder / f"log/dt={day}/_SUCCESS").touch()


def delta(folder: Path) -> None:
    times = [datetime(2023, 11, 14, tzinfo=UTC), datetime(2023, 11, 15, tzinfo=UTC)]
    rows: Columns = {"user_id": [1, 1], "item_id": [10, 11], "event_time": times, "shown": [False, True]}
    write_delta(folder / "log", pl.DataFrame(rows))


# example: what writes its log; the requests, targets, and summed history lengths of the dataset
BUILT: dict[str, tuple[Callable[[Path], None], int, int, int]] = {
    "one_log": (one_log, 1, 2, 1),
    "two_logs": (two_logs, 1, 2, 1),
    "csv": (csv, 2, 4, 2),
    "jsonl": (jsonl, 1, 2, 1),
    "arrow": (arrow, 2, 3, 1),
    "times_numbers": (times_numbers, 1, 1, 1),
    "times_strings": (times_strings, 1, 1, 1),
    "delay": (delay, 2, 3, 1),
    "partitions": (partitions, 1, 1, 2),
    "delta": (delta, 1, 1, 1),
    "actions": (actions, 2, 12, 5 + 7),
}


def build_example(name: str, folder: Path) -> tuple[BuildSummary, Dataset]:
    (folder / "spec.toml").write_text((EXAMPLES / f"{name}.toml").read_text(encoding="utf-8"), encoding="utf-8")
    summary = build(load_spec(folder / "spec.toml"), folder / "out", engine=LocalEngine(1))
    return summary, open_dataset(folder / "out")


@pytest.mark.parametrize("name", sorted(BUILT))
def test_an_example_builds_from_its_log(name: str, tmp_path: Path) -> None:
    write_log, requests, targets, history_events = BUILT[name]
    write_log(tmp_path)
    summary, _ = build_example(name, tmp_path)
    assert {source: accounting.rejected for source, accounting in summary.row_accounting.items()} == dict.fromkeys(
        summary.row_accounting, 0
    )
    counts = summary.counts
    assert (counts.requests, counts.targets, counts.history_events) == (requests, targets, history_events)


def test_the_example_of_delayed_labels_counts_what_its_policies_leave_out(tmp_path: Path) -> None:
    actions(tmp_path)
    summary, dataset = build_example("actions", tmp_path)
    counts = summary.counts
    assert (counts.short_users, counts.pending_requests) == (1, 1)
    assert summary.row_accounting["impressions"].policies == {"pending_label": 1, "short_history": 1}
    targets = [row["targets"] for batch in dataset.scan() for row in batch.to_pylist()]
    assert [len(of_request) for of_request in targets] == [10, 2]
    assert targets[0][0] == {"item_id": 20, "bought": 1, "watched_ms": 7_000}
    assert targets[0][1] == {"item_id": 21, "bought": 0, "watched_ms": 0}
