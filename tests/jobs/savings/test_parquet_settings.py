from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from longbatch.jobs.savings.parquet_settings import ParquetSettings, Storage, choose_settings, write


def test_a_column_gets_a_dictionary_where_that_makes_it_smaller(tmp_path: Path) -> None:
    few, many = [n % 2 * 10**15 for n in range(50_000)], list(range(50_000))
    table = pa.table({"few": [few], "many": [many], "flat": [1]})
    settings = choose_settings([table], "snappy")
    assert settings.dictionary == ("few.list.element",)
    (path,) = write([table], Storage("Parquet", "snappy"), settings, tmp_path)
    columns = [pq.read_metadata(path).row_group(0).column(place) for place in range(3)]
    assert ["RLE_DICTIONARY" in column.encodings for column in columns] == [True, False, False]


def test_statistics_are_kept_where_a_reader_can_skip_by_them(tmp_path: Path) -> None:
    (path,) = write(
        [pa.table({"list": [[1, 2]], "flat": [1]})], Storage("Parquet", "zstd"), ParquetSettings(), tmp_path
    )
    columns = [pq.read_metadata(path).row_group(0).column(place) for place in range(2)]
    assert [column.is_stats_set for column in columns] == [False, True]


def test_the_nulls_of_copied_histories_cost_next_to_nothing(tmp_path: Path) -> None:
    history = [None if n * n % 7 < 2 else n * 7919 % 1000 for n in range(5_000)]
    tables = [pa.table({"history": [history] * copies}) for copies in (1, 100)]
    sizes = [
        write([table], Storage("Parquet", "zstd"), ParquetSettings(), tmp_path)[0].stat().st_size for table in tables
    ]
    assert sizes[1] < 2 * sizes[0]


def test_settings_say_what_they_are() -> None:
    assert ParquetSettings().title == "no dictionaries"
    assert ParquetSettings(("tab", "history_action.list.element")).title == "dictionaries for tab, history_action"
