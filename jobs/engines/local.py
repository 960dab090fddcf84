"""The local engine: Polars on one machine.

The first stage writes each chunk, split by user bucket, to one temporary file; later stages read a bucket's rows from
all those files. Peak memory is workers times a few copies of one chunk or bucket, whatever the size of the input. A
user is never split over buckets, so the largest user bounds it too.
"""

from __future__ import annotations

import logging
import os
import shutil
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import closing, contextmanager
from functools import partial

import polars as pl

from longbatch.jobs.commit.attempt import work_folder
from longbatch.jobs.commit.build_result import BuildResult
from longbatch.jobs.commit.incremental_state import EarlierFiles, Increment
from longbatch.jobs.readers.chunks import Chunk, Piece
from longbatch.jobs.readers.sources import plan_pieces, read_piece
from longbatch.schemas.accounting import RowAccounting
from longbatch.schemas.spec.build_spec import BuildSpec
from longbatch.schemas.stage_log import logged_stage
from longbatch.schemas.storage.store import Store
from longbatch.schemas.types import ProgressCallback

from .conflicts import Conflicts
from .context import BuildContext
from .quarantine import quarantine_conflicts, quarantine_rows, write_quarantine
from .spill import Partition
from .stages import (
    REQUEST_USERS,
    VOCABULARY,
    BuildFacts,
    bucket_count,
    build_shard,
    canonicalize_chunk,
    find_conflicts,
    rows_content,
    split_by_bucket,
    write_vocabulary,
)
from .worker_pool import WorkerPool

logger = logging.getLogger(__name__)


class LocalEngine:
    """Builds on this machine.

    Args:
        workers: Number of threads; default: one per core.
    """

    def __init__(self, workers: int | None = None) -> None:
        self.workers = workers or os.cpu_count() or 1

    @contextmanager
    def start(
        self, spec: BuildSpec, store: Store, attempt: str, increment: Increment | None, progress: ProgressCallback
    ) -> Iterator[LocalStages]:
        """Plan a build; see `Engine.start`. Temporary files are removed at the end of the block.

        Args:
            spec: The build spec.
            store: The dataset.
            attempt: Name of the attempt.
            increment: Time window and state of an incremental build.
            progress: Receives the progress of the stages.

        Yields:
            The stages of the build.
        """
        pieces = [piece for source in spec.sources for piece in plan_pieces(spec, source)]
        # A bucket is a hash modulo the number of buckets, and the state is kept by bucket. So an increment has as many
        # buckets as the first build, whatever its own size.
        buckets = (increment and increment.buckets) or bucket_count(sum(piece.rows for piece in pieces))
        work = work_folder(store, attempt)
        try:
            context = BuildContext(spec, store, attempt, buckets, increment and increment.without_files())
            yield LocalStages(context, pieces, increment.files_by_bucket() if increment else {}, self.workers, progress)
        finally:
            shutil.rmtree(work, ignore_errors=True)


