"""The Spark engine: the same tasks as the local one, moved by Spark.

Rows do not travel one by one. A map task types its piece of the input, splits it by user bucket, and emits one row
per bucket and kind, whose `data` is an Arrow stream of all its rows for that bucket. Spark shuffles and sorts these
few, large rows (and spills them); a reduce task gets all of a bucket, runs the kernel, writes the shard and returns
its description. The driver commits.
"""

from __future__ import annotations

import atexit
import json
import os
import re
import shutil
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from functools import cache, partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import polars as pl

from longbatch.jobs.commit.incremental_state import Increment
from longbatch.jobs.readers.chunks import Piece
from longbatch.jobs.readers.sources import plan_pieces
from longbatch.pipelines.canonicalize import gather_log_facts, needed_columns
from longbatch.schemas import errors
from longbatch.schemas.accounting import RowAccounting
from longbatch.schemas.spec.build_spec import BuildSpec
from longbatch.schemas.types import ProgressCallback

from .java import provide_java
from .spark_functions import (
    BUCKET,
    LATEST_ACTION,
    OWNERS,
    PARTS_DDL,
    RESULTS_DDL,
    conflicts_of,
    frame_of,
    map_pieces,
    map_table,
    quarantine_rows,
    reduce_buckets,
    unpack_result,
)
from .stages import Built, bucket_count

if TYPE_CHECKING:
    from pyspark.sql import DataFrame, SparkSession


class SparkEngine:
    """Builds on Spark: on the session that is there, else on a new one at `master` (default `local[*]`)."""

    def __init__(self, master: str | None = None) -> None:
        self.master = master

    def build(
        self, spec: BuildSpec, root: Path, attempt: str, progress: ProgressCallback, increment: Increment | None = None
    ) -> Built:
        """Build all files of a dataset, or of an increment, under `root`, which all executors reach by the same path."""
        session, ours = None, False
        try:
            session, ours = self._session(root, attempt)
            return _build(session, spec, root.absolute(), attempt, progress, increment)
        except Exception as error:
            raise _own_error(error) from None
        finally:
            if session is not None and ours:
                _stop(session)
            shutil.rmtree(_scratch(root, attempt), ignore_errors=True)

    def _session(self, root: Path, attempt: str) -> tuple[SparkSession, bool]:
        try:
            from pyspark.sql import SparkSession
        except ImportError:
            raise errors.MachineError('the spark engine needs pyspark: pip install "longbatch[spark]"') from None
        active = SparkSession.getActiveSession()
        if active is not None:
            return active, False
        if "PYSPARK_GATEWAY_PORT" in os.environ:  # spark-submit has set up Java, master and all settings
            return SparkSession.builder.appName("longbatch build").getOrCreate(), True
        provide_java()
        os.environ.setdefault("PYSPARK_PYTHON", sys.executable)
        builder = SparkSession.builder.appName("longbatch build")
        scratch = _scratch(root, attempt)
        scratch.mkdir(parents=True, exist_ok=True)
        if self.master:
            builder = builder.master(self.master)
        for key, value in _LOCAL_SETTINGS.items() if (self.master or "local").startswith("local") else ():
            builder = builder.config(key, value.format(scratch=scratch, java=_java_folder()))
        return builder.getOrCreate(), True


def _stop(session: SparkSession) -> None:
    """Stop a session of our own, and let Java forget its scratch folder: the next session has another."""
    java: Any = session.sparkContext._jvm
    session.stop()
    getattr(getattr(java.org.apache.spark.util, "Utils$"), "MODULE$").clearLocalRootDirs()


def _scratch(root: Path, attempt: str) -> Path:
    return root.absolute() / f".work-{attempt}"


@cache
def _java_folder() -> str:
    """A folder for the temporary files of Java, which outlives every session of this process."""
    folder = tempfile.mkdtemp(prefix="longbatch-spark-")
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    return folder


