"""Threads that wait for files."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

THREADS = 32

T = TypeVar("T")
R = TypeVar("R")


def in_threads(function: Callable[[T], R], items: Sequence[T]) -> list[R]:
    """Call a function that waits for files, in many threads.

    Args:
        function: The function.
        items: Its arguments.

    Returns:
        The results in the order of the items.
    """
    if not items:
        return []
    with ThreadPoolExecutor(min(THREADS, len(items))) as pool:
        try:
            return list(pool.map(function, items))
        except BaseException:
            pool.shutdown(cancel_futures=True)
            raise
