"""The audit of small datasets: valid ones, and ones with one error each."""

from __future__ import annotations

import re
from pathlib import Path

import polars as pl
import pytest
from paths import TEST_DATA
from small_datasets import LOG, SPEC, Change, Rows, T, stored

from longbatch.pipelines.in_memory import build_in_memory
from longbatch.schemas.errors import DataError, DatasetError, SourceError, SpecError
from longbatch.schemas.format.shard_writer import write_shard
from longbatch.schemas.format.shards_table import ShardsTable
from longbatch.schemas.format.snapshot import Snapshot, commit, fingerprint
from longbatch.schemas.spec.build_spec import parse_spec
from longbatch.schemas.storage.local_store import LocalStore
from longbatch.validation.audit import user_sampling
from longbatch.validation.audit.audit import audit
from longbatch.validation.reference.raw_rows import read_raw


def test_a_valid_dataset_has_no_findings(tmp_path: Path) -> None:
    result = audit(stored(tmp_path, parse_spec(SPEC), LOG), users=None)
    assert result.findings == []
    assert (result.blocks_checked, result.users_checked, result.requests_checked) == (1, 2, 5)
    assert result.events_checked == 1 + 2 + 2 + 0 + 1


def test_a_heavy_user_in_segments_has_no_findings(tmp_path: Path) -> None:
    log = pl.DataFrame({"time": range(T, T + 60)}).select(
        "time",
        user=pl.lit(1),
        request=pl.col("time"),
        item=pl.col("time") % 7,
        score=pl.lit(0.0),
        tab=pl.lit(1),
        click=pl.lit(1),
    )
    spec = parse_spec("block_events = 2\nblock_targets = 3" + SPEC)
    dataset = stored(tmp_path, spec, log)
    result = audit(dataset, users=None)
    assert result.findings == []
    assert (result.requests_checked, result.events_checked) == (60, 0 + 1 + 58 * 2)
    assert result.blocks_checked > 5


def test_an_empty_dataset_has_no_findings(tmp_path: Path) -> None:
    result = audit(stored(tmp_path, parse_spec(SPEC), LOG.clear()))
    assert (result.findings, result.blocks_checked, result.users_checked) == ([], 0, 0)


def test_the_seed_determines_the_sample_of_users(tmp_path: Path) -> None:
    log = pl.concat(LOG.with_columns(pl.col("user") + 2 * n, pl.col("request") + 100 * n) for n in range(10))
    dataset = stored(tmp_path, parse_spec(SPEC), log)
    samples = [audit(dataset, users=6, seed=seed) for seed in (0, 0, 1, 2, 3)]
    assert all(result.findings == [] and result.users_checked == 6 for result in samples)
    assert samples[0] == samples[1]
    assert len({result.requests_checked for result in samples}) > 1


def history_too_long(timelines: Rows, requests: Rows) -> None:
    """Let request 12 see the event at its own time."""
    requests[1]["history_end"] += 1


def history_too_short(timelines: Rows, requests: Rows) -> None:
    requests[1]["history_end"] -= 1


def changed_event(timelines: Rows, requests: Rows) -> None:
    timelines[0]["events"][1]["score"] = 0.75


def swapped_events(timelines: Rows, requests: Rows) -> None:
    events = timelines[0]["events"]
    events[0], events[1] = events[1], events[0]


def extra_event(timelines: Rows, requests: Rows) -> None:
    timelines[0]["events"].append(timelines[0]["events"][-1])


def event_before_time_range(timelines: Rows, requests: Rows) -> None:
    timelines[0]["events"][0]["event_time"] = timelines[0]["events"][0]["event_time"].replace(year=1971)


def null_item(timelines: Rows, requests: Rows) -> None:
    timelines[0]["events"][0]["item_id"] = None


def flipped_label(timelines: Rows, requests: Rows) -> None:
    requests[2]["targets"][0]["click"] = 0


def null_label(timelines: Rows, requests: Rows) -> None:
    requests[2]["targets"][0]["click"] = None


def changed_feature(timelines: Rows, requests: Rows) -> None:
    requests[0]["tab"] = 9


def changed_request_time(timelines: Rows, requests: Rows) -> None:
    requests[2]["request_time"] = requests[2]["request_time"].replace(microsecond=1)


def reversed_targets(timelines: Rows, requests: Rows) -> None:
    requests[1]["targets"].reverse()


def no_targets(timelines: Rows, requests: Rows) -> None:
    requests[1]["targets"].clear()


def missing_request(timelines: Rows, requests: Rows) -> None:
    del requests[1]


def unknown_request(timelines: Rows, requests: Rows) -> None:
    requests[0]["request_id"] = 9


def repeated_request(timelines: Rows, requests: Rows) -> None:
    requests.insert(1, requests[1])


def swapped_requests(timelines: Rows, requests: Rows) -> None:
    requests[1], requests[2] = requests[2], requests[1]


def request_of_another_user(timelines: Rows, requests: Rows) -> None:
    requests[2]["timeline_row"], requests[2]["history_end"] = 1, 1


