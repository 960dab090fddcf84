"""docs/format.md is true: its code reads a dataset without longbatch, and checksums and fingerprint are as it says."""

from __future__ import annotations

import hashlib
import json
import re
import zlib
from pathlib import Path
from typing import Any

import duckdb
import polars as pl
import pytest
from paths import ROOT

from longbatch.jobs.build import build
from longbatch.jobs.engines.local import LocalEngine
from longbatch.schemas.format.dataset import open_dataset
from longbatch.schemas.spec.build_spec import load_spec

PLAIN, COMPACT = (
    (ROOT / "docs" / "format.md")
    .read_text(encoding="utf-8")
    .split("## Reading without longbatch")[1]
    .split("### The compact encoding")
)
SPEC = """
history_length = 4
block_events = 3
compression = "lz4"
[sources.log]
path = "log.parquet"
[history]
source = "log"
user_id = "user_id"
item_id = "item_id"
event_time = { column = "time_s", unit = "s" }
request_id = "request_id"
features = { action = "id", score = "float32" }
[requests]
source = "log"
where = "shown"
user_id = "user_id"
item_id = "item_id"
request_time = { column = "time_s", unit = "s" }
request_id = "request_id"
features = { page = "int8" }
labels = { click = "int8" }
"""
EVENTS = {1: 40, 2: 1, 3: 9, 4: 5}  # user 1 is a heavy_user here: its timeline takes more than 4 * max(3, 4) events
Rows = list[tuple[Any, ...]]


