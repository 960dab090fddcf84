"""The Spark engine: the same tasks as the local engine, moved by Spark.

Rows do not travel one by one. A map task canonicalizes its piece of the input, splits it by user bucket, and emits one
row per bucket and content, whose `data` is an Arrow stream of all rows for that bucket. Spark shuffles, sorts and
spills these few, large rows. A reduce task gets all parts of a bucket, builds and writes the shard, and returns its
description. The driver commits.
"""

from __future__ import annotations

import json
import logging
import re
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, replace
from functools import partial
from typing import TYPE_CHECKING

import numpy as np

from longbatch.jobs.commit.attempt import work_folder
from longbatch.jobs.commit.build_result import BuildResult
from longbatch.jobs.commit.incremental_state import EarlierFiles, Increment
from longbatch.jobs.readers.chunks import Piece
from longbatch.jobs.readers.sources import plan_pieces
from longbatch.pipelines.canonicalize import needed_columns
from longbatch.schemas import errors
from longbatch.schemas.accounting import RowAccounting
from longbatch.schemas.spec.build_spec import BuildSpec
from longbatch.schemas.stage_log import Stage, log_stage, logged_stage
from longbatch.schemas.storage.local_store import LocalStore
from longbatch.schemas.storage.store import Store
from longbatch.schemas.types import ProgressCallback

from .conflicts import Conflicts
from .context import BuildContext
from .spark_functions import (
    TaskSettings,
    find_conflicts_task,
    map_pieces,
    map_table,
    quarantine_task,
    reduce_buckets,
    split_partitions,
)
from .spark_partitioning import PARTITION_KEY, partition_keys
from .spark_parts import BUCKET, LATEST_ACTION, PARTS_DDL, Part, parts_batch
from .spark_results import RESULT_GROUPS, RESULTS_DDL, TaskResult, merge_results_task, unpack_result
from .spark_scans import scan_on_executors
from .spark_session import open_session, session_setting
from .stages import REQUEST_USERS, BuildFacts, bucket_count

if TYPE_CHECKING:
    from pyspark.sql import DataFrame, SparkSession

logger = logging.getLogger(__name__)

PIECES_DDL = f"{PARTITION_KEY} int, piece string"
RECORDS_KEY = "spark.sql.execution.arrow.maxRecordsPerBatch"
# Shuffle blocks are map tasks times partitions, and Spark is slow with more than some hundred million.
MAX_PARTITIONS, MAX_MAP_TASKS = 8192, 16_384
# Results in one collect; of more tasks, RESULT_GROUPS sums are collected.
MAX_COLLECTED = 256
# Rows that Spark converts to one Arrow batch: at most 32 MB of parts. Spark's default of 10,000 takes more memory.
RECORDS_PER_BATCH = "256"


class SparkEngine:
    """Builds on Spark: in the active session if there is one, else in a new one.

    Args:
        master: Master of a new session, or `sc://host:port` of a Spark Connect server; default: the one of
            spark-submit, else `local[*]`.
    """

    def __init__(self, master: str | None = None) -> None:
        self.master = master

    @contextmanager
    def start(
        self, spec: BuildSpec, store: Store, attempt: str, increment: Increment | None, progress: ProgressCallback
    ) -> Iterator[SparkStages]:
        """Plan a build; see `Engine.start`. A session that was started here is stopped at the end of the block.

        Args:
            spec: The build spec.
            store: The dataset, which all executors must reach by the same path or URL.
            attempt: Name of the attempt.
            increment: Time window and state of an incremental build.
            progress: Receives the progress of the stages.

        Yields:
            The stages of the build.
        """
        # Executors start in folders of their own.
        if isinstance(store, LocalStore):
            store = LocalStore(store.root.absolute())
        try:
            with (
                open_session(self.master, work_folder(store, attempt)) as session,
                session_setting(session, RECORDS_KEY, RECORDS_PER_BATCH),
            ):
                files = [source for source, entry in spec.sources.items() if entry.file_format != "table"]
                pieces = {source: plan_pieces(spec, source, partial(scan_on_executors, session)) for source in files}
                buckets = (increment and increment.buckets) or bucket_count(_row_count(session, spec, pieces))
                earlier = increment.files_by_bucket() if increment else {}
                context = BuildContext(spec, store, attempt, buckets, increment and increment.without_files())
                stages = SparkStages(context, session, pieces, earlier, progress)
                # Unpersist before the session is stopped or returned to its owner.
                try:
                    yield stages
                finally:
                    stages.close()
        # Py4J's and Spark's tracebacks are long, and the user needs the last line only: hence `from None`.
        except Exception as error:
            raise unwrap_task_error(error) from None
        finally:
            shutil.rmtree(work_folder(store, attempt), ignore_errors=True)