def swapped_users(timelines: Rows, requests: Rows) -> None:
    timelines.reverse()
    for request in requests:
        request["timeline_row"] = 1 - request["timeline_row"]


def history_end_outside(timelines: Rows, requests: Rows) -> None:
    requests[1]["history_end"] = 99


REQUEST_12 = "user 1, request 12: "
ERRORS: dict[Change, str] = {
    history_too_long: REQUEST_12 + "its history has an event that was not visible before the request",
    history_too_short: REQUEST_12 + "its history lacks an event that was visible before the request",
    changed_event: REQUEST_12
    + r"event 1 of its history is \(101, .*0.75\), but \(101, .*nan\) according to the raw log",
    swapped_events: "user 1: event 1 of the block is out of order",
    extra_event: "user 1: a segment stores events that are in no history",
    event_before_time_range: r"user 1: an event at \d+ us is outside of time_range",
    null_item: "events.item_id has 1 nulls but must have none",
    flipped_label: "user 1, request 13: targets is",
    null_label: "user 1, request 13: label 'click' is null",
    changed_feature: "user 1, request 11: tab is 9, but 1 according to the raw log",
    changed_request_time: (
        "user 1, request 13: request_time is 1700000005000001, but 1700000005000000 according to the raw log"
    ),
    reversed_targets: REQUEST_12 + "its targets are out of order",
    no_targets: REQUEST_12 + "has no targets",
    missing_request: REQUEST_12 + "is in the raw log, but not in the dataset",
    unknown_request: "user 1, request 9: is in the dataset, but not in the raw log",
    repeated_request: REQUEST_12 + "is duplicated in the dataset",
    swapped_requests: REQUEST_12 + "is out of order or a duplicate",
    request_of_another_user: r"request row 2 is of user 1 \(segment 0\), but its timeline is of user 2",
    swapped_users: "user 1: segment 0 does not follow the row before it",
    history_end_outside: "request row 1 has history_end 99",
}


@pytest.mark.parametrize(("change", "expected"), ERRORS.items(), ids=[change.__name__ for change in ERRORS])
def test_each_error_is_found_and_named(tmp_path: Path, change: Change, expected: str) -> None:
    result = audit(stored(tmp_path, parse_spec(SPEC), LOG, change), users=None)
    assert any(re.search(expected, finding) for finding in result.findings), result.findings


def test_a_finding_names_shard_and_block(tmp_path: Path) -> None:
    result = audit(stored(tmp_path, parse_spec(SPEC), LOG, flipped_label), users=None)
    assert len(result.findings) == 1
    assert result.findings[0].startswith("shard 0 (requests/00000-test.arrow), block 0: user 1, request 13: ")


def test_only_requests_with_a_different_history_are_named(tmp_path: Path) -> None:
    """Event 1 of user 1 is in the history of request 12 (events 0-1), but not of 11 (event 0) or 13 (events 2-3)."""
    result = audit(stored(tmp_path, parse_spec(SPEC), LOG, changed_event), users=None)
    assert ["request 12" in finding for finding in result.findings] == [True]


def test_a_late_event_in_a_history_is_found_by_its_arrival_time_in_the_raw_log(tmp_path: Path) -> None:
    text = SPEC.replace("[history.features]", 'arrival_time = { column = "arrival", unit = "s" }\n[history.features]')
    log = LOG.with_columns(arrival=pl.when(pl.col("item") == 100).then(pl.col("time") + 1).otherwise("time"))
    dataset = stored(tmp_path, parse_spec(text), log)
    assert audit(dataset, users=None).findings == []
    bad = stored(tmp_path / "bad", parse_spec(text), log, lambda _, requests: requests[0].update(history_end=1))
    findings = audit(bad, users=None).findings
    assert findings[-1].endswith("user 1, request 11: its history has 1 events, but 0 according to the raw log")
    assert not any("not visible" in finding for finding in findings)


def test_without_the_raw_log_only_the_structure_is_checked(tmp_path: Path) -> None:
    dataset = stored(tmp_path, parse_spec(SPEC), LOG, flipped_label)
    (tmp_path / "log.parquet").rename(tmp_path / "moved.parquet")
    result = audit(dataset)
    assert (result.findings, result.blocks_checked, result.users_checked) == ([], 1, 0)
    assert "log.parquet. Check the path of the source." in result.not_compared
    moved = parse_spec(SPEC.replace("log.parquet", "moved.parquet")).with_paths_from(tmp_path)
    assert len(audit(dataset, moved).findings) == 1


def test_the_raw_log_may_be_elsewhere_in_another_format(tmp_path: Path) -> None:
    dataset = stored(tmp_path, parse_spec(SPEC), LOG, flipped_label)
    LOG.write_csv(tmp_path / "log.tsv", separator="\t")
    moved = parse_spec('name = "elsewhere"\n' + SPEC.replace("log.parquet", "log.tsv")).with_paths_from(tmp_path)
    findings = audit(dataset, moved, users=None).findings
    assert len(findings) == 1
    assert "user 1, request 13: targets is" in findings[0]


