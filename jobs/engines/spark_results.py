"""What Spark tasks return to the driver: files, counts and conflicts, added up on the executors if they are many."""

from __future__ import annotations

import pickle
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import numpy as np
import pyarrow as pa

from longbatch.jobs.commit.build_result import BuildResult
from longbatch.schemas.types import ArrowField

from .conflicts import Conflicts
from .spark_partitioning import PARTITION_KEY, partition_keys

RESULTS_FIELDS: list[ArrowField] = [pa.field(PARTITION_KEY, pa.int32()), pa.field("result", pa.binary())]
RESULTS_SCHEMA = pa.schema(RESULTS_FIELDS)
RESULTS_DDL = f"{PARTITION_KEY} int, result binary"
RESULT_GROUPS = 64


@dataclass(frozen=True)
class TaskResult:
    """What a task returns to the driver.

    Attributes:
        result: Files and counts.
        conflicts: Request ids that several users share, if the task looked for them.
        pairs: Number of pairs of request and user that the task looked at for conflicts.
    """

    result: BuildResult
    conflicts: Conflicts | None = None
    pairs: int = 0

    @classmethod
    def merge(cls, results: Iterable[TaskResult]) -> TaskResult:
        """Add up the results of several tasks."""
        of_tasks = list(results)
        conflicts = [result.conflicts for result in of_tasks if result.conflicts is not None]
        return cls(
            BuildResult.total(result.result for result in of_tasks),
            conflicts[0].join(conflicts) if conflicts else None,
            sum(result.pairs for result in of_tasks),
        )


def merge_results_task(batches: Iterable[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
    """Task: add up the results of other tasks, so that the driver collects few.

    Args:
        batches: Results.

    Yields:
        Their sum.
    """
    results = (unpack_result(data) for batch in batches for data in batch["result"].to_pylist() if data)
    yield pack_result(TaskResult.merge(results))


def pack_result(result: TaskResult) -> pa.RecordBatch:
    """Convert a result to a row of Spark.

    Args:
        result: What the running task returns.

    Returns:
        One row, with the key of a group, which is the same in every attempt of the task.
    """
    from pyspark import TaskContext

    context = TaskContext.get()
    group = np.array([context.partitionId() % RESULT_GROUPS if context else 0])
    return pa.RecordBatch.from_arrays(
        [pa.array(partition_keys(group)), pa.array([pickle.dumps(result)])], schema=RESULTS_SCHEMA
    )


def unpack_result(data: bytes) -> TaskResult:
    """Read a result row.

    Args:
        data: The row's `result`, pickled like everything else that Spark moves between Python processes.

    Returns:
        The result of the task.
    """
    result: TaskResult = pickle.loads(data)
    return result
