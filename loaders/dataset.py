"""The dataset that PyTorch iterates over: ready batches, in an order that is a pure function of numbers.

`RequestDataset` holds arguments and, once opened, the dataset's manifest; files are opened where they are
read, in the worker. Which requests form which batch says `plan`; what a batch holds says `batch`.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from functools import lru_cache
from itertools import accumulate
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import torch
from torch.utils.data import DataLoader, IterableDataset, get_worker_info

from longbatch.loaders.batch import OpenBlock, RequestBatch, Selection, gather, open_block, within
from longbatch.loaders.plan import Ints, Plan, StochasticLength, make_plan, num_steps, worker_batches
from longbatch.schemas.dataset import Dataset, check_history_length, open_dataset
from longbatch.schemas.errors import SpecError
from longbatch.schemas.shard import Block, check_file

OPEN_SHARDS = 32  # file pairs a worker keeps open
Roles = dict[str, dict[str, str]]


class RequestDataset(IterableDataset[RequestBatch]):
    """Batches of requests with their histories and targets, to be used with `DataLoader(batch_size=None)`.

    path: a dataset.  batch_size: requests per batch, that is per step and rank.  history_length: the newest
    events to keep, at most the built length (the default), or a StochasticLength that draws one per request
    and epoch.  shuffle, seed, epoch: the order is a pure function of them and the dataset; see `plan` for
    how, and for `streams` and `window_blocks`.  columns: the names of features and labels to read, in any
    role; by default all but text, which no tensor holds.  drop_last: drop the last incomplete step of the
    whole world; else ranks that lack a batch in it yield an empty one with `is_padding`.
    rank, world_size: by default those of torch.distributed if initialised, else of the environment's RANK
    and WORLD_SIZE, else 0 of 1; looked up when iteration starts.
    after, before: aware datetimes; only requests with after <= request_time < before are read.

    Request ids that are text come as the request's row number in the dataset. Nulls are read as 0, NaN
    in floats; a null integer label is a DatasetError. The epoch stays what `set_epoch` last said.

    Opening raises DatasetError for a damaged dataset, SpecError for a history_length beyond the built one,
    KeyError for unknown columns.
    """

    def __init__(
        self,
        path: Path | str,
        *,
        batch_size: int = 64,
        history_length: int | StochasticLength | None = None,
        shuffle: bool = False,
        seed: int = 0,
        epoch: int = 0,
        columns: Sequence[str] | None = None,
        drop_last: bool = False,
        rank: int | None = None,
        world_size: int | None = None,
        after: datetime | None = None,
        before: datetime | None = None,
        streams: int = 16,
        window_blocks: int = 8,
    ) -> None:
        super().__init__()
        self.path = Path(path)
        self.history_length = history_length
        self.columns = None if columns is None else tuple(columns)
        self.drop_last = drop_last
        self.rank, self.world_size = rank, world_size
        self.times_us = _microseconds("after", after), _microseconds("before", before)
        self.seed = seed
        self._order = {
            "batch_size": batch_size,
            "shuffle": shuffle,
            "drop_last": drop_last,
            "streams": streams,
            "window_blocks": window_blocks,
        }
        # shared memory, so that set_epoch reaches the persistent workers of a DataLoader
        self._epoch = torch.tensor(epoch).share_memory_()  # type: ignore[no-untyped-call]
        self._opened: _Opened | None = None

    @property
    def epoch(self) -> int:
        """The epoch whose order is iterated."""
        return int(self._epoch)

    def set_epoch(self, epoch: int) -> None:
        """Choose the epoch of the iterations to come, in persistent workers too."""
        if epoch < 0:
            raise ValueError(f"epoch {epoch} is negative; give 0 or more")
        self._epoch.fill_(epoch)

    @property
    def fingerprint(self) -> str:
        """The hash of the dataset's content."""
        return self.open().dataset.fingerprint

    def column_types(self) -> Roles:
        """The Arrow type of every feature and label read: role -> name -> type, as `str(type)` spells it.

        Roles: history, targets, labels, requests. item_id and times are not among them.
        """
        opened = self.open()
        types = _role_types(opened.dataset)
        return {role: {name: str(types[role][name]) for name in getattr(opened.selection, role)} for role in types}

    def split_time_us(self, share: float) -> int:
        """The request time, in microseconds since 1970 UTC, before which this share of the requests lies."""
        if not 0 < share < 1:
            raise ValueError(f"share is {share}; give a number between 0 and 1")
        opened = self.open()
        times = np.concatenate([_request_times(opened, block) for block in range(len(opened.block_rows))])
        times = times[within(times, self.times_us)]
        if not len(times):
            raise SpecError(f"{self.path} has no requests in the time range, so nothing can be split")
        return int(np.partition(times, int(share * len(times)))[int(share * len(times))])

    def open(self) -> _Opened:
        """Read the manifest and count the requests of the time range, once; makes errors come early."""
        if self._opened is None:
            self._opened = _open(self)
        return self._opened

    def plan(self) -> Plan:
        """The plan of the epoch."""
        return make_plan(self.open().counts, seed=self.seed, epoch=self.epoch, **self._order)  # type: ignore[arg-type]

    def __len__(self) -> int:
        """The exact number of batches a rank yields, padding included."""
        return num_steps(self.plan().num_batches, self._topology()[1], self.drop_last)

    def __iter__(self) -> Iterator[RequestBatch]:
        """Iterate over this rank's (and worker's) batches of the epoch."""
        return self.batches()

    def batches(self, first_step: int = 0) -> Iterator[RequestBatch]:
        """Iterate from a step on: the order needs no memory of the steps before."""
        rank, world_size = self._topology()
        worker = get_worker_info()
        if worker is not None:
            pa.set_cpu_count(1)  # workers are the parallelism; Arrow's own threads would compete with them
        plan, read = self.plan(), _Reader(self.open(), self.seed, self.epoch)
        numbers = worker_batches(
            plan.num_batches,
            rank=rank,
            world_size=world_size,
            worker=worker.id if worker else 0,
            num_workers=worker.num_workers if worker else 1,
            drop_last=self.drop_last,
            first_step=first_step,
        )
        for number in numbers:
            yield read.padding() if number is None else read.batch(plan, number)

    def _topology(self) -> tuple[int, int]:
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
    )


