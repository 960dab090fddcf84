"""File formats and their settings: how tables are written, by `longbatch measure` and `longbatch expand`.

Parquet that does well with copied histories, measured on simulated and on real logs sorted by user: pages of 8 MiB, so
that a codec sees the copies of a history side by side (at 1 MiB files are up to twice as large); data pages of version 1,
for version 2 leaves the levels of nullable lists uncompressed (up to eleven times as large); dictionaries only for columns
with few values, for the indices of others hide that histories repeat; statistics only where a reader can skip by them.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

ZSTD_LEVEL = 3
PAGE_BYTES = 8 << 20


@dataclass(frozen=True)
class Storage:
    """A file format and its codec."""

    format: str
    codec: str

    @property
    def title(self) -> str:
        """As people call it."""
        return f"{self.format} {self.codec}"


@dataclass(frozen=True)
class ParquetSettings:
    """What differs from table to table. dictionary: Parquet paths of the columns that are written with one."""

    dictionary: tuple[str, ...] = ()

    @property
    def title(self) -> str:
        """As people call it."""
        names = ", ".join(path.removesuffix(".list.element") for path in self.dictionary)
        return f"dictionaries for {names}" if names else "no dictionaries"


STORAGES = tuple(Storage("Arrow", c) for c in ("none", "lz4", "zstd")) + tuple(
    Storage("Parquet", c) for c in ("snappy", "zstd")
)


def parquet_options(schema: pa.Schema, codec: str, settings: ParquetSettings) -> dict[str, Any]:
    """Arguments of a Parquet writer for tables of a schema."""
    return {
        "version": "2.6",
        "data_page_version": "1.0",
        "data_page_size": PAGE_BYTES,
        "compression": codec,
        "compression_level": ZSTD_LEVEL if codec == "zstd" else None,
        "use_dictionary": list(settings.dictionary) or False,
        "write_statistics": [field.name for field in schema if not pa.types.is_nested(field.type)],
    }


def choose_settings(tables: Sequence[pa.Table], codec: str) -> ParquetSettings:
    """Write tables, a part of what is to be written, with and without dictionaries; choose for each column."""
    plain, all_paths = column_bytes(tables, codec, False), column_bytes(tables, codec, True)
    return ParquetSettings(tuple(path for path in plain if all_paths[path] < plain[path]))


def column_bytes(tables: Sequence[pa.Table], codec: str, dictionary: bool) -> Counter[str]:
    """Parquet path of a column -> its bytes in the files of all tables."""
    sizes: Counter[str] = Counter()
    for table in tables:
        options = parquet_options(table.schema, codec, ParquetSettings()) | {"use_dictionary": dictionary}
        sink = pa.BufferOutputStream()
        pq.write_table(table, sink, row_group_size=max(1, table.num_rows), **options)
        metadata = pq.read_metadata(pa.BufferReader(sink.getvalue()))
        for group in range(metadata.num_row_groups):
            columns = (metadata.row_group(group).column(i) for i in range(metadata.num_columns))
            sizes.update({column.path_in_schema: column.total_compressed_size for column in columns})
    return sizes


def write(tables: Sequence[pa.Table], storage: Storage, settings: ParquetSettings, folder: Path) -> list[Path]:
    """Write each table as one file of one record batch or row group."""
    paths = [folder / f"slice-{number}" for number in range(len(tables))]
    for path, table in zip(paths, tables, strict=True):
        if storage.format == "Parquet":
            options = parquet_options(table.schema, storage.codec, settings)
            pq.write_table(table, path, row_group_size=max(1, table.num_rows), **options)
        else:
            _write_arrow(table, storage.codec, path)
    return paths


def _write_arrow(table: pa.Table, codec: str, path: Path) -> None:
    level = ZSTD_LEVEL if codec == "zstd" else None
    compression = None if codec == "none" else pa.Codec(codec, compression_level=level)
    options = pa.ipc.IpcWriteOptions(compression=compression, use_threads=False)
    with pa.OSFile(str(path), "wb") as sink, pa.ipc.new_file(sink, table.schema, options=options) as writer:
        writer.write_table(table)


def read(paths: Sequence[Path], storage: Storage) -> list[pa.Table]:
    """Read all columns of the files into memory, without memory-mapping."""
    if storage.format == "Parquet":
        return [pq.ParquetFile(path).read(use_threads=False) for path in paths]
    tables = []
    for path in paths:
        with pa.OSFile(str(path), "rb") as source:
            tables.append(pa.ipc.open_file(source).read_all())
    return tables
