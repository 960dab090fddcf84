"""Reading raw logs: every format says the same of the same rows, and a file that cannot be read is named."""

from __future__ import annotations

import gzip
import json
from pathlib import Path
from typing import Any

import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from longbatch.jobs.readers import sources
from longbatch.jobs.readers.sources import Chunk, filesystem_of, list_files, plain_types, plan_pieces, read_piece
from longbatch.schemas.errors import DataError, SourceError
from longbatch.schemas.spec.build_spec import BuildSpec

ROWS = pl.DataFrame({"user": [1, 2, 3], "item": [11, 12, 13], "time": [100, 200, 300], "more": ["a", "b", "c"]})
NEEDED = ["user", "time", "item"]


def spec_of(path: Any, **source: Any) -> BuildSpec:
    both = {"source": "log", "user_id": "user", "item_id": "item"}
    time = {"column": "time", "unit": "s"}
    return BuildSpec.model_validate(
        {
            "sources": {"log": {"path": path, **source}},
            "history": {**both, "event_time": time},
            "requests": {**both, "request_time": time, **source.pop("requests", {})},
        }
    )


def chunks(path: Any, **source: Any) -> list[Chunk]:
    spec = spec_of(str(path) if isinstance(path, Path) else path, **source)
    return [chunk for piece in plan_pieces(spec, "log") for chunk in read_piece(spec, piece)]


def rows(path: Any, **source: Any) -> list[tuple[Any, ...]]:
    return [row for chunk in chunks(path, **source) for row in chunk.frame.select(NEEDED).rows()]


def write(path: Path, text: str | bytes) -> Path:
    data = text.encode() if isinstance(text, str) else text
    path.write_bytes(gzip.compress(data, mtime=0) if path.suffix == ".gz" else data)
    return path


NUMBERS = [(1, 100, 11), (2, 200, 12), (3, 300, 13)]
TEXTS = [("1", "100", "11"), ("2", "200", "12"), ("3", "300", "13")]
CSV = "user,item,time,more\n1,11,100,a\n2,12,200,b\n3,13,300,c\n"
JSONL = ROWS.write_ndjson().encode()


@pytest.mark.parametrize("codec", ["zstd", "snappy", "uncompressed"])
def test_parquet(tmp_path: Path, codec: Any) -> None:
    ROWS.write_parquet(tmp_path / "log.parquet", compression=codec)
    assert rows(tmp_path / "log.parquet") == NUMBERS


@pytest.mark.parametrize("name", ["log.arrow", "log.feather", "log.ipc"])
@pytest.mark.parametrize("codec", ["zstd", "lz4", "uncompressed"])
def test_arrow(tmp_path: Path, name: str, codec: Any) -> None:
    ROWS.write_ipc(tmp_path / name, compression=codec)
    assert rows(tmp_path / name) == NUMBERS


@pytest.mark.parametrize("name", ["log.csv", "log.csv.gz"])
def test_csv_is_text_until_the_spec_types_it(tmp_path: Path, name: str) -> None:
    assert rows(write(tmp_path / name, CSV)) == TEXTS


@pytest.mark.parametrize("name", ["log.tsv", "log.tsv.gz"])
def test_tsv(tmp_path: Path, name: str) -> None:
    assert rows(write(tmp_path / name, CSV.replace(",", "\t"))) == TEXTS


@pytest.mark.parametrize("name", ["log.jsonl", "log.ndjson.gz", "log.json"])
def test_json_lines(tmp_path: Path, name: str) -> None:
    assert rows(write(tmp_path / name, JSONL)) == TEXTS


def test_a_format_may_be_declared(tmp_path: Path) -> None:
    assert rows(write(tmp_path / "log.txt", CSV.replace(",", ";")), format="csv", separator=";") == TEXTS


def test_only_the_needed_columns_are_read(tmp_path: Path) -> None:
    ROWS.write_parquet(tmp_path / "log.parquet")
    ROWS.write_ipc(tmp_path / "log.arrow")
    paths = [
        tmp_path / "log.parquet",
        tmp_path / "log.arrow",
        write(tmp_path / "a.csv", CSV),
        write(tmp_path / "a.jsonl", JSONL),
    ]
    for path in paths:
        (chunk,) = chunks(path)
        assert chunk.frame.columns == NEEDED


def test_csv_without_a_header_is_told_its_columns(tmp_path: Path) -> None:
    path = write(tmp_path / "log.csv", CSV.partition("\n")[2])
    assert rows(path, columns=["user", "item", "time", "more"]) == TEXTS


