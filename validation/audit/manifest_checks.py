"""What a snapshot lists, checked: its files, their checksums and rows, the bytes of each block, totals and books."""

from __future__ import annotations

import zlib
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from longbatch.schemas.errors import DataError, DatasetError
from longbatch.schemas.format.dataset import Dataset
from longbatch.schemas.format.shard import check_file
from longbatch.schemas.source_schema import role_schema
from longbatch.schemas.spec.build_spec import Role
from longbatch.schemas.types import ProgressCallback

from .structure import Seen


def file_findings(dataset: Dataset, report: ProgressCallback) -> Iterator[str]:
    """Compare every listed file with its length, checksum and rows, and every block of a shard with its bytes."""
    shards = [(number, table) for number in range(len(dataset.shards)) for table in ("timelines", "requests")]
    dictionaries = [row["dictionaries"] for row in dataset.shards if row["dictionaries"]]
    others = (*dictionaries, *dataset.snapshot.vocabulary, *dataset.snapshot.quarantine, *dataset.snapshot.samples)
    entries = [*(dataset.shards[number][table] for number, table in shards), *others]
    total, done = sum(entry["bytes"] for entry in entries), 0
    for place, entry in enumerate(entries):
        report("checksums", done, total)
        done += entry["bytes"]
        try:
            path = check_file(dataset.path, entry)
            if place < len(shards):
                yield from _byte_findings(dataset, path, *shards[place])
            check_file(dataset.path, entry, checksum=True)
            if "rows" in entry and (rows := _rows(path)) != entry["rows"]:
                yield f"{path} holds {rows:,} rows, the snapshot lists {entry['rows']:,}"
        except DatasetError as error:
            yield str(error)
    report("checksums", total, total)


def _rows(path: Path) -> int:
    if path.suffix == ".parquet":
        return int(pq.read_metadata(path).num_rows)
    return int(pa.ipc.open_file(pa.memory_map(str(path))).count_rows())


def _byte_findings(dataset: Dataset, path: Path, number: int, table: str) -> Iterator[str]:
    """Blocks follow each other from byte 0, and each has its checksum."""
    end = 0
    with path.open("rb") as file:
        for place, block in enumerate(dataset.shards[number]["blocks"]):
            where = f"shard {number} ({dataset.shards[number][table]['path']}), block {place}"
            offset, size = block[f"{table}_offset"], block[f"{table}_bytes"]
            if offset != end:
                yield f"{where}: begins at byte {offset:,}, what comes before it ends at {end:,}"
            file.seek(offset)
            if zlib.crc32(file.read(size)) != block[f"{table}_crc32"]:
                yield f"{where}: was altered, its bytes have another crc32"
            end = offset + size


def total_findings(dataset: Dataset, seen: Seen) -> Iterator[str]:
    """Compare the sums over all blocks with the snapshot's counts, and check its books."""
    counts = dataset.counts
    found = seen.totals | {"users": len(seen.users().user_id), "stored_with_overlap": seen.totals["events"]}
    del found["events"]
    for name, value in found.items():
        if value != getattr(counts, name):
            yield f"all shards hold {value:,} {name}, the snapshot says {getattr(counts, name):,}"
    for source, accounting in dataset.snapshot.row_accounting.items():
        yield from _broken(partial(accounting.check, source))
    yield from _broken(partial(counts.check, _accepted(dataset, "history"), _accepted(dataset, "requests")))


def _accepted(dataset: Dataset, role: Role) -> int | None:
    """Return the accepted rows of a role's log, or None if the log feeds another role too."""
    schema = role_schema(dataset.spec, role)
    return dataset.snapshot.row_accounting[schema.source].accepted if schema.roles == (role,) else None


def _broken(check: Callable[[], None]) -> Iterator[str]:
    try:
        check()
    except DataError as error:
        yield f"the snapshot's books: {error}"
