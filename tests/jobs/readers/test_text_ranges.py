"""Large text files are split at rows: the pieces give the rows and row numbers of the complete file."""

from __future__ import annotations

import logging
from pathlib import Path
from unittest.mock import patch

import polars as pl
import pytest
from hypothesis import given
from hypothesis import strategies as st
from raw_logs import spec_of, write

from longbatch.jobs.readers import chunks
from longbatch.jobs.readers.chunks import Chunk, Piece
from longbatch.jobs.readers.sources import plan_pieces, read_piece
from longbatch.schemas.errors import DataError
from longbatch.schemas.spec.build_spec import BuildSpec

NumberedRow = tuple[int, object]
FIELDS = st.sampled_from(["", "1", "22", '""', '"a,b"', '"x\ny"', '"\n\n"', '"a ""b"" c"', '"\r\n"', "é"])
ODD_FIELDS = st.sampled_from(['1"2', '"a"b', '"a"b"c"'])
ENDS = st.sampled_from(["\n", "\n", "\r\n", "\n\n", "\n\r\n"])


def pieces_of(spec: BuildSpec, range_bytes: int) -> list[Piece]:
    with patch.object(chunks, "CHUNK_BYTES", range_bytes):
        return plan_pieces(spec, "log")


def rows_of(spec: BuildSpec, pieces: list[Piece]) -> list[NumberedRow]:
    """Row number and values of every row, and row number and text of every malformed line."""
    rows: list[NumberedRow] = []
    for chunk in (chunk for piece in pieces for chunk in read_piece(spec, piece)):
        numbers = chunk.source_rows(pl.Series(range(chunk.frame.height), dtype=pl.Int64)).to_list()
        lines = list(zip(chunk.malformed_rows or [-1] * len(chunk.malformed), chunk.malformed, strict=True))
        rows += sorted([*zip(numbers, chunk.frame.rows(), strict=True), *lines], key=lambda row: row[0])
    return rows


@st.composite
def csv_texts(draw: st.DrawFn, fields: st.SearchStrategy[str]) -> str:
    header = draw(st.sampled_from(["user,item,time", '"user","item",time']))
    lines = draw(st.lists(st.lists(fields, min_size=2, max_size=4).map(",".join), max_size=30))
    text = "".join(line + draw(ENDS) for line in [header, *lines])
    return draw(st.sampled_from(["", "\ufeff"])) + (text if draw(st.booleans()) else text.rstrip("\r\n"))


@pytest.mark.parametrize("columns", [None, ["user", "item", "time"]])
@given(text=csv_texts(FIELDS | st.just("long" * 9)), range_bytes=st.integers(4, 60))
def test_the_pieces_of_a_csv_file_are_the_file(
    tmp_path_factory: pytest.TempPathFactory, columns: list[str] | None, text: str, range_bytes: int
) -> None:
    spec = spec_of(str(write(tmp_path_factory.mktemp("csv") / "a.csv", text)), columns=columns)
    pieces = pieces_of(spec, range_bytes)
    rows = rows_of(spec, plan_pieces(spec, "log"))
    assert rows_of(spec, pieces) == rows
    if len(pieces) > 1:
        assert sum(piece.rows for piece in pieces) == len(rows)
        assert sum(piece.size for piece in pieces) == len(text.encode())


@given(text=csv_texts(FIELDS | ODD_FIELDS), range_bytes=st.integers(4, 60))
def test_a_file_with_quotes_within_values_is_never_split_wrongly(
    tmp_path_factory: pytest.TempPathFactory, text: str, range_bytes: int
) -> None:
    spec = spec_of(str(write(tmp_path_factory.mktemp("csv") / "a.csv", text)))
    assert rows_of(spec, pieces_of(spec, range_bytes)) == rows_of(spec, plan_pieces(spec, "log"))


@given(
    lines=st.lists(
        st.sampled_from(['{"user": 1, "item": 2, "time": 3}', '{"user": "ü"}', "", "bad", "[1]", " {}", "{}"])
    ),
    end=ENDS,
    range_bytes=st.integers(4, 60),
)
def test_the_pieces_of_a_json_file_are_the_file(
    tmp_path_factory: pytest.TempPathFactory, lines: list[str], end: str, range_bytes: int
) -> None:
    lines = [*lines, '{"user": 1, "item": 2, "time": 3}']
    spec = spec_of(str(write(tmp_path_factory.mktemp("jsonl") / "a.jsonl", end.join(lines))))
    assert sorted(map(repr, rows_and_lines(spec, pieces_of(spec, range_bytes)))) == sorted(
        map(repr, rows_and_lines(spec, plan_pieces(spec, "log")))
    )