@dataclass(frozen=True)
class _Opened:
    """What iteration needs to know; numbers and paths only, so that it travels to workers.

    block_shard, block_in_shard, block_rows: (B,) where each block lies and its requests.  first_row: (B,)
    the requests before it.  counts: (B,) its requests inside the time range.
    """

    dataset: Dataset
    selection: Selection
    history_length: int | StochasticLength
    times_us: tuple[int | None, int | None]
    block_shard: Ints
    block_in_shard: Ints
    block_rows: Ints
    first_row: Ints
    counts: Ints


class _Reader:
    """Reads batches; keeps open, for each stream, the blocks its next batches will need."""

    def __init__(self, opened: _Opened, seed: int, epoch: int) -> None:
        self._opened, self._seed, self._epoch = opened, seed, epoch
        self._shard = lru_cache(maxsize=OPEN_SHARDS)(opened.dataset.shard)
        self._blocks: dict[int, dict[int, OpenBlock]] = {}

    def batch(self, plan: Plan, number: int) -> RequestBatch:
        """Batch number `number` of the plan."""
        block_numbers, ordinals = plan.rows(number)
        cuts = np.flatnonzero(np.diff(block_numbers)) + 1
        groups = zip(block_numbers[np.append(0, cuts)].tolist(), np.split(ordinals, cuts), strict=True)
        cached = self._blocks.setdefault(number % plan.streams, {})
        pieces = []
        for block_number, ordinal in groups:
            if block_number not in cached:
                cached[block_number] = self._open_block(block_number)
            pieces.append((cached[block_number], cached[block_number].eligible[ordinal]))
        live = plan.live_blocks(number).tolist()
        self._blocks[number % plan.streams] = {n: cached[n] for n in live if n in cached}
        return gather(pieces)

    def padding(self) -> RequestBatch:
        """The empty batch of a rank without data."""
        dataset = self._opened.dataset
        schemas = dataset.timelines_schema, dataset.requests_schema
        block = Block(*(pa.RecordBatch.from_pylist([], schema=schema) for schema in schemas))
        none = np.zeros(0, dtype=np.int64)
        batch = gather([(open_block(block, self._opened.selection, none, 0, (None, None), "padding"), none)])
        return RequestBatch(**{**vars(batch), "is_padding": True})

    def _open_block(self, number: int) -> OpenBlock:
        opened = self._opened
        shard, place = int(opened.block_shard[number]), int(opened.block_in_shard[number])
        rows, length = int(opened.block_rows[number]), opened.history_length
        lengths = (
            length.lengths(self._seed, self._epoch, number, rows)
            if isinstance(length, StochasticLength)
            else np.full(rows, length, dtype=np.int64)
        )
        block = self._shard(shard).block(place)
        where = f"{opened.dataset.path / opened.dataset.shards[shard]['requests']['path']}, block {place}"
        return open_block(block, opened.selection, lengths, int(opened.first_row[number]), opened.times_us, where)


