"""A snapshot becomes visible completely or not at all, and an invalid one is rejected."""

from __future__ import annotations

import errno
import json
import pickle
from dataclasses import replace
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from shard_rows import BLOCKS, write_one_shard

from longbatch.schemas.accounting import RowAccounting
from longbatch.schemas.errors import DatasetError, MachineError
from longbatch.schemas.format import shards_table
from longbatch.schemas.format.dataset import Dataset, open_dataset
from longbatch.schemas.format.snapshot import commit, fingerprint, read_snapshot, snapshot_numbers
from longbatch.schemas.storage import local_store


def files(root: Path) -> list[str]:
    return sorted(path.name for path in (root / "snapshots").iterdir())


def document(dataset: Dataset) -> tuple[Path, dict[str, Any]]:
    path = Path(dataset.location) / "snapshots" / "00000001.json"
    return path, json.loads(path.read_bytes())


def alter(dataset: Dataset, **changes: Any) -> None:
    path, original = document(dataset)
    path.write_text(json.dumps(original | changes))


def test_a_snapshot_is_read_as_it_was_committed(dataset: Dataset) -> None:
    assert read_snapshot(dataset.store) == dataset.snapshot
    assert dataset.snapshot.row_accounting["log"] == RowAccounting(
        rows=9, rejected=2, accepted=7, reasons={"missing_user": 2}
    )
    assert dataset.counts.users == 3
    assert pickle.loads(pickle.dumps(dataset.snapshot)) == dataset.snapshot


def test_the_newest_snapshot_is_read_by_default(dataset: Dataset) -> None:
    commit(dataset.store, replace(dataset.snapshot, number=2, collisions=5))
    assert snapshot_numbers(dataset.store) == [1, 2]
    newest = open_dataset(dataset.store).snapshot
    assert (newest.number, newest.collisions) == (2, 5)
    assert open_dataset(dataset.store, snapshot=1).snapshot.collisions == 0


def test_a_missing_snapshot_is_named(dataset: Dataset) -> None:
    with pytest.raises(DatasetError, match=r"dataset has no snapshot 7, only \[1\]"):
        open_dataset(Path(dataset.location), snapshot=7)


def test_a_folder_without_snapshots_is_not_a_dataset(tmp_path: Path) -> None:
    with pytest.raises(DatasetError, match=r"is not a dataset: it has no snapshots\. Build one with `longbatch build`"):
        open_dataset(tmp_path)
    with pytest.raises(DatasetError, match="none is not a dataset"):
        open_dataset(tmp_path / "none")


def test_a_staged_file_is_not_a_snapshot(dataset: Dataset) -> None:
    (Path(dataset.location) / "snapshots" / ".00000002.abc.json").write_text("{}")
    (Path(dataset.location) / "snapshots" / "00000003.json.tmp").write_text("{}")
    assert snapshot_numbers(dataset.store) == [1]


def test_a_number_is_committed_once_and_the_first_commit_wins(dataset: Dataset) -> None:
    before = files(Path(dataset.location))
    with pytest.raises(DatasetError, match=r"00000001\.json: another build committed first. Nothing of this build is"):
        commit(dataset.store, replace(dataset.snapshot, collisions=5))
    assert files(Path(dataset.location)) == before
    assert open_dataset(Path(dataset.location)).snapshot == dataset.snapshot


@pytest.mark.parametrize("error", [KeyboardInterrupt(), OSError(errno.ENOSPC, "No space left on device")])
def test_a_commit_that_fails_after_the_link_leaves_nothing_visible(
    dataset: Dataset, monkeypatch: pytest.MonkeyPatch, error: BaseException
) -> None:
    def fail(folder: Path) -> None:
        assert (folder / "00000002.json").exists()
        raise error

    before = files(Path(dataset.location))
    monkeypatch.setattr(local_store, "sync_folder", fail)
    with pytest.raises(
        (KeyboardInterrupt, MachineError), match=r"^$|cannot write .*00000002.json: No space left on device"
    ):
        commit(dataset.store, replace(dataset.snapshot, number=2))
    assert files(Path(dataset.location)) == before


def test_an_unknown_version_of_the_format_is_rejected(dataset: Dataset) -> None:
    alter(dataset, format_version=1)
    with pytest.raises(DatasetError, match=r"00000001\.json has format 1, but this longbatch reads format 2. Install"):
        open_dataset(Path(dataset.location))


def test_an_altered_fingerprint_is_rejected(dataset: Dataset) -> None:
    alter(dataset, fingerprint="0" * 64)
    with pytest.raises(
        DatasetError, match=r"fingerprint [0-9a-f]{12}\.\.\. is not that of the snapshot. It was altered"
    ):
        open_dataset(Path(dataset.location))


