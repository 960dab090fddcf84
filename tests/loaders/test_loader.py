"""Each full pass over a loader is an epoch of its own."""

from __future__ import annotations

import itertools
import logging
from pathlib import Path

import pytest
from block_rows import request_ids

from longbatch.loaders import RequestDataset, RequestLoader, make_dataloader
from longbatch.loaders.loader import Workers


def shuffled(path: Path, epoch: int = 0) -> RequestDataset:
    return RequestDataset(path, batch_size=7, shuffle=True, epoch=epoch)


@pytest.fixture(scope="module")
def epochs(random_dataset: Path) -> list[list[int]]:
    """Request ids of the first epochs, in order."""
    return [request_ids(shuffled(random_dataset, epoch)) for epoch in range(5)]


@pytest.mark.parametrize("num_workers", [0, 2])
def test_each_pass_of_a_dataloader_is_the_next_epoch(
    random_dataset: Path, epochs: list[list[int]], num_workers: int
) -> None:
    dataset = shuffled(random_dataset)
    loader = make_dataloader(dataset, num_workers=num_workers)
    assert [request_ids(loader) for _ in range(3)] == epochs[:3]
    # a pass that ends with a break begins again
    assert request_ids(itertools.islice(loader, 2)) == epochs[3][:14]
    assert request_ids(loader) == epochs[3]
    # set_epoch chooses the epoch of the next pass, also the one that has just ended
    dataset.set_epoch(3)
    assert request_ids(loader) == epochs[3]
    dataset.set_epoch(1)
    assert request_ids(loader) == epochs[1]
    # states count from where the last pass began, and a resumed pass is followed by the next epoch
    state = dataset.state_after(5)
    assert (state["epoch"], state["next_batch"]) == (1, 5)
    dataset.resume(state)
    assert len(loader) == len(dataset)
    assert request_ids(loader) == epochs[1][35:]
    assert len(loader) == len(dataset) + 5
    assert request_ids(loader) == epochs[2]


def test_the_state_after_the_last_step_begins_the_next_epoch(random_dataset: Path, epochs: list[list[int]]) -> None:
    dataset = shuffled(random_dataset)
    loader = make_dataloader(dataset)
    steps = len(list(loader))
    resumed = shuffled(random_dataset)
    resumed.resume(dataset.state_after(steps))
    assert request_ids(make_dataloader(resumed)) == epochs[1]


def test_an_older_pass_over_worker_processes_ends_with_an_error(random_dataset: Path, epochs: list[list[int]]) -> None:
    dataloader = make_dataloader(shuffled(random_dataset), num_workers=1)
    older, newer = iter(dataloader), iter(dataloader)
    assert older is not newer
    next(older)
    assert request_ids(newer) == epochs[0]
    with pytest.raises(RuntimeError, match="this pass over the loader ended when a newer one began"):
        next(older)


@pytest.mark.parametrize(("num_workers", "workers"), [(0, "threads"), (2, "threads"), (1, "processes")])
def test_each_iterator_of_a_request_loader_is_a_new_pass(
    random_dataset: Path, epochs: list[list[int]], num_workers: int, workers: Workers
) -> None:
    loader = RequestLoader(shuffled(random_dataset), num_workers=num_workers, workers=workers)
    older, newer = iter(loader), iter(loader)
    assert older is not newer
    next(older)
    assert request_ids(newer) == epochs[0]
    with pytest.raises(RuntimeError, match="use the newest iterator"):
        next(older)
    assert request_ids(loader) == epochs[1]


def test_two_passes_of_a_dataloader_without_workers_are_independent(
    random_dataset: Path, epochs: list[list[int]]
) -> None:
    loader = make_dataloader(shuffled(random_dataset))
    pairs = list(zip(loader, loader, strict=True))
    assert request_ids(first for first, _ in pairs) == request_ids(second for _, second in pairs) == epochs[0]


def test_opening_and_planning_are_logged_once(random_dataset: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, logger="longbatch")
    list(make_dataloader(shuffled(random_dataset)))
    opened, planned = [record.getMessage() for record in caplog.records]
    assert opened.startswith(f"opened {random_dataset}: ")
    assert planned.startswith("planned epoch 0: ")
    assert "in 12 blocks" in planned


def test_the_representation_of_a_dataset_names_its_arguments(random_dataset: Path) -> None:
    assert repr(shuffled(random_dataset)) == (
        f"RequestDataset({str(random_dataset)!r}, batch_size=7, history_length=None, order='shuffled', "
        "histories='per_request', seed=0, epoch=0)"
    )
