"""Memory for batches of one process, reused once nothing refers to it: new memory costs more than the copy into it.

The system has to find and zero every page that a process touches for the first time, which takes longer than copying
values into the page. A batch's columns are views of one array. The pool lends that array again when its reference count
shows that the pool is the only owner. A batch that is kept keeps its memory. Cost: the memory of up to `MAX_ARRAYS`
batches stays allocated.
"""

from __future__ import annotations

import sys
from threading import Lock

import numpy as np

from .blocks import Array

MAX_ARRAYS = 8  # arrays that a pool keeps for reuse


def _reference_counts(arrays: list[Array]) -> list[int]:
    """The reference count of each array. Counting adds references of its own, always the same number."""
    return [sys.getrefcount(array) for array in arrays]


def unused_references() -> int:
    """Measure the reference count of an array that only a list refers to.

    The number depends on the interpreter: a release that counts fewer references while it counts would otherwise make
    memory in use look unused. So it is measured, with the function that counts later.

    Returns:
        The count of `_reference_counts`; a tensor or view of the array adds one.
    """
    return _reference_counts([np.empty(1, dtype=np.uint8)])[0]


_UNUSED_REFERENCES = unused_references()


class ReusedMemory:
    """Arrays of bytes, each lent to one batch at a time. Thread-safe."""

    def __init__(self) -> None:
        self._arrays: list[Array] = []
        self._lock = Lock()

    def take(self, size: int) -> Array:
        """Lend an array of bytes until nothing refers to it.

        Args:
            size: Bytes that are needed.

        Returns:
            An array of at least `size` bytes, with arbitrary content.
        """
        # Only this method creates a reference to an array that only the pool refers to, and the lock serializes it.
        # Other threads can only drop references meanwhile, so a count may be too high, never too low.
        with self._lock:
            for array, references in zip(self._arrays, _reference_counts(self._arrays), strict=True):
                if len(array) >= size and references == _UNUSED_REFERENCES:
                    return array
            new = np.empty(rounded_up(size), dtype=np.uint8)
            # The oldest array leaves the list; if a batch still refers to it, it lives as long as the batch.
            self._arrays = [*self._arrays[-(MAX_ARRAYS - 1) :], new]
            return new


def rounded_up(size: int) -> int:
    """Round a size in bytes up by at most an eighth, so that batches of similar size fit each other's memory.

    Args:
        size: Bytes that are needed.

    Returns:
        A multiple of a power of two that is a sixteenth to an eighth of the size, and at least one page.

    Example:
        1,000,000 has 20 binary digits, so the step is 2 ** 16 = 65,536,
        and the size becomes 16 steps = 1,048,576.
    """
    # The size is 8 to 16 steps, so that rounding adds less than an eighth. 2 ** 12 bytes are a page.
    step = 1 << max(12, size.bit_length() - 4)
    return -(-size // step) * step


REUSED_MEMORY = ReusedMemory()
"""The memory of all batches that this process makes for itself."""