def test_csv_values_may_be_quoted_or_quotes_may_be_plain(tmp_path: Path) -> None:
    assert rows(write(tmp_path / "a.csv", 'user,item,time\n"1","1,1","a ""b"""\n')) == [("1", 'a "b"', "1,1")]
    assert rows(write(tmp_path / "b.csv", 'user,item,time\n"1,5,6\n'), quote="") == [('"1', "6", "5")]
    assert rows(write(tmp_path / "c.csv", "user,item,time\n'1',5,6\n"), quote="'") == [("1", "6", "5")]


def test_an_empty_csv_value_is_null_and_a_quoted_one_is_not(tmp_path: Path) -> None:
    assert rows(write(tmp_path / "a.csv", 'user,item,time\n,"",NA\n')) == [(None, "NA", "")]


def test_csv_with_a_byte_order_mark_and_windows_lines(tmp_path: Path) -> None:
    assert rows(write(tmp_path / "a.csv", b"\xef\xbb\xbf" + CSV.replace("\n", "\r\n").encode())) == TEXTS


def test_json_with_a_byte_order_mark(tmp_path: Path) -> None:
    assert rows(write(tmp_path / "a.jsonl", b"\xef\xbb\xbf" + JSONL)) == TEXTS


def test_csv_lines_that_are_no_rows_are_kept_as_malformed(tmp_path: Path) -> None:
    path = write(tmp_path / "a.csv", "user,item,time\n1,11,100\n2,12\n3,13,300,4\n5,15,500\n")
    (chunk,) = chunks(path)
    assert chunk.frame["user"].to_list() == ["1", "5"]
    assert chunk.malformed == ("2,12", "3,13,300,4")


@pytest.mark.parametrize("header", [True, False])
@pytest.mark.parametrize("block", [30, 64, 200, 1 << 20])
def test_csv_rows_are_numbered_as_they_stand_in_the_file_malformed_lines_counted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, header: bool, block: int
) -> None:
    monkeypatch.setattr(sources, "CHUNK_BYTES", block)
    bad = {0, 7, 8, 9, 30, 31, 32, 33, 34, 35, 36, 37, 50, 59}
    lines = [f"{n},{n}" if n in bad else f'"{n}",{n},"a\n{n}"' for n in range(60)]
    text = "\n\n".join([*(["user,item,time"] if header else []), *lines])
    found = chunks(write(tmp_path / "a.csv", text), columns=None if header else ["user", "item", "time"])
    numbered = [str(row) for chunk in found for row in chunk.source_rows(pl.Series(range(chunk.frame.height)))]
    assert numbered == [user for chunk in found for user in chunk.frame["user"]]
    malformed = {text: row for chunk in found for row, text in zip(chunk.malformed_rows, chunk.malformed, strict=True)}
    assert malformed == {f"{row},{row}": row for row in bad}
    assert len(found) > 5 or block > 100


def test_csv_of_malformed_lines_only(tmp_path: Path) -> None:
    (chunk,) = chunks(write(tmp_path / "a.csv", "user,item,time\n1\n"))
    assert (chunk.frame.height, chunk.malformed) == (0, ("1",))


def test_csv_of_a_header_only_has_no_rows(tmp_path: Path) -> None:
    assert rows(write(tmp_path / "a.csv", "user,item,time\n")) == []


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
def test_json_lines_that_are_no_objects_are_kept_as_malformed(tmp_path: Path, line: bytes) -> None:
    path = write(tmp_path / "a.jsonl", JSONL.replace(b"\n", b"\n" + line + b"\n\n", 1))
    (chunk,) = chunks(path)
    assert chunk.frame.select(NEEDED).rows() == TEXTS
    assert chunk.malformed == (line.decode(errors="replace"),)


def test_json_values_are_text_and_missing_keys_are_null(tmp_path: Path) -> None:
    lines = [
        '{"user": true, "item": 1.5}',
        '{"user": 12345678901234567890, "item": null, "time": "x"}',
        '{"user": 9007199254740993}',
    ]
    expected = [("true", None, "1.5"), ("12345678901234567890", "x", None), ("9007199254740993", None, None)]
    assert rows(write(tmp_path / "a.jsonl", "\n".join(lines))) == expected


