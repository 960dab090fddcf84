"""Processes that commit the same snapshot at the same time: one wins, and each of the others says so."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import threading
from pathlib import Path
from urllib.parse import unquote

import pytest
import racing_commits
from block_rows import random_shards, write_dataset

from longbatch.benchmarks.object_proxy import FaultName, Request
from longbatch.benchmarks.object_servers import Bucket
from longbatch.schemas.errors import DatasetError, MachineError
from longbatch.schemas.format.snapshot import Snapshot, commit, listed_paths, read_snapshot, snapshot_numbers
from longbatch.schemas.storage import object_store
from longbatch.schemas.storage.local_store import LocalStore
from longbatch.schemas.storage.open_store import open_store

PROCESSES = 20


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A dataset with a snapshot to commit elsewhere."""
    return write_dataset(tmp_path_factory.mktemp("dataset") / "one", random_shards(shards=1))


@pytest.fixture(scope="module")
def snapshot(dataset: Path) -> Snapshot:
    return read_snapshot(LocalStore(dataset))


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["disk", "s3"])
def test_of_twenty_processes_one_commits(kind: str, s3: Bucket, dataset: Path, tmp_path: Path) -> None:
    is_disk = kind == "disk"
    location = str(tmp_path) if is_disk else f"{s3.url}/{tmp_path.name}"
    store = open_store(tmp_path) if is_disk else s3.open(tmp_path.name)
    command = [sys.executable, racing_commits.__file__, str(dataset), location, str(PROCESSES)]
    environment = {**os.environ, **s3.environment}
    process = subprocess.run(command, capture_output=True, text=True, env=environment, check=True)
    results = process.stdout.splitlines()
    assert len(results) == PROCESSES
    (winner,) = (result for result in results if re.fullmatch("[0-9a-f]{12}", result))
    (message,) = {*results} - {winner}
    assert message == (
        f"{store.name('snapshots/00000001.json')}: another build committed first. "
        "Nothing of this build is visible; run it again."
    )
    # Nothing of the losers is left, and the snapshot is complete.
    expected = {"snapshots/00000001.json", f"snapshots/00000001.shards-{winner}.arrow"}
    assert {file.path for file in store.list_files()} == expected
    assert listed_paths(store, 1) >= expected


def is_commit(request: Request) -> bool:
    return request.method == "PUT" and unquote(request.path).endswith("/snapshots/00000001.json")


@pytest.mark.parametrize("fault", ["lost answer", "error behind the answer", "error", "slow down"])
@pytest.mark.parametrize("times", [1, 2, 3])
def test_a_commit_whose_answers_are_lost_knows_its_own_snapshot(
    bucket: Bucket, snapshot: Snapshot, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, fault: FaultName, times: int
) -> None:
    monkeypatch.setattr(object_store, "FIRST_WAIT_SECONDS", 0.01)
    store = bucket.open(tmp_path.name)
    bucket.proxy.plan(fault, times, is_commit)
    commit(store, snapshot, "1" * 12)
    assert not bucket.proxy.planned
    assert read_snapshot(store).fingerprint == snapshot.fingerprint
    # A loser whose answers are lost too is not deceived.
    bucket.proxy.plan(fault, times, is_commit)
    with pytest.raises(DatasetError, match="another build committed first"):
        commit(store, snapshot, "2" * 12)
    assert len(list(store.list_files())) == 2


def test_a_commit_that_no_attempt_could_carry_out_leaves_nothing(
    bucket: Bucket, snapshot: Snapshot, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(object_store, "FIRST_WAIT_SECONDS", 0.001)
    store = bucket.open(tmp_path.name)
    bucket.proxy.plan("error", 99, is_commit)
    with pytest.raises(MachineError, match=r"00000001.json: the store did not answer in 6 attempts: .* run again"):
        commit(store, snapshot)
    assert list(store.list_files()) == []


def test_threads_that_share_a_client_commit_once(bucket: Bucket, snapshot: Snapshot, tmp_path: Path) -> None:
    store, winners = bucket.open(tmp_path.name), []

    def run(attempt: str) -> None:
        try:
            commit(store, snapshot, attempt)
        except DatasetError:
            return
        winners.append(attempt)

    threads = [threading.Thread(target=run, args=(f"{number:012x}",)) for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(winners) == 1
    assert snapshot_numbers(store) == [1]
