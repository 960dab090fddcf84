"""Threads of a command: order of results, errors, progress, and signals."""

from __future__ import annotations

import signal
import sys
import threading
from collections.abc import Callable, Iterator
from functools import partial

import pytest
from child_processes import child_process

from longbatch.jobs.engines.worker_pool import WorkerPool
from longbatch.schemas.errors import DataError

HANG_SECONDS = 300


def test_results_are_in_the_order_of_the_tasks() -> None:
    pool = WorkerPool(3)
    assert pool.run_all([partial(pow, number, 2) for number in range(20)]) == [n * n for n in range(20)]


def test_zero_tasks_have_zero_results() -> None:
    assert WorkerPool().run_all([]) == []


def test_progress_of_all_threads_is_added_up() -> None:
    calls: list[tuple[str, float, float]] = []
    pool = WorkerPool(4, lambda *call: calls.append(call))
    pool.run_all([partial(pool.advance, "write", 5, 100) for _ in range(20)])
    pool.advance("read", 1, 2)
    assert calls == [*(("write", done, 100) for done in range(5, 101, 5)), ("read", 1, 2)]


def test_the_first_error_stops_running_and_waiting_tasks() -> None:
    pool, running, started = WorkerPool(2), threading.Event(), list[int]()

    def fail() -> None:
        running.wait(HANG_SECONDS)
        raise ValueError("a bad block")

    def work_until_stopped() -> None:
        started.append(1)
        running.set()
        while True:
            pool.advance("write", 1, 2)

    with pytest.raises(ValueError, match="a bad block"):
        pool.run_all([work_until_stopped, fail, *([work_until_stopped] * 50)])
    assert len(started) < 10


def test_tasks_after_an_error_do_not_start() -> None:
    started: list[int] = []

    def work(number: int) -> int:
        started.append(number)
        if number == 3:
            raise DataError("three is broken")
        return number

    with pytest.raises(DataError, match="three is broken"):
        list(WorkerPool(1).run(partial(work, number) for number in range(1000)))
    assert len(started) < 10


def test_tasks_are_taken_only_a_few_ahead_of_the_results() -> None:
    taken: list[int] = []

    def tasks() -> Iterator[Callable[[], int]]:
        for number in range(100):
            taken.append(number)
            yield partial(int, number)

    results = WorkerPool(2).run(tasks())
    next(results)
    assert len(taken) <= 4
    results.close()


def test_closing_the_results_waits_for_running_tasks() -> None:
    pool, running, ended = WorkerPool(2), threading.Event(), list[int]()

    def wait_for_the_other() -> None:
        running.wait(HANG_SECONDS)

    def work_until_stopped() -> None:
        running.set()
        try:
            while True:
                pool.raise_if_stopped()
        finally:
            ended.append(1)

    results = pool.run([wait_for_the_other, work_until_stopped])
    next(results)
    results.close()
    assert ended == [1]


INTERRUPTED_POOL = """
import sys
from threading import Barrier
import polars as pl
from longbatch.jobs.engines.worker_pool import WorkerPool

pl.DataFrame({"n": [1]}).lazy().select(pl.col("n").sum()).collect()  # Polars has its signal handlers from here on
pool = WorkerPool(2)
both_run = Barrier(2)

def work_until_stopped():
    if both_run.wait() == 0:
        print("running", flush=True)
    while True:
        pool.raise_if_stopped()

try:
    pool.run_all([work_until_stopped] * 2)
except KeyboardInterrupt:
    print("interrupted", flush=True)
    sys.exit(130)
"""


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_stops_the_threads(number: signal.Signals) -> None:
    with child_process([sys.executable, "-c", INTERRUPTED_POOL]) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "running\n"
        process.send_signal(number)
        output, errors = process.communicate()
    assert process.returncode == 130, errors
    assert output == "interrupted\n"
