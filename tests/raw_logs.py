"""A log of three rows in every format, and what the readers make of it."""

from __future__ import annotations

import gzip
from pathlib import Path
from typing import Any

import polars as pl

from longbatch.jobs.readers.chunks import Chunk
from longbatch.jobs.readers.sources import plan_pieces, read_piece
from longbatch.schemas.spec.build_spec import BuildSpec

ROWS = pl.DataFrame({"user": [1, 2, 3], "item": [11, 12, 13], "time": [100, 200, 300], "more": ["a", "b", "c"]})
COLUMNS = ["user", "time", "item"]
NUMBERS = [(1, 100, 11), (2, 200, 12), (3, 300, 13)]
STRINGS = [("1", "100", "11"), ("2", "200", "12"), ("3", "300", "13")]
CSV = "user,item,time,more\n1,11,100,a\n2,12,200,b\n3,13,300,c\n"
JSONL = ROWS.write_ndjson().encode()


def spec_of(path: str | list[str], **source: Any) -> BuildSpec:
    """A spec with one source of this path; other arguments are keys of the source."""
    both = {"source": "log", "user_id": "user", "item_id": "item"}
    time = {"column": "time", "unit": "s"}
    return BuildSpec.model_validate(
        {
            "sources": {"log": {"path": path, **source}},
            "history": {**both, "event_time": time},
            "requests": {**both, "request_time": time},
        }
    )


def chunks_of(path: Path | str | list[str], **source: Any) -> list[Chunk]:
    """All chunks that are read from the files of a path."""
    spec = spec_of(str(path) if isinstance(path, Path) else path, **source)
    return [chunk for piece in plan_pieces(spec, "log") for chunk in read_piece(spec, piece)]


def rows_of(path: Path | str | list[str], **source: Any) -> list[tuple[object, ...]]:
    """All rows that are read from the files of a path, with the columns COLUMNS."""
    return [row for chunk in chunks_of(path, **source) for row in chunk.frame.select(COLUMNS).rows()]


def write(path: Path, content: str | bytes) -> Path:
    """Write a file, compressed if its name ends with .gz."""
    data = content.encode() if isinstance(content, str) else content
    path.write_bytes(gzip.compress(data, mtime=0) if path.suffix == ".gz" else data)
    return path
