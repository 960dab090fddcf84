"""Files whose columns differ: columns that some lack, or have in another type."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import polars as pl
import pytest

from longbatch.jobs.readers.file_columns import decode_constants, encode_constants
from longbatch.jobs.readers.sources import plan_pieces, read_piece
from longbatch.schemas.errors import SourceError
from longbatch.schemas.spec.build_spec import BuildSpec

BASE = pl.DataFrame({"user": [1, 2], "item": [11, 12], "time": [100, 200]})


def drifting_spec(folder: Path, features: dict[str, Any], where: str | None = None, **source: Any) -> BuildSpec:
    both = {"source": "log", "user_id": "user", "item_id": "item"}
    time = {"column": "time", "unit": "s"}
    return BuildSpec.model_validate(
        {
            "sources": {"log": {"path": str(folder), "format": "parquet", **source}},
            "history": {**both, "event_time": time, "features": features, "where": where},
            "requests": {**both, "request_time": time},
        }
    )


def write_days(folder: Path, **newer: pl.Series) -> None:
    BASE.write_parquet(folder / "day1.parquet")
    BASE.with_columns(**newer).write_parquet(folder / "day2.parquet")


def read(spec: BuildSpec) -> list[pl.DataFrame]:
    return [chunk.frame for piece in plan_pieces(spec, "log") for chunk in read_piece(spec, piece)]


def test_a_column_with_a_default_may_be_missing_from_older_files(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    write_days(tmp_path, dwell=pl.Series([5, 6], dtype=pl.Int16))
    with caplog.at_level("WARNING"):
        older, newer = read(drifting_spec(tmp_path, {"dwell": {"type": "int32", "default": 7}}))
    assert older["dwell"].to_list() == [None, None]
    assert older.schema == newer.schema
    assert "1 of 2 files have no column 'dwell'; it is null in their rows" in caplog.text


@pytest.mark.parametrize("suffix", ["csv", "arrow"])
def test_csv_and_arrow_files_may_lack_it_too(tmp_path: Path, suffix: str) -> None:
    for day, frame in (("day1", BASE), ("day2", BASE.with_columns(dwell=5))):
        path = tmp_path / f"{day}.{suffix}"
        frame.write_csv(path) if suffix == "csv" else frame.write_ipc(path)
    spec = drifting_spec(tmp_path, {"dwell": {"type": "int32", "default": 7}}, format=suffix)
    older, newer = read(spec)
    assert older["dwell"].null_count() == 2
    assert older.schema == newer.schema


def test_a_column_without_a_default_is_null_if_the_spec_allows_it(tmp_path: Path) -> None:
    write_days(tmp_path, dwell=pl.Series([5, 6]))
    message = (
        r"day1\.parquet has no column 'dwell'\. .*day2\.parquet has 'dwell'\. Give what reads it a default, or set "
        r'sources\.log\.missing_columns = "null"'
    )
    with pytest.raises(SourceError, match=message):
        read(drifting_spec(tmp_path, {"dwell": "int32"}))
    assert read(drifting_spec(tmp_path, {"dwell": "int32"}, missing_columns="null"))[0]["dwell"].null_count() == 2


def test_a_filter_on_a_missing_column_would_drop_all_rows_and_needs_the_key_too(tmp_path: Path) -> None:
    write_days(tmp_path, dwell=pl.Series([5, 6]))
    features = {"dwell": {"type": "int32", "default": 7}}
    with pytest.raises(SourceError, match=r"has no column 'dwell'"):
        read(drifting_spec(tmp_path, features, where="dwell > 0"))
    assert len(read(drifting_spec(tmp_path, features, where="dwell > 0", missing_columns="null"))) == 2


def test_ids_and_times_are_never_missing(tmp_path: Path) -> None:
    BASE.write_parquet(tmp_path / "a.parquet")
    BASE.drop("time").write_parquet(tmp_path / "b.parquet")
    message = r"b\.parquet has no column 'time'\. .*a\.parquet has 'time'\. Every row needs it, so leave out the files"
    with pytest.raises(SourceError, match=message):
        read(drifting_spec(tmp_path, {}, missing_columns="null"))


def test_a_column_that_no_file_has_is_an_error_that_names_the_most_similar(tmp_path: Path) -> None:
    write_days(tmp_path, dwell_ms=pl.Series([5, 6]))
    BASE.with_columns(dwell_ms=1).write_parquet(tmp_path / "day1.parquet")
    with pytest.raises(SourceError, match=r"has no column 'dwel_ms'\. Did you mean 'dwell_ms'\? Its columns are user"):
        read(drifting_spec(tmp_path, {"x": {"column": "dwel_ms", "type": "int32", "default": 0}}))


def test_integers_of_one_file_and_strings_of_another_are_the_same_ids(tmp_path: Path) -> None:
    BASE.with_columns(city=pl.Series([1, 2])).write_parquet(tmp_path / "day1.parquet")
    BASE.with_columns(city=pl.Series(["2", "x"])).write_parquet(tmp_path / "day2.parquet")
    BASE.with_columns(city=pl.Series([None, None], dtype=pl.Null)).write_parquet(tmp_path / "day3.parquet")
    frames = read(drifting_spec(tmp_path, {"city": "id"}))
    assert [frame["city"].to_list() for frame in frames] == [["1", "2"], ["2", "x"], [None, None]]
    assert {frame.schema["city"] for frame in frames} == {pl.String()}


def test_numbers_keep_the_width_of_their_file(tmp_path: Path) -> None:
    for day, dtype in enumerate([pl.Int32, pl.Int64, pl.Float64]):
        BASE.with_columns(n=pl.Series([1, 2], dtype=dtype)).write_parquet(tmp_path / f"day{day}.parquet")
    assert [frame["n"].to_list() for frame in read(drifting_spec(tmp_path, {"n": "int64"}))] == [[1, 2]] * 3


def test_constants_survive_their_encoding() -> None:
    row = pl.DataFrame({"a": [None], "b": ["ü"], "c": [[1, 2]]}, schema_overrides={"a": pl.List(pl.Int8)})
    assert decode_constants(encode_constants(row)).equals(row)
    assert decode_constants(encode_constants(row)).schema == row.schema
    assert encode_constants(pl.DataFrame()) == ""
    assert decode_constants("").width == 0
