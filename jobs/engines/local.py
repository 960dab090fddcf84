"""The local engine: Polars on one machine, partitioned to disk by user bucket, then the kernel per bucket.

Stage 1 types chunks of about a million rows and writes each as one file with a record batch per bucket; stage 2
reads a bucket's batches from all those files and builds its shard. Peak memory is workers x a few copies of one
chunk or bucket, whatever the input's size; one user is never split over buckets, so the largest user bounds it too.

Workers are threads: Polars, Arrow and NumPy release the interpreter lock in everything that takes time here.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from functools import partial
from pathlib import Path
from typing import TypeVar

import polars as pl

from longbatch.jobs.commit.incremental_state import Increment
from longbatch.jobs.readers.chunks import Chunk, Piece
from longbatch.jobs.readers.sources import plan_pieces, read_piece
from longbatch.pipelines.canonicalize import LogFacts, gather_log_facts
from longbatch.pipelines.row_filters import TEXT_FORMATS
from longbatch.schemas.accounting import RowAccounting
from longbatch.schemas.spec.build_spec import BuildSpec
from longbatch.schemas.types import ProgressCallback

from .spill import Partition
from .stages import (
    Built,
    bucket_count,
    bucket_parts,
    empty_rows,
    find_conflicts,
    make_bucket,
    make_quarantine,
    make_vocabulary,
    quarantine_conflicts,
    split_by_bucket,
    type_chunk,
)

T = TypeVar("T")


class LocalEngine:
    """Builds on this machine with `workers` threads (default: one per core)."""

    def __init__(self, workers: int | None = None) -> None:
        self.workers = workers or os.cpu_count() or 1

    def build(
        self, spec: BuildSpec, root: Path, attempt: str, progress: ProgressCallback, increment: Increment | None = None
    ) -> Built:
        """Build all files of a dataset, or of an increment, under `root`, named with `attempt`; return what to commit."""
        pieces = [piece for source in spec.sources for piece in plan_pieces(spec, source)]
        buckets = (increment and increment.buckets) or bucket_count(sum(piece.rows for piece in pieces))
        work = root / f".work-{attempt}"
        try:
            return self._build(spec, pieces, buckets, root, work, attempt, progress, increment)
        finally:
            shutil.rmtree(work, ignore_errors=True)

    def _build(
        self,
        spec: BuildSpec,
        pieces: list[Piece],
        buckets: int,
        root: Path,
        work: Path,
        attempt: str,
        progress: ProgressCallback,
        increment: Increment | None,
    ) -> Built:
        kinds = [*(f"rows:{source}" for source in spec.sources), "owners", "vocabulary"]
        partitions = {kind: Partition(work / kind.replace(":", "-")) for kind in kinds}
        scanned = self._scan(spec, pieces, buckets, partitions, root, attempt, progress, increment)
        find = partial(_conflicts_of, partitions["owners"], root, attempt, increment)
        found = self._each("request ids", [partial(find, b) for b in range(buckets)], progress)
        known = [series for series, _ in found if series is not None and len(series)]
        conflicts = pl.concat(known) if known else None
        scanned += sum((built for _, built in found), Built())
        if conflicts is not None and len(conflicts):
            scanned += self._quarantine_conflicts(spec, pieces, conflicts, root, attempt, increment)
        facts = gather_log_facts(spec, [scanned.latest_action], conflicts, increment.window if increment else None)
        words = self._each(
            "vocabulary",
            [partial(_words, spec, partitions["vocabulary"], root, attempt, increment, b) for b in range(buckets)],
            progress,
        )
        shards = self._each(
            "shards",
            [partial(_shard, spec, partitions, facts, root, b, buckets, attempt, increment) for b in range(buckets)],
            progress,
        )
        return sum([*words, *shards], scanned + Built(log_end=facts.log_end, buckets=buckets))

    def _scan(
        self,
        spec: BuildSpec,
        pieces: list[Piece],
        buckets: int,
        partitions: dict[str, Partition],
        root: Path,
        attempt: str,
        progress: ProgressCallback,
        increment: Increment | None,
    ) -> Built:
        total = float(sum(piece.size for piece in pieces))
        done = 0.0
        built = Built(row_accounting={source: RowAccounting() for source in spec.sources})
        tasks = _scan_tasks(spec, pieces, buckets, partitions, root, attempt, increment)
        for size, part in self._run(tasks):
            done += size
            progress("scan", done, total)
            built += part
        progress("scan", total, total)
        return built

    def _quarantine_conflicts(
        self,
        spec: BuildSpec,
        pieces: list[Piece],
        conflicts: pl.Series,
        root: Path,
        attempt: str,
        increment: Increment | None,
    ) -> Built:
        """Read the requests' source once more, only to keep the rows of conflicting requests as they came."""
        tasks = (
            partial(quarantine_conflicts, spec, chunk, conflicts, root, f"conflicts-{attempt}-{number:06d}", increment)
            for number, chunk in enumerate(_chunks(spec, [p for p in pieces if p.source == spec.requests.source]))
        )
        return sum(self._run(tasks), Built())

    def _each(self, stage: str, tasks: list[Callable[[], T]], progress: ProgressCallback) -> list[T]:
        results = []
        for number, result in enumerate(self._run(tasks)):
            progress(stage, number + 1, len(tasks))
            results.append(result)
        return results

    def _run(self, tasks: Iterable[Callable[[], T]]) -> Iterator[T]:
        """Run tasks on the workers, few ahead of what is consumed; the first error stops the rest."""
        with ThreadPoolExecutor(self.workers) as pool:
            waiting: set[Future[T]] = set()
            try:
                for task in tasks:
                    waiting.add(pool.submit(task))
                    if len(waiting) > self.workers:
                        done, waiting = wait(waiting, return_when=FIRST_COMPLETED)
                        for future in done:
                            yield future.result()
                while waiting:
                    done, waiting = wait(waiting, return_when=FIRST_COMPLETED)
                    for future in done:
                        yield future.result()
            finally:
                for future in waiting:
                    future.cancel()


