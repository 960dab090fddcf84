"""Reader of CSV files: strings, malformed lines, and row numbers of the file."""

from __future__ import annotations

from pathlib import Path

import polars as pl
import pytest
from raw_logs import CSV, STRINGS, chunks_of, rows_of, write

from longbatch.jobs.readers import chunks
from longbatch.schemas.errors import DataError


@pytest.mark.parametrize("name", ["log.csv", "log.csv.gz"])
def test_csv_values_are_strings(tmp_path: Path, name: str) -> None:
    assert rows_of(write(tmp_path / name, CSV)) == STRINGS


@pytest.mark.parametrize("name", ["log.tsv", "log.tsv.gz"])
def test_tsv_values_are_strings(tmp_path: Path, name: str) -> None:
    assert rows_of(write(tmp_path / name, CSV.replace(",", "\t"))) == STRINGS


def test_a_csv_file_without_a_header_takes_its_columns_from_the_spec(tmp_path: Path) -> None:
    path = write(tmp_path / "log.csv", CSV.partition("\n")[2])
    assert rows_of(path, columns=["user", "item", "time", "more"]) == STRINGS


def test_quotes_can_enclose_values_or_be_ordinary_characters(tmp_path: Path) -> None:
    assert rows_of(write(tmp_path / "a.csv", 'user,item,time\n"1","1,1","a ""b"""\n')) == [("1", 'a "b"', "1,1")]
    assert rows_of(write(tmp_path / "b.csv", 'user,item,time\n"1,5,6\n'), quote="") == [('"1', "6", "5")]
    assert rows_of(write(tmp_path / "c.csv", "user,item,time\n'1',5,6\n"), quote="'") == [("1", "6", "5")]


def test_an_empty_value_is_null_and_a_quoted_empty_value_is_not(tmp_path: Path) -> None:
    assert rows_of(write(tmp_path / "a.csv", 'user,item,time\n,"",NA\n')) == [(None, "NA", "")]


def test_a_byte_order_mark_and_windows_line_ends_are_dropped(tmp_path: Path) -> None:
    assert rows_of(write(tmp_path / "a.csv", b"\xef\xbb\xbf" + CSV.replace("\n", "\r\n").encode())) == STRINGS


def test_lines_with_a_wrong_number_of_fields_are_malformed(tmp_path: Path) -> None:
    path = write(tmp_path / "a.csv", "user,item,time\n1,11,100\n2,12\n3,13,300,4\n5,15,500\n")
    (chunk,) = chunks_of(path)
    assert chunk.frame["user"].to_list() == ["1", "5"]
    assert chunk.malformed == ("2,12", "3,13,300,4")


@pytest.mark.parametrize("header", [True, False])
@pytest.mark.parametrize("block", [30, 64, 200, 1 << 20])
def test_row_numbers_count_the_malformed_lines_of_the_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, header: bool, block: int
) -> None:
    monkeypatch.setattr(chunks, "CHUNK_BYTES", block)
    bad = {0, 7, 8, 9, 30, 31, 32, 33, 34, 35, 36, 37, 50, 59}
    lines = [f"{n},{n}" if n in bad else f'"{n}",{n},"a\n{n}"' for n in range(60)]
    text = "\n\n".join([*(["user,item,time"] if header else []), *lines])
    found = chunks_of(write(tmp_path / "a.csv", text), columns=None if header else ["user", "item", "time"])
    numbered = [str(row) for chunk in found for row in chunk.source_rows(pl.Series(range(chunk.frame.height)))]
    assert numbered == [user for chunk in found for user in chunk.frame["user"]]
    malformed = {text: row for chunk in found for row, text in zip(chunk.malformed_rows, chunk.malformed, strict=True)}
    assert malformed == {f"{row},{row}": row for row in bad}
    assert len(found) > 5 or block > 100


def test_a_file_of_malformed_lines_only_is_one_chunk(tmp_path: Path) -> None:
    (chunk,) = chunks_of(write(tmp_path / "a.csv", "user,item,time\n1\n"))
    assert (chunk.frame.height, chunk.malformed) == (0, ("1",))


def test_a_file_with_only_a_header_has_no_rows(tmp_path: Path) -> None:
    assert rows_of(write(tmp_path / "a.csv", "user,item,time\n")) == []


def test_a_quoted_value_can_contain_line_breaks_at_the_end_of_a_block(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    text = "user,item,time\n" + "".join(f'"u\n{n}",{n},"{n}\n\n"\n' for n in range(60))
    for size in (64, 100, 1 << 20):
        monkeypatch.setattr(chunks, "CHUNK_BYTES", size)
        found = chunks_of(write(tmp_path / "a.csv", text))
        assert [user for chunk in found for user in chunk.frame["user"]] == [f"u\n{n}" for n in range(60)]
        assert not any(chunk.malformed for chunk in found)


def test_an_empty_file_has_no_rows(tmp_path: Path) -> None:
    assert rows_of(write(tmp_path / "a.csv", "")) == []


def test_a_parquet_file_with_the_suffix_of_csv_is_named_as_such(tmp_path: Path) -> None:
    pl.DataFrame({"user": [1]}).write_parquet(tmp_path / "a.csv")
    with pytest.raises(DataError, match=r"a\.csv is a Parquet file, not CSV\. Set the source's format to \"parquet\""):
        chunks_of(tmp_path / "a.csv")
