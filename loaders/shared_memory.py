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
# References that CPython counts in `take` for an array that only the pool refers to: the pool's list, the loop
# variable, and the argument of getrefcount. A tensor or view of the array adds one. If an interpreter counts fewer,
# memory that is in use would be lent again; a test of this module fails then.
_UNUSED_REFERENCES = 3


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
        # Reuse by reference count. Thread-safe: only this method creates a reference to an array that only the pool
        # refers to, and the lock serializes it.
        with self._lock:
            for array in self._arrays:
                if len(array) >= size and sys.getrefcount(array) == _UNUSED_REFERENCES:
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
