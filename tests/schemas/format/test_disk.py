"""Durable writes, atomic replacement of files and folders, and checks of listed files."""

from __future__ import annotations

import errno
from pathlib import Path

import pytest
from shard_rows import file_of

from longbatch.schemas.errors import DatasetError, MachineError
from longbatch.schemas.format.dataset import Dataset
from longbatch.schemas.format.disk import HashingFile, read_file
from longbatch.schemas.storage.local_folders import atomic_file, hidden_folder, replace_folder
from longbatch.schemas.storage.local_store import LocalStore


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_a_file_that_cannot_be_flushed_is_reported(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(handle: int) -> None:
        raise OSError(errno.EIO, "Input/output error")

    monkeypatch.setattr("longbatch.schemas.storage.local_store.os.fsync", fail)
    file = HashingFile(LocalStore(tmp_path), "x")
    file.write(b"abc")
    with pytest.raises(MachineError, match=r"cannot write .*x: Input/output error"):
        file.close()
    assert file.closed


def test_an_altered_file_fails_its_checksum(dataset: Dataset) -> None:
    path = file_of(dataset, "timelines")
    path.write_bytes(path.read_bytes().replace(b"item_id", b"item_ID"))
    with pytest.raises(DatasetError, match=r"00007-a1\.arrow was altered: its sha256 is [0-9a-f]{12}\.\.\., but"):
        read_file(dataset.store, dataset.shards[0].timelines)


def test_a_file_is_replaced_only_when_it_is_complete(tmp_path: Path) -> None:
    target = tmp_path / "x"
    target.write_bytes(b"earlier")
    with atomic_file(target) as file:
        file.write(b"new")
        assert target.read_bytes() == b"earlier"
    assert target.read_bytes() == b"new"
    assert names(tmp_path) == ["x"]


def test_an_error_leaves_the_earlier_file(tmp_path: Path) -> None:
    target = tmp_path / "x"
    target.write_bytes(b"earlier")

    def interrupted_write() -> None:
        with atomic_file(target) as file:
            file.write(b"new")
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted_write()
    assert target.read_bytes() == b"earlier"
    assert names(tmp_path) == ["x"]


@pytest.mark.parametrize("exists", [False, True])
def test_a_folder_is_replaced_with_all_its_files(tmp_path: Path, exists: bool) -> None:
    target = tmp_path / "x"
    if exists:
        target.mkdir()
        (target / "earlier").touch()
    with hidden_folder(target) as unfinished:
        (unfinished / "new").touch()
        assert unfinished.name.startswith(".x-")
        replace_folder(unfinished, target)
    assert names(target) == ["new"]
    assert names(tmp_path) == ["x"]


def test_an_error_leaves_the_earlier_folder(tmp_path: Path) -> None:
    target = tmp_path / "x"
    target.mkdir()
    (target / "earlier").touch()
    with pytest.raises(FileNotFoundError):
        replace_folder(tmp_path / "missing", target)
    assert names(target) == ["earlier"]
    assert names(tmp_path) == ["x"]
