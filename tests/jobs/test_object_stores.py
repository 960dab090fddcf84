"""Datasets in object stores, from the build to the batches, are those of a disk, byte for byte."""

from __future__ import annotations

import itertools
import json
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from days import DAYS_SPEC, a_log, end_of, write

from longbatch.benchmarks.object_servers import Bucket
from longbatch.jobs.append import append
from longbatch.jobs.build import build
from longbatch.jobs.engines.local import LocalEngine
from longbatch.jobs.expand import expand
from longbatch.jobs.forget import forget
from longbatch.jobs.inspect import describe, describe_user
from longbatch.jobs.savings.measure import measure
from longbatch.jobs.vacuum import vacuum
from longbatch.jobs.validate import validate
from longbatch.loaders import RequestBatch, RequestDataset, RequestLoader, make_dataloader
from longbatch.pipelines.content_hash import content_hash
from longbatch.schemas.format.dataset import open_dataset
from longbatch.schemas.format.remote_cache import RemoteRoot
from longbatch.schemas.format.snapshot import listed_paths
from longbatch.schemas.spec.build_spec import BuildSpec, load_spec
from longbatch.schemas.storage.open_store import open_store
from longbatch.schemas.storage.store import Store

if TYPE_CHECKING:
    from pyspark.sql import SparkSession

DAYS = 5


@pytest.fixture(scope="module")
def spec(tmp_path_factory: pytest.TempPathFactory) -> BuildSpec:
    """A spec and its log of five days."""
    folder = tmp_path_factory.mktemp("log")
    (folder / "spec.toml").write_text(DAYS_SPEC)
    write(folder, *a_log(5, DAYS))
    return load_spec(folder / "spec.toml")


@pytest.fixture(scope="module")
def local(spec: BuildSpec, tmp_path_factory: pytest.TempPathFactory) -> Store:
    """The dataset of two days on a disk."""
    store = open_store(tmp_path_factory.mktemp("local") / "dataset")
    build(spec, store, until=end_of(2))
    return store


def contents(store: Store) -> dict[str, Any]:
    """The newest snapshot with the checksum of every file, without the names of attempts, and the content hash."""
    dataset = open_dataset(store)
    snapshot = dataset.snapshot
    files = [(entry.table, entry.bucket, entry.sha256) for entry in snapshot.small_files]
    for shard in snapshot.shards:
        entries = (shard.timelines, shard.requests, shard.dictionaries)
        files += [(entry.table, shard.bucket, entry.sha256) for entry in entries if entry]
    return {
        "content": content_hash(dataset.blocks(), dataset.spec.history_length),
        "files": sorted(files, key=str),
        "counts": snapshot.counts,
        "profile": snapshot.profile,
        "row_accounting": snapshot.row_accounting,
        "number": snapshot.number,
    }


def paths(store: Store) -> set[str]:
    return {file.path for file in store.list_files()}


@pytest.mark.slow
def test_building_appending_forgetting_and_vacuuming_is_the_same(
    bucket: Bucket, spec: BuildSpec, tmp_path: Path
) -> None:
    stores = open_store(tmp_path / "dataset"), bucket.open(tmp_path.name)
    results = []
    for store in stores:
        build(spec, store, engine=LocalEngine(2), until=end_of(2))
        steps = [contents(store)]
        for day in (3, 4):
            append(spec, store, end_of(day))
            steps.append(contents(store))
        audit = validate(store, expectations=False).audit
        assert not audit.findings
        forgotten = forget(store, ["u3", "nobody"])
        assert forgotten.users_with_requests == 1
        steps.append(contents(store))
        vacuumed = vacuum(store, keep=1)
        assert vacuumed.snapshots == [1, 2, 3]
        assert paths(store) == listed_paths(store, 4)
        steps.append(contents(store))
        results.append((steps, vacuumed.files, vars(audit)))
    assert results[0] == results[1]


@pytest.mark.spark
def test_spark_tasks_write_to_the_store(
    bucket: Bucket, spec: BuildSpec, local: Store, spark_session: SparkSession, tmp_path: Path
) -> None:
    from longbatch.jobs.engines.spark import SparkEngine

    store, engine = bucket.open(tmp_path.name), SparkEngine()
    build(spec, store, engine=engine, until=end_of(2))
    append(spec, store, end_of(3), engine=engine)
    expected = open_store(tmp_path / "expected")
    build(spec, expected, until=end_of(2))
    append(spec, expected, end_of(3))
    assert contents(store) == contents(expected)
    vacuum(store)
    assert paths(store) == listed_paths(store, 2)


@pytest.mark.slow
def test_other_commands_report_the_same(bucket: Bucket, spec: BuildSpec, local: Store, tmp_path: Path) -> None:
    store = bucket.open(tmp_path.name)
    build(spec, store, until=end_of(2))
    remote = RemoteRoot(f"{bucket.url}/{tmp_path.name}", tmp_path / "cache", storage=bucket.storage)
    reports = []
    for number, dataset in enumerate((open_dataset(local), open_dataset(store), open_dataset(remote))):
        described = describe(dataset, hash_content=True).as_dict()
        savings = measure(dataset, tmp_path / f"savings {number}", budget_bytes=1_000_000)
        samples = expand(dataset, tmp_path / f"samples {number}", history_length=3, check=True)
        assert samples.equal
        reports.append(
            (
                {name: value for name, value in described.items() if name not in ("path", "snapshots")},
                describe_user(dataset, "u1"),
                savings.means,
                samples.rows,
            )
        )
    assert reports[0] == reports[1] == reports[2]
    validation = validate(store)
    assert validation.passed
    assert any(path.startswith("reports/data_docs/") for path in paths(store))


def keys(batches: Iterable[RequestBatch]) -> list[tuple[list[int], list[int]]]:
    return [(batch.request_id.tolist(), batch.history["item_id"].tolist()) for batch in batches]


@pytest.mark.slow
def test_workers_yield_the_same_batches_and_resume_anywhere(
    bucket: Bucket, spec: BuildSpec, local: Store, tmp_path: Path
) -> None:
    build(spec, bucket.open(tmp_path.name), until=end_of(2))
    remote = RemoteRoot(f"{bucket.url}/{tmp_path.name}", tmp_path / "cache", storage=bucket.storage)
    options: dict[str, Any] = {"batch_size": 7, "shuffle": True, "seed": 3, "window_blocks": 2}
    expected = keys(RequestDataset(Path(local.location), **options))
    assert len(expected) > 5
    for start in ("fork", "spawn"):
        loader = make_dataloader(RequestDataset(remote, **options), num_workers=2)
        loader.multiprocessing_context = start
        assert keys(loader) == expected
    for steps, num_workers in itertools.product((0, 1, len(expected) - 1), (0, 2)):
        first = RequestLoader(RequestDataset(remote, **options), num_workers=num_workers)
        begun = keys(itertools.islice(first, steps))
        second = RequestLoader(RequestDataset(remote, **options), num_workers=2 - num_workers)
        second.load_state_dict(json.loads(json.dumps(first.state_dict())))
        assert begun + keys(second) == expected