def _scan_tasks(
    spec: BuildSpec,
    pieces: list[Piece],
    buckets: int,
    partitions: dict[str, Partition],
    root: Path,
    attempt: str,
    increment: Increment | None,
) -> Iterator[Callable[[], tuple[float, Built]]]:
    """Tasks that type and partition: a Parquet or Arrow piece is read in its task, text is read here as it streams."""
    for number, piece in enumerate(pieces):
        scan = partial(_scan_chunks, spec, piece.source, buckets, partitions, root, attempt, increment)
        if spec.sources[piece.source].file_format in TEXT_FORMATS:
            for part, chunk in enumerate(read_piece(spec, piece)):
                share = piece.size * chunk.frame.height / max(piece.rows, chunk.first_row + chunk.frame.height)
                yield partial(scan, [chunk], f"{number:06d}-{part:04d}", share)
        else:
            yield partial(scan, read_piece(spec, piece), f"{number:06d}", piece.size)


def _scan_chunks(
    spec: BuildSpec,
    source: str,
    buckets: int,
    partitions: dict[str, Partition],
    root: Path,
    attempt: str,
    increment: Increment | None,
    chunks: Iterable[Chunk],
    name: str,
    size: float,
) -> tuple[float, Built]:
    built = Built()
    for part, chunk in enumerate(chunks):
        typed = type_chunk(spec, source, chunk, increment)
        for kind, (frame, bucket) in bucket_parts(spec, source, typed, buckets).items():
            if frame.height:
                batches = split_by_bucket(frame, bucket, buckets)
                partitions[kind].write(f"{name}-{part:04d}", batches)
                if kind.startswith("rows:"):
                    built += Built(shuffled_bytes=sum(batch.nbytes for batch in batches))
        built += make_quarantine(typed.rejected, chunk, root, f"{source}-{attempt}-{name}-{part:04d}")
        built += Built(row_accounting={source: typed.accounting}, latest_action=typed.latest_action)
    return size, built


def _chunks(spec: BuildSpec, pieces: list[Piece]) -> Iterator[Chunk]:
    for piece in pieces:
        yield from read_piece(spec, piece)


def _conflicts_of(
    owners: Partition, root: Path, attempt: str, increment: Increment | None, bucket: int
) -> tuple[pl.Series | None, Built]:
    pairs = owners.read(bucket)
    return (None, Built()) if pairs is None else find_conflicts(pairs, root, bucket, attempt, increment)


def _words(
    spec: BuildSpec, vocabulary: Partition, root: Path, attempt: str, increment: Increment | None, bucket: int
) -> Built:
    words = vocabulary.read(bucket)
    return Built() if words is None else make_vocabulary(words, spec, root, bucket, attempt, increment)


def _shard(
    spec: BuildSpec,
    partitions: dict[str, Partition],
    facts: LogFacts,
    root: Path,
    bucket: int,
    buckets: int,
    attempt: str,
    increment: Increment | None,
) -> Built:
    frames = {}
    for source in spec.sources:
        rows = partitions[f"rows:{source}"].read(bucket)
        frames[source] = empty_rows(spec, source) if rows is None else rows
    return make_bucket(spec, frames, facts, root, bucket, buckets, attempt, increment)
