"""Memory for batches, used again once nothing refers to it: fresh memory costs more than the copy into it.

A page that a process touches for the first time has to be found and zeroed by the system, which takes longer than copying
values to it. A batch's columns are views of one array; the array is taken again when the pool is the only one to hold it, which its
reference count tells. A batch that is kept keeps its memory.
"""

from __future__ import annotations

import sys
from threading import Lock

import numpy as np

from .blocks import Array

KEPT = 8  # arrays that a pool holds on to
_ALONE = 3  # references to an array that only the pool's list, the loop and the call's argument hold


class Pool:
    """Arrays of bytes, each lent to one batch at a time. Safe to be called by several threads."""

    def __init__(self) -> None:
        self._arrays: list[Array] = []
        self._lock = Lock()

    def take(self, size: int) -> Array:
        """An array of at least `size` bytes, of any content."""
        with self._lock:
            for array in self._arrays:
                if len(array) >= size and sys.getrefcount(array) == _ALONE:
                    return array
            fresh = np.empty(rounded(size), dtype=np.uint8)
            self._arrays = [*self._arrays[-(KEPT - 1) :], fresh]
            return fresh


def rounded(size: int) -> int:
    """The size rounded up by at most an eighth, so that batches of nearly equal size fit each other's memory."""
    step = 1 << max(12, size.bit_length() - 4)
    return -(-size // step) * step


POOL = Pool()