def rows_and_lines(spec: BuildSpec, pieces: list[Piece]) -> list[object]:
    """Values of every row, every malformed line, and the number of the rows of each piece."""
    read: list[Chunk] = [chunk for piece in pieces for chunk in read_piece(spec, piece)]
    return [row for chunk in read for row in [*chunk.frame.rows(), *chunk.malformed]]


@pytest.mark.parametrize("suffix", ["csv", "jsonl"])
def test_a_large_file_is_split_and_a_compressed_one_is_not(tmp_path: Path, suffix: str) -> None:
    lines = [f"{n},{n},{n}" if suffix == "csv" else f'{{"user":{n},"item":{n},"time":{n}}}' for n in range(100)]
    text = "\n".join([*(["user,item,time"] if suffix == "csv" else []), *lines])
    spec = spec_of(str(write(tmp_path / f"a.{suffix}", text)))
    pieces = pieces_of(spec, 200)
    assert len(pieces) >= 4
    assert [piece.first_row for piece in pieces] == [
        sum(piece.rows for piece in pieces[:number]) for number in range(len(pieces))
    ]
    assert not any(piece.is_stream for piece in pieces)
    packed = spec_of(str(write(tmp_path / f"a.{suffix}.gz", text)))
    assert [(piece.last, piece.is_stream) for piece in pieces_of(packed, 200)] == [(0, True)]


@pytest.mark.parametrize("text", ['user,item,time\n1,1"2,3\n', "user,item,time\n1,2,3\r4,5,6\n"])
def test_a_file_with_ambiguous_quotes_or_line_ends_is_one_piece(tmp_path: Path, text: str) -> None:
    spec = spec_of(str(write(tmp_path / "a.csv", text * 20)))
    assert len(pieces_of(spec, 30)) == 1


def test_a_file_with_synthetic_times_is_one_piece_because_malformed_lines_have_no_time(tmp_path: Path) -> None:
    synthetic = {"column": "made", "start": "2020-01-01T00:00:00Z", "per_file": "1d"}
    spec = spec_of(str(write(tmp_path / "a.csv", "user,item,time\n" + "1,2,3\n" * 50)), synthetic_time=synthetic)
    assert len(pieces_of(spec, 30)) == 1


@pytest.mark.parametrize("range_bytes", [20, 1 << 20])
def test_a_quote_that_is_never_closed_is_an_error_with_its_row(tmp_path: Path, range_bytes: int) -> None:
    text = 'user,item,time,note\n1,2,3,a\n1,2,3,"b ""c"""\n1,2,3,"12 inch\n' + "1,2,3,d\n" * 9
    spec = spec_of(str(write(tmp_path / "a.csv", text)))
    with pytest.raises(DataError, match=r"a\.csv: a quoted value in row 2 does not end, so the rest of the file"):
        rows_of(spec, pieces_of(spec, range_bytes))
    assert len(rows_of(*_unquoted(tmp_path))) == 12


@pytest.mark.parametrize("range_bytes", [40, 1 << 20])
def test_lines_inside_quoted_values_are_reported(
    tmp_path: Path, range_bytes: int, caplog: pytest.LogCaptureFixture
) -> None:
    lines = ["user,item,time,note", '1,2,3,"12 inch', "1,2,3,a", "1,2,3,a", '1,2,3,b"', "", "5,6,7,c"]
    spec = spec_of(str(write(tmp_path / "a.csv", "\r\n".join(lines))))
    with caplog.at_level(logging.WARNING):
        rows = rows_of(spec, pieces_of(spec, range_bytes))
    assert len(rows) == 2
    assert "a.csv: 3 lines from row 0 on are inside quoted values. If they should be rows" in caplog.text


def _unquoted(tmp_path: Path) -> tuple[BuildSpec, list[Piece]]:
    spec = spec_of(str(tmp_path / "a.csv"), quote="")
    return spec, plan_pieces(spec, "log")