class SparkStages:
    """The stages of one build as Spark jobs; see `Stages`.

    Args:
        context: The build.
        session: The Spark session.
        pieces: Pieces of each source that has files.
        earlier: Files of earlier increments by bucket.
        progress: Receives the progress of the stages.
    """

    def __init__(
        self,
        context: BuildContext,
        session: SparkSession,
        pieces: dict[str, list[Piece]],
        earlier: Mapping[int, EarlierFiles],
        progress: ProgressCallback,
    ) -> None:
        self.context = context
        self._session = session
        self._pieces = pieces
        self._progress = progress
        self._earlier = earlier
        self._partitions = min(context.buckets, MAX_PARTITIONS)
        self._settings = TaskSettings(context, self._partitions, logging.getLogger("longbatch").getEffectiveLevel())
        self._mapped: DataFrame | None = None
        self._persisted: DataFrame | None = None

    def read_canonicalize_split(self) -> BuildResult:
        """Plan how to read, canonicalize and split all sources. Spark runs it when a later stage needs the rows."""
        spec = self.context.spec
        frames = [self._map_files(), *(self._map_table(s) for s in spec.sources if s not in self._pieces)]
        if self.context.increment:
            # A bucket without new rows may have pending requests whose label window closes in this increment.
            earlier = [self._earlier.get(bucket, EarlierFiles()) for bucket in range(self.context.buckets)]
            parts = [Part.of_bucket(bucket, files) for bucket, files in enumerate(earlier)]
            rows = [tuple(row.values()) for row in parts_batch(parts, self._partitions).to_pylist()]
            frames.append(self._session.createDataFrame(rows, PARTS_DDL))
        for frame in frames:
            if frame is not None:
                self._mapped = frame if self._mapped is None else self._mapped.unionAll(frame)
        # Sources without any files map to nothing; the commit then reports that there are no rows.
        return BuildResult(row_accounting={source: RowAccounting() for source in spec.sources})

    def _map_files(self) -> DataFrame | None:
        pieces = [piece for of_source in self._pieces.values() for piece in of_source]
        if not pieces:
            return None
        return self._piece_rows(pieces).mapInArrow(partial(map_pieces, self._settings), PARTS_DDL)

    def _piece_rows(self, pieces: list[Piece]) -> DataFrame:
        """One row and one Spark partition for each piece; of very many pieces, several share a partition."""
        partitions = min(len(pieces), MAX_MAP_TASKS)
        keys = partition_keys(np.arange(len(pieces)) % partitions).tolist()
        rows = [(key, json.dumps(asdict(piece))) for key, piece in zip(keys, pieces, strict=True)]
        return self._session.createDataFrame(rows, PIECES_DDL).repartition(partitions, PARTITION_KEY)

    def _map_table(self, source: str) -> DataFrame:
        """Rows of a Spark table; it has no files, so its rows are numbered within each task."""
        return self._table_rows(source).mapInArrow(partial(map_table, self._settings, source), PARTS_DDL)

    def _table_rows(self, source: str) -> DataFrame:
        spec = self.context.spec
        name, frame = spec.sources[source].path[0], _table(self._session, spec, source)
        columns = needed_columns(spec, source)
        missing = [column for column in columns if column not in frame.columns]
        if missing:
            raise errors.SourceError(
                f"source {source}: table {name} has no column {', '.join(map(repr, missing))}. "
                f"Its columns are {', '.join(frame.columns)}."
            )
        return frame.select(*columns)

    def find_conflicts(self) -> tuple[Conflicts | None, BuildResult]:
        """Find the request ids that several users share, and the time of the latest action."""
        spec = self.context.spec
        if self._mapped is None or (spec.requests.request_id is None and spec.actions is None):
            return None, BuildResult()
        # This stage and the next one read the mapped rows, so keep them on the executors' disks.
        self._persist(self._mapped)
        result = BuildResult()
        if self._persisted is not None or spec.actions is not None:
            result = BuildResult(latest_action=self._run_map(self._mapped))
        if spec.requests.request_id is None:
            return None, result
        # All users of a request id meet in one bucket, and the buckets of a group in one task, which writes one file.
        groups = Conflicts(self.context.buckets).groups
        request_users = self._by_bucket(self._mapped.filter(f"content in ('{REQUEST_USERS}', '{BUCKET}')"), groups)
        rows = request_users.mapInArrow(partial(find_conflicts_task, self._settings), RESULTS_DDL)
        self._progress("request ids", 0, 1)
        with logged_stage(logger, "request ids") as stage:
            found = self._collect(rows, groups)
            stage.rows = found.pairs
        self._progress("request ids", 1, 1)
        conflicts = found.conflicts if found.conflicts and found.conflicts.files else None
        return conflicts, result + found.result

    def _by_bucket(self, parts: DataFrame, tasks: int) -> DataFrame:
        """Bring the parts of each bucket together in some number of tasks, sorted by bucket, content and chunk."""
        # Parts sorted by chunk give the kernel the rows in the order of chunks, as the local engine does.
        order = ("bucket", "content", "chunk")
        shuffled = parts.repartition(tasks, PARTITION_KEY).sortWithinPartitions(*order)
        if self._partitions == self.context.buckets:
            return shuffled
        # Map tasks split by partition only, because a chunk has too few rows for more than MAX_PARTITIONS parts.
        return shuffled.mapInArrow(partial(split_partitions, self._settings), PARTS_DDL).sortWithinPartitions(*order)

    def _run_map(self, mapped: DataFrame) -> int | None:
        """Run the map tasks, whose parts Spark keeps, and return the time of the latest action."""
        # Spark is lazy: this aggregate is the first job that needs the parts.
        self._progress("map", 0, 1)
        with logged_stage(logger, "map") as stage:
            summary = mapped.selectExpr("max(time) AS latest", "sum(length(data)) AS size").collect()[0]
            stage.size_bytes = summary["size"] or 0
        self._progress("map", 1, 1)
        latest: int | None = summary["latest"]
        return latest

    def _persist(self, frame: DataFrame) -> None:
        """Keep the rows of a frame on the executors' disks, if the session allows it."""
        from pyspark import StorageLevel
        from pyspark.errors import PySparkException

        try:
            self._persisted = frame.persist(StorageLevel.DISK_ONLY)
        except PySparkException as error:  # serverless services
            logger.info("Spark does not keep the output of map tasks, so they run again for each stage: %s", error)

    def quarantine_conflicts(self, conflicts: Conflicts) -> BuildResult:
        """Read the requests' source again and write the original rows of conflicting requests to the quarantine.

        Args:
            conflicts: The request ids that several users share.
        """
        source = self.context.spec.requests.source
        is_files = source in self._pieces
        rows = self._piece_rows(self._pieces[source]) if is_files else self._table_rows(source)
        task = partial(quarantine_task, self._settings, is_files, conflicts)
        tasks = len(self._pieces[source]) if is_files else None
        return self._collect_files("quarantine", rows.mapInArrow(task, RESULTS_DDL), tasks)

    def build_shards(self, facts: BuildFacts) -> BuildResult:
        """Build every user bucket: kernel, pack, write the shard; and write the vocabulary.

        Args:
            facts: What the kernel must know about all users.
        """
        if self._mapped is None:
            return BuildResult()
        self._progress("shards", 0, 1)
        # One partition per bucket, so that a task has one bucket in memory and a retry repeats only that bucket.
        rows = self._mapped.filter(f"content not in ('{REQUEST_USERS}', '{LATEST_ACTION}')")
        parts = self._by_bucket(rows, self._partitions)
        reduced = parts.mapInArrow(partial(reduce_buckets, self._settings, facts), RESULTS_DDL)
        result = self._collect_files("shards", reduced, self._partitions)
        self._progress("shards", 1, 1)
        # The task of a bucket writes its vocabulary too, so that stage has no time of its own.
        words = BuildResult(vocabulary=result.vocabulary)
        log_stage(logger, Stage("vocabulary", words.file_rows, words.file_bytes), "in the tasks of stage shards")
        return result

    def _collect_files(self, name: str, results: DataFrame, tasks: int | None) -> BuildResult:
        """Run a job whose tasks write files, and log it."""
        with logged_stage(logger, name) as stage:
            result = self._collect(results, tasks).result
            # The vocabulary has its own line.
            counted = replace(result, vocabulary=())
            stage.rows, stage.size_bytes = counted.file_rows, counted.file_bytes
        return result

    def _collect(self, results: DataFrame, tasks: int | None) -> TaskResult:
        """Run a job whose tasks return results, and add them up: on the executors, if the tasks are many or unknown."""
        # Spark may run a task twice (a retry, or speculative execution), but returns the result of one attempt. Each
        # attempt wrote files of its own name, so the results list only files that are complete.
        if tasks is None or tasks > MAX_COLLECTED:
            results = results.repartition(RESULT_GROUPS, PARTITION_KEY).mapInArrow(merge_results_task, RESULTS_DDL)
        return TaskResult.merge(unpack_result(row["result"]) for row in results.collect())

    def close(self) -> None:
        """Leave the session as it was."""
        if self._persisted is not None:
            self._persisted.unpersist()


