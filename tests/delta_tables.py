"""Delta tables for tests: a partitioned log, and deletion vectors, which deltalake reads but does not write."""

from __future__ import annotations

import base64
import json
import struct
from collections.abc import Iterable
from pathlib import Path

import deltalake
import polars as pl
import pyroaring

MAGIC = 1_681_511_377
B85 = "0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz!#$%&()*+-;<=>?@^_`{|}~"
Z85 = "0123456789abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ.-:+=^!/*?&<>()[]{}@%$#"


def write_delta(path: Path, frame: pl.DataFrame, **options: object) -> None:
    """Append rows to a table, or create it."""
    deltalake.write_deltalake(str(path), frame.to_arrow(), mode="append", **options)  # type: ignore[call-overload]


def delete_with_vector(path: Path, file: str, rows: Iterable[int]) -> None:
    """Commit a deletion vector for a data file, as Spark does: the file stays, and its rows are marked."""
    bitmap = pyroaring.BitMap(rows)
    data = struct.pack("<iqi", MAGIC, 1, 0) + bitmap.serialize()
    encoded = base64.b85encode(data.ljust(-(-len(data) // 4) * 4, b"\0")).decode().translate(str.maketrans(B85, Z85))
    log = path / "_delta_log"
    commits = sorted(log.glob("*.json"))
    actions = [json.loads(line) for commit in commits for line in commit.read_text().splitlines()]
    add = next(action["add"] for action in actions if action.get("add", {}).get("path") == file)
    vector = {"storageType": "i", "pathOrInlineDv": encoded, "sizeInBytes": len(data), "cardinality": len(bitmap)}
    features = {"readerFeatures": ["deletionVectors"], "writerFeatures": ["deletionVectors"]}
    lines = [
        {"protocol": {"minReaderVersion": 3, "minWriterVersion": 7, **features}},
        {"remove": {"path": file, "dataChange": True, "deletionTimestamp": 0}},
        {"add": {**add, "deletionVector": vector}},
    ]
    (log / f"{len(commits):020}.json").write_text("\n".join(map(json.dumps, lines)))
