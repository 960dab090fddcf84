"""Loaders whose passes are epochs: a PyTorch DataLoader, and one that also counts batches in the main process.

Batches are prepared ahead, by threads of this process or by worker processes, and yielded in the order of the plan.
Threads share the open blocks, so each block is decoded once per process, and a batch is handed over as it is; Arrow's
decoding, the copy of slices and checksums release the interpreter lock. Worker processes decode for themselves, and
send batches in reusable buffers (`buffer_pool`).
"""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Literal, TypeVar

import torch
from torch.utils.data import DataLoader

from .batch import RequestBatch
from .buffer_pool import BufferPool
from .dataset import RequestDataset
from .schedule import worker_batches
from .state import State

Workers = Literal["threads", "processes"]
LoaderType = TypeVar("LoaderType", bound="DataLoader[RequestBatch]")


def make_dataloader(
    dataset: RequestDataset, *, num_workers: int = 0, pin_memory: bool | None = None, prefetch_factor: int = 2
) -> EpochDataLoader:
    """Create a DataLoader with the settings that a RequestDataset needs: no batching of its own, persistent workers.

    A pass over all batches moves on to the next epoch, so that each pass of a shuffled dataset has another order;
    `set_epoch` of the dataset chooses the epoch of the next pass instead. After a `break` the pass begins again.

    Args:
        dataset: The dataset. It is opened here, so that its errors are raised here.
        num_workers: Number of worker processes; 0 prepares each batch in this process when it is needed.
        pin_memory: Whether batches are copied to page-locked memory; by default if there is a CUDA device.
        prefetch_factor: Batches that each worker prepares ahead.

    Returns:
        The DataLoader.

    Raises:
        DatasetError: The dataset is missing or damaged.

    Example:
        >>> loader = make_dataloader(RequestDataset("dataset", shuffle=True), num_workers=2)
        >>> for epoch in range(3):
        ...     for batch in loader:
        ...         events, offsets = batch.history["item_id"], batch.history_offsets  # (T,), (R + 1,)
    """
    return _new_dataloader(EpochDataLoader, dataset, num_workers, pin_memory, prefetch_factor)


def _new_dataloader(
    loader_type: type[LoaderType],
    dataset: RequestDataset,
    num_workers: int,
    pin_memory: bool | None,
    prefetch_factor: int,
) -> LoaderType:
    # Open before workers start: they inherit the manifest instead of reading it once each.
    dataset.open()
    # Buffers of a worker: the batches it prepares ahead, the one in use, and the one before that, which may be dropped
    # late.
    has_buffers = num_workers > 0 and hasattr(os, "memfd_create")
    return loader_type(
        dataset,
        batch_size=None,
        num_workers=num_workers,
        pin_memory=torch.cuda.is_available() if pin_memory is None else pin_memory,
        persistent_workers=num_workers > 0,
        prefetch_factor=prefetch_factor if num_workers else None,
        worker_init_fn=BufferPool(num_workers, prefetch_factor + 2) if has_buffers else None,
    )


class EpochDataLoader(DataLoader[RequestBatch]):
    """A DataLoader of a RequestDataset whose passes are epochs; create it with `make_dataloader`.

    PyTorch's DataLoader has a single iterator for its persistent workers, and restarts it. Here each `iter(loader)` is
    an iterator of its own; with workers, an older one raises RuntimeError once a newer one has begun, instead of
    yielding the newer one's batches.
    """

    dataset: RequestDataset
    _passes = 0  # how many passes have begun

    def __len__(self) -> int:
        """Return the exact number of batches of the next pass."""
        return self.dataset.next_pass_length()

    # PyTorch declares its own iterator class as the result, which an iterator of several passes cannot be.
    def __iter__(self) -> Iterator[RequestBatch]:  # type: ignore[override]
        """Yield the batches of a pass."""
        # A generator: this runs at the first `next`. Persistent workers see the epoch in shared memory.
        self.dataset.position.begin_pass()
        self._passes += 1
        number = self._passes
        for batch in super().__iter__():
            yield batch
            # Without workers each pass reads for itself; persistent workers serve only the newest one.
            if self.num_workers:
                _check_newest(number, self._passes)
        # Not reached after a `break`, so that the epoch begins again.
        self.dataset.position.end_pass()