def test_json_lists_to_explode_or_to_search_stay_lists(tmp_path: Path) -> None:
    lines = [{"user": 1, "item": [1, 2], "time": 5, "clicked": [2]}, {"user": 2, "item": 7, "time": 5, "clicked": []}]
    path = write(tmp_path / "a.jsonl", "".join(json.dumps(line) + "\n" for line in lines))
    spec = spec_of(str(path), explode={"lists": "item"}).model_dump()
    spec["requests"]["labels"] = {"click": {"contained_in": "clicked"}}
    read = BuildSpec.model_validate(spec)
    (chunk,) = read_piece(read, plan_pieces(read, "log")[0])
    assert chunk.frame["item"].to_list() == [["1", "2"]]
    assert chunk.frame["clicked"].to_list() == [["2"]]
    assert json.loads(chunk.malformed[0])["item"] == 7, "where a list is due, a number is no row"


@pytest.mark.parametrize("name", ["a.csv", "a.jsonl"])
def test_text_is_read_in_blocks_of_whole_lines(tmp_path: Path, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sources, "CHUNK_BYTES", 40)
    lines = [f"{n},{n},{n}" if name == "a.csv" else f'{{"user":{n},"item":{n},"time":{n}}}' for n in range(50)]
    path = write(tmp_path / name, "\n".join([*(["user,item,time"] if name == "a.csv" else []), *lines]))
    found = chunks(path)
    assert len(found) > 5
    assert [row for chunk in found for row in chunk.frame["user"].to_list()] == [str(n) for n in range(50)]
    assert [chunk.first_row for chunk in found] == [int(chunk.frame["user"][0]) for chunk in found]


def test_a_json_line_longer_than_a_block_is_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sources, "CHUNK_BYTES", 16)
    path = write(tmp_path / "a.jsonl", f'{{"user":"{"u" * 100}","item":1,"time":1}}\n{{"user":2,"item":1,"time":1}}')
    assert [len(row[0]) for row in rows(path)] == [100, 1]


def test_globs_and_lists_are_read_in_order_each_file_once(tmp_path: Path) -> None:
    for n in (2, 1, 3):
        (tmp_path / f"d{n}").mkdir()
        ROWS[n - 1 : n].write_parquet(tmp_path / f"d{n}" / "log.parquet")
    assert rows(f"{tmp_path}/*/log.parquet") == NUMBERS
    assert rows(f"{tmp_path}/**/*.parquet") == NUMBERS
    assert rows([f"{tmp_path}/d3/log.parquet", f"{tmp_path}/d[12]/*.parquet"]) == [NUMBERS[2], *NUMBERS[:2]]
    assert rows([f"{tmp_path}/d1/log.parquet", f"{tmp_path}/*/log.parquet"]) == NUMBERS


def test_uris_are_read_like_paths(tmp_path: Path) -> None:
    (tmp_path / "more").mkdir()
    ROWS[:2].write_parquet(tmp_path / "a.parquet")
    ROWS[2:].write_parquet(tmp_path / "more" / "b.parquet")
    assert rows(f"file://{tmp_path}/a.parquet") == NUMBERS[:2]
    assert rows(f"file://{tmp_path}/**.parquet") == NUMBERS
    assert rows(f"file://{write(tmp_path / 'a.csv.gz', CSV)}") == TEXTS
    assert [path for path, _ in list_files(f"file://{tmp_path}/*.csv.gz")] == [f"file://{tmp_path}/a.csv.gz"]


@pytest.mark.parametrize(
    ("path", "message"),
    [
        (
            "{tmp}/none.parquet",
            r"source log: there is no file '.*none\.parquet'; check the path \(relative paths start at",
        ),
        ("{tmp}/*.parquet", r"source log: no file matches '.*\*\.parquet'; check the path"),
        ("file://{tmp}/none.parquet", r"source log: there is no file 'file://.*none\.parquet'"),
        ("file://{tmp}/none/*.parquet", r"source log: no file matches 'file://.*\*\.parquet'"),
        ("nowhere://bucket/a.parquet", r"source log: cannot reach 'nowhere://bucket/a\.parquet': "),
    ],
)
def test_files_that_are_not_there_are_named(tmp_path: Path, path: str, message: str) -> None:
    with pytest.raises(SourceError, match=message):
        rows(path.format(tmp=tmp_path))


def test_a_folder_is_no_file(tmp_path: Path) -> None:
    with pytest.raises(SourceError, match=r"source log: there is no file '/.*'; check the path"):
        rows(tmp_path, format="parquet")


def test_a_local_path_needs_no_uri(tmp_path: Path) -> None:
    system, inner = filesystem_of(str(tmp_path))
    assert (system.type_name, inner) == ("local", str(tmp_path))


