"""Commit the same snapshot in many processes at once: python tests/racing_commits.py DATASET LOCATION PROCESSES.

A program of its own, because processes that have used an object store cannot fork. Prints one line per process: its
attempt if it committed, else the error.
"""

from __future__ import annotations

import multiprocessing
import sys
from multiprocessing.queues import SimpleQueue
from typing import TYPE_CHECKING

from longbatch.schemas.errors import DatasetError
from longbatch.schemas.format.snapshot import Snapshot, commit, read_snapshot
from longbatch.schemas.storage.open_store import open_store
from longbatch.schemas.storage.store import Store

if TYPE_CHECKING:
    from multiprocessing.synchronize import Barrier


def commit_once(store: Store, snapshot: Snapshot, attempt: str, start: Barrier, outcomes: SimpleQueue[str]) -> None:
    """Commit when all processes are ready, and report how it ended."""
    start.wait()
    try:
        commit(store, snapshot, attempt)
    except DatasetError as error:
        outcomes.put(str(error))
    else:
        outcomes.put(attempt)


def main() -> None:
    """Run the processes."""
    snapshot, store, count = read_snapshot(open_store(sys.argv[1])), open_store(sys.argv[2]), int(sys.argv[3])
    context = multiprocessing.get_context("fork")
    start, outcomes = context.Barrier(count), context.SimpleQueue()
    processes = [
        context.Process(target=commit_once, args=(store, snapshot, f"{number:012x}", start, outcomes))
        for number in range(count)
    ]
    for process in processes:
        process.start()
    for _ in processes:
        print(outcomes.get())
    for process in processes:
        process.join()


if __name__ == "__main__":
    main()
