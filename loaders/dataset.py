"""The dataset that PyTorch iterates over: ready batches, in an order that is a pure function of numbers.

`RequestDataset` holds arguments and, once opened, the dataset's manifest; files are opened where they are
read, in the worker. Which requests form which batch says `plan`; what a batch holds says `batch`.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from datetime import datetime
from functools import lru_cache
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pyarrow as pa
import torch
from torch.utils.data import DataLoader, IterableDataset, get_worker_info

from longbatch.schemas.errors import SpecError
from longbatch.schemas.format.dataset import Dataset, open_dataset
from longbatch.schemas.format.remote_cache import RemoteRoot
from longbatch.schemas.format.shard_reader import ShardReader
from longbatch.schemas.time import to_microseconds

from .batch import Histories, RequestBatch
from .blocks import within
from .buffer_pool import Slots
from .dataset_index import (
    Batching,
    Opened,
    Schedule,
    Shards,
    open_all,
    request_times,
    role_types,
    schedule,
)
from .history_length import StochasticLength
from .plan import Order, Plan, num_steps, worker_batches
from .reader import Reader
from .state import State, check_state, check_worker, make_state

OPEN_SHARDS = 64  # shards a process keeps open
Roles = dict[str, dict[str, str]]


class RequestDataset(IterableDataset[RequestBatch]):
    """Batches of requests with their histories and targets, to be used with `DataLoader(batch_size=None)`.

    path: a dataset, a folder, a URI, or a RemoteRoot that says where to cache.  batch_size: requests per batch, that is per step and rank (64 by default).
    max_tokens: instead, the budget of a batch per step and rank: its requests have at most so many history events, one more
    counted for each request.  history_length: the newest events to keep, at most the built length (the default), or a
    StochasticLength that draws one per request and epoch.
    order: "sequential" (of the dataset: by user, then time), "shuffled", or "time"; shuffle=True is short for "shuffled".
    seed, epoch: the order is a pure function of them and the dataset; see `plan` for how, and for `streams`, `window_blocks`
    and `shuffle_run`: runs of so many neighbours, mostly requests of one user, stay together.
    histories: "per_request" or "shared", see `batch`.  columns: the names of features and labels to read, in any
    role; by default all but text, which no tensor holds.  drop_last: drop the last incomplete step of the
    whole world; else ranks that lack a batch in it yield an empty one with `is_padding`.
    on_error: "raise", or "skip" to leave the requests of damaged blocks out; `batch.skipped` counts them.
    rank, world_size: by default those of torch.distributed if initialised, else of the environment's RANK
    and WORLD_SIZE, else 0 of 1; looked up when iteration starts.
    after, before: aware datetimes; only requests with after <= request_time < before are read.

    Request ids that are text come as the request's row number in the dataset. Nulls are read as 0, NaN
    in floats; a null integer label is a DatasetError. The epoch stays what `set_epoch` last said.

    Opening raises DatasetError for a damaged dataset, SpecError for a history_length beyond the built one,
    KeyError for unknown columns, ValueError for arguments that exclude each other.
    """

    def __init__(
        self,
        path: Path | str | RemoteRoot,
        *,
        batch_size: int | None = None,
        max_tokens: int | None = None,
        history_length: int | StochasticLength | None = None,
        order: Order | None = None,
        shuffle: bool = False,
        seed: int = 0,
        epoch: int = 0,
        histories: Histories = "per_request",
        columns: Sequence[str] | None = None,
        drop_last: bool = False,
        on_error: Literal["raise", "skip"] = "raise",
        rank: int | None = None,
        world_size: int | None = None,
        after: datetime | None = None,
        before: datetime | None = None,
        streams: int = 16,
        window_blocks: int = 8,
        shuffle_run: int = 1,
    ) -> None:
        super().__init__()
        if batch_size is not None and max_tokens is not None:
            raise ValueError(f"batch_size {batch_size} and max_tokens {max_tokens} are both given; give one of them")
        if shuffle and order not in (None, "shuffled"):
            raise ValueError(f"shuffle=True and order={order!r} exclude each other; give the order alone")
        _check_choice("order", order, (None, "shuffled", "time", "sequential"))
        _check_choice("histories", histories, ("per_request", "shared"))
        _check_choice("on_error", on_error, ("raise", "skip"))
        self.path = path
        self.history_length = history_length
        self.histories = histories
        self.columns = None if columns is None else tuple(columns)
        self.on_error = on_error
        self.rank, self.world_size = rank, world_size
        self.times_us = _microseconds("after", after), _microseconds("before", before)
        self.seed = seed
        self.batching = Batching(
            order=order or ("shuffled" if shuffle else "sequential"),
            batch_size=64 if batch_size is None and max_tokens is None else batch_size,
            max_tokens=max_tokens,
            drop_last=drop_last,
            streams=streams,
            window_blocks=window_blocks,
            shuffle_run=shuffle_run,
        )
        # epoch, and the batch that it begins with; shared memory, so that both reach the persistent workers of a DataLoader
        self._position = torch.tensor([epoch, 0]).share_memory_()  # type: ignore[no-untyped-call]
        self._opened: Opened | None = None
        self._scheduled: tuple[int, Schedule] | None = None
        self._shards: Shards | None = None

    def __getstate__(self) -> dict[str, Any]:
        """What travels to a worker: numbers and paths, no open files."""
        return {**vars(self), "_shards": None, "_scheduled": None}

    def __setstate__(self, state: dict[str, Any]) -> None:
        """Share the position again where it came as a copy: a plain pickle's is in memory of its own."""
        vars(self).update(state)
        self._position.share_memory_()

    @property
    def epoch(self) -> int:
        """The epoch whose order is iterated."""
        return int(self._position[0])

    @property
    def first_batch(self) -> int:
        """The batch of the whole world that the next iteration begins with: 0, or that of a state."""
        return int(self._position[1])

    def set_epoch(self, epoch: int) -> None:
        """Choose the epoch of the iterations to come, in persistent workers too; another one begins at its first batch."""
        if epoch < 0:
            raise ValueError(f"epoch {epoch} is negative; give 0 or more")
        if epoch != self.epoch:
            self.set_position(epoch, 0)

    def set_position(self, epoch: int, first_batch: int) -> None:
        """Let the iterations to come begin with this batch of the whole world, in persistent workers too."""
        self._position.copy_(torch.tensor([epoch, first_batch]))

    @property
    def fingerprint(self) -> str:
        """The hash of the dataset's content."""
        return self.open().dataset.fingerprint

    def column_types(self) -> Roles:
        """The Arrow type of every feature and label read: role -> name -> type, as `str(type)` spells it.

        Roles: history, targets, labels, requests. item_id and times are not among them.
        """
        opened = self.open()
        types = role_types(opened.dataset)
        return {role: {name: str(types[role][name]) for name in getattr(opened.selection, role)} for role in types}

    def split_time_us(self, share: float) -> int:
        """The request time, in microseconds since 1970 UTC, before which this share of the requests lies."""
        if not 0 < share < 1:
            raise ValueError(f"share is {share}; give a number between 0 and 1")
        opened = self.open()
        times = np.concatenate([request_times(opened, self.shards, b) for b in range(len(opened.block_rows))])
        times = times[within(times, self.times_us)]
        if not len(times):
            raise SpecError(f"{self.path} has no requests in the time range, so nothing can be split")
        return int(np.partition(times, int(share * len(times)))[int(share * len(times))])

    def open(self) -> Opened:
        """Read the manifest and count the requests of the time range, once; makes errors come early."""
        if self._opened is None:
            dataset = open_dataset(self.path)
            shards = _shards_of(dataset, None)
            self._opened = open_all(dataset, shards, self.columns, self.history_length, self.times_us)
        return self._opened

    @property
    def shards(self) -> Shards:
        """Shard number -> its reader, opened in this process."""
        if self._shards is None:
            opened = self.open()
            self._shards = _shards_of(opened.dataset, opened)
        return self._shards

    def scheduled(self, epoch: int) -> Schedule:
        """The plan of an epoch, and what it takes to follow it."""
        if self._scheduled is None or self._scheduled[0] != epoch:
            self._scheduled = epoch, schedule(self.open(), self.shards, self.batching, self.seed, epoch)
        return self._scheduled[1]

    def plan(self) -> Plan:
        """The plan of the epoch."""
        return self.scheduled(self.epoch).plan

    def reader(self, epoch: int) -> Reader:
        """What reads the batches of an epoch."""
        skip = self.on_error == "skip"
        return Reader(self.open(), self.scheduled(epoch), self.shards, histories=self.histories, skip=skip)

    def __len__(self) -> int:
        """The exact number of batches a rank yields from where it begins, padding included."""
        left = max(0, self.plan().num_batches - self.first_batch)
        return num_steps(left, self.topology()[1], self.batching.drop_last)

    def __iter__(self) -> BatchIterator:
        """Iterate over this rank's (and worker's) batches of the epoch, from the position on."""
        return BatchIterator(self)

    def state_after(self, steps: int) -> State:
        """The state of all ranks once each has had `steps` batches of the iteration that begins at the position.

        For trainers that count their own steps. After the last step of an epoch it is the start of the next.
        """
        return self.state_at(self.epoch, self.first_batch + steps * self.topology()[1])

    def state_at(self, epoch: int, next_batch: int, worker: dict[str, int] | None = None) -> State:
        """The state at a batch of the whole world; behind the last one of an epoch, at the first of the next."""
        if worker is None:
            world_size = self.topology()[1]
            left = self.scheduled(epoch).plan.num_batches - next_batch
            if num_steps(max(0, left), world_size, self.batching.drop_last) == 0:
                epoch, next_batch = epoch + 1, 0
        return make_state(self.fingerprint, self.seed, epoch, next_batch, self._batching_state(), worker)

    def resume(self, state: State) -> None:
        """Let the next iteration go on where a state was saved, with any number of ranks and workers.

        Raises ValueError naming field, found, expected and remedy for a state of another dataset or other arguments.
        """
        self.check_state(state)
        if state["worker"] is not None:
            raise ValueError(
                "state: worker is that of one worker, expected None; resume with StatefulDataLoader, as it was saved"
            )
        self.set_position(state["epoch"], state["next_batch"])

    def check_state(self, state: State) -> None:
        """Raise ValueError unless the state is one of this dataset and these arguments."""
        expected = {"fingerprint": self.fingerprint, "seed": self.seed, "batching": self._batching_state()}
        check_state(state, **expected, num_batches=-1)  # type: ignore[arg-type]
        check_state(state, **expected, num_batches=self.scheduled(state["epoch"]).plan.num_batches)  # type: ignore[arg-type]

    def _batching_state(self) -> dict[str, Any]:
        length = self.open().history_length
        rule = asdict(length) if isinstance(length, StochasticLength) else length
        return {**asdict(self.batching), "history_length": rule, "times_us": list(self.times_us)}

    def topology(self) -> tuple[int, int]:
        """Rank and world size, looked up now: a constructor runs before torch.distributed is initialised."""
        rank, world_size = self.rank, self.world_size
        if torch.distributed.is_available() and torch.distributed.is_initialized():
            rank = torch.distributed.get_rank() if rank is None else rank
            world_size = torch.distributed.get_world_size() if world_size is None else world_size
        rank = int(os.environ.get("RANK", 0)) if rank is None else rank
        world_size = int(os.environ.get("WORLD_SIZE", 1)) if world_size is None else world_size
        if not 0 <= rank < world_size:
            raise ValueError(f"rank {rank} of a world of {world_size}; ranks run from 0 to world_size - 1")
        return rank, world_size


