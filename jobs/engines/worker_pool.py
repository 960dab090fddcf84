"""Threads that share the work of a command, and tell how far they are."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable
from concurrent.futures import FIRST_EXCEPTION, CancelledError, ThreadPoolExecutor, wait
from typing import TypeVar

from longbatch.schemas.types import ProgressCallback

POLL_SECONDS = 0.2  # an interrupt does not end a wait: Polars handles signals so that waits go on
T = TypeVar("T")


class WorkerPool:
    """Threads that share the work of a command; the first error, or an interrupt, stops them all."""

    def __init__(self, workers: int | None, progress: ProgressCallback) -> None:
        self.workers = workers or os.cpu_count() or 1
        self._progress = progress
        self._stopped = threading.Event()
        self._lock = threading.Lock()
        self._done: dict[str, int] = {}

    def each(self, tasks: list[Callable[[], T]]) -> list[T]:
        """Run all tasks and return their results in order."""
        with ThreadPoolExecutor(self.workers) as pool:
            futures = [pool.submit(task) for task in tasks]
            try:
                waiting = set(futures)
                while waiting:
                    done, waiting = wait(waiting, POLL_SECONDS, FIRST_EXCEPTION)
                    for future in done:
                        future.result()
            except BaseException:
                self._stopped.set()
                pool.shutdown(wait=False, cancel_futures=True)
                raise
        return [future.result() for future in futures]

    def tell(self, stage: str, rows: int, total: int) -> None:
        """Add to the rows that are done; raise where the work has been stopped."""
        if self._stopped.is_set():
            raise CancelledError
        with self._lock:
            self._done[stage] = self._done.get(stage, 0) + rows
            self._progress(stage, self._done[stage], total)