def test_an_altered_spec_is_rejected(dataset: Dataset) -> None:
    alter(dataset, spec={**document(dataset)[1]["spec"], "history_length": 4})
    with pytest.raises(DatasetError, match=r"fingerprint .* is not that of the snapshot"):
        open_dataset(Path(dataset.location))


def test_an_altered_shards_table_is_rejected(dataset: Dataset) -> None:
    path = Path(dataset.location) / document(dataset)[1]["shards"]["path"]
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 0xFF
    path.write_bytes(data)
    with pytest.raises(DatasetError, match=r"shards-\w+\.arrow was altered: its sha256"):
        open_dataset(Path(dataset.location))


def test_a_missing_shards_table_is_named(dataset: Dataset) -> None:
    (Path(dataset.location) / document(dataset)[1]["shards"]["path"]).unlink()
    with pytest.raises(DatasetError, match=r"shards-\w+\.arrow is listed in the snapshot but missing"):
        open_dataset(Path(dataset.location))


def test_a_shards_table_with_other_columns_is_rejected(dataset: Dataset, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shards_table, "SHARDS_SCHEMA", pa.schema({"bucket": pa.int32()}))
    with pytest.raises(DatasetError, match=r"shards-\w+\.arrow: its columns are not those of a shards table"):
        open_dataset(Path(dataset.location))


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"", "JSONDecodeError"),
        (b"[1]", "TypeError"),
        (b"{}", "KeyError: 'format_version'"),
        (b"\xff", "UnicodeDecodeError"),
    ],
)
def test_an_unreadable_snapshot_is_rejected(dataset: Dataset, data: bytes, message: str) -> None:
    document(dataset)[0].write_bytes(data)
    with pytest.raises(DatasetError, match=rf"00000001\.json is not a readable snapshot \({message}"):
        open_dataset(Path(dataset.location))


@pytest.mark.parametrize("key", ["counts", "row_accounting", "spec", "shards", "fingerprint"])
def test_a_snapshot_with_a_missing_key_is_rejected(dataset: Dataset, key: str) -> None:
    path, original = document(dataset)
    del original[key]
    path.write_text(json.dumps(original))
    with pytest.raises(DatasetError, match=rf"is not a readable snapshot \(KeyError: '{key}'"):
        open_dataset(Path(dataset.location))


def test_a_snapshot_with_an_unknown_count_is_rejected(dataset: Dataset) -> None:
    alter(dataset, counts={"elephants": 1})
    with pytest.raises(DatasetError, match=r"is not a readable snapshot \(TypeError: .*elephants"):
        open_dataset(Path(dataset.location))


def test_the_fingerprint_depends_on_the_content_only(tmp_path: Path, dataset: Dataset) -> None:
    assert write_one_shard(tmp_path / "elsewhere", BLOCKS).fingerprint == dataset.fingerprint
    assert write_one_shard(tmp_path / "less", BLOCKS[:1]).fingerprint != dataset.fingerprint
    assert fingerprint(dataset.spec.model_copy(update={"history_length": 2}), dataset.shards) != dataset.fingerprint


def test_a_snapshot_of_an_earlier_development_version_is_rejected(dataset: Dataset) -> None:
    spec = document(dataset)[1]["spec"]
    spec["sources"]["log"]["made_time"] = {"column": "t", "start": "2020-01-01T00:00:00Z", "per_file": "7d"}
    alter(dataset, spec=spec)
    message = r"00000001\.json was built by an earlier development version\. Build the dataset again\."
    with pytest.raises(DatasetError, match=message):
        open_dataset(Path(dataset.location))


def test_a_snapshot_with_the_old_name_of_the_row_accounting_is_rejected(dataset: Dataset) -> None:
    alter(dataset, ledgers={})
    with pytest.raises(DatasetError, match="was built by an earlier development version"):
        open_dataset(Path(dataset.location))


@pytest.mark.parametrize(
    "entry",
    [
        5,
        {"path": "x", "bytes": 1},
        {"path": "x", "bytes": "1", "sha256": ""},
        {"path": "x", "bytes": True, "sha256": ""},
        {"path": "x", "bytes": 1, "sha256": "", "owner": 1},
    ],
)
@pytest.mark.parametrize("key", ["shards", "vocabulary", "quarantine", "samples", "state"])
def test_an_invalid_file_entry_is_rejected(dataset: Dataset, key: str, entry: object) -> None:
    alter(dataset, **{key: entry if key == "shards" else [entry]})
    with pytest.raises(
        DatasetError, match=rf"00000001\.json, {key}: .* is not a valid file entry\. Restore the snapshot"
    ):
        open_dataset(Path(dataset.location))