def _row_count(session: SparkSession, spec: BuildSpec, pieces: dict[str, list[Piece]]) -> int:
    in_files = sum(piece.rows for of_source in pieces.values() for piece in of_source)
    tables = [source for source in spec.sources if source not in pieces]
    return in_files + sum(int(_table(session, spec, source).count()) for source in tables)


def _table(session: SparkSession, spec: BuildSpec, source: str) -> DataFrame:
    from pyspark.errors import AnalysisException

    name = spec.sources[source].path[0]
    try:
        frame = session.table(name)
        frame.schema  # noqa: B018 - Spark Connect looks the table up only now
        return frame
    except AnalysisException as error:
        reason = str(error).splitlines()[0]
        raise errors.SourceError(f"source {source}: Spark has no table {name}: {reason}") from None


def unwrap_task_error(error: Exception) -> Exception:
    """Unwrap the longbatch error that a Spark task raised.

    Args:
        error: What Spark raised on the driver.

    Returns:
        The error of the task without Spark's stack traces; any other error as it is.
    """
    if isinstance(error, errors.LongbatchError):
        return error
    if "JAVA_GATEWAY_EXITED" in str(error):
        return errors.MachineError(
            "Java did not start; see its message above. Set JAVA_HOME to a Java that Spark supports."
        )
    # Spark only passes on the text of the Python traceback, whose last line has the class and the message.
    match = re.search(r"longbatch\.schemas\.errors\.(\w+): (.*)", str(error))
    error_type = getattr(errors, match[1], None) if match else None
    return error_type(match[2]) if match and isinstance(error_type, type) else error