def test_a_given_spec_must_match_the_dataset_and_its_files_must_exist(tmp_path: Path) -> None:
    dataset = stored(tmp_path, parse_spec(SPEC), LOG)
    with pytest.raises(
        SpecError, match=r"differs from the one that .* was built from, in history_length\. Pass a spec"
    ):
        audit(dataset, parse_spec(SPEC.replace("history_length = 2", "history_length = 3")))
    with pytest.raises(SpecError, match=r", in requests\. "):
        audit(dataset, parse_spec(SPEC.replace("click >= 0", "click > 0")))
    with pytest.raises(SourceError, match=r"no file matches .*nowhere/log\.parquet\. Check the path of the source"):
        audit(dataset, parse_spec(SPEC).with_paths_from(tmp_path / "nowhere"))


def test_a_raw_log_that_cannot_be_read_is_an_error_that_names_the_file(tmp_path: Path) -> None:
    dataset = stored(tmp_path, parse_spec(SPEC), LOG)
    (tmp_path / "log.parquet").write_bytes(b"not Parquet")
    with pytest.raises(DataError, match=r"cannot read .*log.parquet: "):
        audit(dataset)
    LOG.drop("item").write_parquet(tmp_path / "log.parquet")
    with pytest.raises(SourceError, match=r"log.parquet has no column 'item'\."):
        audit(dataset)


def test_a_folder_without_a_snapshot_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(DatasetError, match="has no snapshots"):
        audit(tmp_path)


def test_an_audit_in_groups_of_users_equals_one_of_all_users(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    dataset = stored(tmp_path, parse_spec(SPEC), LOG, flipped_label)
    complete = audit(dataset, users=None)
    monkeypatch.setattr(user_sampling, "GROUP_ROWS", 1)
    assert audit(dataset, users=None) == complete
    assert (complete.users_checked, len(complete.findings)) == (2, 1)


def test_users_missing_from_the_dataset_are_sampled_too(tmp_path: Path) -> None:
    log = pl.concat(LOG.with_columns(pl.col("user") + 2 * n, pl.col("request") + 100 * n) for n in range(30))
    dataset = stored(tmp_path, parse_spec(SPEC), log.filter(pl.col("user") != 40))
    log.write_parquet(tmp_path / "log.parquet")
    assert "user 40, request 1921: is in the raw log, but not in the dataset" in audit(dataset, users=1).findings


def test_progress_is_reported_by_stage_and_ends(tmp_path: Path) -> None:
    shares_by_stage: dict[str, list[float]] = {}

    def report(stage: str, done: float, total: float) -> None:
        shares_by_stage.setdefault(stage, []).append(done / total)

    audit(stored(tmp_path, parse_spec(SPEC), LOG), progress=report)
    assert list(shares_by_stage) == ["checksums", "structure", "raw users", "raw log", "comparison"]
    assert all(shares == sorted(shares) and shares[-1] == 1 for shares in shares_by_stage.values())


@pytest.mark.slow
def test_real_impressions_have_no_findings(tmp_path: Path) -> None:
    spec = parse_spec(
        f"""
        history_length = 50
        [sources.history]
        path = "{TEST_DATA}/ebnerd/history.parquet"
        explode.lists = ["impression_time_fixed", "article_id_fixed", "read_time_fixed"]
        [sources.behaviors]
        path = "{TEST_DATA}/ebnerd/behaviors.parquet"
        explode = {{ lists = ["article_ids_inview"], position = "place" }}
        [history]
        source = "history"
        user_id = "user_id"
        item_id = "article_id_fixed"
        event_time = {{ column = "impression_time_fixed", timezone = "Europe/Copenhagen" }}
        [history.features]
        read_time = {{ column = "read_time_fixed", type = "float32" }}
        [requests]
        source = "behaviors"
        user_id = "user_id"
        item_id = "article_ids_inview"
        request_time = {{ column = "impression_time", timezone = "Europe/Copenhagen" }}
        request_id = "impression_id"
        [requests.features]
        device_type = "int8"
        [requests.target_features]
        place = "int16"
        [requests.labels]
        click = {{ contained_in = "article_ids_clicked" }}
        """
    )
    raw = {source: read_raw(spec, source) for source in spec.sources}
    built = build_in_memory(spec, raw)
    for table in ("timelines", "requests", "dictionaries", "snapshots"):
        (tmp_path / table).mkdir()
    shard = write_shard(LocalStore(tmp_path), 0, "test", spec, built.blocks)
    assert shard is not None
    shards = ShardsTable.from_entries([shard])
    hash_ = fingerprint(spec, shards)
    commit(LocalStore(tmp_path), Snapshot(1, spec, built.counts, built.row_accounting, 0, shards, (), (), hash_))
    result = audit(tmp_path, users=None)
    assert result.findings == []
    assert result.requests_checked == 1046