@pytest.mark.parametrize("name", ["log.parquet", "log.arrow", "log.csv"])
def test_a_missing_column_is_named_with_those_that_are_there(tmp_path: Path, name: str) -> None:
    path, frame = tmp_path / name, ROWS.drop("time")
    {"log.parquet": frame.write_parquet, "log.arrow": frame.write_ipc, "log.csv": frame.write_csv}[name](path)  # type: ignore[operator]
    with pytest.raises(
        SourceError, match=r"source log: .*log\.\w+ has no column 'time'; its columns are user, item, more"
    ):
        rows(path)


@pytest.mark.parametrize(
    ("name", "data", "message"),
    [
        ("a.parquet", b"PAR1 no parquet PAR1", r"a\.parquet is not a readable Parquet file"),
        ("a.parquet", b"", r"a\.parquet is not a readable Parquet file"),
        ("a.arrow", b"ARROW1 no arrow", r"a\.arrow is not a readable Arrow IPC file"),
        ("a.csv", b"user,item,time\n1,2,\xff\xfe\n", r"a\.csv cannot be read as CSV: .*UTF8"),
        ("a.csv", gzip.compress(CSV.encode(), mtime=0), r"a\.csv has no readable CSV header"),
        (
            "a.csv.gz",
            gzip.compress(CSV.encode() * 9999, mtime=0)[:-30],
            r"a\.csv\.gz has no readable CSV header: Truncated",
        ),
        ("a.csv.gz", b"no gzip", r"a\.csv\.gz has no readable CSV header"),
        ("a.jsonl.gz", gzip.compress(JSONL * 9999, mtime=0)[:-30], r"a\.jsonl\.gz cannot be read"),
    ],
)
def test_a_file_that_cannot_be_read_is_named(tmp_path: Path, name: str, data: bytes, message: str) -> None:
    (tmp_path / name).write_bytes(data)
    with pytest.raises((DataError, SourceError), match=message):
        rows(tmp_path / name)


def test_a_damaged_row_group_is_named(tmp_path: Path) -> None:
    path = tmp_path / "a.parquet"
    ROWS.write_parquet(path, compression="zstd")
    data = bytearray(path.read_bytes())
    data[4:60] = b"\xff" * 56
    path.write_bytes(data)
    with pytest.raises(DataError, match=r"a\.parquet: row groups 0 to 0: "):
        rows(path)


def test_a_table_is_read_by_spark_only() -> None:
    with pytest.raises(SourceError, match=r"source log is a table that Spark knows by name; build with --engine spark"):
        plan_pieces(spec_of("catalog.log", format="table"), "log")


def test_dictionaries_binaries_and_fixed_lists_become_plain(tmp_path: Path) -> None:
    table = pa.table(
        {
            "user": pa.array(["a", "b"]).dictionary_encode(),
            "item": pa.array([b"x", None], pa.binary()),
            "time": pa.array([[1, 2], [3, 4]], pa.list_(pa.int32(), 2)),
            "lists": pa.array([["a"], None], pa.list_(pa.dictionary(pa.int32(), pa.string()))),
        }
    )
    frame = plain_types(pl.DataFrame(pl.from_arrow(table)))
    assert frame.schema == {
        "user": pl.String,
        "item": pl.String,
        "time": pl.List(pl.Int32),
        "lists": pl.List(pl.String),
    }
    assert frame.rows() == [("a", "x", [1, 2], ["a"]), ("b", None, [3, 4], None)]
    pq.write_table(table, tmp_path / "a.parquet")
    assert [row[0] for row in rows(tmp_path / "a.parquet")] == ["a", "b"]
    with pa.ipc.new_file(str(tmp_path / "a.arrow"), table.schema) as writer:
        writer.write_table(table)
    assert [row[0] for row in rows(tmp_path / "a.arrow")] == ["a", "b"]


def test_bytes_that_are_no_text_are_refused(tmp_path: Path) -> None:
    frame = ROWS.with_columns(user=pl.Series([b"a", b"\xff", b"c"]))
    frame.write_parquet(tmp_path / "a.parquet")
    with pytest.raises(DataError, match=r"a\.parquet holds a binary column whose bytes are not UTF-8 text: .*\"?user"):
        rows(tmp_path / "a.parquet")


