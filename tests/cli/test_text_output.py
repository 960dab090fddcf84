"""The results of commands as text."""

from __future__ import annotations

from dataclasses import replace

import pytest

from longbatch.cli.text_output import (
    format_build_summary,
    format_dataset,
    format_forget_summary,
    format_metrics,
    format_presets,
    format_size,
    format_user_request,
    format_vacuum_summary,
)
from longbatch.jobs.build import BuildSummary
from longbatch.jobs.forget import Forgotten
from longbatch.jobs.vacuum import Vacuumed
from longbatch.schemas.accounting import Counts, RowAccounting
from longbatch.trainer.predictions import Metrics

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
def test_sizes_have_units_in_powers_of_a_thousand(size: float, text: str) -> None:
    assert format_size(size) == text


SUMMARY = BuildSummary(
    path="out",
    snapshot=1,
    fingerprint="f",
    counts=COUNTS,
    row_accounting={"log": ACCOUNTING},
    run_row_accounting={"log": ACCOUNTING},
    collisions=0,
    shards=1,
    bytes=12_345,
    seconds=2.0,
)


def test_a_build_summary_shows_the_outcome_of_all_rows() -> None:
    first, *lines = format_build_summary(SUMMARY).splitlines()
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


def test_collisions_and_empty_lists_are_shown_if_there_are_any() -> None:
    text = format_build_summary(
        replace(
            SUMMARY, collisions=3, row_accounting={"log": RowAccounting(rows=1, accepted=1, empty_list=5)}, seconds=0.0
        )
    )
    assert "id collisions             3" in text
    assert "  rows with empty lists   5" in text


def test_what_policies_left_out_is_shown_if_there_is_any() -> None:
    counts = Counts(rejected_users=2, rejected_events=9, pending_requests=4)
    text = format_build_summary(
        replace(SUMMARY, counts=counts, row_accounting={"log": RowAccounting(rows=9, policies={"rejected_user": 9})})
    )
    assert [line.split() for line in text.splitlines() if "too many" in line or "rejected_user" in line] == [
        ["rejected_user", "9"],
        ["users", "rejected", "for", "too", "many", "events", "2"],
    ]
    assert "users reduced" not in text


def test_the_accounting_of_each_source_is_shown() -> None:
    shown = RowAccounting(rows=9, rejected=2, accepted=7, reasons={"missing_user": 2})
    done = RowAccounting(rows=5, rejected=1, accepted=4, reasons={"missing_user": 1})
    lines = [
        line.split()
        for line in format_build_summary(replace(SUMMARY, row_accounting={"shown": shown, "done": done})).splitlines()
    ]
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


def test_a_dataset_is_shown_with_its_columns() -> None:
    text = format_dataset(DESCRIBED)
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
        assert line.split() in [shown.split() for shown in text.splitlines()]
    assert "content hash" not in text
    hashed = format_dataset({**DESCRIBED, "content_hash": "abc"})
    assert ["content", "hash", "abc"] in [line.split() for line in hashed.splitlines()]


def test_a_request_of_a_user_is_shown_line_by_line() -> None:
    shown = {
        "request_id": 5,
        "user_id": "ann",
        "newest_events": [{"item_id": "song", "ratio": 0.5}],
        "targets": [{"item_id": "new", "click": True}],
    }
    assert format_user_request(shown).splitlines() == [
        "request_id  5",
        "user_id     ann",
        "newest events, oldest first:",
        "  item_id=song  ratio=0.5",
        "targets:",
        "  item_id=new  click=True",
    ]
    assert "  (the history is empty)" in format_user_request({**shown, "newest_events": []})


def test_what_forget_rewrote_is_shown_with_the_next_step() -> None:
    summary = Forgotten("out", 3, 2, 1, 4, 9, 5, 0.1)
    assert format_forget_summary(summary) == (
        "forgot 2 users (1 had requests): rewrote 4 of 9 shards and 5 other files. "
        "Snapshot 3 contains nothing of these "
        "users. Older files do until `longbatch vacuum out` removes them."
    )


def test_what_vacuum_removed_is_shown() -> None:
    assert format_vacuum_summary(Vacuumed([1, 2], 7, 1_500, [])) == "removed 2 snapshots and 7 files (1.5 KB)"


def test_a_preset_has_a_line_about_it_and_one_about_its_download() -> None:
    assert format_presets({"mind": ("News.", "RAW is a folder.")}).splitlines() == [
        "mind           News.",
        "               RAW is a folder.",
    ]


METRICS: Metrics = {
    "history_length": 1_000,
    "label": "click",
    "auc": 0.75,
    "gauc": 0.5,
    "gauc_by_request": 0.4,
    "log_loss": 0.25,
    "ne": 0.9,
    "targets": 1_234,
}


def test_metrics_are_a_line_per_history_length_and_label() -> None:
    header, line, *_ = format_metrics([METRICS]).splitlines()
    assert header.split() == ["history", "label", "AUC", "GAUC", "log", "loss", "NE", "targets"]
    assert line.split() == ["1,000", "click", "0.7500", "0.5000", "0.2500", "0.9000", "1,234"]


def test_metrics_by_history_show_the_range_of_events() -> None:
    header, line, *_ = format_metrics([{**METRICS, "events": "500-1999"}]).splitlines()
    assert header.split()[:3] == ["history", "events", "label"]
    assert line.split()[:3] == ["1,000", "500-1999", "click"]
