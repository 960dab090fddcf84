"""`longbatch expand`: each target once, with its own history, and a check that detects any difference."""

import errno
import json
import signal
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, cast

import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from child_processes import child_process
from command_line import run_command
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from paths import ROOT
from random_logs import COLUMNS, FEATURES, Frames, frames, plain, small_specs
from small_datasets import LOG, SPEC, stored

from longbatch.jobs import expand as expand_module
from longbatch.jobs import expanded_files
from longbatch.jobs.build import build
from longbatch.jobs.expand import compare, expand
from longbatch.pipelines.expansion import sample_schema
from longbatch.schemas.errors import DatasetError, MachineError, SpecError
from longbatch.schemas.format.dataset import Dataset, open_dataset
from longbatch.schemas.spec.build_spec import BuildSpec, load_spec, parse_spec
from longbatch.schemas.types import ArrowListArray

Row = dict[str, Any]


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> Dataset:
    """Two users, six targets; histories of 0, 1 and 2 events."""
    return open_dataset(stored(tmp_path_factory.mktemp("small"), parse_spec(SPEC), LOG))


def heavy_user_log(events: int, targets: int) -> pl.DataFrame:
    """A user with `events` events, and then one request with `targets` targets."""
    n = pl.int_range(events + targets, eager=True)
    shown = n >= events
    seconds = pl.when(shown).then(events).otherwise(n)
    return pl.select(
        user=pl.repeat(1, len(n)),
        request=pl.when(shown).then(0).otherwise(n + 1),
        item=n,
        time=seconds + 1_700_000_000,
        score=n % 7,
        tab=pl.lit(1),
        click=pl.when(shown).then(n % 2),
    )


def expand_naively(dataset: Dataset, length: int) -> list[Row]:
    """Sample-level rows, one target at a time, from the rows of timelines and requests."""
    rows = []
    for block in dataset.blocks():
        timelines = block.timelines.to_pylist()
        for request in block.requests.to_pylist():
            end, own = request.pop("history_end"), request
            events = timelines[own.pop("timeline_row")]["events"][max(0, end - length) : end]
            targets = own.pop("targets")
            del own["segment"]
            names = [field.name for field in block.timelines.schema.field("events").type.value_type]
            history = {f"history_{name}": [event[name] for event in events] for name in names}
            rows += [{**own, **history, **{f"target_{k}": v for k, v in target.items()}} for target in targets]
    return rows


def rows_of(out: Path) -> list[Row]:
    return pa.concat_tables([pq.read_table(path) for path in sorted(out.glob("*.parquet"))]).to_pylist()


def test_each_target_is_a_row_with_its_request_and_its_own_history(small: Dataset, tmp_path: Path) -> None:
    expansion = expand(small, tmp_path / "out")
    assert [
        (r["request_id"], r["user_id"], r["tab"], r["target_item_id"], r["target_click"], r["history_item_id"])
        for r in rows_of(tmp_path / "out")
    ] == [
        (11, 1, 1, 101, 0, [100]),
        (12, 1, 2, 102, 1, [100, 101]),
        (12, 1, 2, 103, 0, [100, 101]),
        (13, 1, 1, 104, 1, [102, 103]),
        (20, 2, 1, 100, 0, []),
        (21, 2, 1, 101, 1, [100]),
    ]
    assert (expansion.rows, expansion.events, expansion.files) == (6, 8, 1)
    assert expansion.bytes == (tmp_path / "out" / "part-00000.parquet").stat().st_size
    assert expansion.expected is None


def test_polars_reads_the_files_as_they_are(small: Dataset, tmp_path: Path) -> None:
    expand(small, tmp_path / "out")
    rows = pl.read_parquet(tmp_path / "out")
    assert dict(rows.schema) == {
        "request_id": pl.Int64,
        "user_id": pl.Int64,
        "request_time": pl.Datetime("us", "UTC"),
        "tab": pl.Int8,
        "history_item_id": pl.List(pl.Int64),
        "history_event_time": pl.List(pl.Datetime("us", "UTC")),
        "history_score": pl.List(pl.Float32),
        "target_item_id": pl.Int64,
        "target_place": pl.Float32,
        "target_click": pl.Int8,
    }
    assert plain(rows["history_score"].to_list()[3]) == (None, 0.25)