def _open(arguments: RequestDataset) -> _Opened:
    dataset = open_dataset(arguments.path)
    length = arguments.history_length
    if isinstance(length, StochasticLength):
        check_history_length(dataset.spec, length.maximum)
    else:
        length = check_history_length(dataset.spec, length)
    blocks = [(s, b, entry) for s, row in enumerate(dataset.shards) for b, entry in enumerate(row["blocks"])]
    rows = _ints([entry["requests"] for _, _, entry in blocks])
    opened = _Opened(
        dataset=dataset,
        selection=_select(dataset, arguments.columns),
        history_length=length,
        times_us=arguments.times_us,
        block_shard=_ints([shard for shard, _, _ in blocks]),
        block_in_shard=_ints([block for _, block, _ in blocks]),
        block_rows=rows,
        first_row=_ints(list(accumulate(rows.tolist(), initial=0))[:-1]),
        counts=rows,
    )
    return _Opened(**{**vars(opened), "counts": _counts(opened, [entry for _, _, entry in blocks])})


def _counts(opened: _Opened, entries: Sequence[dict[str, Any]]) -> Ints:
    """Requests of each block inside the time range; only blocks that straddle an end are read."""
    counts = opened.block_rows.copy()
    for number, entry in enumerate(entries):
        ends = _ints([_epoch_us(entry["first_request_time"]), _epoch_us(entry["last_request_time"])])
        inside = within(ends, opened.times_us)
        if not inside.all():
            counts[number] = int(within(_request_times(opened, number), opened.times_us).sum())
    return counts


def _request_times(opened: _Opened, number: int) -> Ints:
    """Request times (N,) of a block, in microseconds; no other column is decoded."""
    dataset = opened.dataset
    path = check_file(dataset.path, dataset.shards[int(opened.block_shard[number])]["requests"])
    field = dataset.requests_schema.get_field_index("request_time")
    options = pa.ipc.IpcReadOptions(included_fields=[field], use_threads=False)
    with pa.memory_map(str(path)) as file:
        column = pa.ipc.open_file(file, options=options).get_batch(int(opened.block_in_shard[number])).column(0)
        times: Ints = column.view(pa.int64()).to_numpy(zero_copy_only=False).copy()
    return times


def _select(dataset: Dataset, columns: Sequence[str] | None) -> Selection:
    types = _role_types(dataset)
    known = {name: kind for role in types.values() for name, kind in role.items()}
    if columns is not None:
        if unknown := sorted(set(columns) - set(known)):
            raise KeyError(f"columns {unknown} are not in {dataset.path}, which has {sorted(known)}")
        if text := sorted(name for name in columns if pa.types.is_string(known[name])):
            raise SpecError(f"columns {text} are text, which no tensor holds; declare them as `id` in the build spec")
    wanted = set(known) if columns is None else set(columns)
    picked = {
        role: tuple(name for name, kind in entries.items() if name in wanted and not pa.types.is_string(kind))
        for role, entries in types.items()
    }
    return Selection(**picked, row_ids=pa.types.is_string(dataset.requests_schema.field("request_id").type))


def _role_types(dataset: Dataset) -> dict[str, dict[str, Any]]:
    """Arrow types of all features and labels: role -> name -> type."""
    spec = dataset.spec
    events = dataset.timelines_schema.field("events").type.value_type
    targets = dataset.requests_schema.field("targets").type.value_type
    names: dict[str, tuple[Sequence[str], Callable[[str], Any]]] = {
        "history": (list(spec.history.features), events.field),
        "targets": (list(spec.requests.target_features), targets.field),
        "labels": (list(spec.requests.labels), targets.field),
        "requests": (list(spec.requests.features), dataset.requests_schema.field),
    }
    return {role: {name: field(name).type for name in listed} for role, (listed, field) in names.items()}


def _ints(values: Sequence[int]) -> Ints:
    return np.array(values, dtype=np.int64)


def _epoch_us(time: datetime) -> int:
    return (time - datetime(1970, 1, 1, tzinfo=UTC)) // timedelta(microseconds=1)


def _microseconds(name: str, time: datetime | None) -> int | None:
    if time is not None and time.tzinfo is None:
        raise ValueError(f"{name} is {time.isoformat()} without a time zone; give an aware datetime")
    return None if time is None else _epoch_us(time)
