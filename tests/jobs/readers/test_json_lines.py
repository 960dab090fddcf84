"""Reader of JSON lines: strings, lists and malformed lines."""

from __future__ import annotations

import json
import logging
from pathlib import Path

import pytest
from raw_logs import COLUMNS, JSONL, STRINGS, chunks_of, rows_of, spec_of, write

from longbatch.jobs.readers import chunks, json_lines
from longbatch.jobs.readers.sources import plan_pieces, read_piece
from longbatch.schemas.errors import SourceError
from longbatch.schemas.spec.build_spec import BuildSpec


@pytest.mark.parametrize("name", ["log.jsonl", "log.ndjson.gz", "log.json"])
def test_json_values_are_strings(tmp_path: Path, name: str) -> None:
    assert rows_of(write(tmp_path / name, JSONL)) == STRINGS


def test_a_byte_order_mark_is_dropped(tmp_path: Path) -> None:
    assert rows_of(write(tmp_path / "a.jsonl", b"\xef\xbb\xbf" + JSONL)) == STRINGS


@pytest.mark.parametrize(
    "line",
    [
        b"nonsense",
        b"[1, 2]",
        b"null",
        b'{"user": 1',
        b'{"user": 1} {"user": 2}',
        b'{"user": NaN, "item": 1, "time": 1}',
        b'{"user": 1e400}',
        b'{"user": "\xff"}',
    ],
)
def test_lines_that_are_not_objects_are_malformed(tmp_path: Path, line: bytes) -> None:
    path = write(tmp_path / "a.jsonl", JSONL.replace(b"\n", b"\n" + line + b"\n\n", 1))
    (chunk,) = chunks_of(path)
    assert chunk.frame.select(COLUMNS).rows() == STRINGS
    assert chunk.malformed == (line.decode(errors="replace"),)


def test_values_keep_their_digits_and_missing_keys_are_null(tmp_path: Path) -> None:
    lines = [
        '{"user": true, "item": 1.5}',
        '{"user": 12345678901234567890, "item": null, "time": "x"}',
        '{"user": 9007199254740993}',
    ]
    expected = [("true", None, "1.5"), ("12345678901234567890", "x", None), ("9007199254740993", None, None)]
    assert rows_of(write(tmp_path / "a.jsonl", "\n".join(lines))) == expected


def test_lists_to_explode_or_to_search_stay_lists(tmp_path: Path) -> None:
    lines = [{"user": 1, "item": [1, 2], "time": 5, "clicked": [2]}, {"user": 2, "item": 7, "time": 5, "clicked": []}]
    path = write(tmp_path / "a.jsonl", "".join(json.dumps(line) + "\n" for line in lines))
    spec = spec_of(str(path), explode={"lists": "item"}).model_dump()
    spec["requests"]["labels"] = {"click": {"contained_in": "clicked"}}
    read = BuildSpec.model_validate(spec)
    (chunk,) = read_piece(read, plan_pieces(read, "log")[0])
    assert chunk.frame["item"].to_list() == [["1", "2"]]
    assert chunk.frame["clicked"].to_list() == [["2"]]
    assert json.loads(chunk.malformed[0])["item"] == 7, "where a list is due, a number is no row"


def test_a_line_longer_than_a_block_is_not_split(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(chunks, "CHUNK_BYTES", 16)
    path = write(tmp_path / "a.jsonl", f'{{"user":"{"u" * 100}","item":1,"time":1}}\n{{"user":2,"item":1,"time":1}}')
    assert [len(str(row[0])) for row in rows_of(path)] == [100, 1]


def test_a_key_that_no_line_has_is_an_error_that_names_the_most_similar(tmp_path: Path) -> None:
    line = JSONL.replace(b'"time"', b'"times"')
    (tmp_path / "a.jsonl").write_bytes(line)
    (tmp_path / "b.jsonl").write_bytes(b"")
    message = r"source log: no line of .*a\.jsonl or another file has a key 'time'\. Did you mean 'times'\? The"
    with pytest.raises(SourceError, match=message):
        rows_of(f"{tmp_path}/*.jsonl")
    (tmp_path / "b.jsonl").write_bytes(JSONL)
    assert len(rows_of(f"{tmp_path}/*.jsonl")) == 6


def test_a_key_that_may_come_later_in_a_large_file_is_only_reported(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(json_lines, "HEAD_BYTES", 64)
    write(tmp_path / "a.jsonl", '{"user": 1, "item": 2}\n' * 9 + '{"user": 1, "item": 2, "time": 3}\n')
    with caplog.at_level(logging.WARNING):
        assert len(rows_of(tmp_path / "a.jsonl")) == 10
    assert "source log: no key 'time' at the start of any file; lines without it have nulls" in caplog.text
