"""Datasets by URI, from a local server of the S3 protocol, with the faults of real object stores."""

from __future__ import annotations

import itertools
import os
from collections.abc import Iterable, Iterator
from pathlib import Path

import pytest
from block_rows import request_ids

from longbatch.benchmarks.object_proxy import FaultName, Request
from longbatch.benchmarks.object_servers import Bucket
from longbatch.loaders import RequestBatch, RequestDataset, make_dataloader
from longbatch.schemas.errors import DatasetError, MachineError, SpecError
from longbatch.schemas.format.remote_cache import RemoteRoot
from longbatch.schemas.storage import object_store as module
from longbatch.schemas.storage.local_store import LocalStore


@pytest.fixture(scope="module")
def uploaded(s3: Bucket, random_dataset: Path) -> Bucket:
    """A bucket with the dataset."""
    store = s3.open("dataset")
    for file in LocalStore(random_dataset).list_files():
        store.write(file.path, (random_dataset / file.path).read_bytes())
    return s3


@pytest.fixture
def bucket(uploaded: Bucket, monkeypatch: pytest.MonkeyPatch) -> Iterator[Bucket]:
    """The bucket without planned faults; waits between retries are short."""
    monkeypatch.setattr(module, "FIRST_WAIT_SECONDS", 0.01)
    uploaded.proxy.reset()
    yield uploaded
    uploaded.proxy.reset()


def is_ranged(request: Request) -> bool:
    return "range" in request.headers


def remote(bucket: Bucket, cache: Path, **more: int) -> RemoteRoot:
    """The dataset of the bucket, with a cache."""
    return RemoteRoot(f"{bucket.url}/dataset", cache, storage=bucket.storage, **more)


def files_in(folder: Path) -> list[Path]:
    return [path for path in folder.rglob("*") if path.is_file()]


@pytest.mark.slow
@pytest.mark.parametrize(("num_workers", "start"), [(0, ""), (1, "spawn"), (2, "fork")])
def test_a_dataset_in_a_store_yields_the_batches_of_a_local_one(
    bucket: Bucket, random_dataset: Path, tmp_path: Path, num_workers: int, start: str
) -> None:
    dataset = RequestDataset(remote(bucket, tmp_path), batch_size=7, shuffle=True)
    batches: Iterable[RequestBatch] = dataset
    if num_workers:
        loader = make_dataloader(dataset, num_workers=num_workers)
        loader.multiprocessing_context = start
        batches = loader
    assert request_ids(batches) == request_ids(RequestDataset(random_dataset, batch_size=7, shuffle=True))
    assert dataset.fingerprint == RequestDataset(random_dataset).fingerprint


def test_opening_takes_few_requests(bucket: Bucket, tmp_path: Path) -> None:
    dataset = RequestDataset(remote(bucket, tmp_path), batch_size=7, shuffle=True)
    dataset.open()
    dataset.planned(0).locator().rows(0)
    assert len(bucket.proxy.requests) == 3, "the listing of snapshots, the newest one, and its shards table"


@pytest.mark.slow
@pytest.mark.parametrize("fault", ["error", "slow down", "slow", "cut off"])
def test_temporary_faults_are_retried(bucket: Bucket, random_dataset: Path, tmp_path: Path, fault: FaultName) -> None:
    dataset = RequestDataset(remote(bucket, tmp_path), batch_size=7)
    dataset.open()
    bucket.proxy.plan(fault, 2, is_ranged)
    assert request_ids(dataset) == request_ids(RequestDataset(random_dataset, batch_size=7))


def test_bytes_altered_in_transit_are_an_error(bucket: Bucket, tmp_path: Path) -> None:
    dataset = RequestDataset(remote(bucket, tmp_path), batch_size=7)
    dataset.open()
    bucket.proxy.plan("altered", 99, is_ranged)
    with pytest.raises(DatasetError, match=r"(requests|timelines|dictionaries)/00000-0\.arrow.* was altered"):
        list(dataset)
    assert not [path for path in files_in(tmp_path) if "ranges" in path.parts]


@pytest.mark.slow
def test_the_cache_stays_within_its_limit_and_serves_repeated_reads(
    bucket: Bucket, random_dataset: Path, tmp_path: Path
) -> None:
    expected = request_ids(RequestDataset(random_dataset, batch_size=7))
    limit = 30_000
    dataset = RequestDataset(remote(bucket, tmp_path / "small", limit_bytes=limit), batch_size=7)
    assert request_ids(dataset) == expected
    kept = [path.stat().st_size for path in files_in(tmp_path / "small") if "ranges" in path.parts]
    assert 0 < sum(kept) <= limit
    everything = remote(bucket, tmp_path / "large")
    assert request_ids(RequestDataset(everything, batch_size=7)) == expected
    ranges = [path for path in files_in(tmp_path / "large") if "ranges" in path.parts]
    before = {path: path.stat().st_ino for path in ranges}
    assert request_ids(RequestDataset(everything, batch_size=7)) == expected
    assert {path: path.stat().st_ino for path in before} == before, "fetched again"


@pytest.mark.slow
def test_a_damaged_file_of_the_cache_is_fetched_again(bucket: Bucket, random_dataset: Path, tmp_path: Path) -> None:
    root = remote(bucket, tmp_path)
    list(RequestDataset(root, batch_size=7))
    for path in files_in(tmp_path):
        if "ranges" in path.parts:
            path.write_bytes(b"\0" * path.stat().st_size)
    assert request_ids(RequestDataset(root, batch_size=7)) == request_ids(RequestDataset(random_dataset, batch_size=7))


def test_an_unreachable_store_is_a_clear_error(bucket: Bucket, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(SpecError, match="does not know nowhere://"):
        RequestDataset("nowhere://x/y").open()
    root = RemoteRoot(f"file://{tmp_path}/none", tmp_path / "cache")
    with pytest.raises((DatasetError, MachineError), match="snapshot"):
        RequestDataset(root).open()
    dataset = RequestDataset(remote(bucket, tmp_path, attempts=2), batch_size=7)
    dataset.open()
    bucket.proxy.plan("error", 99, is_ranged)
    with pytest.raises(MachineError, match=r"the store did not answer in 2 attempts: .*\. Check the store"):
        next(iter(dataset))


def test_a_killed_download_leaves_nothing_behind(tmp_path: Path) -> None:
    child = os.fork()
    if child == 0:
        handle = os.open(tmp_path, os.O_TMPFILE | os.O_WRONLY)
        os.write(handle, b"half")
        os.kill(os.getpid(), 9)
    os.waitpid(child, 0)
    assert not list(tmp_path.iterdir())


def test_a_folder_can_be_opened_by_its_uri(random_dataset: Path, tmp_path: Path) -> None:
    root = RemoteRoot(f"file://{random_dataset}", tmp_path)
    assert request_ids(RequestDataset(root, batch_size=7)) == request_ids(RequestDataset(random_dataset, batch_size=7))
    assert len(list(itertools.islice(RequestDataset(root, batch_size=7), 2))) == 2