def test_a_quoted_csv_value_may_hold_line_breaks_wherever_blocks_end(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    text = "user,item,time\n" + "".join(f'"u\n{n}",{n},"{n}\n\n"\n' for n in range(60))
    for size in (64, 100, 1 << 20):
        monkeypatch.setattr(sources, "CHUNK_BYTES", size)
        found = chunks(write(tmp_path / "a.csv", text))
        assert [user for chunk in found for user in chunk.frame["user"]] == [f"u\n{n}" for n in range(60)]
        assert not any(chunk.malformed for chunk in found)


def test_a_file_without_a_byte_holds_no_rows(tmp_path: Path) -> None:
    assert rows(write(tmp_path / "a.csv", "")) == []


def test_a_parquet_file_is_cut_at_row_groups(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sources, "CHUNK_ROWS", 4)
    frame = pl.DataFrame({"user": range(10), "item": range(10), "time": range(10)})
    frame.write_parquet(tmp_path / "a.parquet", row_group_size=3)
    pieces = plan_pieces(spec_of(str(tmp_path / "a.parquet")), "log")
    assert [(piece.first, piece.last, piece.first_row, piece.rows) for piece in pieces] == [(0, 2, 0, 6), (2, 4, 6, 4)]
    assert [(chunk.first_row, chunk.frame.height) for chunk in chunks(tmp_path / "a.parquet")] == [(0, 6), (6, 4)]


def test_large_row_groups_and_batches_are_cut_into_chunks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sources, "CHUNK_ROWS", 2)
    frame = pl.DataFrame({"user": range(7), "item": range(7), "time": range(7)})
    frame.write_parquet(tmp_path / "a.parquet")
    frame.write_ipc(tmp_path / "a.arrow")
    assert [(chunk.first_row, chunk.frame.height) for chunk in chunks(tmp_path / "a.parquet")] == [(0, 4), (4, 3)]
    assert [(c.first_row, c.frame.height) for c in chunks(tmp_path / "a.arrow")] == [(0, 2), (2, 2), (4, 2), (6, 1)]


def test_rows_of_text_are_estimated_from_bytes(tmp_path: Path) -> None:
    small, packed = write(tmp_path / "a.csv", "user,item,time\n" + "1,2,3\n" * 100), write(tmp_path / "b.csv.gz", CSV)
    assert plan_pieces(spec_of(str(small)), "log")[0].rows == small.stat().st_size // 48
    assert plan_pieces(spec_of(str(packed)), "log")[0].rows >= 1


def test_a_file_without_rows_is_no_trouble(tmp_path: Path) -> None:
    ROWS.head(0).write_parquet(tmp_path / "a.parquet")
    ROWS.head(0).write_ipc(tmp_path / "a.arrow")
    assert rows(tmp_path / "a.parquet") == rows(tmp_path / "a.arrow") == rows(write(tmp_path / "a.jsonl", "")) == []


def made(tmp_path: Path, column: str, per_file: str) -> BuildSpec:
    return BuildSpec.model_validate(
        {
            "sources": {
                "log": {
                    "path": [str(tmp_path / "b.parquet"), str(tmp_path / "a.parquet")],
                    "synthetic_time": {"column": column, "start": "2020-01-01T00:00:00.5Z", "per_file": per_file},
                }
            },
            "history": {"source": "log", "user_id": "user", "item_id": "item", "event_time": column},
            "requests": {"source": "log", "user_id": "user", "item_id": "item", "request_time": column},
        }
    )


def synthetic_times(tmp_path: Path, column: str, per_file: str) -> list[list[int]]:
    spec = made(tmp_path, column, per_file)
    chunks = [chunk for piece in sources.plan_pieces(spec, "log") for chunk in sources.read_piece(spec, piece)]
    return [chunk.frame[column].dt.epoch("us").to_list() for chunk in chunks]


def test_a_made_time_follows_the_order_of_paths_and_rows(tmp_path: Path) -> None:
    ROWS.write_parquet(tmp_path / "a.parquet")
    ROWS[:1].write_parquet(tmp_path / "b.parquet")
    start = 1_577_836_800_500_000
    assert synthetic_times(tmp_path, "made", "1s") == [[start], [start + 1_000_000 + n for n in range(3)]]


def test_a_made_time_that_would_replace_a_column_is_refused(tmp_path: Path) -> None:
    ROWS.write_parquet(tmp_path / "a.parquet")
    ROWS.write_parquet(tmp_path / "b.parquet")
    with pytest.raises(
        SourceError, match=r"b\.parquet has a column 'time', which synthetic_time would replace; name another"
    ):
        synthetic_times(tmp_path, "time", "1s")


def test_a_file_with_more_rows_than_its_time_has_microseconds_is_refused(tmp_path: Path) -> None:
    ROWS.write_parquet(tmp_path / "a.parquet")
    ROWS.write_parquet(tmp_path / "b.parquet")
    with pytest.raises(DataError, match=r"b\.parquet has 3 rows or more, and synthetic_time\.per_file is only 2us"):
        synthetic_times(tmp_path, "made", "2us")