@pytest.fixture(scope="module")
def log(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("format")
    rows = [
        {
            "user_id": user,
            "item_id": 100 * user + i % 7,
            "time_s": 1_700_000_000 + 3 * (i // 2),
            "request_id": 1000 * user + i // 2,
            "shown": user != 4 and i % 5 != 1,
            "action": ["view", "buy", None][i % 3],
            "score": None if i % 4 == 0 else i / 4,
            "page": i % 2,
            "click": i % 2,
        }
        for user, count in EVENTS.items()
        for i in range(count)
    ]
    pl.DataFrame(rows).write_parquet(folder / "log.parquet")
    return folder


@pytest.fixture(scope="module")
def dataset(log: Path) -> Path:
    return built(log, "plain")


@pytest.fixture(scope="module")
def compact(log: Path) -> Path:
    return built(log, "compact")


def built(log: Path, encoding: str) -> Path:
    (log / "spec.toml").write_text(f'encoding = "{encoding}"\n{SPEC}')
    build(load_spec(log / "spec.toml"), log / encoding, engine=LocalEngine(1))
    return log / encoding


def blocks(language: str, part: str = PLAIN) -> list[str]:
    """Code blocks of a part of the page in one language, in order."""
    return re.findall(rf"```{language}\n(.*?)```", part, re.DOTALL)


def read_as_documented(dataset: Path, length: int) -> dict[str, Any]:
    """Names that the page's Python code for plain files leaves behind."""
    return run(blocks("python"), {"DATASET": str(dataset), "L": length})


def run(codes: list[str], names: dict[str, Any]) -> dict[str, Any]:
    for code in codes:
        assert "longbatch" not in code
        exec(code, names)
    return names


def test_pyarrow_polars_and_sql_read_the_compact_encoding(compact: Path) -> None:
    wanted = [row for block in open_dataset(compact).blocks() for row in block.timelines.to_pylist()]
    read = run([blocks("python")[0], *blocks("python", COMPACT)], {"DATASET": str(compact)})
    assert [list(items) for items in read["items_by_numpy"]] == [
        [e["item_id"] for e in row["events"]] for row in wanted
    ]
    times = [[int(e["event_time"].timestamp()) * 1_000_000 for e in row["events"]] for row in wanted]
    assert read["times_by_numpy"] == times
    actions = [(row["user_id"], row["segment"], e["action"]) for row in wanted for e in row["events"]]
    assert read["actions_by_polars"].drop_nulls().rows() == [row for row in actions if row[2] is not None]
    (query,) = blocks("sql", COMPACT)
    with duckdb.connect() as connection:
        connection.register("timelines", pl.read_ipc(read["timeline_files"][0]))
        found = connection.sql(query).to_arrow_table().to_pylist()
    assert [row["item_ids"] for row in found] == [[e["item_id"] for e in row["events"]] for row in wanted]


def test_both_encodings_hold_the_same(dataset: Path, compact: Path) -> None:
    plain_blocks, compact_blocks = (list(open_dataset(path).blocks()) for path in (dataset, compact))
    assert all(
        a.timelines.equals(b.timelines) and a.requests.equals(b.requests)
        for a, b in zip(plain_blocks, compact_blocks, strict=True)
    )


def expected(dataset: Path, length: int) -> Rows:
    columns = ("request_id", "user_id", "history")
    rows = [row for batch in open_dataset(dataset).scan(length) for row in batch.to_pylist()]
    return sorted((tuple(row[name] for name in columns) for row in rows), key=lambda row: row[:2])


@pytest.mark.parametrize("length", [0, 1, 3, 4])
def test_pyarrow_polars_and_sql_find_the_histories_that_scan_finds(dataset: Path, length: int) -> None:
    read = read_as_documented(dataset, length)
    (query,) = blocks("sql")
    with duckdb.connect() as connection:
        connection.register("requests", read["requests"])
        connection.register("timelines", read["timelines"])
        by_sql = connection.sql(query, params={"L": length}).to_arrow_table().to_pylist()
    found = {
        "pyarrow": read["by_pyarrow"],
        "polars": read["by_polars"].rows(),
        "sql": [tuple(row.values()) for row in by_sql],
    }
    wanted = expected(dataset, length)
    assert len(wanted) == 26
    for reader, rows in found.items():
        assert sorted(rows, key=lambda row: row[:2]) == wanted, reader


def test_a_whale_has_segments_that_are_unique_keys(dataset: Path) -> None:
    timelines = read_as_documented(dataset, 4)["timelines"]
    keys = list(zip(timelines["user_id"].to_pylist(), timelines["segment"].to_pylist(), strict=True))
    assert len(set(keys)) == len(keys)
    assert [segment for user, segment in keys if user == 1] == [0, 1, 2]
    assert [segment for user, segment in keys if user == 3] == [0]


def test_polars_and_duckdb_see_timelines_and_requests(dataset: Path) -> None:
    read = read_as_documented(dataset, 4)
    assert pl.scan_ipc(read["request_files"]).select("user_id").collect().height == 26
    with duckdb.connect() as connection:
        connection.register("timelines", pl.read_ipc(read["timeline_files"][0]))
        counted = connection.execute("SELECT user_id, max(len(events)) FROM timelines GROUP BY 1 ORDER BY 1")
        assert counted.fetchall() == [(1, 16), (2, 0), (3, 8)]


def test_duckdb_alone_opens_no_arrow_file(dataset: Path) -> None:
    path = read_as_documented(dataset, 4)["request_files"][0]
    with duckdb.connect() as connection, pytest.raises(duckdb.Error, match="No extension found"):
        connection.execute(f"SELECT * FROM '{path}'")


def test_checksums_are_of_the_ranges_that_the_page_says(dataset: Path) -> None:
    read = read_as_documented(dataset, 4)
    for shard in read["shards"]:
        for table in ("timelines", "requests"):
            data = Path(dataset, shard[table]["path"]).read_bytes()
            assert (len(data), hashlib.sha256(data).hexdigest()) == (shard[table]["bytes"], shard[table]["sha256"])
            place = 0
            for number, block in enumerate(shard["blocks"]):
                begin, size = block[f"{table}_offset"], block[f"{table}_bytes"]
                part = data[begin : begin + size]
                assert begin == place
                assert zlib.crc32(part) == block[f"{table}_crc32"]
                assert part.startswith(b"ARROW1\0\0" if number == 0 else b"\xff\xff\xff\xff")
                place = begin + size
            assert len(shard["blocks"]) > 1


@pytest.mark.parametrize("encoding", ["dataset", "compact"])
def test_the_fingerprint_is_the_hash_that_the_page_says(encoding: str, request: pytest.FixtureRequest) -> None:
    read = run(blocks("python")[:1], {"DATASET": str(request.getfixturevalue(encoding))})
    spec = read["snapshot"]["spec"]
    columns = {
        "history_length": spec["history_length"],
        "request_id": spec["requests"].get("request_id", {"type": "int64"})["type"],
        "history": [[name, column["type"]] for name, column in spec["history"]["features"].items()],
        "requests": [[name, column["type"]] for name, column in spec["requests"]["features"].items()],
        "targets": [[name, column["type"]] for name, column in spec["requests"]["target_features"].items()],
        "labels": [[name, column["type"]] for name, column in spec["requests"]["labels"].items()],
    }
    digest = hashlib.sha256(b"longbatch format 2\n")
    digest.update(json.dumps(columns, sort_keys=True, separators=(",", ":")).encode())
    for shard in read["shards"]:
        hashes = [shard[table]["sha256"] for table in ("timelines", "requests", "dictionaries") if shard[table]]
        assert len(hashes) == (3 if encoding == "compact" else 2)
        digest.update(f"\n{' '.join(hashes)}".encode())
    assert digest.hexdigest() == read["snapshot"]["fingerprint"]


def test_the_vocabulary_gives_the_text_back(dataset: Path) -> None:
    read = read_as_documented(dataset, 4)
    files = [Path(dataset, entry["path"]) for entry in read["snapshot"]["vocabulary"]]
    texts = pl.concat([pl.read_ipc(file) for file in files])
    assert sorted(texts["string"]) == ["buy", "view"]
    events = read["timelines"]["events"].combine_chunks().flatten().field("action")
    assert set(events.drop_null().to_pylist()) == set(texts["id"])
