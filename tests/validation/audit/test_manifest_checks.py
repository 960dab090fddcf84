"""The audit of what a snapshot lists: files, bytes of blocks, rows, totals and counts."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import polars as pl
import pyarrow as pa
import pytest
from small_datasets import LOG, SPEC, stored

from longbatch.jobs.build import build
from longbatch.schemas.errors import DatasetError
from longbatch.schemas.format.dataset import open_dataset
from longbatch.schemas.format.shard_writer import write_shard
from longbatch.schemas.format.shards_table import ShardsTable
from longbatch.schemas.format.snapshot import commit, fingerprint
from longbatch.schemas.spec.build_spec import parse_spec
from longbatch.schemas.storage.local_store import LocalStore
from longbatch.validation.audit.audit import audit

STRING_ITEMS = SPEC.replace('item_id = "item"', 'item_id = { column = "item", type = "string" }')


@pytest.fixture
def dataset(tmp_path: Path) -> Path:
    return stored(tmp_path, parse_spec(SPEC), LOG)


def recommit(dataset: Path, **changes: object) -> None:
    """Commit the snapshot again with changed values."""
    snapshot = open_dataset(dataset).snapshot
    values = {**vars(snapshot), "number": snapshot.number + 1, **changes}
    values["fingerprint"] = fingerprint(values["spec"], values["shards"])
    commit(LocalStore(dataset), type(snapshot)(**values))


def test_altered_truncated_and_missing_files_are_findings(dataset: Path) -> None:
    path = dataset / "timelines" / "00000-test.arrow"
    data = bytearray(path.read_bytes())
    data[-20] ^= 1
    path.write_bytes(data)
    assert any(f"{path} was altered: its sha256" in finding for finding in audit(dataset).findings)
    path.write_bytes(data[:-1])
    assert any(f"has {len(data) - 1:,} bytes" in finding for finding in audit(dataset).findings)
    path.unlink()
    findings = audit(dataset, users=None).findings
    assert any("is listed in the snapshot but missing" in finding for finding in findings)
    assert any("is in the raw log, but not in the dataset" in finding for finding in findings)


def test_an_altered_block_is_named(dataset: Path) -> None:
    path = dataset / "requests" / "00000-test.arrow"
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)
    expected = "shard 0 (requests/00000-test.arrow), block 0: was altered: its crc32 is "
    assert any(finding.startswith(expected) for finding in audit(dataset).findings)


def test_a_wrong_offset_of_a_block_is_a_finding(dataset: Path) -> None:
    (row,) = open_dataset(dataset).shards
    block = replace(row.blocks[0], requests_offset=8, requests_bytes=row.blocks[0].requests_bytes - 8)
    recommit(dataset, shards=ShardsTable.from_entries([replace(row, blocks=(block,))]))
    findings = audit(dataset).findings
    assert (
        "shard 0 (requests/00000-test.arrow), block 0: starts at byte 8, but the bytes before it end at 0" in findings
    )


def test_a_wrong_time_of_a_shard_is_a_finding(dataset: Path) -> None:
    (row,) = open_dataset(dataset).shards
    recommit(dataset, shards=ShardsTable.from_entries([replace(row, first_request_time=row.last_request_time)]))
    (finding,) = audit(dataset).findings
    assert finding.startswith(
        "shard 0, all blocks: first_request_time is 2023-11-14 22:13:21+00:00, but the snapshot lists 2023"
    )


def test_a_user_in_two_shards_is_a_finding(dataset: Path) -> None:
    opened = open_dataset(dataset)
    blocks = [(block.timelines, block.requests) for block in opened.blocks()]
    again = write_shard(LocalStore(dataset), 1, "again", opened.spec, blocks)
    assert again is not None
    recommit(dataset, shards=opened.shards.sorted_with(ShardsTable.from_entries([again])))
    findings = audit(dataset).findings
    assert "user 1: is in shard 0 and in shard 1, but may be in one only (and 1 more like it)" in findings
    assert any("user 1, request 11: is duplicated in the dataset" in finding for finding in findings)


def test_counts_that_do_not_add_up_are_findings(dataset: Path) -> None:
    name = dataset / "snapshots" / "00000001.json"
    name.write_text(name.read_text().replace('"targets": 6', '"targets": 7').replace('"filtered": 0', '"filtered": 1'))
    findings = audit(dataset, users=None).findings
    assert "all shards together contain 6 targets, but the snapshot lists 7" in findings
    assert any("source log: 7 rows in, but 8 accounted for" in finding for finding in findings)
    assert any("source log: the snapshot counts" in finding for finding in findings)


def test_event_counts_that_do_not_add_up_are_findings(dataset: Path) -> None:
    name = dataset / "snapshots" / "00000001.json"
    name.write_text(name.read_text().replace('"after_last_request": 2', '"after_last_request": 3'))
    findings = audit(dataset, users=None).findings
    assert any("the row accounting of the snapshot is inconsistent: " in finding for finding in findings)
    assert any("events before the last request of their user" in finding for finding in findings)


def test_wrong_row_counts_of_vocabulary_and_quarantine_are_findings(tmp_path: Path) -> None:
    log = LOG.with_columns(pl.col("user").replace(2, None), pl.format("item {}", "item").alias("item"))
    log.write_parquet(tmp_path / "log.parquet")
    build(parse_spec("max_rejected = 0.5" + STRING_ITEMS).with_paths_from(tmp_path), tmp_path / "dataset")
    assert audit(tmp_path / "dataset", users=None).findings == []
    snapshot = open_dataset(tmp_path / "dataset").snapshot
    for listed in ("vocabulary", "quarantine"):
        (entry,) = getattr(snapshot, listed)
        recommit(tmp_path / "dataset", **{listed: (replace(entry, rows=99),)})
    findings = audit(tmp_path / "dataset").findings
    assert [finding.partition(" contains ")[2] for finding in findings] == [
        "5 rows, but the snapshot lists 99",
        "2 rows, but the snapshot lists 99",
    ]


def test_a_snapshot_of_an_older_build_is_an_error(tmp_path: Path) -> None:
    """An older snapshot is restored after a build that replaced its files: its table of shards is missing."""
    LOG.write_parquet(tmp_path / "log.parquet")
    spec = parse_spec(SPEC).with_paths_from(tmp_path)
    build(spec, tmp_path / "dataset")
    first = tmp_path / "dataset" / "snapshots" / "00000001.json"
    text = first.read_text()
    build(spec, tmp_path / "dataset", overwrite=True)
    first.with_name("00000003.json").write_text(text)
    with pytest.raises(DatasetError, match=r"00000001.shards-.*.arrow is listed in the snapshot but missing"):
        audit(tmp_path / "dataset")


def test_a_shards_table_of_another_build_is_an_error(dataset: Path) -> None:
    name = dataset / "snapshots" / "00000001.json"
    document = json.loads(name.read_text())
    with pa.ipc.new_file(str(dataset / document["shards"]["path"]), pa.schema({"bucket": pa.int32()})):
        pass
    with pytest.raises(DatasetError, match="bytes, but the snapshot lists"):
        audit(dataset)
