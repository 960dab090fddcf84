"""Runs whose folder is a URL, on a local S3 server."""

from __future__ import annotations

import json
from contextlib import AbstractContextManager
from dataclasses import replace
from importlib import import_module
from pathlib import Path
from typing import IO

import pytest
import torch
from training_data import TrainedRun, tiny

import longbatch as lb
from longbatch.benchmarks.object_servers import Bucket
from longbatch.schemas.errors import DatasetError, MachineError, SpecError
from longbatch.schemas.storage.object_store import ObjectStore
from longbatch.schemas.storage.open_store import open_store
from longbatch.schemas.storage.store import Store
from longbatch.trainer import checkpoint
from longbatch.trainer.evaluate import evaluate
from longbatch.trainer.train import train


@pytest.fixture
def run(s3: Bucket, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """The URL of a new run."""
    for name, value in s3.environment.items():
        monkeypatch.setenv(name, value)
    return f"{s3.url}/{tmp_path.name}/run"


def names(store: Store) -> list[str]:
    return sorted(file.path for file in store.list_files())


def test_a_run_in_a_store_equals_a_local_one_to_the_last_bit(dataset: Path, tmp_path: Path, run: str) -> None:
    config = tiny(max_steps=6, evaluate_requests=16)
    local = train(dataset, tmp_path / "run", config)
    train(dataset, run, tiny(max_steps=3, evaluate_requests=16))
    with pytest.raises(SpecError, match=f"{run} already contains a training run; continue it with --resume"):
        train(dataset, run, config)
    remote = train(dataset, run, config, resume=True)
    assert (remote.steps, remote.metrics) == (local.steps, local.metrics)
    assert names(open_store(run)) == ["checkpoint.pt", "report.json"]
    document = json.loads(open_store(run).read("report.json").to_pybytes())
    assert document["metrics"] == local.metrics
    weights = lb.load_model(run).state_dict()
    for name, value in lb.load_model(tmp_path / "run").state_dict().items():
        assert torch.equal(value, weights[name])
    assert evaluate(run, dataset, history_lengths=[4]) == evaluate(tmp_path / "run", dataset, history_lengths=[4])


def test_the_newest_checkpoints_are_kept_in_a_store(dataset: Path, run: str) -> None:
    train(dataset, run, tiny(max_steps=9, checkpoint_steps=2, keep_checkpoints=3, train_before=None))
    numbers = [6, 8, 9]
    numbered = [f"checkpoint-{number:09d}.pt" for number in numbers]
    assert names(open_store(run)) == [*numbered, "checkpoint.pt", "report.json"]
    assert [checkpoint.load(f"{run}/{name}").steps for name in numbered] == numbers
    assert checkpoint.load(run).steps == 9
    checkpoint.save(checkpoint.load(f"{run}/checkpoint-000000006.pt"), run)
    assert checkpoint.load(run).steps == 6


def test_a_failed_save_leaves_the_previous_checkpoint_of_the_store(
    trained: TrainedRun, run: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    saved = checkpoint.load(trained.folder)
    checkpoint.save(saved, run)

    def fail(store: ObjectStore, path: str, file: IO[bytes]) -> None:
        raise MachineError("the store did not answer")

    monkeypatch.setattr(ObjectStore, "upload", fail)
    with pytest.raises(MachineError, match="the store did not answer"):
        checkpoint.save(replace(saved, steps=saved.steps + 1), run)
    assert checkpoint.load(run).steps == saved.steps
    assert names(open_store(run)) == ["checkpoint.pt"]


def test_missing_and_damaged_checkpoints_of_a_store_are_rejected(run: str) -> None:
    with pytest.raises(DatasetError, match=f"checkpoint not found: {run}/checkpoint.pt; train first"):
        lb.load_model(run)
    with pytest.raises(DatasetError, match=f"checkpoint not found: {run}/checkpoint-000000001.pt"):
        lb.load_model(f"{run}/checkpoint-000000001.pt")
    open_store(run).write("checkpoint.pt", b"PK damaged")
    with pytest.raises(DatasetError, match=f"{run}/checkpoint.pt is damaged"):
        lb.load_model(run)


def test_a_store_that_cannot_be_written_is_found_before_training(
    dataset: Path, run: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(store: ObjectStore, path: str) -> AbstractContextManager[IO[bytes]]:
        raise MachineError(f"{store.name(path)}: access denied")

    monkeypatch.setattr(ObjectStore, "open_replacement", refuse)
    steps: list[int] = []
    with pytest.raises(MachineError, match="access denied"):
        train(dataset, run, tiny(), progress=lambda progress: steps.append(progress.step))
    assert steps == []


@pytest.mark.slow
def test_the_tensorboard_log_is_uploaded_and_a_resumed_run_adds_to_it(dataset: Path, tmp_path: Path, run: str) -> None:
    for steps in (10, 20):
        config = tiny(tensorboard=True, max_steps=steps, evaluate_requests=32)
        report = train(dataset, run, config, resume=steps == 20)
    files = list(open_store(run).list_files("tensorboard"))
    assert len(files) == 2
    for file in files:
        (tmp_path / Path(file.path).name).write_bytes(open_store(run).read(file.path).to_pybytes())
    reader = import_module("tensorboard.backend.event_processing.event_accumulator")
    log = reader.EventAccumulator(str(tmp_path)).Reload()
    assert {event.step for event in log.Scalars("evaluation/auc/click/16")} == {10, 20}
    assert report.steps == 20
