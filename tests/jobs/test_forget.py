"""Forgetting users: no file contains them, and the other users are as before."""

from __future__ import annotations

from datetime import UTC, datetime
from pathlib import Path

import polars as pl
import pytest
from days import content

from longbatch.jobs.append import append
from longbatch.jobs.build import build
from longbatch.jobs.engines import stages
from longbatch.jobs.forget import forget, read_users
from longbatch.jobs.vacuum import vacuum
from longbatch.pipelines.arrays.hashing import hash_string
from longbatch.schemas.errors import SpecError
from longbatch.schemas.format.dataset import open_dataset
from longbatch.schemas.spec.build_spec import load_spec

T = 1_700_000_000


def all_bytes(root: Path) -> bytes:
    """The bytes of all files; tables as the repr of their rows."""
    data = b""
    for path in sorted(path for path in root.rglob("*") if path.is_file()):
        if path.suffix == ".arrow":
            try:
                data += str(pl.read_ipc(path).to_dicts()).encode()
            except pl.exceptions.PolarsError:
                data += path.read_bytes()
        else:
            data += str(pl.read_parquet(path).to_dicts()).encode() if path.suffix == ".parquet" else path.read_bytes()
    return data


@pytest.mark.parametrize("until", [None, datetime.fromtimestamp(T + 63, UTC)])
def test_no_file_contains_a_forgotten_user_after_vacuum(
    corrupt_log: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, until: datetime | None
) -> None:
    monkeypatch.setattr(stages, "ROWS_PER_BUCKET", 60)
    spec, out = load_spec(corrupt_log), tmp_path / "out"
    if until:  # rows of one request id on both days are an error of append
        for path in (corrupt_log.parent / "log").iterdir():
            pl.read_parquet(path).filter(pl.col("request") != "shared").write_parquet(path)
    build(spec, out, until=until)
    before = all_bytes(out)
    assert b"user 3" in before
    forgotten = forget(out, ["user 3", "nobody"])
    assert (forgotten.users, forgotten.users_with_requests) == (2, 1)
    assert 0 < forgotten.rewritten_shards < forgotten.shards
    assert b"user 3" in all_bytes(out), "older snapshots stay readable"
    vacuum(out)
    after = all_bytes(out)
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
        build(spec, tmp_path / "one-build", until=later)
        assert content(out) == content(tmp_path / "one-build")


def test_users_are_read_one_a_line(corrupt_log: Path, tmp_path: Path) -> None:
    (tmp_path / "users").write_text("user 1\n\n user 2 \n")
    assert read_users(tmp_path / "users") == ["user 1", "user 2"]
    (tmp_path / "none").write_text("\n")
    with pytest.raises(SpecError, match="contains no users"):
        read_users(tmp_path / "none")
    with pytest.raises(SpecError, match="cannot read the users to forget"):
        read_users(tmp_path / "gone")


def test_users_must_be_integers_if_the_datasets_users_are(corrupt_log: Path, tmp_path: Path) -> None:
    corrupt_log.write_text(corrupt_log.read_text().replace('{ column = "user", type = "string" }', '"tab"'))
    build(load_spec(corrupt_log), tmp_path / "out")
    with pytest.raises(SpecError, match="user 'x' is not an integer"):
        forget(tmp_path / "out", ["x"])
