from __future__ import annotations

import pickle
from collections.abc import Iterator
from multiprocessing.context import set_spawning_popen
from multiprocessing.popen_spawn_posix import Popen
from pathlib import Path
from typing import cast

import pytest
import torch.distributed

from longbatch.loaders import RequestDataset
from longbatch.loaders.ranks import look_up_rank
from longbatch.loaders.schedule import RankAndWorker


@pytest.fixture
def process_group(monkeypatch: pytest.MonkeyPatch) -> None:
    """A process group in which this process is rank 1 of 2; nothing is in the environment."""
    monkeypatch.delenv("RANK", raising=False)
    monkeypatch.delenv("WORLD_SIZE", raising=False)
    monkeypatch.setattr(torch.distributed, "is_initialized", lambda: True)
    monkeypatch.setattr(torch.distributed, "get_rank", lambda: 1)
    monkeypatch.setattr(torch.distributed, "get_world_size", lambda: 2)


@pytest.fixture
def process_start() -> Iterator[None]:
    """What is pickled belongs to a process that is being started."""
    set_spawning_popen(cast(Popen, object()))  # only its presence matters
    yield
    set_spawning_popen(None)


def test_arguments_come_before_the_process_group_and_the_environment(
    monkeypatch: pytest.MonkeyPatch, process_group: None
) -> None:
    monkeypatch.setenv("RANK", "2")
    monkeypatch.setenv("WORLD_SIZE", "3")
    assert look_up_rank(4, 5) == RankAndWorker(4, 5)
    assert look_up_rank(None, None) == RankAndWorker(1, 2)
    monkeypatch.setattr(torch.distributed, "is_initialized", lambda: False)
    assert look_up_rank(None, None) == RankAndWorker(2, 3)
    monkeypatch.delenv("RANK")
    monkeypatch.delenv("WORLD_SIZE")
    assert look_up_rank(None, None) == RankAndWorker(0, 1)


def test_a_worker_process_gets_the_rank_of_the_process_group(process_group: None, process_start: None) -> None:
    restored = pickle.loads(pickle.dumps(RequestDataset(Path("dataset"))))
    assert (restored.rank, restored.world_size) == (1, 2)


def test_other_pickles_leave_the_rank_to_the_process_that_loads_them(process_group: None) -> None:
    restored = pickle.loads(pickle.dumps(RequestDataset(Path("dataset"))))
    assert (restored.rank, restored.world_size) == (None, None)


def test_a_launcher_without_a_process_group_leaves_the_rank_to_its_processes(process_start: None) -> None:
    restored = pickle.loads(pickle.dumps(RequestDataset(Path("dataset"))))
    assert (restored.rank, restored.world_size) == (None, None)