class BatchIterator(Iterator[RequestBatch]):
    """One pass over a rank's (and worker's) batches. Holds the position, so that StatefulDataLoader can save and load it.

    Its state is of the batches it has yielded. In the main process any number of ranks can go on from it; in one of several workers
    it belongs to that worker.
    """

    def __init__(self, dataset: RequestDataset) -> None:
        worker = get_worker_info()
        if worker is not None:
            pa.set_cpu_count(1)  # workers are the parallelism; Arrow's own threads would compete with them
        self._dataset = dataset
        self._worker, self._num_workers = (worker.id, worker.num_workers) if worker else (0, 1)
        self._begin(dataset.epoch, dataset.first_batch, 0)

    def _begin(self, epoch: int, first_batch: int, yielded: int) -> None:
        self._epoch, self._first_batch, self._yielded = epoch, first_batch, yielded
        self._rank, self._world_size = self._dataset.topology()
        self._reader = self._dataset.reader(epoch)
        self._numbers = worker_batches(
            self._dataset.scheduled(epoch).plan.num_batches,
            rank=self._rank,
            world_size=self._world_size,
            worker=self._worker,
            num_workers=self._num_workers,
            drop_last=self._dataset.batching.drop_last,
            first_batch=first_batch,
            yielded=yielded,
        )

    def __next__(self) -> RequestBatch:
        """The next batch of this rank and worker."""
        number = next(self._numbers)
        batch = self._reader.padding() if number is None else self._reader.batch(number)
        self._yielded += 1
        return batch

    def state_dict(self) -> State:
        """The position behind the last batch yielded: small, and independent of how much was read."""
        if self._num_workers == 1:
            return self._dataset.state_at(self._epoch, self._first_batch + self._yielded * self._world_size)
        worker = {"id": self._worker, "num_workers": self._num_workers, "world_size": self._world_size}
        return self._dataset.state_at(self._epoch, self._first_batch, {**worker, "yielded": self._yielded})

    def load_state_dict(self, state: State) -> None:
        """Go on behind the batches of a state. Raises ValueError for a state that does not fit."""
        self._dataset.check_state(state)
        yielded = check_worker(state, worker=self._worker, num_workers=self._num_workers, world_size=self._world_size)
        self._dataset.set_epoch(state["epoch"])
        self._begin(state["epoch"], state["next_batch"], yielded)


