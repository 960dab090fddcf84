"""Forgetting users: nothing of them is left in any file, and everyone else is as before."""

from __future__ import annotations

from datetime import UTC, datetime
from pathlib import Path

import polars as pl
import pytest

from longbatch.jobs.append import append
from longbatch.jobs.build import build
from longbatch.jobs.engines import stages
from longbatch.jobs.forget import forget, read_users
from longbatch.jobs.vacuum import vacuum
from longbatch.pipelines.arrays.hashing import hash_string
from longbatch.pipelines.content_hash import content_hash
from longbatch.schemas.errors import SpecError
from longbatch.schemas.format.dataset import open_dataset
from longbatch.schemas.spec.build_spec import load_spec

T = 1_700_000_000


def everything(root: Path) -> bytes:
    """All bytes of all files, of tables as text."""
    found = b""
    for path in sorted(path for path in root.rglob("*") if path.is_file()):
        if path.suffix == ".arrow":
            try:
                found += str(pl.read_ipc(path).to_dicts()).encode()
            except pl.exceptions.PolarsError:
                found += path.read_bytes()
        else:
            found += str(pl.read_parquet(path).to_dicts()).encode() if path.suffix == ".parquet" else path.read_bytes()
    return found


@pytest.mark.parametrize("until", [None, datetime.fromtimestamp(T + 63, UTC)])
def test_nothing_of_a_forgotten_user_is_left_after_vacuum(
    corrupt_log: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, until: datetime | None
) -> None:
    monkeypatch.setattr(stages, "ROWS_PER_BUCKET", 60)
    spec, out = load_spec(corrupt_log), tmp_path / "out"
    if until:  # rows of one request id on both days are an error of append
        for path in (corrupt_log.parent / "log").iterdir():
            pl.read_parquet(path).filter(pl.col("request") != "shared").write_parquet(path)
    build(spec, out, until=until)
    before = everything(out)
    assert b"user 3" in before
    done = forget(out, ["user 3", "nobody"])
    assert (done.users, done.users_with_requests) == (2, 1)
    assert 0 < done.rewritten_shards < done.shards
    assert b"user 3" in everything(out), "older snapshots stay readable"
    vacuum(out)
    after = everything(out)
    assert b"user 3" not in after
    assert str(hash_string(pl.Series(["user 3"]))[0]).encode() not in after
    assert b"user 4" in after
    rest = [pl.read_parquet(path) for path in (corrupt_log.parent / "log").iterdir()]
    for path in list((corrupt_log.parent / "log").iterdir()):
        path.unlink()
    pl.concat(rest).filter(pl.col("user").ne_missing("user 3")).write_parquet(
        corrupt_log.parent / "log" / "rest.parquet"
    )
    build(spec, tmp_path / "rest", until=until)
    assert content(out) == content(tmp_path / "rest")
    assert open_dataset(out).counts.requests == open_dataset(tmp_path / "rest").counts.requests
    if until:
        later = datetime.fromtimestamp(T + 1000, UTC)
        append(spec, out, later)
        build(spec, tmp_path / "whole", until=later)
        assert content(out) == content(tmp_path / "whole")


def content(root: Path) -> str:
    opened = open_dataset(root)
    return content_hash(opened.blocks(), opened.spec.history_length)


def test_users_come_from_a_file_one_a_line(corrupt_log: Path, tmp_path: Path) -> None:
    (tmp_path / "users").write_text("user 1\n\n user 2 \n")
    assert read_users(tmp_path / "users") == ["user 1", "user 2"]
    (tmp_path / "none").write_text("\n")
    with pytest.raises(SpecError, match="names no user"):
        read_users(tmp_path / "none")
    with pytest.raises(SpecError, match="cannot read the users to forget"):
        read_users(tmp_path / "gone")


def test_a_user_that_is_no_number_cannot_be_an_integer(corrupt_log: Path, tmp_path: Path) -> None:
    corrupt_log.write_text(corrupt_log.read_text().replace('{ column = "user", type = "string" }', '"tab"'))
    build(load_spec(corrupt_log), tmp_path / "out")
    with pytest.raises(SpecError, match="user 'x' is not a number"):
        forget(tmp_path / "out", ["x"])
