"""Interrupt, save, load, continue: every request is read once, in the sequence of a run without interruption."""

from __future__ import annotations

import itertools
import json
import pickle
from pathlib import Path
from typing import Any, cast

import pytest
from block_rows import random_shards, write_dataset
from torchdata.stateful_dataloader import StatefulDataLoader  # type: ignore[import-untyped]

from longbatch.loaders import RequestBatch, RequestDataset, RequestLoader, StochasticLength, make_dataloader
from longbatch.loaders.loader import Workers
from longbatch.loaders.plan import Order
from longbatch.loaders.state import MAX_BYTES, State

Key = tuple[tuple[int, ...], ...] | None  # request ids, item ids and history offsets; None for padding
Uninterrupted = dict[tuple[Order, int], list[list[Key]]]  # order, index of the size -> batches of each epoch

ORDERS: list[Order] = ["shuffled", "time", "sequential"]
SIZES: list[dict[str, Any]] = [{"batch_size": 7}, {"max_tokens": 250}]
OPTIONS: dict[str, Any] = {"seed": 3, "streams": 3, "window_blocks": 2, "history_length": 50}


def key(batch: RequestBatch) -> Key:
    """What a batch contains, comparable."""
    if batch.is_padding:
        return None
    return (
        tuple(batch.request_id.tolist()),
        tuple(batch.history["item_id"].tolist()),
        tuple(batch.history_offsets.tolist()),
    )


TEMPLATES: dict[object, RequestDataset] = {}


def opened(path: Path, rank: int, world_size: int, **options: Any) -> RequestDataset:
    """A new dataset whose manifest was read before: the grid opens thousands."""
    arguments = path, str(options)
    template = TEMPLATES.setdefault(arguments, RequestDataset(path, **options))
    template.open()
    dataset: RequestDataset = pickle.loads(pickle.dumps(template))
    dataset.rank, dataset.world_size, dataset._shards = rank, world_size, template.shards
    return dataset


class Ranks:
    """All ranks of a world in one process, each with its own loader."""

    def __init__(
        self,
        path: Path,
        world_size: int,
        num_workers: int,
        state: State | None = None,
        workers: Workers = "threads",
        **options: Any,
    ) -> None:
        self.loaders = []
        for rank in range(world_size):
            dataset = opened(path, rank, world_size, **{**OPTIONS, **options})
            self.loaders.append(RequestLoader(dataset, num_workers=num_workers, workers=workers))
            if state is not None:
                self.loaders[-1].load_state_dict(json.loads(json.dumps(state)))
        self.passes = [iter(loader) for loader in self.loaders]

    def take(self, steps: int | None = None) -> list[Key]:
        """The batches of some steps, in the order of their numbers, without padding."""
        ranks = [list(itertools.islice(batches, steps)) for batches in self.passes]
        taken = [batch for step in zip(*ranks, strict=True) for batch in step]
        return [key(batch) for batch in taken if not batch.is_padding]

    def state(self) -> State:
        """The state, which is the same on all ranks."""
        states = [loader.state_dict() for loader in self.loaders]
        assert all(state == states[0] for state in states)
        assert len(json.dumps(states[0])) < MAX_BYTES
        return states[0]


