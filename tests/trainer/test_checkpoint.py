from __future__ import annotations

from pathlib import Path
from typing import NoReturn

import pytest
import torch
from training_data import TrainedRun, tiny

from longbatch.schemas.errors import DatasetError, MachineError
from longbatch.schemas.storage.open_store import Location
from longbatch.trainer import checkpoint
from longbatch.trainer.checkpoint import Checkpoint
from longbatch.trainer.train import train


def test_missing_damaged_and_foreign_checkpoints_are_rejected(trained: TrainedRun, tmp_path: Path) -> None:
    with pytest.raises(DatasetError, match=r"checkpoint not found: .*checkpoint.pt; train first"):
        checkpoint.load(tmp_path)
    content = (trained.folder / "checkpoint.pt").read_bytes()
    (tmp_path / "checkpoint.pt").write_bytes(content[: len(content) // 2])
    with pytest.raises(DatasetError, match="is damaged"):
        checkpoint.load(tmp_path)
    torch.save({"version": 3}, tmp_path / "checkpoint.pt")
    with pytest.raises(DatasetError, match="has checkpoint version 3, but this release reads version 4; train again"):
        checkpoint.load(tmp_path)
    torch.save([1], tmp_path / "checkpoint.pt")
    with pytest.raises(DatasetError, match="is not a longbatch checkpoint: it contains a list"):
        checkpoint.load(tmp_path)


def test_a_checkpoint_with_weights_of_another_model_is_rejected(trained: TrainedRun, tmp_path: Path) -> None:
    content = torch.load(trained.folder / "checkpoint.pt", weights_only=True)
    content["model"]["output_map.down.weight"] = torch.zeros(3, 3)
    torch.save(content, tmp_path / "checkpoint.pt")
    with pytest.raises(DatasetError, match=r"(?s)do not match the model stca of this release.*size mismatch"):
        checkpoint.load(tmp_path)


def test_a_failed_save_leaves_the_previous_checkpoint(
    trained: TrainedRun, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = checkpoint.load(trained.folder)
    checkpoint.save(run, tmp_path)
    path = tmp_path / "checkpoint.pt"
    before = path.read_bytes()

    def full_disk(*_: object) -> NoReturn:
        raise OSError("no space left")

    monkeypatch.setattr(torch, "save", full_disk)
    with pytest.raises(MachineError, match=r"cannot write .*checkpoint.pt: no space left"):
        checkpoint.save(run, tmp_path)
    assert path.read_bytes() == before
    assert [p.name for p in tmp_path.iterdir()] == ["checkpoint.pt"]


def test_a_loaded_checkpoint_equals_the_saved_one(trained: TrainedRun, tmp_path: Path) -> None:
    run = checkpoint.load(trained.folder)
    checkpoint.save(run, tmp_path)
    again = checkpoint.load(tmp_path)
    assert (again.config, again.evaluate_from_us, again.steps) == (run.config, run.evaluate_from_us, run.steps)
    for name, value in run.model.state_dict().items():
        assert torch.equal(value, again.model.state_dict()[name])


def test_checkpoints_are_saved_during_training(dataset: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    steps: list[int] = []

    def record(content: Checkpoint, run: Location) -> None:
        steps.append(content.steps)

    monkeypatch.setattr(checkpoint, "save", record)
    train(dataset, tmp_path, tiny(max_steps=5, checkpoint_steps=2, train_before=None))
    assert steps == [2, 4, 5]


def test_the_newest_checkpoints_are_kept(dataset: Path, tmp_path: Path) -> None:
    train(dataset, tmp_path, tiny(max_steps=9, checkpoint_steps=2, keep_checkpoints=3, train_before=None))
    assert sorted(path.name for path in tmp_path.glob("*.pt")) == [
        "checkpoint-000000006.pt",
        "checkpoint-000000008.pt",
        "checkpoint.pt",
    ]
    assert [checkpoint.load(tmp_path / name).steps for name in ("checkpoint-000000006.pt", "checkpoint.pt")] == [6, 9]


def test_a_step_that_is_saved_twice_is_kept_once(dataset: Path, tmp_path: Path) -> None:
    train(dataset, tmp_path, tiny(max_steps=8, checkpoint_steps=2, keep_checkpoints=2, train_before=None))
    names = sorted(path.name for path in tmp_path.glob("*.pt"))
    assert names == ["checkpoint-000000006.pt", "checkpoint.pt"]
    assert checkpoint.load(tmp_path).steps == 8
