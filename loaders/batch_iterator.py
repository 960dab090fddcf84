"""One pass over the batches of a rank and worker, with its position."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import TYPE_CHECKING

import pyarrow as pa
from torch.utils.data import get_worker_info

from .batch import RequestBatch
from .schedule import worker_batches
from .state import State, WorkerState, worker_yielded

if TYPE_CHECKING:
    from .dataset import RequestDataset


class BatchIterator(Iterator[RequestBatch]):
    """One pass over the batches of a rank and worker, with a position that StatefulDataLoader can save and load.

    Its state counts the batches that it has yielded. A state of the main process fits any number of ranks; a state of
    one of several workers belongs to that worker.

    Args:
        dataset: The dataset to iterate over, from its position on.
    """

    def __init__(self, dataset: RequestDataset) -> None:
        worker = get_worker_info()
        if worker is not None:
            pa.set_cpu_count(1)  # workers are the parallelism; Arrow's own threads would compete with them
        self._dataset = dataset
        self._worker, self._num_workers = (worker.id, worker.num_workers) if worker else (0, 1)
        self._begin(dataset.epoch, dataset.position.first_batch, 0)

    def _begin(self, epoch: int, first_batch: int, yielded: int) -> None:
        self._epoch, self._first_batch, self._yielded = epoch, first_batch, yielded
        # A state is relative to these ranks. Read once per pass, so that all batches of a pass are counted alike.
        self._rank_and_worker = replace(
            self._dataset.rank_and_worker(), worker=self._worker, num_workers=self._num_workers
        )
        self._reader = self._dataset.reader(epoch)
        self._numbers = worker_batches(
            self._dataset.planned(epoch).plan.num_batches,
            self._rank_and_worker,
            drop_last=self._dataset.batching.drop_last,
            first_batch=first_batch,
            yielded=yielded,
        )

    def __next__(self) -> RequestBatch:
        """Return the next batch of this rank and worker."""
        number = next(self._numbers)
        batch = self._reader.padding() if number is None else self._reader.batch(number)
        self._yielded += 1
        return batch

    def state_dict(self) -> State:
        """Return the position after the last batch that was yielded; small, and independent of how much was read."""
        reader = self._rank_and_worker
        # All ranks take equally many steps, so one rank knows the position of all. One of several workers does not:
        # how many batches the others have yielded depends on when the state is saved.
        if reader.num_workers == 1:
            next_batch = self._first_batch + self._yielded * reader.world_size
            return self._dataset.state_at(self._epoch, next_batch)
        worker: WorkerState = {
            "id": reader.worker,
            "num_workers": reader.num_workers,
            "world_size": reader.world_size,
            "yielded": self._yielded,
        }
        return self._dataset.state_at(self._epoch, self._first_batch, worker)

    def load_state_dict(self, state: State) -> None:
        """Continue after the batches of a state.

        Args:
            state: A state of `state_dict`.

        Raises:
            ValueError: The state does not fit the dataset, its arguments, or this worker.
        """
        self._dataset.check_state(state)
        yielded = worker_yielded(state, self._rank_and_worker)
        self._dataset.set_epoch(state["epoch"])
        self._begin(state["epoch"], state["next_batch"], yielded)