@pytest.mark.parametrize("length", [0, 1, 3, 4])
def test_a_corrupt_log_with_string_ids_expands_like_the_naive_expansion(
    corrupt_log: Path, tmp_path: Path, length: int
) -> None:
    build(load_spec(corrupt_log), tmp_path / "dataset")
    dataset = open_dataset(tmp_path / "dataset")
    expansion = expand(dataset, tmp_path / "out", history_length=length, check=True)
    assert rows_of(tmp_path / "out") == expand_naively(dataset, length)
    assert expansion.equal
    assert expansion.actual is not None
    assert expansion.actual.rows == dataset.counts.targets > 50
    assert expansion.actual.events == expansion.events


@st.composite
def logs(draw: st.DrawFn) -> tuple[BuildSpec, Frames]:
    """A log whose events, requests and targets have features of every type, including nulls and NaN."""
    features = {name: {"column": name, "type": feature_type} for name, feature_type in FEATURES.items()}
    spec = {
        **draw(small_specs),
        "sources": {"log": {"path": "log.parquet"}},
        "history": {
            "source": "log",
            "user_id": "user",
            "item_id": "item",
            "event_time": {"column": "time", "unit": "s"},
            "features": features,
        },
        "requests": {
            "source": "log",
            "user_id": "user",
            "item_id": "item",
            "request_time": {"column": "time", "unit": "s"},
            "request_id": {"column": "request", "type": "string"},
            "features": features,
            "target_features": features,
            "labels": {"clicked": {"column": "click", "type": "int8", "default": 0}},
        },
    }
    return BuildSpec.model_validate(spec), {"log": draw(frames(list(COLUMNS), {"request"}))}


