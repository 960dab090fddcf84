"""A thin loader that counts batches where they are used: in the main process.

Batches are prepared ahead, by threads of this process or by worker processes, and yielded in the order of the plan. Threads share the
open blocks, so each is decoded once per process, and a batch is handed over as it is; Arrow's decoding, NumPy's copies and checksums
release the interpreter lock.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Literal

import torch

from .batch import RequestBatch
from .dataset import RequestDataset, make_dataloader
from .plan import worker_batches
from .state import State

Workers = Literal["threads", "processes"]


class RequestLoader:
    """Yields a rank's batches of one epoch after the other, with a state that fits any number of ranks and workers.

    dataset: a RequestDataset.  num_workers: threads or processes that prepare batches; 0 prepares each when it is asked for.
    workers: which of the two.  prefetch: batches each prepares ahead.  pin_memory: by default where there is a CUDA device.

    A whole pass moves on to the next epoch; after a `break`, iteration begins again at the epoch's first batch. `state_dict` counts what
    was yielded, not what was prepared. `skipped` counts the requests left out because of damage.
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
        self._pin = torch.cuda.is_available() if pin_memory is None else pin_memory
        self._processes = None
        if workers == "processes" and num_workers:
            self._processes = make_dataloader(
                dataset, num_workers=num_workers, pin_memory=self._pin, prefetch_factor=prefetch
            )
        self._yielded: int | None = None  # batches of the pass that has begun

    def __len__(self) -> int:
        """The exact number of batches of the next pass."""
        return len(self.dataset)

    def set_epoch(self, epoch: int) -> None:
        """Choose the epoch of the next pass."""
        if epoch != self.dataset.epoch:
            self._yielded = None
        self.dataset.set_epoch(epoch)

    def __iter__(self) -> Iterator[RequestBatch]:
        """Yield the batches of a pass, from the loaded state on."""
        dataset = self.dataset
        if self._yielded is not None:  # a pass that was broken off
            dataset.set_position(dataset.epoch, 0)
        self._yielded, steps = 0, len(dataset)
        batches = self._in_threads() if self._processes is None else iter(self._processes)
        for batch in batches:
            self._yielded += 1
            self.skipped += batch.skipped
            if self._yielded == steps:
                self._finish()
            yield batch
        if steps == 0:
            self._finish()

    def _finish(self) -> None:
        """The pass is over once its last batch is yielded: what is saved from now on begins the next epoch."""
        self.dataset.set_position(self.dataset.epoch + 1, 0)
        self._yielded = None

    def _in_threads(self) -> Iterator[RequestBatch]:
        dataset = self.dataset
        rank, world_size = dataset.topology()
        reader = dataset.reader(dataset.epoch)
        numbers = worker_batches(
            dataset.plan().num_batches,
            rank=rank,
            world_size=world_size,
            drop_last=dataset.batching.drop_last,
            first_batch=dataset.first_batch,
        )

        def read(number: int | None) -> RequestBatch:
            batch = reader.padding() if number is None else reader.batch(number)
            return batch.pin_memory() if self._pin else batch

        if not self._num_workers:
            yield from map(read, numbers)
            return
        pool = ThreadPoolExecutor(self._num_workers, thread_name_prefix="longbatch")
        try:
            ahead: deque[Future[RequestBatch]] = deque()
            for number in numbers:
                ahead.append(pool.submit(read, number))
                if len(ahead) > self._num_workers * self._prefetch:
                    yield ahead.popleft().result()
            while ahead:
                yield ahead.popleft().result()
        finally:
            pool.shutdown(wait=True, cancel_futures=True)

    def state_dict(self) -> State:
        """The position behind the last batch yielded."""
        dataset = self.dataset
        return dataset.state_after(self._yielded or 0)

    def load_state_dict(self, state: State) -> None:
        """Let the next pass go on where a state was saved. Raises ValueError for a state that does not fit."""
        self.dataset.resume(state)
        self._yielded = None