class RequestLoader:
    """Yields a rank's batches, one epoch after the other, with a state that fits any number of ranks and workers.

    A pass over all batches moves on to the next epoch; after a `break` the epoch begins again at its first batch.
    `state_dict` counts batches that were yielded, not those that were prepared. Each `iter(loader)` is a new pass; an
    older one raises RuntimeError once a newer one has begun, because the loader has one position.

    Args:
        dataset: The dataset.
        num_workers: Threads or processes that prepare batches; 0 prepares each batch when it is needed.
        workers: "threads" or "processes".
        prefetch: Batches that each worker prepares ahead.
        pin_memory: Whether batches are copied to page-locked memory; by default if there is a CUDA device.

    Attributes:
        dataset: The dataset.
        skipped: Requests left out so far because their block is damaged, with `on_error="skip"`.

    Raises:
        ValueError: An argument has an unknown or negative value.

    Example:
        >>> loader = RequestLoader(RequestDataset("dataset", shuffle=True), num_workers=2)
        >>> for batch in loader:
        ...     events, offsets = batch.history["item_id"], batch.history_offsets  # (T,), (R + 1,)
        ...     state = loader.state_dict()  # save it; later: loader.load_state_dict(state)
    """

    def __init__(
        self,
        dataset: RequestDataset,
        *,
        num_workers: int = 2,
        workers: Workers = "threads",
        prefetch: int = 2,
        pin_memory: bool | None = None,
    ) -> None:
        if workers not in ("threads", "processes"):
            raise ValueError(f"workers is {workers!r}; give 'threads' or 'processes'")
        if num_workers < 0 or prefetch < 1:
            raise ValueError(f"num_workers {num_workers}, prefetch {prefetch}: give at least 0 and 1")
        self.dataset = dataset
        self.skipped = 0
        self._num_workers, self._prefetch = num_workers, prefetch
        self._pin_memory = torch.cuda.is_available() if pin_memory is None else pin_memory
        self._processes: DataLoader[RequestBatch] | None = None
        if workers == "processes" and num_workers:
            self._processes = _new_dataloader(DataLoader, dataset, num_workers, self._pin_memory, prefetch)
        self._yielded: int | None = None  # batches of the pass that has begun; None between passes
        self._passes = 0  # how many passes have begun

    def __len__(self) -> int:
        """Return the exact number of batches of the next pass."""
        return len(self.dataset)

    def set_epoch(self, epoch: int) -> None:
        """Choose the epoch of the next pass.

        Args:
            epoch: Number of the epoch.

        Raises:
            ValueError: The epoch is negative.
        """
        if epoch != self.dataset.epoch:
            self._yielded = None
        self.dataset.set_epoch(epoch)

    def __iter__(self) -> Iterator[RequestBatch]:
        """Yield the batches of a pass, from the loaded state on."""
        dataset = self.dataset
        if self._yielded is not None:  # the pass before ended with a break
            dataset.position.set(dataset.epoch, 0)
        self._yielded, steps = 0, len(dataset)
        self._passes += 1
        number = self._passes
        batches = self._in_threads() if self._processes is None else iter(self._processes)
        for batch in batches:
            self._yielded += 1
            self.skipped += batch.skipped
            # Before `yield`: code after the last `yield` runs only if the consumer asks for one more batch, but a
            # consumer that counts steps stops here and saves the state.
            if self._yielded == steps:
                self._finish()
            yield batch
            _check_newest(number, self._passes)
        if steps == 0:  # the loop above did not run
            self._finish()

    def _finish(self) -> None:
        """End the pass as soon as its last batch is yielded: a state saved from now on begins the next epoch."""
        self.dataset.position.set(self.dataset.epoch + 1, 0)
        self._yielded = None

    def _in_threads(self) -> Iterator[RequestBatch]:
        dataset = self.dataset
        # One reader for all threads: a block that several batches need is decoded once.
        reader = dataset.reader(dataset.epoch)
        numbers = worker_batches(
            dataset.plan().num_batches,
            dataset.rank_and_worker(),
            drop_last=dataset.batching.drop_last,
            first_batch=dataset.position.first_batch,
        )

        def read(number: int | None) -> RequestBatch:
            batch = reader.padding() if number is None else reader.batch(number)
            # In the thread that read the batch, so that the copy to page-locked memory overlaps with training.
            return batch.pin_memory() if self._pin_memory else batch

        if not self._num_workers:
            yield from map(read, numbers)
            return
        pool = ThreadPoolExecutor(self._num_workers, thread_name_prefix="longbatch")
        try:
            # A queue of futures in the order of the plan: threads finish in any order, batches are yielded in this one.
            ahead: deque[Future[RequestBatch]] = deque()
            for number in numbers:
                # Submit one batch for each that is yielded: the length of the queue bounds the memory.
                ahead.append(pool.submit(read, number))
                if len(ahead) > self._num_workers * self._prefetch:
                    yield ahead.popleft().result()
            while ahead:
                yield ahead.popleft().result()
        finally:
            # Also runs when the consumer breaks: `shutdown` waits, so no thread reads after the pass is closed.
            pool.shutdown(wait=True, cancel_futures=True)

    def state_dict(self) -> State:
        """Return the position after the last batch that was yielded."""
        return self.dataset.state_after(self._yielded or 0)

    def load_state_dict(self, state: State) -> None:
        """Continue the next pass where a state was saved.

        Args:
            state: A state of `state_dict`, or of the dataset's `state_after`.

        Raises:
            ValueError: The state does not fit the dataset or its arguments.
        """
        self.dataset.resume(state)
        self._yielded = None


def _check_newest(number: int, passes: int) -> None:
    if number != passes:
        raise RuntimeError("this pass over the loader ended when a newer one began; use the newest iterator")
