import threading
from functools import partial

import pytest

from longbatch.jobs.engines.worker_pool import WorkerPool


def quiet(stage: str, done: float, total: float) -> None:
    """Tell nobody."""


def test_results_come_in_the_order_of_the_tasks() -> None:
    assert WorkerPool(3, quiet).run_all([partial(pow, number, 2) for number in range(20)]) == [n * n for n in range(20)]


def test_no_task_has_no_result() -> None:
    assert WorkerPool(None, quiet).run_all([]) == []


def test_what_threads_did_is_added_up() -> None:
    told: list[tuple[str, float, float]] = []
    pool = WorkerPool(4, lambda *words: told.append(words))
    pool.run_all([partial(pool.advance, "write", 5, 100) for _ in range(20)])
    pool.advance("read", 1, 2)
    assert told == [*(("write", done, 100) for done in range(5, 101, 5)), ("read", 1, 2)]


def test_the_first_error_stops_the_tasks_that_run_and_those_that_wait() -> None:
    pool, running, started = WorkerPool(2, quiet), threading.Event(), []

    def fail() -> None:
        running.wait(10)
        raise ValueError("a bad block")

    def work() -> None:
        started.append(1)
        running.set()
        while True:
            pool.advance("write", 1, 2)

    with pytest.raises(ValueError, match="a bad block"):
        pool.run_all([work, fail, *([work] * 50)])
    assert len(started) < 10