@pytest.fixture(scope="module")
def random_dataset(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A dataset of 7 blocks of 2 users, uncompressed, so that the grid takes seconds."""
    shards = random_shards(shards=1, blocks=7, users=2)
    return write_dataset(tmp_path_factory.mktemp("random") / "dataset", shards, compression="none")


@pytest.fixture(scope="module")
def uninterrupted(random_dataset: Path) -> Uninterrupted:
    """The batches of epochs 0 and 1 for each order and size."""
    sequences: Uninterrupted = {}
    for order, (number, size) in itertools.product(ORDERS, enumerate(SIZES)):
        dataset = RequestDataset(random_dataset, order=order, **OPTIONS, **size)
        epochs = []
        for epoch in range(2):
            dataset.set_epoch(epoch)
            epochs.append([key(batch) for batch in dataset])
        sequences[order, number] = epochs
    return sequences


@pytest.mark.parametrize("order", ORDERS)
@pytest.mark.parametrize("size", [0, 1])
@pytest.mark.parametrize("world_size", [1, 2, 4])
@pytest.mark.parametrize("num_workers", [0, 2, *(pytest.param(n, marks=pytest.mark.slow) for n in (1, 3))])
def test_resuming_twice_yields_the_sequence_of_a_run_without_interruption(
    random_dataset: Path, uninterrupted: Uninterrupted, order: Order, size: int, world_size: int, num_workers: int
) -> None:
    whole, following = uninterrupted[order, size]
    steps = -(-len(whole) // world_size)
    for case, stop in enumerate(sorted({0, 1, steps // 2, steps - 1, steps})):
        ranks = Ranks(random_dataset, world_size, num_workers, order=order, **SIZES[size])
        found = ranks.take(stop)
        state = ranks.state()
        # with the same workers and ranks, and with others
        others = [(world_size, num_workers), (3, (num_workers + 1) % 4)]
        for second_world, second_workers in [others[case % 2]] if num_workers else others:
            again = Ranks(random_dataset, second_world, second_workers, state, order=order, **SIZES[size])
            assert again.state() == state
            more = again.take(1)
            third = Ranks(random_dataset, world_size, 0, again.state(), order=order, **SIZES[size])
            assert third.state()["epoch"] in (0, 1)
            rest = third.take()
            if stop == steps:
                assert found == whole
                assert more + rest == following
            elif again.state()["epoch"] == 1 and more:
                assert found + more == whole
                assert rest == following
            else:
                assert found + more + rest == whole


@pytest.mark.parametrize("order", ORDERS)
@pytest.mark.parametrize("num_workers", [1, 2])
def test_worker_processes_resume_too(
    random_dataset: Path, uninterrupted: Uninterrupted, order: Order, num_workers: int
) -> None:
    whole, following = uninterrupted[order, 0]
    ranks = Ranks(random_dataset, 1, num_workers, order=order, workers="processes", **SIZES[0])
    found = ranks.take(5)
    again = Ranks(random_dataset, 1, 3 - num_workers, ranks.state(), order=order, workers="processes", **SIZES[0])
    assert found + again.take() == whole
    assert [key(batch) for batch in again.loaders[0]] == following


@pytest.mark.filterwarnings("ignore:.* is deprecated:UserWarning")  # torchdata looks up every attribute of torch
@pytest.mark.filterwarnings("ignore:.* is deprecated:FutureWarning")
@pytest.mark.parametrize("num_workers", [0, 2])
@pytest.mark.parametrize("stop", [0, 1, 8])
def test_the_stateful_dataloader_resumes_with_the_same_workers(
    random_dataset: Path, uninterrupted: Uninterrupted, num_workers: int, stop: int
) -> None:
    whole, _ = uninterrupted["shuffled", 0]

    def loader() -> StatefulDataLoader[RequestBatch]:
        dataset = RequestDataset(random_dataset, order="shuffled", **OPTIONS, **SIZES[0])
        return StatefulDataLoader(dataset, batch_size=None, num_workers=num_workers)

    first = loader()
    found = [key(batch) for batch in itertools.islice(first, stop)]
    second = loader()
    second.load_state_dict(json.loads(json.dumps(first.state_dict())))
    more = [key(batch) for batch in itertools.islice(second, 1)]
    third = loader()
    third.load_state_dict(second.state_dict())
    assert found + more + [key(batch) for batch in third] == whole


def test_a_trainer_that_counts_its_own_steps_resumes_with_a_plain_dataloader(
    random_dataset: Path, uninterrupted: Uninterrupted
) -> None:
    whole, _ = uninterrupted["shuffled", 0]
    dataset = RequestDataset(random_dataset, order="shuffled", **OPTIONS, **SIZES[0])
    found = [key(batch) for batch in itertools.islice(make_dataloader(dataset, num_workers=2), 5)]
    again = RequestDataset(random_dataset, order="shuffled", **OPTIONS, **SIZES[0])
    again.resume(dataset.state_after(5))
    loader = make_dataloader(again, num_workers=2)
    again.set_epoch(0)  # as a loop over epochs does; the position of the state remains
    assert found + [key(batch) for batch in loader] == whole
    again.set_epoch(1)
    again.set_epoch(0)
    assert [key(batch) for batch in loader] == whole


def test_prefetched_batches_do_not_count(random_dataset: Path) -> None:
    loader = RequestLoader(RequestDataset(random_dataset, batch_size=7), num_workers=2, prefetch=4)
    batches = iter(loader)
    next(batches)
    assert loader.state_dict()["next_batch"] == 1


def test_a_full_pass_moves_to_the_next_epoch_and_an_interrupted_one_begins_again(random_dataset: Path) -> None:
    def dataset(epoch: int) -> RequestDataset:
        return RequestDataset(random_dataset, batch_size=7, shuffle=True, epoch=epoch)

    loader = RequestLoader(dataset(0), num_workers=1)
    expected = [[key(batch) for batch in dataset(epoch)] for epoch in range(2)]
    assert [key(batch) for batch in loader] == expected[0]
    assert [key(batch) for batch in itertools.islice(loader, 3)] == expected[1][:3]
    assert [key(batch) for batch in loader] == expected[1]


def test_drawn_lengths_resume_with_their_batches(random_dataset: Path) -> None:
    options: dict[str, Any] = {
        "order": "shuffled",
        "history_length": StochasticLength(8, 48),
        "max_tokens": 300,
        "epoch": 2,
    }
    ranks = Ranks(random_dataset, 1, 2, **options)
    whole = ranks.take()
    first = Ranks(random_dataset, 1, 2, **options)
    found = first.take(4)
    assert found + Ranks(random_dataset, 2, 1, first.state(), **options).take() == whole


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"version": 2}, "state: version is 2, expected 1; use the longbatch that saved it"),
        ({"fingerprint": "x"}, "state: fingerprint is 'x', expected '[0-9a-f]{64}'; open the dataset that"),
        ({"seed": 4}, "state: seed is 4, expected 3; pass seed=4"),
        ({"next_batch": 10**6}, "state: next_batch is 1000000, expected 0 to [0-9]+, the batches of the epoch"),
        ({"epoch": -1}, "state: epoch is -1, expected an integer of at least 0"),
        ({"batching": 3}, "state: batching is 3, expected a dict"),
        ({"more": 1}, r"state: keys \['more'\] are missing or unknown"),
        (
            {"worker": {"id": 0}},
            "state: worker is the position of one worker, expected None; resume with StatefulDataLoader",
        ),
    ],
)
def test_the_error_of_a_wrong_state_names_field_found_expected_and_remedy(
    random_dataset: Path, change: dict[str, object], message: str
) -> None:
    dataset = RequestDataset(random_dataset, batch_size=7, **OPTIONS)
    with pytest.raises(ValueError, match=message):
        dataset.resume(cast(State, {**dataset.state_after(1), **change}))
    with pytest.raises(ValueError, match="state: found list, expected the dict that state_dict"):
        dataset.resume([])  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("name", "value"),
    [("batch_size", 8), ("order", "shuffled"), ("drop_last", True), ("history_length", 40), ("window_blocks", 3)],
)
def test_the_error_of_a_changed_argument_names_it(random_dataset: Path, name: str, value: object) -> None:
    options: dict[str, Any] = {"batch_size": 7, **OPTIONS}
    state = RequestDataset(random_dataset, **options).state_after(1)
    with pytest.raises(ValueError, match=rf"state: batching\.{name} is .*, expected {value!r}; pass {name}="):
        RequestDataset(random_dataset, **{**options, name: value}).resume(state)


def test_the_state_of_one_worker_does_not_fit_another(random_dataset: Path) -> None:
    dataset = RequestDataset(random_dataset, batch_size=7, **OPTIONS)
    state = dataset.state_at(0, 0, {"id": 1, "num_workers": 2, "world_size": 1, "yielded": 3})
    with pytest.raises(
        ValueError, match=r"state: worker\.id is 1, expected 0; use the saved value, or save with RequestLoader"
    ):
        iter(dataset).load_state_dict(state)


def test_wrong_arguments_of_a_loader_are_errors(random_dataset: Path) -> None:
    dataset = RequestDataset(random_dataset)
    with pytest.raises(ValueError, match="workers is 'fibers'; give 'threads' or 'processes'"):
        RequestLoader(dataset, workers="fibers")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="num_workers -1, prefetch 2: give at least 0 and 1"):
        RequestLoader(dataset, num_workers=-1)
