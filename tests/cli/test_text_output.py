"""What commands tell people at their end."""

from __future__ import annotations

from typing import Any

import pytest

from longbatch.cli.text_output import build_text, dataset_text, format_size, user_text
from longbatch.jobs.build import BuildSummary
from longbatch.schemas.accounting import Counts, RowAccounting

COUNTS = Counts(users=1, requests=2000, targets=3, events=4, stored=2, beyond_history=1, after_last_request=1)
ACCOUNTING = RowAccounting(rows=4000, filtered=1, rejected=2, duplicate=3, accepted=3994, reasons={"missing_user": 2})


@pytest.mark.parametrize(
    ("size", "text"),
    [
        (0, "0 B"),
        (999, "999 B"),
        (1000, "1.0 KB"),
        (1_234_567, "1.2 MB"),
        (5e9, "5.0 GB"),
        (7e15, "7.0 PB"),
        (7e21, "7000.0 EB"),
    ],
)
def test_bytes_are_told_in_powers_of_a_thousand(size: float, text: str) -> None:
    assert format_size(size) == text


def summary(**changes: Any) -> BuildSummary:
    parts: dict[str, Any] = {
        "path": "out",
        "snapshot": 1,
        "fingerprint": "f",
        "counts": COUNTS,
        "row_accounting": {"log": ACCOUNTING},
    }
    return BuildSummary(**{**parts, "collisions": 0, "shards": 1, "bytes": 12_345, "seconds": 2.0, **changes})


def test_a_build_ends_with_the_fates_of_all_rows() -> None:
    first, *lines = build_text(summary()).splitlines()
    assert first == "built out, snapshot 1"
    assert [line.split() for line in lines] == [
        ["rows", "in", "(log)", "4,000"],
        ["accepted", "3,994"],
        ["filtered", "1"],
        ["duplicate", "3"],
        ["rejected", "2"],
        ["missing_user", "2"],
        ["users", "1"],
        ["requests", "2,000"],
        ["targets", "3"],
        ["events", "4"],
        ["stored", "2"],
        ["beyond", "every", "history", "1"],
        ["after", "the", "last", "request", "1"],
        ["shards", "1"],
        ["bytes", "12.3", "KB"],
        ["seconds", "2.0", "(2,000", "rows/s)"],
    ]


def test_collisions_and_empty_lists_are_told_where_there_are_any() -> None:
    text = build_text(
        summary(collisions=3, row_accounting={"log": RowAccounting(rows=1, accepted=1, empty_list=5)}, seconds=0.0)
    )
    assert "id collisions             3" in text
    assert "  rows with empty lists   5" in text


def test_what_policies_left_out_is_told_where_they_left_out_any() -> None:
    counts = Counts(rejected_users=2, rejected_events=9, pending_requests=4)
    text = build_text(
        summary(counts=counts, row_accounting={"log": RowAccounting(rows=9, policies={"rejected_user": 9})})
    )
    assert [line.split() for line in text.splitlines() if "left out" in line or "rejected_user" in line] == [
        ["rejected_user", "9"],
        ["users", "with", "too", "many", "events,", "left", "out", "2"],
    ]
    assert "users capped" not in text


def test_the_books_of_several_sources_stand_one_below_the_other() -> None:
    shown = RowAccounting(rows=9, rejected=2, accepted=7, reasons={"missing_user": 2})
    done = RowAccounting(rows=5, rejected=1, accepted=4, reasons={"missing_user": 1})
    lines = [line.split() for line in build_text(summary(row_accounting={"shown": shown, "done": done})).splitlines()]
    first, second = lines.index(["rows", "in", "(shown)", "9"]), lines.index(["rows", "in", "(done)", "5"])
    assert lines[first + 1] == ["accepted", "7"]
    assert ["missing_user", "2"] in lines[first:second]
    assert lines[second + 1] == ["accepted", "4"]
    assert ["missing_user", "1"] in lines[second:]


DESCRIBED = {
    "path": "out",
    "name": "small",
    "snapshot": 1,
    "fingerprint": "0123456789abcdef0123",
    "history_length": 10_000,
    "compression": "zstd",
    "counts": COUNTS.as_dict(),
    "targets_per_request": 1.5,
    "mean_history": 1234.56,
    "first_request_time": "2024-01-01",
    "last_request_time": "2024-02-01",
    "shards": 1,
    "blocks": 2,
    "bytes": {"timelines": 1000, "requests": 20},
    "bytes_per_event": 3.14159,
    "row_accounting": {"log": ACCOUNTING.as_dict()},
    "skew": {
        "users": [{"size": 4_000, "name": "7"}],
        "requests": [{"size": 3, "name": "7/55"}],
        "history_lengths": {0: 1, 1: 1, 11: 2},
        "policy_users": {"heavy_user_cap": [{"size": 4_000, "name": "7"}]},
    },
    "timelines_schema": {"user_id": "int64"},
    "requests_schema": {"request_id": "string"},
}


def test_a_dataset_is_told_with_its_columns() -> None:
    text = dataset_text(DESCRIBED)
    for line in (
        "fingerprint  0123456789abcdef",
        "targets per request  1.50",
        "mean history  1,234.6 events, at most 10,000",
        "files  1 shards, 2 blocks, zstd",
        "timelines  1.0 KB, 3.14 B/event",
        "largest users, events  7 (4,000)",
        "largest requests, targets  7/55 (3)",
        "heavy_user_cap, largest users  7 (4,000)",
        "history of 0  1 requests  25.0% ###############",
        "history of 1,024 to 2,047  2 requests  50.0% ##############################",
        "  timelines.user_id: int64",
        "  requests.request_id: string",
    ):
        assert line.split() in [told.split() for told in text.splitlines()]
    assert "content hash" not in text
    hashed = dataset_text({**DESCRIBED, "content_hash": "abc"})
    assert ["content", "hash", "abc"] in [line.split() for line in hashed.splitlines()]


def test_a_users_request_is_told_line_by_line() -> None:
    shown = {
        "request_id": 5,
        "user_id": "ann",
        "newest_events": [{"item_id": "song", "ratio": 0.5}],
        "targets": [{"item_id": "new", "click": True}],
    }
    assert user_text(shown).splitlines() == [
        "request_id  5",
        "user_id     ann",
        "newest events, oldest first:",
        "  item_id=song  ratio=0.5",
        "targets:",
        "  item_id=new  click=True",
    ]
    assert "  (none was visible)" in user_text({**shown, "newest_events": []})
