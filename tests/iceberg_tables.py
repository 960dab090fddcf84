"""Iceberg tables for tests in a catalog of SQLite, and position deletes, which pyiceberg reads but does not write."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from longbatch.schemas.types import ArrowField


def open_catalog(folder: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """A catalog "prod" with the namespace "db", which the environment describes."""
    import pyiceberg.catalog
    from pyiceberg.utils.config import Config

    (folder / "warehouse").mkdir()
    monkeypatch.setenv("PYICEBERG_CATALOG__PROD__TYPE", "sql")
    monkeypatch.setenv("PYICEBERG_CATALOG__PROD__URI", f"sqlite:///{folder}/catalog.db")
    monkeypatch.setenv("PYICEBERG_CATALOG__PROD__WAREHOUSE", f"file://{folder}/warehouse")
    monkeypatch.setattr(pyiceberg.catalog, "_ENV_CONFIG", Config())  # it is read once, at import
    catalog = pyiceberg.catalog.load_catalog("prod")
    catalog.create_namespace("db")
    return catalog


def write_iceberg(catalog: Any, frame: pl.DataFrame, **options: Any) -> Any:
    """Create the table db.log with these rows."""
    rows = frame.to_arrow(compat_level=pl.CompatLevel.oldest())
    table = catalog.create_table("db.log", schema=rows.schema, **options)
    table.append(rows)
    return table


def delete_positions(table: Any, rows: Iterable[int]) -> None:
    """Commit a position delete file for the table's only data file, as Spark does in merge-on-read mode."""
    from pyiceberg.io.pyarrow import PyArrowFileIO
    from pyiceberg.manifest import DataFile, DataFileContent, FileFormat, ManifestContent, ManifestWriterV2
    from pyiceberg.table.snapshots import Operation
    from pyiceberg.table.update.snapshot import _FastAppendFiles
    from pyiceberg.typedef import Record

    class DeleteManifest(ManifestWriterV2):
        def content(self) -> ManifestContent:
            return ManifestContent.DELETES

    class Deletes(_FastAppendFiles):
        def new_manifest_writer(self, spec: Any) -> Any:
            schema, output = self._transaction.table_metadata.schema(), self.new_manifest_output()
            return DeleteManifest(spec, schema, output, self._snapshot_id, self._compression)

    (task,) = table.scan().plan_files()
    positions = list(rows)
    fields: list[ArrowField] = [
        pa.field("file_path", pa.string(), nullable=False, metadata={"PARQUET:field_id": "2147483546"}),
        pa.field("pos", pa.int64(), nullable=False, metadata={"PARQUET:field_id": "2147483545"}),
    ]
    columns = {"file_path": [task.file.file_path] * len(positions), "pos": positions}
    deletes = pa.table(columns, schema=pa.schema(fields))
    path = f"{table.location()}/data/deletes-0.parquet"
    local = Path(path.removeprefix("file://"))
    pq.write_table(deletes, local)
    file = DataFile.from_args(
        content=DataFileContent.POSITION_DELETES,
        file_path=path,
        file_format=FileFormat.PARQUET,
        partition=Record(),
        record_count=len(positions),
        file_size_in_bytes=local.stat().st_size,
    )
    file.spec_id = 0
    with table.transaction() as transaction, Deletes(Operation.DELETE, transaction, PyArrowFileIO()) as snapshot:
        snapshot.append_data_file(file)
