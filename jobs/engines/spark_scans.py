"""Scanning large text files on the executors, so that the driver does not read every byte of the log."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, replace
from functools import partial
from typing import TYPE_CHECKING

import numpy as np
import pyarrow as pa

from longbatch.jobs.readers.chunks import Piece
from longbatch.jobs.readers.text_ranges import RangeScan, TextFormat, scan_in_threads, scan_range
from longbatch.schemas.types import ArrowField

from .spark_partitioning import PARTITION_KEY, partition_keys

if TYPE_CHECKING:
    from pyspark.sql import SparkSession

# Fewer ranges are scanned sooner by the driver's threads than by a Spark job.
MIN_RANGES = 64
RANGES_PER_TASK = 8
RANGES_DDL = f"{PARTITION_KEY} int, number int, piece string"
SCANS_DDL = "number int, scan string"
SCANS_FIELDS: list[ArrowField] = [pa.field("number", pa.int32()), pa.field("scan", pa.string())]


def scan_on_executors(session: SparkSession, ranges: Sequence[Piece], text: TextFormat) -> list[RangeScan]:
    """Scan ranges of text files in Spark tasks.

    Args:
        session: The Spark session.
        ranges: The ranges.
        text: What ends a row.

    Returns:
        The scan of each range, in order.
    """
    if len(ranges) < MIN_RANGES:
        return scan_in_threads(ranges, text)
    tasks = -(-len(ranges) // RANGES_PER_TASK)
    keys = partition_keys(np.arange(len(ranges)) // RANGES_PER_TASK).tolist()
    # A scan needs neither the header nor the constants of the file, which can be large.
    pieces = [json.dumps(asdict(replace(piece, header=(), constants=""))) for piece in ranges]
    rows = list(zip(keys, range(len(pieces)), pieces, strict=True))
    frame = session.createDataFrame(rows, RANGES_DDL).repartition(tasks, PARTITION_KEY)
    scans = frame.mapInArrow(partial(_scan_ranges, text), SCANS_DDL).collect()
    return [_scan_of(row["scan"]) for row in sorted(scans, key=lambda row: int(row["number"]))]


def _scan_ranges(text: TextFormat, batches: Iterable[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
    """Task: scan the ranges of some rows."""
    for batch in batches:
        pieces = [Piece(**json.loads(str(document))) for document in batch["piece"].to_pylist()]
        scans = [json.dumps(asdict(scan_range(piece, text))) for piece in pieces]
        yield pa.record_batch([batch["number"], pa.array(scans)], schema=pa.schema(SCANS_FIELDS))


def _scan_of(document: str) -> RangeScan:
    scan = json.loads(document)
    return RangeScan(
        quotes=scan["quotes"],
        rows=tuple(scan["rows"]),
        first_start=tuple(scan["first_start"]),
        is_clear=tuple(scan["is_clear"]),
        is_plain=scan["is_plain"],
    )
