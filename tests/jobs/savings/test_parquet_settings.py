"""Parquet settings: dictionaries, statistics, pages."""

from __future__ import annotations

from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from measured_datasets import layouts_by_name

from longbatch.jobs.savings.parquet_settings import (
    STORAGES,
    ParquetSettings,
    Storage,
    choose_settings,
    read_tables,
    write_tables,
)
from longbatch.schemas.format.dataset import Dataset


def test_a_column_gets_a_dictionary_where_that_makes_it_smaller(tmp_path: Path) -> None:
    few, many = [n % 2 * 10**15 for n in range(50_000)], list(range(50_000))
    table = pa.table({"few": [few], "many": [many], "flat": [1]})
    settings = choose_settings([table], "snappy")
    assert settings.dictionary == ("few.list.element",)
    (path,) = write_tables([table], Storage("Parquet", "snappy"), settings, tmp_path)
    columns = [pq.read_metadata(path).row_group(0).column(index) for index in range(3)]
    assert ["RLE_DICTIONARY" in column.encodings for column in columns] == [True, False, False]


def test_statistics_are_kept_where_a_reader_can_skip_by_them(tmp_path: Path) -> None:
    (path,) = write_tables(
        [pa.table({"list": [[1, 2]], "flat": [1]})], Storage("Parquet", "zstd"), ParquetSettings(), tmp_path
    )
    columns = [pq.read_metadata(path).row_group(0).column(index) for index in range(2)]
    assert [column.is_stats_set for column in columns] == [False, True]


def test_the_nulls_of_copied_histories_cost_almost_nothing(tmp_path: Path) -> None:
    history = [None if n * n % 7 < 2 else n * 7919 % 1000 for n in range(5_000)]
    tables = [pa.table({"history": [history] * copies}) for copies in (1, 100)]
    sizes = [
        write_tables([table], Storage("Parquet", "zstd"), ParquetSettings(), tmp_path)[0].stat().st_size
        for table in tables
    ]
    assert sizes[1] < 2 * sizes[0]


def test_settings_have_a_title_in_words() -> None:
    assert ParquetSettings().title == "no dictionaries"
    assert ParquetSettings(("tab", "history_action.list.element")).title == "dictionaries for tab, history_action"


@pytest.mark.parametrize("storage", STORAGES, ids=lambda s: s.title)
def test_every_format_reads_back_what_it_wrote(larger: Dataset, tmp_path: Path, storage: Storage) -> None:
    for layout in layouts_by_name(larger).values():
        tables = layout.tables(layout.rows_starting_in(0, layout.bytes))
        for chosen in (ParquetSettings(), choose_settings(tables, "zstd")):
            tables_read = read_tables(write_tables(tables, storage, chosen, tmp_path), storage)
            assert all(f.cast(t.schema).equals(t) for f, t in zip(tables_read, tables, strict=True))