# For a session of our own on this machine: quiet, no port opened but on loopback, no trace outside the output.
_LOCAL_SETTINGS = {
    "spark.ui.enabled": "false",
    "spark.ui.showConsoleProgress": "false",
    "spark.log.level": "ERROR",
    "spark.driver.host": "127.0.0.1",
    "spark.driver.bindAddress": "127.0.0.1",
    "spark.driver.memory": "2g",
    "spark.local.dir": "{scratch}",
    "spark.sql.warehouse.dir": "{scratch}/warehouse",
    "spark.driver.extraJavaOptions": '-XX:TieredStopAtLevel=1 -XX:-UsePerfData -Djava.io.tmpdir="{java}"',
}


def _build(
    session: SparkSession,
    spec: BuildSpec,
    root: Path,
    attempt: str,
    progress: ProgressCallback,
    increment: Increment | None,
) -> Built:
    pieces = {s: plan_pieces(spec, s) for s, e in spec.sources.items() if e.file_format != "table"}
    rows = sum(piece.rows for listed in pieces.values() for piece in listed)
    tables = [source for source in spec.sources if source not in pieces]
    rows += sum(_table(session, spec, source).count() for source in tables)
    buckets = (increment and increment.buckets) or bucket_count(rows)
    grown = json.dumps(asdict(increment)) if increment else None
    progress("map", 0, 3)
    mapped = _map_pieces(session, spec, [piece for listed in pieces.values() for piece in listed], buckets, grown)
    for source in tables:
        part = _map_table(session, spec, source, buckets, grown)
        mapped = part if mapped is None else mapped.unionAll(part)
    empty = Built(row_accounting={source: RowAccounting() for source in spec.sources})
    if mapped is None:
        return empty
    if increment:  # buckets without a new row may hold requests that waited for labels until now
        rows_of_buckets = [(bucket, BUCKET, "", b"") for bucket in range(buckets)]
        mapped = mapped.unionAll(session.createDataFrame(rows_of_buckets, PARTS_DDL))
    asked = spec.requests.request_id is not None, spec.actions is not None
    with _persisted(session, mapped, wanted=any(asked)):
        conflicts, owners = _find_conflicts(mapped, buckets, root, attempt, grown) if asked[0] else ([], Built())
        window = increment.window if increment else None
        log_end = gather_log_facts(spec, _latest_actions(mapped) if asked[1] else [], None, window).log_end
        progress("shards", 1, 3)
        make = partial(reduce_buckets, spec.model_dump_json(), str(root), attempt, buckets, conflicts, log_end, grown)
        reduced = (
            mapped.filter(f"kind not in ('{OWNERS}', '{LATEST_ACTION}')")
            .repartitionById(buckets, mapped["bucket"])
            .sortWithinPartitions("bucket", "kind", "name")
            .mapInArrow(make, RESULTS_DDL)
            .collect()
        )
    progress("shards", 2, 3)
    built = sum((unpack_result(row["shards"], row["books"]) for row in reduced), empty + owners) + Built(
        log_end=log_end, buckets=buckets
    )
    if conflicts:
        built += _quarantine_conflicts(session, spec, pieces, root, attempt, conflicts, grown)
    progress("shards", 3, 3)
    return built


@contextmanager
def _persisted(session: SparkSession, frame: DataFrame, *, wanted: bool) -> Iterator[None]:
    """Keep a frame that is read twice on the executors' disks, in small batches, for its rows are large."""
    from pyspark import StorageLevel

    if not wanted:
        yield
        return
    size = "spark.sql.inMemoryColumnarStorage.batchSize"
    before = session.conf.get(size)
    session.conf.set(size, "4")
    frame.persist(StorageLevel.DISK_ONLY)
    try:
        yield
    finally:
        frame.unpersist()
        session.conf.set(size, before)


