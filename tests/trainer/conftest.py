from __future__ import annotations

from pathlib import Path

import pytest
import torch
import training_data
from training_data import TrainedRun, tiny

from longbatch.trainer.progress import TrainingProgress
from longbatch.trainer.train import train

torch.set_num_threads(1)  # tensors are small, and several threads are slow on a busy machine


@pytest.fixture(scope="session")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A dataset that a model learns in seconds; see `training_data`."""
    return training_data.write(tmp_path_factory.mktemp("trainer") / "dataset")


@pytest.fixture(scope="session")
def trained(dataset: Path, tmp_path_factory: pytest.TempPathFactory) -> TrainedRun:
    """A finished run on the dataset; tests must not change its folder."""
    folder = tmp_path_factory.mktemp("run")
    progress: list[TrainingProgress] = []
    return TrainedRun(folder, train(dataset, folder, tiny(), progress=progress.append), progress)
