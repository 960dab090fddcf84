"""`longbatch expand` to a URL, on a local S3 server: complete, or recognizably not."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import polars as pl
import pytest
from command_line import run_command
from small_datasets import LOG, SPEC, stored

from longbatch.benchmarks.object_servers import Bucket
from longbatch.jobs import expand as expand_module
from longbatch.jobs import expanded_files
from longbatch.jobs.expand import compare, expand
from longbatch.schemas.errors import DatasetError, MachineError
from longbatch.schemas.format.dataset import Dataset, open_dataset
from longbatch.schemas.spec.build_spec import parse_spec
from longbatch.schemas.storage.local_store import LocalStore
from longbatch.schemas.storage.store import Store


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> Dataset:
    """Two users, six targets, in several blocks."""
    spec = parse_spec(SPEC).model_copy(update={"block_targets": 1})
    return open_dataset(stored(tmp_path_factory.mktemp("small"), spec, LOG))


@pytest.fixture
def out(s3: Bucket, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Store:
    """An empty place in a bucket; expansions have several parts."""
    monkeypatch.setattr(expanded_files, "PART_BYTES", 1)
    return s3.open(f"{tmp_path.name}/samples")


def names(store: Store) -> list[str]:
    return sorted(file.path for file in store.list_files())


def rows_of(store: Store) -> pl.DataFrame:
    parts = [name for name in names(store) if name.endswith(".parquet")]
    return pl.concat([pl.read_parquet(store.read(name).to_pybytes()) for name in parts])


def test_the_rows_are_those_of_a_local_expansion(small: Dataset, out: Store, tmp_path: Path) -> None:
    expand(small, tmp_path / "out")
    expansion = expand(small, out, check=True)
    assert expansion.equal
    assert names(out) == ["_SUCCESS", *(f"part-{number:05d}.parquet" for number in range(expansion.files))]
    assert expansion.files > 2
    assert expansion.bytes == sum(file.size_bytes for file in out.list_files())
    assert rows_of(out).equals(rows_of(LocalStore(tmp_path / "out")))
    assert compare(small, out).equal


def test_an_expansion_without_the_marker_is_incomplete(small: Dataset, out: Store) -> None:
    expand(small, out)
    out.delete(["part-00001.parquet"])
    assert not compare(small, out).equal
    out.delete(["_SUCCESS"])
    with pytest.raises(DatasetError, match=r"samples is incomplete: it has no _SUCCESS.*Expand again with --overwrite"):
        compare(small, out)
    with pytest.raises(DatasetError, match=r"already exists. Pass --overwrite to replace it"):
        expand(small, out)
    expand(small, out, overwrite=True)
    assert compare(small, out).equal


def test_an_expansion_that_fails_leaves_no_file(small: Dataset, out: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    write = expanded_files.write_part

    def fail_at_second(*arguments: Any) -> tuple[int, int, int]:
        if arguments[3] == "part-00001.parquet":
            raise MachineError("the store did not answer")
        return write(*arguments)

    expand(small, out)
    monkeypatch.setattr(expand_module, "write_part", fail_at_second)
    with pytest.raises(MachineError, match="the store did not answer"):
        expand(small, out, overwrite=True, workers=1)
    assert names(out) == []


def test_an_expansion_that_fails_its_check_is_not_kept_in_a_store(
    small: Dataset, out: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    write = expanded_files.write_part

    def write_wrong(*arguments: Any) -> tuple[int, int, int]:
        expander, settings, store, name, blocks = arguments
        return write(expander, settings, store, name, blocks * 2)

    monkeypatch.setattr(expand_module, "write_part", write_wrong)
    assert not expand(small, out, check=True).equal
    assert names(out) == []


def test_only_an_expansion_is_replaced(small: Dataset, out: Store, s3: Bucket, tmp_path: Path) -> None:
    expand(small, out)
    expand(small, out, history_length=1, overwrite=True)
    assert compare(small, out, history_length=1).equal
    out.write("part-99999.parquet", b"not of an expansion")
    with pytest.raises(DatasetError, match=r"samples is not an expansion: it contains part-99999.parquet"):
        expand(small, out, overwrite=True)
    out.delete(["part-99999.parquet"])
    out.write("notes/todo.txt", b"mine")
    with pytest.raises(DatasetError, match=r"samples is not an expansion: it contains notes/todo.txt"):
        expand(small, out, overwrite=True)
    assert compare(small, out, history_length=1).equal


def test_a_dataset_in_a_store_is_never_overwritten(small: Dataset, s3: Bucket, tmp_path: Path) -> None:
    place = f"{tmp_path.name}/dataset"
    for file in small.store.list_files():
        s3.open(place).write(file.path, small.store.read(file.path).to_pybytes())
    dataset = open_dataset(s3.open(place))
    for out in (s3.open(place), s3.open(f"{place}/samples"), s3.open(tmp_path.name)):
        with pytest.raises(DatasetError, match=r"is inside the dataset .* or contains it. Choose a separate folder"):
            expand(dataset, out, overwrite=True)
    assert expand(dataset, s3.open(f"{place}-samples"), check=True).equal


def test_the_command_takes_a_url(small: Dataset, out: Store, s3: Bucket, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in s3.environment.items():
        monkeypatch.setenv(name, value)
    written = run_command("expand", small.location, out.location, "--json")
    assert written.returncode == 0, written.stderr
    assert json.loads(written.stdout)["path"] == out.location
    checked = run_command("expand", small.location, out.location, "--check")
    assert checked.returncode == 0, checked.stderr
    assert len(rows_of(out)) == 6