def _map_pieces(
    session: SparkSession, spec: BuildSpec, pieces: list[Piece], buckets: int, grown: str | None
) -> DataFrame | None:
    if not pieces:
        return None
    rows = [(number, json.dumps(asdict(piece))) for number, piece in enumerate(pieces)]
    frame = session.createDataFrame(rows, "number int, piece string").repartitionById(len(pieces), "number")
    return frame.mapInArrow(partial(map_pieces, spec.model_dump_json(), buckets, grown), PARTS_DDL)


def _table(session: SparkSession, spec: BuildSpec, source: str) -> DataFrame:
    from pyspark.errors import AnalysisException

    name = spec.sources[source].path[0]
    try:
        return session.table(name)
    except AnalysisException as error:
        reason = str(error).splitlines()[0]
        raise errors.SourceError(f"source {source}: Spark knows no table {name}: {reason}") from None


def _map_table(session: SparkSession, spec: BuildSpec, source: str, buckets: int, grown: str | None) -> DataFrame:
    """Type the rows of a table that Spark knows by name; it has no files, so rows are numbered per task."""
    name, frame = spec.sources[source].path[0], _table(session, spec, source)
    missing = [column for column in needed_columns(spec, source) if column not in frame.columns]
    if missing:
        raise errors.SourceError(
            f"source {source}: table {name} has no column {', '.join(map(repr, missing))}; "
            f"its columns are {', '.join(frame.columns)}"
        )
    selected = frame.select(*needed_columns(spec, source))
    return selected.mapInArrow(partial(map_table, spec.model_dump_json(), source, name, buckets, grown), PARTS_DDL)


def _latest_actions(mapped: DataFrame) -> list[int]:
    return [int(row["name"]) for row in mapped.filter(f"kind = '{LATEST_ACTION}'").select("name").collect()]


def _find_conflicts(
    mapped: DataFrame, buckets: int, root: Path, attempt: str, grown: str | None
) -> tuple[list[Any], Built]:
    """Request ids that several users share: each id's owners meet in one bucket; and the ids that an increment keeps."""
    owners = mapped.filter(f"kind = '{OWNERS}'").repartitionById(buckets, mapped["bucket"])
    find = partial(conflicts_of, str(root), attempt, grown)
    found = owners.sortWithinPartitions("bucket").mapInArrow(find, "ids binary, state string").collect()
    frames = [frame_of([row["ids"]]) for row in found]
    state = [entry for row in found for entry in json.loads(row["state"])]
    return pl.concat(frames)["request_id"].to_list() if frames else [], Built(state=state)


def _quarantine_conflicts(
    session: SparkSession,
    spec: BuildSpec,
    pieces: dict[str, list[Piece]],
    root: Path,
    attempt: str,
    conflicts: list[Any],
    grown: str | None,
) -> Built:
    """Read the requests' source once more, only to keep the rows of conflicting requests as they came."""
    source = spec.requests.source
    if source in pieces:
        rows = [(number, json.dumps(asdict(piece))) for number, piece in enumerate(pieces[source])]
        frame = session.createDataFrame(rows, "number int, piece string").repartitionById(len(rows), "number")
    else:
        frame = _table(session, spec, source).select(*needed_columns(spec, source))
    function = partial(quarantine_rows, spec.model_dump_json(), source in pieces, str(root), attempt, conflicts, grown)
    found = frame.mapInArrow(function, RESULTS_DDL).collect()
    return sum((unpack_result(row["shards"], row["books"]) for row in found), Built())


def _own_error(error: Exception) -> Exception:
    """Give back the longbatch error that a task raised, without Spark's wrapping; any other error as it is."""
    if isinstance(error, errors.LongbatchError):
        return error
    if "JAVA_GATEWAY_EXITED" in str(error):
        return errors.MachineError("Java did not start (it says why above); set JAVA_HOME to a Java 17 or newer")
    match = re.search(r"longbatch\.schemas\.errors\.(\w+): (.*)", str(error))
    kind = getattr(errors, match[1], None) if match else None
    return kind(match[2]) if match and isinstance(kind, type) else error