class LocalStages:
    """The stages of one build on threads; see `Stages`.

    Args:
        context: The build.
        pieces: Pieces of all sources.
        earlier: Files of earlier increments by bucket.
        workers: Number of threads.
        progress: Receives the progress of the stages.
    """

    def __init__(
        self,
        context: BuildContext,
        pieces: list[Piece],
        earlier: Mapping[int, EarlierFiles],
        workers: int,
        progress: ProgressCallback,
    ) -> None:
        self.context = context
        self._pieces = pieces
        self._earlier = defaultdict(EarlierFiles, earlier)
        self._pool = WorkerPool(workers, progress)
        self._progress = progress
        contents = [*(rows_content(source) for source in context.spec.sources), REQUEST_USERS, VOCABULARY]
        work = work_folder(context.store, context.attempt)
        self._partitions = {content: Partition(work / content.replace(":", "-")) for content in contents}

    def read_canonicalize_split(self) -> BuildResult:
        """Read all sources, canonicalize the rows and split them by user bucket."""
        total = sum(piece.size for piece in self._pieces)
        # Start with every source, so that a source without files is accounted for with zero rows.
        result = BuildResult(row_accounting={source: RowAccounting() for source in self.context.spec.sources})
        # If the loop raises (`progress` may), `closing` ends the generator, and with it the threads.
        with logged_stage(logger, "scan") as stage, closing(self._pool.run(self._scan_tasks())) as parts:
            result += BuildResult.total(self._report("scan", parts, total))
            stage.rows, stage.size_bytes = result.rows, total
        # Shares of files are estimates, so report the end explicitly.
        self._progress("scan", total, total)
        return result

    def _report(self, stage: str, parts: Iterable[tuple[float, BuildResult]], total: float) -> Iterator[BuildResult]:
        """Report the progress of a stage for each pair of work done and result; yield the results."""
        done = 0.0
        for amount, result in parts:
            done += amount
            self._progress(stage, done, total)
            yield result

    def _scan_tasks(self) -> Iterator[Callable[[], tuple[float, BuildResult]]]:
        """One task a piece that fits into memory, and one a chunk of a text file, which only streams."""
        for number, piece in enumerate(self._pieces):
            # Numbered names give partitions the order of the input, in whatever order tasks finish.
            if piece.is_stream:
                for part, chunk in enumerate(read_piece(self.context.spec, piece)):
                    # The number of rows is an estimate, so the shares of a file may not add up to its size.
                    share = piece.size * chunk.frame.height / max(piece.rows, chunk.first_row + chunk.frame.height)
                    yield partial(self._scan, piece.source, [chunk], f"{number:06d}-{part:04d}", share)
            else:
                chunks = read_piece(self.context.spec, piece)
                yield partial(self._scan, piece.source, chunks, f"{number:06d}", piece.size)

    def _scan(self, source: str, chunks: Iterable[Chunk], name: str, size: float) -> tuple[float, BuildResult]:
        """Canonicalize chunks and write their rows to the partitions; return the bytes of input they are."""
        result = BuildResult()
        for part, chunk in enumerate(chunks):
            # Checked before each chunk, so that a stopped build waits for one chunk per thread at most.
            self._pool.raise_if_stopped()
            canonical = canonicalize_chunk(self.context, source, chunk)
            shuffled = 0
            for content, batches in split_by_bucket(self.context, source, canonical, self.context.buckets):
                self._partitions[content].write(f"{name}-{part:04d}", batches)
                # Without users of requests and vocabulary, as in the Spark engine (`BuildResult.shuffled_bytes`).
                if content == rows_content(source):
                    shuffled += sum(batch.nbytes for batch in batches)
            file = f"{source}-{self.context.attempt}-{name}-{part:04d}"
            result += write_quarantine(self.context, file, quarantine_rows(chunk, canonical.rejected))
            result += BuildResult(
                row_accounting={source: canonical.accounting},
                latest_action=canonical.latest_action,
                shuffled_bytes=shuffled,
            )
        return size, result

    def find_conflicts(self) -> tuple[Conflicts | None, BuildResult]:
        """Find the request ids that several users share."""
        none = Conflicts(self.context.buckets)
        conflicts: list[Conflicts] = []
        pairs: list[int] = []

        def find(group: int) -> BuildResult:
            results, ids = [], list[pl.Series]()
            for bucket in range(group, self.context.buckets, none.groups):
                request_users = self._partitions[REQUEST_USERS].read(bucket)
                if request_users is not None:
                    of_bucket, result = find_conflicts(self.context, bucket, request_users, self._earlier[bucket])
                    results.append(result)
                    ids.append(of_bucket)
                    pairs.append(request_users.height)  # appending to a list is safe from several threads
            if ids:
                conflicts.append(none.write(group, pl.concat(ids), self.context.store, self.context.attempt))
            return BuildResult.total(results)

        # The line of the log has the pairs (request, user) that were compared, because this stage writes few rows.
        result = self._per_number("request ids", none.groups, find, lambda _: (sum(pairs), None))
        joined = none.join(conflicts)
        return (joined if joined.files else None), result

    def quarantine_conflicts(self, conflicts: Conflicts) -> BuildResult:
        """Read the requests' source again and write the original rows of conflicting requests to the quarantine.

        Args:
            conflicts: The request ids that several users share.
        """
        # Conflicts are known only after the last chunk, and raw rows are not kept, so the source is read a second time.
        source = self.context.spec.requests.source
        chunks = (c for p in self._pieces if p.source == source for c in read_piece(self.context.spec, p))
        prefix = f"conflicts-{self.context.attempt}"
        tasks = (
            partial(quarantine_conflicts, self.context, f"{prefix}-{number:06d}", chunk, conflicts)
            for number, chunk in enumerate(chunks)
        )
        with logged_stage(logger, "quarantine") as stage, closing(self._pool.run(tasks)) as results:
            result = BuildResult.total(results)
            stage.rows, stage.size_bytes = result.file_rows, result.file_bytes
        return result

    def build_shards(self, facts: BuildFacts) -> BuildResult:
        """Write the vocabulary, then build every user bucket: kernel, pack, write the shard.

        Args:
            facts: What the kernel must know about all users.
        """
        buckets = self.context.buckets
        vocabulary = self._per_number("vocabulary", buckets, self._vocabulary_of_bucket)
        return vocabulary + self._per_number("shards", buckets, partial(self._shard_of_bucket, facts))

    def _vocabulary_of_bucket(self, bucket: int) -> BuildResult:
        words = self._partitions[VOCABULARY].read(bucket)
        return BuildResult() if words is None else write_vocabulary(self.context, bucket, words, self._earlier[bucket])

    def _shard_of_bucket(self, facts: BuildFacts, bucket: int) -> BuildResult:
        self._pool.raise_if_stopped()
        sources = self.context.spec.sources
        rows = {source: self._partitions[rows_content(source)].read(bucket) for source in sources}
        return build_shard(self.context, bucket, rows, self._earlier[bucket], facts)

    def _per_number(
        self,
        name: str,
        count: int,
        task: Callable[[int], BuildResult],
        size: Callable[[BuildResult], tuple[int, int | None]] = lambda result: (result.file_rows, result.file_bytes),
    ) -> BuildResult:
        """Run one task for each bucket or group of buckets, report and log the stage, and add up the results."""
        tasks = (partial(task, number) for number in range(count))
        with logged_stage(logger, name) as stage, closing(self._pool.run(tasks)) as parts:
            # Buckets are independent and about equal, so their number is a fair measure of progress.
            result = BuildResult.total(self._report(name, ((1, part) for part in parts), count))
            stage.rows, stage.size_bytes = size(result)
        return result
