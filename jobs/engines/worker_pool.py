"""Threads that share the work of a command and can be stopped promptly.

Threads are enough: Polars, Arrow and NumPy release the interpreter lock in everything that takes time here.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Generator, Iterable, Sequence
from concurrent.futures import FIRST_COMPLETED, CancelledError, Future, ThreadPoolExecutor, wait
from contextlib import closing
from functools import partial
from typing import TypeVar

from longbatch.jobs.commit.interrupts import sigterm_as_interrupt
from longbatch.schemas.types import ProgressCallback, no_progress

# A signal does not end a wait on a lock here, because Polars installs handlers that restart system calls. Python runs
# its own handlers only between two instructions of the main thread, so the main thread must wake up now and then.
POLL_SECONDS = 0.2
T = TypeVar("T")


class WorkerPool:
    """Runs the tasks of a command on threads; the first error, Ctrl-C or SIGTERM stops them all.

    Args:
        workers: Number of threads; default: one per core.
        progress: Receives the progress of the stages.
    """

    def __init__(self, workers: int | None = None, progress: ProgressCallback = no_progress) -> None:
        self.workers = workers or os.cpu_count() or 1
        self._progress = progress
        self._stopped = threading.Event()
        self._lock = threading.Lock()
        self._done: dict[str, int] = {}

    def run(self, tasks: Iterable[Callable[[], T]]) -> Generator[T, None, None]:
        """Run tasks, taking only a few more from the iterable than there are workers.

        Running tasks are waited for before an error is raised, so that none of them writes files afterwards. Use
        `contextlib.closing` if the loop over the results can raise.

        Args:
            tasks: Functions without arguments, which should call `raise_if_stopped` or `advance` now and then.

        Yields:
            Results, in the order in which tasks finish.
        """
        pool, pending = ThreadPoolExecutor(self.workers), set[Future[T]]()
        try:
            with sigterm_as_interrupt():
                for task in tasks:
                    pending.add(pool.submit(task))
                    # One more than there are workers: the next task is ready when one ends, and few inputs wait.
                    if len(pending) > self.workers:
                        done, pending = _wait(pending)
                        yield from (future.result() for future in done)
                while pending:
                    done, pending = _wait(pending)
                    yield from (future.result() for future in done)
        except BaseException:
            # Threads cannot be killed. Running tasks see the event and raise, and those still queued never start.
            self._stopped.set()
            raise
        finally:
            pool.shutdown(wait=True, cancel_futures=True)

    def run_all(self, tasks: Sequence[Callable[[], T]]) -> list[T]:
        """Run all tasks.

        Args:
            tasks: Functions without arguments.

        Returns:
            Results, in the order of the tasks.
        """
        numbered = (partial(_with_number, number, task) for number, task in enumerate(tasks))
        with closing(self.run(numbered)) as results:
            by_number = dict(results)
        return [by_number[number] for number in range(len(tasks))]

    def raise_if_stopped(self) -> None:
        """Raise CancelledError in a task whose pool has been stopped."""
        if self._stopped.is_set():
            raise CancelledError

    def advance(self, stage: str, rows: int, total: int) -> None:
        """Report rows that a task has finished; call it from any thread.

        Args:
            stage: Name of the stage.
            rows: Rows finished since the task's last call.
            total: Rows of the whole stage.

        Raises:
            CancelledError: The pool has been stopped.
        """
        self.raise_if_stopped()
        # Add and report under one lock, else two threads could report in the wrong order and progress would go back.
        with self._lock:
            self._done[stage] = self._done.get(stage, 0) + rows
            self._progress(stage, self._done[stage], total)


def _wait(pending: set[Future[T]]) -> tuple[set[Future[T]], set[Future[T]]]:
    """Wait until at least one future is done; return those that are done and those that are not."""
    done: set[Future[T]] = set()
    while not done:
        done, pending = wait(pending, POLL_SECONDS, FIRST_COMPLETED)
    return done, pending


def _with_number(number: int, task: Callable[[], T]) -> tuple[int, T]:
    return number, task()