def make_dataloader(
    dataset: RequestDataset, *, num_workers: int = 0, pin_memory: bool | None = None, prefetch_factor: int = 2
) -> DataLoader[RequestBatch]:
    """A DataLoader with the settings a RequestDataset needs: no batching of its own, persistent workers.

    pin_memory: by default where there is a CUDA device. Opens the dataset, so its errors come here.
    """
    dataset.open()
    return DataLoader(
        dataset,
        batch_size=None,
        num_workers=num_workers,
        pin_memory=torch.cuda.is_available() if pin_memory is None else pin_memory,
        persistent_workers=num_workers > 0,
        prefetch_factor=prefetch_factor if num_workers else None,
        worker_init_fn=Slots(num_workers, prefetch_factor + 2) if num_workers and hasattr(os, "memfd_create") else None,
    )


def _shards_of(dataset: Dataset, opened: Opened | None) -> Shards:
    """Shard number -> reader, the last OPEN_SHARDS kept; before all is opened, for request times only."""
    files = dataset.open_files()

    def shard(number: int) -> ShardReader:
        if opened is None:
            return dataset.shard(number, files=files)
        return dataset.shard(number, opened.selection.fields, files)

    return lru_cache(maxsize=OPEN_SHARDS)(shard)


def _check_choice(name: str, value: Any, allowed: tuple[Any, ...]) -> None:
    if value not in allowed:
        raise ValueError(f"{name} is {value!r}; give one of {', '.join(repr(choice) for choice in allowed if choice)}")


def _microseconds(name: str, time: datetime | None) -> int | None:
    if time is not None and time.tzinfo is None:
        raise ValueError(f"{name} is {time.isoformat()} without a time zone; give an aware datetime")
    return None if time is None else to_microseconds(time)
