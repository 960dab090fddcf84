"""Opening a dataset, and one row per request with its history, without a copy."""

from __future__ import annotations

import pickle
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

from longbatch.schemas.errors import DatasetError, SpecError
from longbatch.schemas.format import local_files
from longbatch.schemas.format.dataset import Dataset, check_history_length, open_dataset, user_requests
from longbatch.schemas.format.manifest import FileEntry

Write = Callable[..., Dataset]
Rows = tuple[list[dict[str, Any]], list[dict[str, Any]]]
Builders = tuple[Callable[..., dict[str, Any]], Callable[..., dict[str, Any]]]


def histories(dataset: Dataset, history_length: int | None = None) -> dict[int, list[int]]:
    """Request id -> items of its history."""
    return {
        row["request_id"]: [event["item_id"] for event in row["history"]]
        for batch in dataset.scan(history_length)
        for row in batch.to_pylist()
    }


def test_a_scan_cuts_every_history_out_of_its_timeline(dataset: Dataset) -> None:
    assert histories(dataset) == {1: [], 2: [11, 12, 13], 3: [13, 14, 15], 4: [21], 5: [31, 32], 6: [32, 33, 34]}


@pytest.mark.parametrize("length", [0, 1, 2, 3])
def test_any_length_up_to_the_built_one_keeps_the_newest_events(dataset: Dataset, length: int) -> None:
    whole = histories(dataset)
    assert histories(dataset, length) == {key: items[max(0, len(items) - length) :] for key, items in whole.items()}


@pytest.mark.parametrize("length", [-1, 4, 10_000])
def test_a_length_beyond_the_built_one_is_refused(dataset: Dataset, length: int) -> None:
    message = (
        rf"history_length {length:,} is not between 0 and 3, the history_length of the dataset's spec\. Use a smaller"
    )
    with pytest.raises(SpecError, match=message):
        next(dataset.scan(length))
    with pytest.raises(SpecError, match=message):
        check_history_length(dataset.spec, length)


def test_a_scan_yields_what_requests_know_and_not_what_points_to_timelines(dataset: Dataset) -> None:
    names = ["request_id", "user_id", "request_time", "place", "history", "targets"]
    assert dataset.schema.names == names
    (first, _) = dataset.scan()
    assert first.schema == dataset.schema
    assert first.to_pylist()[1]["targets"] == [{"item_id": 100, "click": 0}, {"item_id": 101, "click": 1}]


def test_the_schemas_are_those_of_the_files(dataset: Dataset) -> None:
    (block, _) = dataset.blocks()
    assert block.timelines.schema == dataset.timelines_schema
    assert block.requests.schema == dataset.requests_schema


def test_the_histories_of_a_scan_are_no_copies(
    tmp_path: Path, write_dataset: Write, rows: Builders, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A timeline of 2,000 events under 500 requests of 1,000 events each: 500,000 events, were they copied."""
    timeline, request = rows
    real = pa.memory_map
    requests = [request(number, 1, 0, number, 1_000 + number, 1) for number in range(500)]
    block = [timeline(1, *range(2_000))], requests
    dataset = write_dataset(tmp_path / "x", [block], compression="none", history_length=1_000)
    maps: list[Any] = []
    monkeypatch.setattr(local_files.pa, "memory_map", lambda path: maps.append(real(path)) or maps[-1])
    before = pa.total_allocated_bytes()
    (batch,) = dataset.scan()
    assert pa.total_allocated_bytes() - before < 64 * len(requests), "more than a few numbers for each request"
    assert sum(batch["history"].sizes.to_pylist()) == 500 * 1_000
    wholes = [file.read_buffer() for file in maps if file.seek(0) == 0]
    items = batch["history"].values.field("item_id").buffers()[1]
    assert any(w.address <= items.address < items.address + 8 * 2_000 <= w.address + w.size for w in wholes)


def test_a_dataset_can_be_pickled_and_moved(tmp_path: Path, dataset: Dataset) -> None:
    assert pickle.loads(pickle.dumps(dataset)) == dataset
    assert len(pickle.dumps(dataset)) < 10_000
    moved = Path(shutil.move(dataset.path, tmp_path / "moved"))
    assert open_dataset(moved).fingerprint == dataset.fingerprint
    assert histories(open_dataset(moved))[3] == [13, 14, 15]


def test_opening_checks_that_all_files_are_there(dataset: Dataset) -> None:
    (dataset.path / dataset.shards[0].timelines.path).unlink()
    with pytest.raises(DatasetError, match=r"timelines/00007-a1\.arrow is listed in the snapshot but missing"):
        open_dataset(dataset.path)


def test_files_that_no_snapshot_lists_are_no_part_of_it(dataset: Dataset) -> None:
    (dataset.path / "timelines" / "00001-dead.arrow").write_bytes(b"left behind")
    assert len(histories(open_dataset(dataset.path))) == 6


def test_a_dataset_without_requests_scans_to_nothing(tmp_path: Path, write_dataset: Write) -> None:
    dataset = write_dataset(tmp_path / "x", [])
    assert list(dataset.scan()) == []
    assert dataset.shards == ()


def test_all_requests_of_a_user_are_found(dataset: Dataset) -> None:
    found = user_requests(dataset, 1)
    assert found["request_id"].to_pylist() == [1, 2, 3]
    assert [len(history) for history in found["history"].to_pylist()] == [0, 3, 3]


def test_a_user_who_is_not_there_is_named(dataset: Dataset) -> None:
    with pytest.raises(DatasetError, match=r"user 9 is not in .*dataset: the dataset has no request of this user"):
        user_requests(dataset, 9)


def test_without_text_ids_the_vocabulary_is_empty(dataset: Dataset) -> None:
    assert dataset.vocabulary().num_rows == 0
    assert dataset.vocabulary().schema == pa.schema({"id": pa.int64(), "string": pa.string()})


def test_the_words_of_a_vocabulary_that_is_not_arrow_are_refused(dataset: Dataset) -> None:
    path = dataset.path / "words.arrow"
    path.write_bytes(b"no arrow")
    entry = FileEntry("words.arrow", 8, "", 1)
    broken = Dataset(dataset.path, dataset.snapshot.__class__(**{**dataset.snapshot.__dict__, "vocabulary": (entry,)}))
    with pytest.raises(DatasetError, match=r"words\.arrow is not the Arrow file that was written"):
        broken.vocabulary()
