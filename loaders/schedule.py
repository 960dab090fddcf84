"""Which rank and worker yields which batch: the sequence of batches, dealt out like cards.

Step s of rank r of W is batch `first_batch + s * W + r`; the workers of a rank take its steps in turn. So the sequence
of batches depends on neither the world size nor the number of workers, and both may change between the runs of one
training.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass


@dataclass(frozen=True)
class RankAndWorker:
    """Which of the ranks, and which of its rank's workers, a reader is.

    Args:
        rank: Number of this rank.
        world_size: Number of ranks.
        worker: Number of this worker among those of its rank.
        num_workers: Number of workers of each rank.

    Raises:
        ValueError: The rank is not between 0 and world_size - 1.
    """

    rank: int = 0
    world_size: int = 1
    worker: int = 0
    num_workers: int = 1

    def __post_init__(self) -> None:
        if not 0 <= self.rank < self.world_size:
            raise ValueError(f"rank {self.rank} of a world of {self.world_size}; ranks run from 0 to world_size - 1")


def num_steps(num_batches: int, world_size: int, drop_last: bool) -> int:
    """Count the steps that every rank takes.

    Args:
        num_batches: Number of batches over all ranks.
        world_size: Number of ranks.
        drop_last: Whether to drop the last step if there is not a batch for every rank.

    Returns:
        The number of steps, equal for all ranks.
    """
    # Every rank takes the same number of steps: with one step fewer on some rank, the all-reduce of the others hangs.
    return num_batches // world_size if drop_last else -(-num_batches // world_size)


def worker_batches(
    num_batches: int, reader: RankAndWorker, *, drop_last: bool = False, first_batch: int = 0, yielded: int = 0
) -> Iterator[int | None]:
    """Yield the batch numbers of one worker of one rank, in order.

    Args:
        num_batches: Number of batches of the epoch over all ranks.
        reader: Which rank and worker this is.
        drop_last: Whether to drop the last step if there is not a batch for every rank.
        first_batch: The batch, over all ranks, of step 0 of rank 0.
        yielded: How many batches this worker has yielded since `first_batch`.

    Yields:
        A batch number, or None for a padding batch: the rank has no data for the last step.

    Example:
        7 batches, 2 ranks with 1 worker each:   rank 0 yields 0 2 4 6,   rank 1 yields 1 3 5 None.
        7 batches, 1 rank with 2 workers:        worker 0 yields 0 2 4 6, worker 1 yields 1 3 5.
        7 batches, 2 ranks, first_batch=3:       rank 0 yields 3 5,       rank 1 yields 4 6.
    """
    # Steps are counted from `first_batch`, not from 0: a resumed run with other ranks continues the same sequence.
    remaining = max(0, num_batches - first_batch)
    # DataLoader takes batches from its workers in turn, so worker w of n has to yield steps w, w + n, w + 2n, ...
    first_step = reader.worker + yielded * reader.num_workers
    for step in range(first_step, num_steps(remaining, reader.world_size, drop_last), reader.num_workers):
        batch = first_batch + step * reader.world_size + reader.rank
        yield batch if batch < num_batches else None
