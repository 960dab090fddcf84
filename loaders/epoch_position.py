"""Where the next pass over a dataset begins, in memory that worker processes share."""

from __future__ import annotations

from typing import Any

import torch


class EpochPosition:
    """An epoch, and the batch over all ranks that the next pass begins with.

    Changes reach the persistent workers of a DataLoader, because the numbers are in shared memory.

    Args:
        epoch: Number of the epoch. It begins at its first batch.
    """

    def __init__(self, epoch: int) -> None:
        self._numbers = torch.tensor([epoch, 0]).share_memory_()  # type: ignore[no-untyped-call]
        self._epoch_ended = False  # whether the next pass of a loader that counts epochs begins the next epoch

    def __setstate__(self, state: dict[str, Any]) -> None:
        """Restore the attributes; a plain pickle copies the numbers into memory that is not shared."""
        vars(self).update(state)
        self._numbers.share_memory_()

    @property
    def epoch(self) -> int:
        """Number of the epoch."""
        return int(self._numbers[0])

    @property
    def first_batch(self) -> int:
        """The batch, over all ranks, that the next pass begins with: 0, or that of a loaded state."""
        return int(self._numbers[1])

    @property
    def epoch_ended(self) -> bool:
        """Whether all batches of the epoch were yielded and no epoch was chosen since."""
        return self._epoch_ended

    def set(self, epoch: int, first_batch: int) -> None:
        """Choose where the next passes begin, also in persistent workers.

        Args:
            epoch: Number of the epoch.
            first_batch: Number of the batch over all ranks.
        """
        self._epoch_ended = False
        self._numbers.copy_(torch.tensor([epoch, first_batch]))

    def set_epoch(self, epoch: int) -> None:
        """Choose the epoch of the next passes, also in persistent workers.

        Args:
            epoch: Number of the epoch. It begins at its first batch, unless it is the current epoch and a state was
                loaded.

        Raises:
            ValueError: The epoch is negative.
        """
        if epoch < 0:
            raise ValueError(f"epoch {epoch} is negative; give 0 or more")
        if epoch != self.epoch or self._epoch_ended:  # else keep the position of a loaded state
            self.set(epoch, 0)

    def begin_pass(self) -> None:
        """Move on to the next epoch if the last pass has ended and no epoch was chosen since; loaders call this."""
        if self._epoch_ended:
            self.set(self.epoch + 1, 0)

    def end_pass(self) -> None:
        """Note that all batches of the epoch were yielded; loaders call this.

        The numbers change only when the next pass begins, so that a state still counts from where this one began.
        """
        self._epoch_ended = True
