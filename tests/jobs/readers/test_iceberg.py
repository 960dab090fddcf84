"""Iceberg tables: only current rows are read, of the snapshot that the spec names, after any change of the schema."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import polars as pl
import pytest
from iceberg_tables import delete_positions, open_catalog, write_iceberg
from raw_logs import NUMBERS, ROWS, rows_of

from longbatch.jobs.readers.iceberg import current_snapshot
from longbatch.schemas.errors import MachineError, SourceError


@pytest.fixture
def catalog(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    return open_catalog(tmp_path, monkeypatch)


def table_rows(path: str = "prod.db.log", **source: object) -> list[tuple[object, ...]]:
    return sorted(rows_of(path, format="iceberg", **source), key=str)


def test_deleted_rows_do_not_come_back(catalog: Any) -> None:
    table = write_iceberg(catalog, ROWS)
    before = current_snapshot("prod.db.log")
    table.delete("user = 2")
    assert table_rows() == table_rows(table.metadata_location) == [NUMBERS[0], NUMBERS[2]]
    assert table_rows(snapshot=before) == NUMBERS
    assert current_snapshot("prod.db.log") == table.current_snapshot().snapshot_id != before


def test_rows_of_a_position_delete_file_are_dropped(catalog: Any) -> None:
    table = write_iceberg(catalog, ROWS)
    delete_positions(table, [1])
    assert table_rows() == [NUMBERS[0], NUMBERS[2]]


def test_columns_are_read_by_their_ids_after_the_schema_changed(catalog: Any) -> None:
    table = write_iceberg(catalog, ROWS.rename({"item": "old_name"}).with_columns(pl.col("user").cast(pl.Int32)))
    with table.update_schema() as update:
        update.rename_column("old_name", "item")
        update.update_column("user", pyiceberg_long())
    table.append(ROWS.with_columns(user=pl.col("user") + (1 << 40)).select("user", "item", "time", "more").to_arrow())
    rows = table_rows()
    assert [row for row in rows if isinstance(row[0], int) and row[0] < 9] == NUMBERS
    assert len(rows) == 6


def pyiceberg_long() -> Any:
    from pyiceberg.types import LongType

    return LongType()


def test_partitioned_tables_are_read_by_their_tasks(catalog: Any) -> None:
    table = catalog.create_table("db.log", schema=ROWS.to_arrow(compat_level=pl.CompatLevel.oldest()).schema)
    with table.update_spec() as update:
        update.add_identity("more")
        update.add_identity("time")
    table.append(ROWS.to_arrow(compat_level=pl.CompatLevel.oldest()))
    assert table_rows() == NUMBERS


def test_a_column_that_the_table_lacks_is_an_error(catalog: Any) -> None:
    write_iceberg(catalog, ROWS.rename({"item": "items"}))
    with pytest.raises(SourceError, match=r"prod\.db\.log has no column 'item'\. Did you mean 'items'\?"):
        table_rows()


def test_missing_tables_catalogs_and_snapshots_are_errors(catalog: Any) -> None:
    with pytest.raises(SourceError, match=r"there is no Iceberg table 'prod\.db\.nothing' in its catalog"):
        table_rows("prod.db.nothing")
    with pytest.raises(
        SourceError, match=r"cannot read the Iceberg table 'other\.db\.log': .*Write the name of a catalog"
    ):
        table_rows("other.db.log")
    write_iceberg(catalog, ROWS)
    with pytest.raises(SourceError, match=r"has no snapshot 7\. It may have expired: remove `snapshot`"):
        table_rows(snapshot=7)


def test_a_table_without_rows_is_an_error(catalog: Any) -> None:
    catalog.create_table("db.empty", schema=ROWS.to_arrow().schema)
    with pytest.raises(SourceError, match=r"the Iceberg table 'prod\.db\.empty' has no snapshot, so it has no rows"):
        current_snapshot("prod.db.empty")


def test_a_missing_package_is_an_error_with_the_command_to_install_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pyiceberg.catalog", None)
    with pytest.raises(
        MachineError, match=r"needs the package pyiceberg\. Install it: pip install 'longbatch\[iceberg\]'"
    ):
        table_rows("prod.db.never_opened")