@pytest.mark.slow
@settings(max_examples=50)
@given(logs(), st.integers(0, 5), st.sampled_from([4, 300, 10_000]))
def test_any_dataset_expands_like_the_naive_expansion_whatever_the_sizes_of_parts(
    log: tuple[BuildSpec, Frames], length: int, size: int
) -> None:
    spec, tables = log
    sizes = {"GROUP_BYTES": size, "PART_BYTES": 3 * size, "HASHED_EVENTS": 1 + size // 100}
    with tempfile.TemporaryDirectory() as folder, pytest.MonkeyPatch.context() as patch:
        for name, value in sizes.items():
            patch.setattr(expanded_files, name, value)
        dataset = open_dataset(stored(Path(folder), spec, tables["log"]))
        assume(dataset.counts.requests)
        length = min(length, spec.history_length)
        expansion = expand(dataset, Path(folder) / "out", history_length=length, check=True, workers=2)
        actual, expected = rows_of(Path(folder) / "out"), expand_naively(dataset, length)
    assert [plain(row) for row in actual] == [plain(row) for row in expected]
    assert expansion.equal
    assert expansion.actual is not None
    assert expansion.actual.events == sum(len(row["history_item_id"]) for row in expected)


# Comparing

Change = Callable[[list[Row]], object]


def swap_events(rows: list[Row], columns: tuple[str, ...]) -> None:
    for column in columns:
        rows[1][column].reverse()


CHANGES: dict[str, Change] = {
    "a label": lambda rows: rows[2].update(target_click=1),
    "a target feature to null": lambda rows: rows[2].update(target_place=None),
    "the labels of two targets of a request": lambda rows: (
        rows[1].update(target_click=0),
        rows[2].update(target_click=1),
    ),
    "a request feature": lambda rows: rows[4].update(tab=2),
    "a request id": lambda rows: rows[4].update(request_id=7),
    "an item of a history": lambda rows: rows[3]["history_item_id"].__setitem__(0, 99),
    "a feature of an event": lambda rows: rows[3]["history_score"].__setitem__(1, 0.75),
    "the null of an event to zero": lambda rows: rows[3]["history_score"].__setitem__(0, 0.0),
    "the order of two events": lambda rows: swap_events(
        rows, ("history_item_id", "history_event_time", "history_score")
    ),
    "the order of two items": lambda rows: swap_events(rows, ("history_item_id",)),
    "the length of a history": lambda rows: [rows[1][name].pop() for name in rows[1] if name.startswith("history_")],
    "a missing row": lambda rows: rows.pop(3),
    "a duplicate row": lambda rows: rows.append(rows[3]),
    "a row in place of another": lambda rows: rows.__setitem__(2, rows[3]),
}


def rewrite(path: Path, change: Change) -> None:
    table = pq.read_table(path)
    rows = table.to_pylist()
    change(rows)
    pq.write_table(pa.Table.from_pylist(rows, schema=table.schema), path)


@pytest.mark.parametrize("change", CHANGES)
def test_any_change_of_the_files_is_detected(small: Dataset, tmp_path: Path, change: str) -> None:
    expand(small, tmp_path / "out")
    assert compare(small, tmp_path / "out").equal
    rewrite(tmp_path / "out" / "part-00000.parquet", CHANGES[change])
    compared = compare(small, tmp_path / "out")
    assert not compared.equal
    assert compared.expected is not None
    assert compared.actual is not None
    assert compared.expected.hash != compared.actual.hash


def test_row_order_file_boundaries_and_the_writer_do_not_matter(small: Dataset, tmp_path: Path) -> None:
    expand(small, tmp_path / "out")
    rows = pl.read_parquet(tmp_path / "out").reverse()
    (tmp_path / "out" / "part-00000.parquet").unlink()
    rows[:2].write_parquet(tmp_path / "out" / "a.parquet")
    rows[2:].write_parquet(tmp_path / "out" / "b.parquet", row_group_size=1)
    assert compare(small, tmp_path / "out").equal


def test_a_missing_file_is_detected(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(expanded_files, "PART_BYTES", 1)
    spec = parse_spec(SPEC).model_copy(update={"block_targets": 1})
    dataset = open_dataset(stored(tmp_path, spec, LOG))
    assert expand(dataset, tmp_path / "out").files > 2
    (tmp_path / "out" / "part-00001.parquet").unlink()
    assert not compare(dataset, tmp_path / "out").equal


def test_files_of_another_history_length_are_refused(small: Dataset, tmp_path: Path) -> None:
    expand(small, tmp_path / "out", history_length=1)
    assert compare(small, tmp_path / "out", history_length=1).equal
    with pytest.raises(SpecError, match=r"was expanded at history length 1\. Pass --history-length 1"):
        compare(small, tmp_path / "out")


def test_files_that_are_not_an_expansion_are_refused(small: Dataset, tmp_path: Path) -> None:
    with pytest.raises(DatasetError, match=r"contains no Parquet files\. Expand the dataset into it first"):
        compare(small, tmp_path)
    pl.DataFrame({"a": [1]}).write_parquet(tmp_path / "a.parquet")
    with pytest.raises(DatasetError, match=r"a.parquet: the columns are \['a'\], expected \['request_id'"):
        compare(small, tmp_path)
    names = sample_schema(small.spec).names
    pl.DataFrame([dict.fromkeys(names, 1)]).write_parquet(tmp_path / "a.parquet")
    with pytest.raises(DatasetError, match=r"the columns \['history_item_id', .*'history_score'\] are not lists"):
        compare(small, tmp_path)
    (tmp_path / "a.parquet").write_bytes(b"PAR1 damaged")
    with pytest.raises(DatasetError, match=r"a.parquet cannot be read: .*Expand the dataset again"):
        compare(small, tmp_path)


@pytest.mark.parametrize("history", [None, [1]])
def test_histories_that_are_null_or_differ_in_length_are_refused(
    small: Dataset, tmp_path: Path, history: list[int] | None
) -> None:
    expand(small, tmp_path / "out")
    rewrite(tmp_path / "out" / "part-00000.parquet", lambda rows: rows[1].update(history_item_id=history))
    with pytest.raises(
        DatasetError, match=r"part-00000.parquet: some histories are null, or their columns differ in length"
    ):
        compare(small, tmp_path / "out")


# The folder


def test_an_expansion_that_fails_its_check_is_not_kept(
    small: Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write = expanded_files.write_part

    def write_wrong(*arguments: Any) -> tuple[int, int, int]:
        written = write(*arguments)
        store, name = arguments[2:4]
        rewrite(store.path(name), CHANGES["a label"])
        return written

    monkeypatch.setattr(expand_module, "write_part", write_wrong)
    assert not expand(small, tmp_path / "out", check=True).equal
    assert list(tmp_path.iterdir()) == []


def test_an_existing_folder_is_refused_and_replaced_only_if_it_is_an_expansion(small: Dataset, tmp_path: Path) -> None:
    out = tmp_path / "out"
    out.mkdir()
    expand(small, out)
    with pytest.raises(
        DatasetError, match=r"out already exists\. Pass --overwrite to replace it, or --check to compare it"
    ):
        expand(small, out, history_length=1)
    expand(small, out, history_length=1, overwrite=True)
    assert compare(small, out, history_length=1).equal
    (out / "notes.txt").write_text("content")
    with pytest.raises(DatasetError, match=r"out is not an expansion: it contains notes.txt. Choose another output"):
        expand(small, out, overwrite=True)
    with pytest.raises(DatasetError, match=r"notes.txt is not an expansion: it contains notes.txt"):
        expand(small, out / "notes.txt", overwrite=True)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["out"]


def test_logs_and_datasets_are_never_replaced(small: Dataset, tmp_path: Path) -> None:
    raw = tmp_path / "raw"
    raw.mkdir()
    for name in ("events.parquet", "part-00000.parquet"):
        pq.write_table(pa.table({"user": [1]}), raw / name)
    with pytest.raises(
        DatasetError, match=r"raw is not an expansion: it contains events.parquet. Choose another output"
    ):
        expand(small, raw, overwrite=True)
    (raw / "events.parquet").unlink()
    with pytest.raises(DatasetError, match=r"raw is not an expansion: it contains part-00000.parquet"):
        expand(small, raw, overwrite=True)
    for out in (Path(small.location) / "samples", Path(small.location), Path(small.location).parent):
        with pytest.raises(DatasetError, match=r"is inside the dataset .* or contains it. Choose a separate folder"):
            expand(small, out, overwrite=True)


def test_a_full_disk_is_reported_and_leaves_the_earlier_expansion(
    small: Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    expand(small, tmp_path / "out")

    def full(*arguments: Any, **named: Any) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(pq.ParquetWriter, "write_table", full)
    with pytest.raises(MachineError, match=r"cannot write .*out: No space left on device. Free space"):
        expand(small, tmp_path / "out", overwrite=True)
    assert [path.name for path in tmp_path.iterdir()] == ["out"]
    assert compare(small, tmp_path / "out").equal


def test_an_earlier_expansion_is_restored_if_the_new_one_cannot_be_renamed(
    small: Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    expand(small, tmp_path / "out")
    rename = Path.rename

    def refuse(path: Path, target: Path) -> Path:
        if (path / "part-00000.parquet").exists() and path.name.startswith(".out-") and refused.pop("once", False):
            raise PermissionError(errno.EPERM, "Operation not permitted")
        return rename(path, target)

    refused = {"once": True}
    monkeypatch.setattr(Path, "rename", refuse)
    with pytest.raises(MachineError, match="Operation not permitted"):
        expand(small, tmp_path / "out", history_length=1, overwrite=True)
    assert [path.name for path in tmp_path.iterdir()] == ["out"]
    assert compare(small, tmp_path / "out").equal


def test_a_history_length_beyond_the_built_one_is_refused(small: Dataset, tmp_path: Path) -> None:
    with pytest.raises(SpecError, match="history_length 3 is not between 0 and 2"):
        expand(small, tmp_path / "out", history_length=3)


# Size


def test_a_request_with_many_targets_and_a_long_history_is_expanded_in_small_parts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    spec = parse_spec(SPEC).model_copy(update={"history_length": 1_000})
    dataset = open_dataset(stored(tmp_path, spec, heavy_user_log(events=1_000, targets=2_000)))
    monkeypatch.setattr(expanded_files, "GROUP_BYTES", 1_000_000)
    (blocks,) = expanded_files.plan_parts(dataset, 1_000)
    sizes = [table.nbytes for table in expanded_files.row_groups(dataset, blocks, 1_000)]
    assert sum(sizes) > 40_000_000
    assert max(sizes) < 1_300_000
    assert min(sizes[:-1]) >= 1_000_000
    expansion = expand(dataset, tmp_path / "out", check=True)
    assert expansion.equal
    assert (expansion.rows, expansion.events) == (2_000, 2_000_000)
    assert pq.read_metadata(tmp_path / "out" / "part-00000.parquet").num_row_groups == len(sizes)


def test_hashed_batches_are_small_even_if_history_lengths_differ_greatly(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    spec = parse_spec(SPEC).model_copy(update={"history_length": 1_000})
    short = heavy_user_log(events=1, targets=3_000).with_columns(user=pl.lit(0), request=-pl.col("request") - 1)
    dataset = open_dataset(stored(tmp_path, spec, pl.concat([short, heavy_user_log(events=1_000, targets=300)])))
    expand(dataset, tmp_path / "out")
    monkeypatch.setattr(expanded_files, "HASHED_EVENTS", 10_000)
    with pq.ParquetFile(tmp_path / "out" / "part-00000.parquet") as file:
        events = [
            len(cast("ArrowListArray", batch["history_item_id"]).flatten()) for batch in expanded_files._batches(file)
        ]
    assert sum(events) == 303_000
    assert max(events) <= 11_000


# The command


def test_the_code_of_the_documentation_page_runs(
    small: Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    page = (ROOT / "docs" / "expand.md").read_text()
    code = page.split("```python\n")[1].split("```")[0].replace("history_length=100", "history_length=1")
    (tmp_path / "dataset").symlink_to(Path(small.location))
    monkeypatch.chdir(tmp_path)
    exec(compile(code, "expand.md", "exec"), {})
    assert len(rows_of(tmp_path / "samples")) == 6


def test_the_command_exits_with_0_if_equal_and_with_1_if_not(small: Dataset, tmp_path: Path) -> None:
    out = str(tmp_path / "out")
    written = run_command("expand", str(Path(small.location)), out, "--check", "--json")
    assert written.returncode == 0, written.stderr
    document = json.loads(written.stdout)
    assert document["equal"] is True
    assert document["expected"] == document["actual"]
    assert document["actual"].keys() == {"rows", "events", "hash"}
    rewrite(tmp_path / "out" / "part-00000.parquet", CHANGES["a label"])
    checked = run_command("expand", str(Path(small.location)), out, "--check")
    assert checked.returncode == 1
    assert checked.stdout.count(document["actual"]["hash"]) == 1
    assert "not equal: the files do not contain what the dataset expands to" in checked.stdout
    again = run_command("expand", str(Path(small.location)), out)
    assert again.returncode == 1
    assert "out already exists. Pass --overwrite to replace it" in again.stderr
    replaced = run_command("expand", str(Path(small.location)), out, "--overwrite", "--json")
    assert json.loads(replaced.stdout)["equal"] is None


@pytest.mark.slow
def test_an_interrupt_exits_with_130_and_leaves_no_file(tmp_path: Path) -> None:
    spec = parse_spec(SPEC).model_copy(update={"history_length": 10_000})
    dataset = stored(tmp_path, spec, heavy_user_log(events=5_000, targets=60_000))
    command = [sys.executable, "-m", "longbatch.cli.main", "expand", str(dataset), str(tmp_path / "out")]
    with child_process(command) as expanding:
        while not list(tmp_path.glob(".out-*/part-00000.parquet")):
            assert expanding.poll() is None, "the command ended before it could be interrupted"
            time.sleep(0.01)
        expanding.send_signal(signal.SIGINT)
        _, errors = expanding.communicate()  # the complete expansion takes far longer
    assert expanding.returncode == 130, errors
    assert "interrupted: nothing was committed" in errors
    assert sorted(path.name for path in tmp_path.iterdir()) == ["dataset", "log.parquet"]
