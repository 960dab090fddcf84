"""Datasets are opened and scanned: one row per request with its history, which is not copied."""

from __future__ import annotations

import os
import pickle
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from arrow_values import values_of
from shard_rows import file_of, request, timeline, write_one_shard

from longbatch.schemas.errors import DatasetError, SpecError
from longbatch.schemas.format.dataset import Dataset, check_history_length, open_dataset, user_requests
from longbatch.schemas.format.manifest import FileEntry


def histories(dataset: Dataset, history_length: int | None = None) -> dict[int, list[int]]:
    """Request id -> items of its history."""
    return {
        row["request_id"]: [event["item_id"] for event in row["history"]]
        for batch in dataset.scan(history_length)
        for row in batch.to_pylist()
    }


def test_a_scan_slices_every_history_from_its_timeline(dataset: Dataset) -> None:
    assert histories(dataset) == {1: [], 2: [11, 12, 13], 3: [13, 14, 15], 4: [21], 5: [31, 32], 6: [32, 33, 34]}


@pytest.mark.parametrize("length", [0, 1, 2, 3])
def test_a_shorter_history_length_keeps_the_newest_events(dataset: Dataset, length: int) -> None:
    built = histories(dataset)
    assert histories(dataset, length) == {key: items[max(0, len(items) - length) :] for key, items in built.items()}


@pytest.mark.parametrize("length", [-1, 4, 10_000])
def test_a_length_above_the_built_one_is_rejected(dataset: Dataset, length: int) -> None:
    message = (
        rf"history_length {length:,} is not between 0 and 3, the history_length of the dataset's spec\. Use a smaller"
    )
    with pytest.raises(SpecError, match=message):
        next(dataset.scan(length))
    with pytest.raises(SpecError, match=message):
        check_history_length(dataset.spec, length)


def test_a_scan_has_histories_instead_of_the_columns_that_point_to_them(dataset: Dataset) -> None:
    names = ["request_id", "user_id", "request_time", "page", "history", "targets"]
    assert dataset.schema.names == names
    (first, _) = dataset.scan()
    assert first.schema == dataset.schema
    assert first.to_pylist()[1]["targets"] == [{"item_id": 100, "click": 0}, {"item_id": 101, "click": 1}]


def test_the_schemas_are_those_of_the_blocks(dataset: Dataset) -> None:
    (block, _) = dataset.blocks()
    assert block.timelines.schema == dataset.timelines_schema
    assert block.requests.schema == dataset.requests_schema


def test_a_scan_does_not_copy_histories(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A timeline of 2,000 events has 500 requests of 1,000 events each; copies would be 500,000 events."""
    open_map = pa.memory_map
    maps: list[pa.MemoryMappedFile] = []

    def recorded_map(path: str) -> pa.MemoryMappedFile:
        maps.append(open_map(path))
        return maps[-1]

    requests = [request(number, 1, 0, number, 1_000 + number, 1) for number in range(500)]
    block = [timeline(1, *range(2_000))], requests
    dataset = write_one_shard(tmp_path / "x", [block], compression="none", history_length=1_000)
    monkeypatch.setattr("longbatch.schemas.format.local_files.pa.memory_map", recorded_map)
    before = pa.total_allocated_bytes()
    (batch,) = dataset.scan()
    assert pa.total_allocated_bytes() - before < 64 * len(requests), "more than a few numbers for each request"
    history: Any = batch["history"]  # a list view, which the stubs of pyarrow lack
    assert sum(history.sizes.to_pylist()) == 500 * 1_000
    files = [file.read_buffer() for file in maps if file.seek(0) == 0]
    items = history.values.field("item_id").buffers()[1]
    assert any(f.address <= items.address < items.address + 8 * 2_000 <= f.address + f.size for f in files)


def test_a_dataset_can_be_pickled_and_moved(tmp_path: Path, dataset: Dataset) -> None:
    assert pickle.loads(pickle.dumps(dataset)) == dataset
    assert len(pickle.dumps(dataset)) < 10_000
    moved = Path(shutil.move(Path(dataset.location), tmp_path / "moved"))
    assert open_dataset(moved).fingerprint == dataset.fingerprint
    assert histories(open_dataset(moved))[3] == [13, 14, 15]


def test_opening_checks_that_all_files_exist(dataset: Dataset) -> None:
    (Path(dataset.location) / dataset.shards[0].timelines.path).unlink()
    with pytest.raises(DatasetError, match=r"timelines/00007-a1\.arrow is listed in the snapshot but missing"):
        open_dataset(Path(dataset.location))


def test_opening_names_a_file_of_a_folder_that_is_missing(dataset: Dataset) -> None:
    shutil.rmtree(Path(dataset.location) / "requests")
    with pytest.raises(DatasetError, match=r"requests/00007-a1\.arrow is listed in the snapshot but missing"):
        open_dataset(dataset.location)


def test_the_length_of_a_file_is_compared_when_its_shard_is_opened(dataset: Dataset) -> None:
    path = file_of(dataset, "requests")
    path.write_bytes(path.read_bytes()[:-1])
    opened = open_dataset(dataset.location)
    message = r"requests/00007-a1\.arrow has [\d,]+ bytes, but the snapshot lists [\d,]+\. Restore it or build again"
    for files in (None, opened.open_files()):
        with pytest.raises(DatasetError, match=message):
            opened.shard(0, files=files)


def test_files_that_no_snapshot_lists_are_ignored(dataset: Dataset) -> None:
    os.close(os.open(os.fsencode(dataset.location) + b"/timelines/\xff.arrow", os.O_CREAT))
    (Path(dataset.location) / "timelines" / "00001-dead.arrow").write_bytes(b"left behind")
    assert len(histories(open_dataset(dataset.location))) == 6


def test_a_dataset_without_requests_yields_nothing(tmp_path: Path) -> None:
    dataset = write_one_shard(tmp_path / "x", [])
    assert list(dataset.scan()) == []
    assert len(dataset.shards) == 0


def test_all_requests_of_a_user_are_found(dataset: Dataset) -> None:
    requests = user_requests(dataset, 1).combine_chunks().to_batches()[0]
    assert requests["request_id"].to_pylist() == [1, 2, 3]
    assert [len(history) for history in values_of(requests["history"])] == [0, 3, 3]


def test_an_unknown_user_is_named(dataset: Dataset) -> None:
    with pytest.raises(DatasetError, match=r"user 9 is not in .*dataset: the dataset has no request of this user"):
        user_requests(dataset, 9)


def test_the_vocabulary_is_empty_without_string_ids(dataset: Dataset) -> None:
    assert dataset.vocabulary().num_rows == 0
    assert {field.name: field.type for field in dataset.vocabulary().schema} == {
        "id": pa.int64(),
        "string": pa.string(),
    }


def test_a_vocabulary_file_that_is_not_arrow_is_rejected(dataset: Dataset) -> None:
    path = Path(dataset.location) / "words.arrow"
    path.write_bytes(b"no arrow")
    entry = FileEntry("words.arrow", 8, "", 1)
    broken = replace(dataset, snapshot=replace(dataset.snapshot, vocabulary=(entry,)))
    with pytest.raises(DatasetError, match=r"words\.arrow is not the Arrow file that was written"):
        broken.vocabulary()
