"""Writing commands meet the faults of object stores: they repeat, or fail with a clear message and leave nothing."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from pathlib import Path

import pytest
from days import DAYS_SPEC, a_log, content, end_of, write

from longbatch.benchmarks.object_proxy import FaultName, Request
from longbatch.benchmarks.object_servers import AZURE_KEY, SECRET, Bucket
from longbatch.jobs.append import append
from longbatch.jobs.build import build
from longbatch.jobs.forget import forget
from longbatch.jobs.vacuum import vacuum
from longbatch.pipelines.content_hash import content_hash
from longbatch.schemas.errors import MachineError
from longbatch.schemas.format.dataset import open_dataset
from longbatch.schemas.format.snapshot import listed_paths, snapshot_numbers
from longbatch.schemas.spec.build_spec import BuildSpec, load_spec
from longbatch.schemas.storage import object_store
from longbatch.schemas.storage.store import Store

SECRETS = (SECRET, AZURE_KEY)


@pytest.fixture(scope="module")
def spec(tmp_path_factory: pytest.TempPathFactory) -> BuildSpec:
    """A spec and its log of four days."""
    folder = tmp_path_factory.mktemp("log")
    (folder / "spec.toml").write_text(DAYS_SPEC)
    write(folder, *a_log(5, 4))
    return load_spec(folder / "spec.toml")


@pytest.fixture(scope="module")
def expected(spec: BuildSpec, tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """Content after a build and after an append."""
    out = tmp_path_factory.mktemp("expected") / "dataset"
    build(spec, out, until=end_of(2))
    append(spec, out, end_of(3))
    return [content(out, 1), content(out, 2)]


@pytest.fixture
def bucket(bucket: Bucket, monkeypatch: pytest.MonkeyPatch) -> Iterator[Bucket]:
    """A bucket; waits between retries are short."""
    monkeypatch.setattr(object_store, "FIRST_WAIT_SECONDS", 0.01)
    yield bucket
    bucket.proxy.reset()


def hash_of(store: Store) -> str:
    dataset = open_dataset(store)
    return content_hash(dataset.blocks(), dataset.spec.history_length)


def paths(store: Store) -> set[str]:
    return {file.path for file in store.list_files()}


class Sometimes:
    """Selects every 25th request, and two in a row, which a repetition by obstore does not survive."""

    def __init__(self, first: int) -> None:
        self.count = -first

    def __call__(self, request: Request) -> bool:
        self.count += 1
        return self.count % 25 in (0, 1)


class After:
    """Selects all but the first requests."""

    def __init__(self, first: int) -> None:
        self.first = first

    def __call__(self, request: Request) -> bool:
        self.first -= 1
        return self.first < 0


@pytest.mark.slow
def test_commands_succeed_in_spite_of_temporary_faults(
    bucket: Bucket, spec: BuildSpec, expected: list[str], tmp_path: Path
) -> None:
    store = bucket.open(tmp_path.name)
    faults: tuple[FaultName, ...] = ("error", "slow down", "cut off", "lost answer", "error behind the answer")
    for number, fault in enumerate(faults):
        bucket.proxy.plan(fault, 1_000, Sometimes(5 * number))
    build(spec, store, until=end_of(2))
    assert hash_of(store) == expected[0]
    append(spec, store, end_of(3))
    assert hash_of(store) == expected[1]
    forget(store, ["u3"])
    vacuum(store)
    assert all(plan.times < 998 for plan in bucket.proxy.planned)
    bucket.proxy.reset()
    assert snapshot_numbers(store) == [3]
    assert paths(store) == listed_paths(store, 3)


@pytest.mark.slow
def test_a_store_that_goes_away_leaves_the_previous_snapshot(
    bucket: Bucket, spec: BuildSpec, expected: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(object_store, "FIRST_WAIT_SECONDS", 0.0)
    store = bucket.open(tmp_path.name)
    build(spec, store, until=end_of(2))
    committed = paths(store)
    for first in (4, 12, 20):
        bucket.proxy.plan("error", 10_000, After(first))
        with pytest.raises(MachineError, match=r"the store did not answer in 6 attempts: .*Check the store"):
            append(spec, store, end_of(3))
        bucket.proxy.reset()
        assert hash_of(store) == expected[0]
    # What could not be deleted is orphaned; the process still runs, so its leases are removed here.
    store.delete([path for path in paths(store) if path.startswith(".attempts/")])
    vacuum(store)
    assert paths(store) == committed


def is_timelines(request: Request) -> bool:
    return request.method == "PUT" and "timelines" in request.path


def test_expired_credentials_are_named_and_appear_nowhere(
    bucket: Bucket, spec: BuildSpec, tmp_path: Path, caplog: pytest.LogCaptureFixture, capfd: pytest.CaptureFixture[str]
) -> None:
    caplog.set_level(logging.DEBUG)
    store = bucket.open(tmp_path.name)
    build(spec, store, until=end_of(2))
    for expired in (lambda request: True, is_timelines):
        bucket.proxy.plan("denied", 10_000, expired)
        with pytest.raises(MachineError, match=r"access denied \(.*\)\. Check the credentials in") as raised:
            append(spec, store, end_of(3))
        bucket.proxy.reset()
        output = "".join(capfd.readouterr()) + caplog.text + str(raised.value) + repr(raised.value.__cause__)
        assert not [secret for secret in SECRETS if secret in output]
    assert snapshot_numbers(store) == [1]
    assert paths(store) == listed_paths(store, 1)
    for path in paths(store):
        data = store.read(path).to_pybytes()
        assert not [secret for secret in SECRETS if secret.encode() in data], path
