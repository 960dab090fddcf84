"""File formats and their settings: how `longbatch measure` and `longbatch expand` write tables.

The Parquet settings suit copied histories; each was measured on simulated and on real logs sorted by user. Pages of
8 MiB, so that a codec sees the copies of a history next to each other (files are up to twice as large at 1 MiB). Data
pages of version 1, because version 2 leaves the levels of nullable lists uncompressed (up to eleven times as large).
Dictionaries only for columns with few values, because the indices of other columns hide that histories repeat.
Statistics only where a reader can skip data by them.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import pyarrow as pa
import pyarrow.parquet as pq

ZSTD_LEVEL = 3
PAGE_BYTES = 8 << 20
Codec = Literal["none", "lz4", "snappy", "zstd"]


@dataclass(frozen=True)
class Storage:
    """A file format and its codec.

    Attributes:
        format: "Arrow" or "Parquet".
        codec: Compression codec.
    """

    format: Literal["Arrow", "Parquet"]
    codec: Codec

    @property
    def title(self) -> str:
        """Format and codec."""
        return f"{self.format} {self.codec}"


@dataclass(frozen=True)
class ParquetSettings:
    """Settings that differ from table to table.

    Attributes:
        dictionary: Parquet paths of the columns that are written with a dictionary.
    """

    dictionary: tuple[str, ...] = ()

    @property
    def title(self) -> str:
        """The settings in words."""
        names = ", ".join(path.removesuffix(".list.element") for path in self.dictionary)
        return f"dictionaries for {names}" if names else "no dictionaries"


STORAGES = (
    Storage("Arrow", "none"),
    Storage("Arrow", "lz4"),
    Storage("Arrow", "zstd"),
    Storage("Parquet", "snappy"),
    Storage("Parquet", "zstd"),
)


def parquet_options(schema: pa.Schema, codec: str, settings: ParquetSettings) -> dict[str, Any]:
    """Return the arguments of a Parquet writer for tables of a schema.

    Args:
        schema: Schema of the tables.
        codec: Parquet codec.
        settings: Settings chosen for the tables.

    Returns:
        Keyword arguments of `pyarrow.parquet.ParquetWriter` and `write_table`.
    """
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
    """Choose for each column whether it gets a dictionary, by writing it with and without one.

    Args:
        tables: A part of what will be written.
        codec: Parquet codec.
    """
    plain, encoded = (column_bytes(tables, codec, dictionary=use) for use in (False, True))
    return ParquetSettings(tuple(path for path in plain if encoded[path] < plain[path]))


def column_bytes(tables: Sequence[pa.Table], codec: str, *, dictionary: bool) -> Counter[str]:
    """Measure the columns of tables as Parquet, each table as one row group.

    Args:
        tables: The tables to write.
        codec: Parquet codec.
        dictionary: Whether all columns get a dictionary, or none.

    Returns:
        Bytes of each column in all tables, by its Parquet path.
    """
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


def write_tables(tables: Sequence[pa.Table], storage: Storage, settings: ParquetSettings, folder: Path) -> list[Path]:
    """Write each table as one file of one record batch or row group.

    Args:
        tables: The tables to write.
        storage: File format and codec.
        settings: Settings of Parquet files; ignored for Arrow.
        folder: Folder of the files.

    Returns:
        The paths of the files.
    """
    paths = [folder / f"slice-{number}" for number in range(len(tables))]
    for path, table in zip(paths, tables, strict=True):
        if storage.format == "Parquet":
            options = parquet_options(table.schema, storage.codec, settings)
            pq.write_table(table, path, row_group_size=max(1, table.num_rows), **options)
        else:
            _write_arrow(table, storage.codec, path)
    return paths


def _write_arrow(table: pa.Table, codec: Codec, path: Path) -> None:
    level = ZSTD_LEVEL if codec == "zstd" else None
    compression = None if codec == "none" else pa.Codec(codec, compression_level=level)
    options = pa.ipc.IpcWriteOptions(compression=compression, use_threads=False)
    with pa.OSFile(str(path), "wb") as sink, pa.ipc.new_file(sink, table.schema, options=options) as writer:
        writer.write_table(table)


def read_tables(paths: Sequence[Path], storage: Storage) -> list[pa.Table]:
    """Read all columns of files into memory, without memory-mapping.

    Args:
        paths: Files written by `write_tables`.
        storage: Their format and codec.
    """
    if storage.format == "Parquet":
        return [pq.ParquetFile(path).read(use_threads=False) for path in paths]
    tables = []
    for path in paths:
        with pa.OSFile(str(path), "rb") as source:
            tables.append(pa.ipc.open_file(source).read_all())
    return tables
