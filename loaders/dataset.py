"""The dataset that PyTorch iterates over: ready batches, in an order that is a pure function of numbers.

`RequestDataset` stores arguments and, once opened, the dataset's manifest; files are opened where they are read, in the
worker. `plan` decides which requests form a batch, `schedule` which rank and worker yields it, `batch` defines what it
contains.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Sequence
from dataclasses import asdict
from datetime import datetime
from typing import Any, Literal

from torch.utils.data import IterableDataset

from longbatch.schemas.format.dataset import open_dataset
from longbatch.schemas.format.remote_cache import RemoteRoot
from longbatch.schemas.storage.open_store import Location, open_store
from longbatch.schemas.time import to_microseconds

from .batch import Histories, RequestBatch
from .batch_iterator import BatchIterator
from .blocks import TimeRange
from .dataset_index import DatasetIndex, Shards, open_index, open_shards
from .epoch_plan import Batching, EpochPlan, plan_epoch
from .epoch_position import EpochPosition
from .history_length import HistoryLength, StochasticLength
from .plan import Order, Plan
from .ranks import look_up_rank, rank_to_pickle
from .reader import Reader
from .schedule import RankAndWorker, num_steps
from .state import State, StateContext, WorkerState, check_next_batch

logger = logging.getLogger(__name__)


class RequestDataset(IterableDataset[RequestBatch]):
    """Batches of requests with their histories and targets, for `make_dataloader` or `RequestLoader`.

    A plain `DataLoader(dataset, batch_size=None)` works too.

    The order is a pure function of the dataset, `seed` and `epoch`; `plan` describes the policy, also of `streams`,
    `window_blocks` and `shuffle_run`. Iterating over the dataset itself, or over a plain DataLoader of it, does not
    change the epoch.

    Request ids that are strings are read as the request's row number in the dataset. Nulls are read as 0, in floats as
    NaN.

    Args:
        path: A dataset: a folder, a URL, a RemoteRoot with settings of its cache, or a store, read without a cache.
        batch_size: Requests per batch, that is per step and rank; 64 if `max_tokens` is not given either.
        max_tokens: Instead of `batch_size`, the budget of a batch per step and rank: history events, and 1 for each
            request.
        history_length: The newest events to keep, at most the built length (the default), or a StochasticLength that
            draws a length per request and epoch.
        order: "sequential" (of the dataset: by user, then time), "shuffled" or "time".
        shuffle: `shuffle=True` is short for `order="shuffled"`.
        seed: Seed of the order and of drawn history lengths.
        epoch: The epoch to begin with.
        histories: "per_request" gives each request a copy of its history, "shared" stores each timeline of a batch
            once.
        columns: Names of the features and labels to read, in any role; by default all except strings.
        drop_last: Whether to drop the last step if there is not a batch for every rank. Otherwise ranks without data
            yield an empty batch with `is_padding`.
        on_error: "raise", or "skip" to leave out the requests of damaged blocks and count them in `batch.skipped`.
        rank: Number of this rank; by default that of torch.distributed if initialized, else of the environment variable
            RANK, else 0. It is looked up when iteration starts, and sent to worker processes that cannot look it up.
        world_size: Number of ranks; by default looked up like `rank`, else 1.
        after: An aware datetime; only requests with `after <= request_time` are read.
        before: An aware datetime; only requests with `request_time < before` are read.
        streams: Largest number of streams that are read at the same time, with order="shuffled".
        window_blocks: Blocks whose requests are mixed, with order="shuffled".
        shuffle_run: Neighboring requests that stay together, mostly requests of one user, with order="shuffled".

    Raises:
        ValueError: Arguments exclude each other or have an unknown value. The errors below are raised on first use.
        DatasetError: The dataset is missing or damaged, or an integer label that is read has nulls.
        SpecError: `history_length` is longer than the built one, or a column contains strings.
        KeyError: A column does not exist; the message lists those that do.

    Example:
        >>> dataset = RequestDataset("dataset", batch_size=64, history_length=50, shuffle=True)
        >>> for batch in dataset:
        ...     events, offsets = batch.history["item_id"], batch.history_offsets  # (T,), (R + 1,)
        ...     items, clicks = batch.targets["item_id"], batch.labels["click"]  # (G,), (G,)
    """

    def __init__(
        self,
        path: Location | RemoteRoot,
        *,
        batch_size: int | None = None,
        max_tokens: int | None = None,
        history_length: HistoryLength | None = None,
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
            raise ValueError(f"shuffle=True and order={order!r} exclude each other; give only the order")
        if order is not None:
            _check_choice("order", order, ("shuffled", "time", "sequential"))
        _check_choice("histories", histories, ("per_request", "shared"))
        _check_choice("on_error", on_error, ("raise", "skip"))
        self.path = path
        self.history_length = history_length
        self.histories: Histories = histories
        self.columns = None if columns is None else tuple(columns)
        self.on_error = on_error
        self.rank, self.world_size = rank, world_size
        self.times = TimeRange(_microseconds("after", after), _microseconds("before", before))
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
        self.position = EpochPosition(epoch)
        self._index: DatasetIndex | None = None
        self._planned: EpochPlan | None = None
        self._shards: Shards | None = None

    def __repr__(self) -> str:
        """Summarize the dataset's arguments, without opening it."""
        size = f"max_tokens={self.batching.max_tokens}"
        if self.batching.max_tokens is None:
            size = f"batch_size={self.batching.batch_size}"
        path = self.path.uri if isinstance(self.path, RemoteRoot) else open_store(self.path).location
        return (
            f"RequestDataset({path!r}, {size}, history_length={self.history_length}, order={self.batching.order!r}, "
            f"histories={self.histories!r}, seed={self.seed}, epoch={self.epoch})"
        )

    def __getstate__(self) -> dict[str, Any]:
        """Return what is sent to a worker: numbers and paths, no open files."""
        rank, world_size = rank_to_pickle(self.rank, self.world_size)
        # A plan may refer to open shards.
        return {**vars(self), "rank": rank, "world_size": world_size, "_shards": None, "_planned": None}

    @property
    def epoch(self) -> int:
        """The epoch whose order is iterated."""
        return self.position.epoch

    def set_epoch(self, epoch: int) -> None:
        """Choose the epoch of the next iterations, also in persistent workers.

        Args:
            epoch: Number of the epoch. It begins at its first batch, unless it is the current epoch and a state was
                loaded.

        Raises:
            ValueError: The epoch is negative.
        """
        self.position.set_epoch(epoch)

    @property
    def fingerprint(self) -> str:
        """The hash of the checksums of the dataset's files."""
        return self.open().dataset.fingerprint

    def column_types(self) -> dict[str, dict[str, str]]:
        """Look up the Arrow types of the features and labels that are read.

        Returns:
            Role ("history", "targets", "labels" or "requests") -> name -> type, as `str(type)`. item_id and times are
            not included.
        """
        return self.open().column_types()

    def split_time_us(self, share: float) -> int:
        """Compute a time that splits the requests, e.g. into training and evaluation.

        Args:
            share: Share of the requests before the time, between 0 and 1.

        Returns:
            The time, in microseconds since 1970 UTC.

        Raises:
            ValueError: The share is not between 0 and 1.
            SpecError: The time range contains no requests.
        """
        return self.open().split_time_us(self.shards, share)

    def open(self) -> DatasetIndex:
        """Read the manifest and count the requests of the time range, once; call it to see errors early."""
        if self._index is None:
            started = time.perf_counter()
            dataset = open_dataset(self.path)
            shards = open_shards(dataset)  # without fields: counting requests needs no column of events or targets
            self._index = open_index(dataset, shards, self.columns, self.history_length, self.times)
            logger.info(
                "opened %s: %d requests in %d blocks, %.3f s",
                dataset.location,
                int(self._index.selected_rows.sum()),
                self._index.num_blocks,
                time.perf_counter() - started,
            )
        return self._index

    @property
    def shards(self) -> Shards:
        """The readers of the shards, opened in this process."""
        if self._shards is None:
            index = self.open()
            self._shards = open_shards(index.dataset, index.selection.fields)
        return self._shards

    def planned(self, epoch: int) -> EpochPlan:
        """Plan an epoch, once; the plan of the epoch before is forgotten."""
        if self._planned is None or self._planned.epoch != epoch:
            self._planned = plan_epoch(self.open(), self.shards, self.batching, self.seed, epoch)
        return self._planned

    def plan(self) -> Plan:
        """Return the plan of the current epoch."""
        return self.planned(self.epoch).plan

    def reader(self, epoch: int) -> Reader:
        """Create a reader of the batches of an epoch."""
        planned, skip = self.planned(epoch), self.on_error == "skip"
        return Reader(self.open(), planned, self.shards, histories=self.histories, skip_damaged=skip)

    def __len__(self) -> int:
        """Return the exact number of batches that a rank yields from the position on, padding included."""
        return self._steps_left(self.epoch, self.position.first_batch)

    def _steps_left(self, epoch: int, next_batch: int) -> int:
        batches = max(0, self.planned(epoch).plan.num_batches - next_batch)
        return num_steps(batches, self.rank_and_worker().world_size, self.batching.drop_last)

    def next_pass_length(self) -> int:
        """Return the number of batches that a rank yields in the next pass of a loader, maybe of the next epoch."""
        return self._steps_left(self.epoch + 1, 0) if self.position.epoch_ended else len(self)

    def __iter__(self) -> BatchIterator:
        """Iterate over this rank's (and worker's) batches of the epoch, from the position on."""
        return BatchIterator(self)

    def state_after(self, steps: int) -> State:
        """Return the state of all ranks after some steps of the iteration that begins at the position.

        For trainers that count their own steps.

        Args:
            steps: Batches that each rank has received.

        Returns:
            A state; after the last step of an epoch it is the beginning of the next epoch.
        """
        return self.state_at(self.epoch, self.position.first_batch + steps * self.rank_and_worker().world_size)

    def state_at(self, epoch: int, next_batch: int, worker: WorkerState | None = None) -> State:
        """Return the state at a batch; after the last batch of an epoch it is the beginning of the next epoch.

        Args:
            epoch: Number of the epoch.
            next_batch: Number of the batch over all ranks.
            worker: Position of one of several workers, or None if the main process counts.

        Returns:
            The state.
        """
        if worker is None and self._steps_left(epoch, next_batch) == 0:  # a worker cannot know that all others are done
            epoch, next_batch = epoch + 1, 0
        return self._state_context().state(epoch, next_batch, worker)

    def resume(self, state: State) -> None:
        """Continue the next iteration where a state was saved, with any number of ranks and workers.

        Args:
            state: A state that the main process has counted.

        Raises:
            ValueError: The state is of another dataset or other arguments, or of a single worker; the message names the
                field, both values, and the remedy.
        """
        self.check_state(state)
        if state["worker"] is not None:
            raise ValueError(
                "state: worker is the position of one worker, expected None; resume with StatefulDataLoader"
            )
        self.position.set(state["epoch"], state["next_batch"])

    def check_state(self, state: State) -> None:
        """Check that a state is of this dataset and these arguments.

        Args:
            state: The state.

        Raises:
            ValueError: It does not fit; the message names the field, both values, and the remedy.
        """
        checked = self._state_context().check(state)
        check_next_batch(checked, self.planned(checked["epoch"]).plan.num_batches)

    def _state_context(self) -> StateContext:
        length = self.open().history_length
        saved_length = asdict(length) if isinstance(length, StochasticLength) else length
        times = [self.times.after_us, self.times.before_us]
        batching = {**asdict(self.batching), "history_length": saved_length, "times_us": times}
        return StateContext(self.fingerprint, self.seed, batching)

    def rank_and_worker(self) -> RankAndWorker:
        """Look up rank and world size, now: a constructor runs before torch.distributed is initialized."""
        return look_up_rank(self.rank, self.world_size)


def _check_choice(name: str, value: str, choices: tuple[str, ...]) -> None:
    if value not in choices:
        raise ValueError(f"{name} is {value!r}; give one of {', '.join(map(repr, choices))}")


def _microseconds(name: str, moment: datetime | None) -> int | None:
    if moment is not None and moment.tzinfo is None:
        raise ValueError(f"{name} is {moment.isoformat()} without a time zone; give an aware datetime")
    return None if moment is None else to_microseconds(moment)
