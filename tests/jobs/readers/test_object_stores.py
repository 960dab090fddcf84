"""Logs in an object store: few requests to plan them, the same rows, and clear errors."""

from __future__ import annotations

import io
import socket
from collections.abc import Callable, Iterator

import polars as pl
import pytest
from raw_logs import CSV, NUMBERS, ROWS, STRINGS, rows_of, spec_of

from longbatch.benchmarks.object_servers import Bucket
from longbatch.jobs.readers.sources import plan_pieces, read_piece
from longbatch.schemas.errors import MachineError, SourceError
from longbatch.schemas.storage.store import Store

FILES = 60


@pytest.fixture(scope="module")
def store(s3: Bucket) -> Iterator[Store]:
    """A folder of a bucket that the environment gives access to."""
    with pytest.MonkeyPatch.context() as patch:
        for name, value in s3.environment.items():
            patch.setenv(name, value)
        yield s3.open("logs")


@pytest.fixture
def take_requests(s3: Bucket) -> Callable[[], list[str]]:
    """Return the requests since the last call."""

    def take() -> list[str]:
        requests = [f"{request.method} {request.path}" for request in s3.proxy.requests]
        s3.proxy.reset()
        return requests

    return take


def parquet(frame: pl.DataFrame) -> bytes:
    buffer = io.BytesIO()
    frame.write_parquet(buffer)
    return buffer.getvalue()


@pytest.mark.parametrize("scheme", ["s3", "s3a"])
def test_planning_takes_one_request_a_file_and_reading_two(
    store: Store, take_requests: Callable[[], list[str]], scheme: str
) -> None:
    folder = f"many-{scheme}"
    for number in range(FILES):
        store.write(f"{folder}/dt=2026-11-{1 + number % 30:02}/part-{number}.parquet", parquet(ROWS))
    store.write(f"{folder}/_SUCCESS", b"")
    spec = spec_of(f"{scheme}://bucket/logs/{folder}", format="parquet")
    take_requests()
    pieces = plan_pieces(spec, "log")
    planned = take_requests()
    assert len(pieces) == FILES
    assert len(planned) <= 1.2 * FILES, planned[:5]
    assert sum("list-type=2" in request for request in planned) == 1
    rows = [row for piece in pieces for chunk in read_piece(spec, piece) for row in chunk.frame.rows()]
    assert rows == NUMBERS * FILES
    assert len(take_requests()) <= 2 * FILES


def test_csv_files_take_one_request_to_plan(store: Store, take_requests: Callable[[], list[str]]) -> None:
    for number in range(5):
        store.write(f"csv/{number}.csv", CSV.encode())
    spec = spec_of("s3://bucket/logs/csv/*.csv")
    take_requests()
    pieces = plan_pieces(spec, "log")
    assert len(take_requests()) <= 6
    assert [row for piece in pieces for chunk in read_piece(spec, piece) for row in chunk.frame.rows()] == STRINGS * 5


def test_a_file_a_folder_and_globs_of_a_bucket_are_read(store: Store) -> None:
    store.write("few/a/1.parquet", parquet(ROWS[:1]))
    store.write("few/b/2.parquet", parquet(ROWS[1:]))
    for path in ("few", "few/", "few/*", "few/**.parquet", "few/?/*.parquet", "few/[ab]/*"):
        assert rows_of(f"s3://bucket/logs/{path}", format="parquet") == NUMBERS
    assert rows_of("s3://bucket/logs/few/a/1.parquet") == NUMBERS[:1]


def test_tables_in_a_bucket_are_not_read_without_their_log(store: Store) -> None:
    store.write("delta/dt=1/a.parquet", parquet(ROWS))
    store.write("delta/_delta_log/0.json", b"{}")
    store.write("iceberg/data/a.parquet", parquet(ROWS))
    store.write("iceberg/metadata/v1.metadata.json", b"{}")
    for path in ("delta", "delta/*/*.parquet", "delta/dt=1/*.parquet", "delta/dt=1"):
        with pytest.raises(SourceError, match=r'Set format = "delta"'):
            rows_of(f"s3://bucket/logs/{path}", format="parquet")
    for path in ("iceberg", "iceberg/data/*.parquet"):
        with pytest.raises(SourceError, match=r'Set format = "iceberg"'):
            rows_of(f"s3://bucket/logs/{path}", format="parquet")


@pytest.mark.usefixtures("store")
def test_nothing_under_a_prefix_is_an_error_with_its_uri() -> None:
    for path in ("nothing", "nothing/*.parquet"):
        with pytest.raises(SourceError, match=rf"'s3://bucket/logs/{path}'".replace("*", r"\*")):
            rows_of(f"s3://bucket/logs/{path}", format="parquet")


def test_an_unreachable_store_is_an_error_that_advises_about_reading(monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://127.0.0.1:{unused.getsockname()[1]}")
        monkeypatch.setattr("longbatch.schemas.storage.object_store.LONGEST_WAIT_SECONDS", 0.0)
        with pytest.raises(MachineError, match=r"s3://elsewhere.*[Cc]heck") as error:
            rows_of("s3://elsewhere/logs/*.parquet")
    assert "Free space" not in str(error.value)
