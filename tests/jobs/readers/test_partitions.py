"""Folder names as columns."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import polars as pl
import pytest
from raw_logs import ROWS

from longbatch.jobs.readers import file_pieces
from longbatch.jobs.readers.columnar import ParquetFooter, read_footer
from longbatch.jobs.readers.files import SourceFile
from longbatch.jobs.readers.partitions import folder_values, partition_columns
from longbatch.jobs.readers.sources import plan_pieces, read_piece
from longbatch.schemas.errors import SourceError
from longbatch.schemas.spec.build_spec import BuildSpec


def partitioned_spec(
    path: Path | str, where: str | None = None, format: str = "parquet", **source: object
) -> BuildSpec:
    both = {"source": "log", "user_id": "user", "item_id": "item", "where": where}
    return BuildSpec.model_validate(
        {
            "sources": {"log": {"path": str(path), "format": format, **source}},
            "history": {**both, "event_time": {"column": "time", "unit": "s"}, "features": {"hour": "int8"}},
            "requests": {**both, "request_time": {"column": "dt", "unit": "iso"}},
        }
    )


def write_partitions(folder: Path, suffix: str = "parquet") -> None:
    for number, (day, hour) in enumerate([("2026-11-26", "07"), ("2026-11-26", "23"), ("2026-11-27", "00")]):
        path = folder / f"dt={day}" / f"hour={hour}" / f"part-0.{suffix}"
        path.parent.mkdir(parents=True)
        frame = ROWS[number : number + 1]
        if suffix == "parquet":
            frame.write_parquet(path)
        elif suffix == "csv":
            frame.write_csv(path)
        else:
            path.write_text(frame.write_ndjson())


def read(spec: BuildSpec) -> pl.DataFrame:
    frames = [chunk.frame for piece in plan_pieces(spec, "log") for chunk in read_piece(spec, piece)]
    return pl.concat(frames)


@pytest.mark.parametrize("suffix", ["parquet", "csv", "jsonl"])
def test_folders_are_columns_of_the_files_in_them(tmp_path: Path, suffix: str) -> None:
    write_partitions(tmp_path, suffix)
    frame = read(partitioned_spec(tmp_path, format=suffix))
    assert frame["dt"].to_list() == ["2026-11-26", "2026-11-26", "2026-11-27"]
    assert frame["hour"].to_list() == [7, 23, 0]


def test_values_are_decoded_and_integers_only_if_all_are(tmp_path: Path) -> None:
    assert folder_values("s3://b/a=1/x%20y=%2Fz/_c=__HIVE_DEFAULT_PARTITION__/q=1.parquet") == {
        "a": "1",
        "x y": "/z",
        "_c": None,
    }
    paths = ["n=07/m=1/f", "n=__HIVE_DEFAULT_PARTITION__/m=x/f"]
    frame = partition_columns(paths, ["n", "m", "f"])
    assert frame.to_dicts() == [{"n": 7, "m": "1"}, {"n": None, "m": "x"}]
    assert partition_columns(["n=7/f", "f"], ["n"]).width == 0, "not every file has it"


@pytest.mark.parametrize(
    ("where", "files"),
    [
        ("dt = '2026-11-27'", 1),
        ("dt >= '2026-11-26' AND item > 0 AND hour > 6", 2),
        ("hour IN (0, 7) OR item > 0", 3),
        ("dt = '2027-01-01'", 0),
        ("NOT (hour = 7)", 2),
    ],
)
def test_files_that_a_filter_excludes_are_never_opened(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, where: str, files: int
) -> None:
    write_partitions(tmp_path)
    opened: list[str] = []

    def counted(file: SourceFile, needed: Sequence[str]) -> ParquetFooter:
        opened.append(file.path)
        return read_footer(file, needed)

    monkeypatch.setattr(file_pieces, "read_footer", counted)
    assert len(plan_pieces(partitioned_spec(tmp_path, where), "log")) == len(opened) == files


def test_a_file_is_read_if_one_role_may_select_its_rows(tmp_path: Path) -> None:
    write_partitions(tmp_path)
    document = partitioned_spec(tmp_path, "hour = 7").model_dump()
    document["requests"]["where"] = "hour = 0"
    assert len(plan_pieces(BuildSpec.model_validate(document), "log")) == 2


def test_a_column_that_is_a_folder_too_is_an_error_that_names_the_key(tmp_path: Path) -> None:
    (tmp_path / "hour=7").mkdir()
    ROWS.with_columns(hour=1, dt=pl.lit("2026-11-26")).write_parquet(tmp_path / "hour=7" / "a.parquet")
    message = r"a\.parquet has the column 'hour', which is also the name of its folder\. Set sources\.log\.hive_part"
    with pytest.raises(SourceError, match=message):
        plan_pieces(partitioned_spec(tmp_path), "log")
    frame = read(partitioned_spec(tmp_path, hive_partitions=False))
    assert frame["hour"].to_list() == [1, 1, 1]
