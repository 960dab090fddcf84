"""Delta tables: only current rows are read, of the version that the spec names."""

from __future__ import annotations

import json
import sys
from datetime import datetime
from pathlib import Path

import deltalake
import polars as pl
import pyarrow.parquet as pq
import pytest
from delta_tables import delete_with_vector, write_delta
from raw_logs import NUMBERS, ROWS, chunks_of, rows_of, spec_of

from longbatch.jobs.readers import chunks
from longbatch.jobs.readers.delta import current_version, list_delta
from longbatch.jobs.readers.sources import plan_pieces
from longbatch.schemas.errors import MachineError, SourceError


def table_rows(path: Path, **source: object) -> list[tuple[object, ...]]:
    return sorted(rows_of(path, format="delta", **source))


def only_file(path: Path) -> str:
    return Path(deltalake.DeltaTable(str(path)).file_uris()[0]).name


def test_deleted_rows_do_not_come_back(tmp_path: Path) -> None:
    write_delta(tmp_path, ROWS)
    deltalake.DeltaTable(str(tmp_path)).delete("user = 2")
    assert table_rows(tmp_path) == [NUMBERS[0], NUMBERS[2]]
    assert current_version(str(tmp_path)) == 1
    assert table_rows(tmp_path, version=0) == NUMBERS


def test_rows_of_a_deletion_vector_are_dropped_and_the_others_keep_their_numbers(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    log = pl.DataFrame({"user": range(10), "item": range(10), "time": range(10)})
    write_delta(tmp_path, log)
    delete_with_vector(tmp_path, only_file(tmp_path), [0, 3, 4, 9])
    (chunk,) = chunks_of(tmp_path, format="delta")
    assert chunk.frame["user"].to_list() == [1, 2, 5, 6, 7, 8]
    assert chunk.source_rows(pl.Series(range(6))).to_list() == [1, 2, 5, 6, 7, 8]
    assert table_rows(tmp_path, version=0) == log.select("user", "time", "item").rows()
    monkeypatch.setattr(chunks, "CHUNK_ROWS", 2)
    parts = chunks_of(tmp_path, format="delta")
    numbers = [row for chunk in parts for row in chunk.source_rows(pl.Series(range(chunk.frame.height))).to_list()]
    assert len(parts) == 3
    assert numbers == [row for chunk in parts for row in chunk.frame["user"]] == [1, 2, 5, 6, 7, 8]


def test_partition_columns_come_from_the_log_with_their_types(tmp_path: Path) -> None:
    log = ROWS.with_columns(user=pl.Series(["São Paulo", "a/b=c%", None]))
    write_delta(tmp_path, log, partition_by=["user", "time"])
    assert sorted(rows_of(tmp_path, format="delta"), key=str) == sorted(
        log.select("user", "time", "item").rows(), key=str
    )
    files = list_delta(str(tmp_path), None, ["user", "time"])
    assert files.partitions.schema == {"user": pl.String(), "time": pl.Int64()}
    assert all(Path(file.path).is_file() for file in files.files)


def test_files_that_a_filter_excludes_by_the_partition_are_not_read(tmp_path: Path) -> None:
    write_delta(tmp_path, ROWS, partition_by=["time"])
    document = spec_of(str(tmp_path), format="delta").model_dump()
    document["history"]["where"] = document["requests"]["where"] = "time >= 200 AND item < 99"
    spec = type(spec_of("x")).model_validate(document)
    assert len(plan_pieces(spec, "log")) == 2


def test_a_column_that_was_added_later_is_null_in_older_files(tmp_path: Path) -> None:
    write_delta(tmp_path, ROWS.drop("item"))
    write_delta(tmp_path, ROWS.with_columns(user=pl.col("user") + 10), schema_mode="merge")
    assert table_rows(tmp_path)[0] == (1, 100, None)
    assert table_rows(tmp_path)[-1] == (13, 300, 13)
    with pytest.raises(SourceError, match=r"source log: .* has no column 'item'\. Its columns are user, time, more"):
        table_rows(tmp_path, version=0)


def test_timestamps_that_spark_writes_without_a_time_zone_are_utc(tmp_path: Path) -> None:
    times = pl.Series([datetime(2023, 11, 14, 22, 13, n) for n in range(3)]).dt.replace_time_zone("UTC")
    write_delta(tmp_path, ROWS.with_columns(time=times))
    rows = pq.read_table(tmp_path / only_file(tmp_path))
    pq.write_table(rows, tmp_path / only_file(tmp_path), use_deprecated_int96_timestamps=True)
    (chunk,) = chunks_of(tmp_path, format="delta")
    assert chunk.frame["time"].equals(times.alias("time"))
    assert chunk.frame.schema["time"] == pl.Datetime("us", "UTC")


def test_a_missing_table_or_version_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(SourceError, match=r"source log: cannot read the Delta table '.*nowhere': "):
        rows_of(tmp_path / "nowhere", format="delta")
    write_delta(tmp_path, ROWS)
    with pytest.raises(SourceError, match=r"cannot read version 7 of the Delta table '.*': "):
        rows_of(tmp_path, format="delta", version=7)


def test_features_that_change_how_files_are_read_are_refused(tmp_path: Path) -> None:
    write_delta(tmp_path, ROWS)
    commit = tmp_path / "_delta_log" / f"{0:020}.json"
    actions = [json.loads(line) for line in commit.read_text().splitlines()]
    for action in actions:
        if "metaData" in action:
            action["metaData"]["configuration"] = {"delta.columnMapping.mode": "name"}
            schema = json.loads(action["metaData"]["schemaString"])
            for number, field in enumerate(schema["fields"]):
                field["metadata"] = {"delta.columnMapping.id": number, "delta.columnMapping.physicalName": f"c{number}"}
            action["metaData"]["schemaString"] = json.dumps(schema)
        if "protocol" in action:
            action["protocol"] = {"minReaderVersion": 2, "minWriterVersion": 5}
    commit.write_text("\n".join(map(json.dumps, actions)))
    message = r"has column mapping \(mode 'name'\), which longbatch cannot read\. Build on Spark from the table's name"
    with pytest.raises(SourceError, match=message):
        rows_of(tmp_path, format="delta")


def test_a_missing_package_is_an_error_with_the_command_to_install_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "deltalake", None)
    with pytest.raises(
        MachineError, match=r"needs the package deltalake\. Install it: pip install 'longbatch\[delta\]'"
    ):
        rows_of(tmp_path, format="delta")
