import errno
import json
from itertools import pairwise
from pathlib import Path
from xml.etree import ElementTree

import numpy as np
import polars as pl
import pyarrow as pa
import pyarrow.compute as pc
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from longbatch.jobs.build import build
from longbatch.jobs.savings import charts as plots
from longbatch.jobs.savings import layouts as layouts_module
from longbatch.jobs.savings.html_report import savings_page
from longbatch.jobs.savings.layouts import Layout, Slice, cut_slices, layouts, survey
from longbatch.jobs.savings.measure import measure, scale_up
from longbatch.jobs.savings.parquet_settings import STORAGES, ParquetSettings, Storage, choose_settings, read, write
from longbatch.jobs.savings.results import Savings
from longbatch.schemas.errors import MachineError, SpecError
from longbatch.schemas.format.dataset import Dataset, open_dataset
from longbatch.schemas.spec.build_spec import parse_spec

SPEC = """
name = "tiny <log>"
history_length = 3
block_events = 4
[sources.log]
path = "log.parquet"
[history]
source = "log"
user_id = "user"
item_id = "item"
event_time = { column = "time", unit = "s" }
request_id = "request"
features = { action = "int16" }
[requests]
source = "log"
user_id = "user"
item_id = "item"
request_time = { column = "time", unit = "s" }
request_id = "request"
features = { tab = "int8" }
target_features = { position = "int8" }
labels = { click = "int8" }
"""
DAY = 1_700_000_000
# (request, user, seconds, item, position, click): user 1 asks three times, user 2 in between
ROWS = [
    (10, 1, 0, 101, 0, 1),
    (10, 1, 0, 102, 1, 0),
    (20, 2, 1, 201, 0, 0),
    (11, 1, 2, 103, 0, 1),
    (11, 1, 2, 104, 1, 0),
    (11, 1, 2, 105, 2, 0),
    (21, 2, 3, 202, 0, 1),
    (12, 1, 4, 106, 0, 0),
]


def build_rows(root: Path, rows: list[tuple[int, int, int, int, int, int]], spec: str = SPEC) -> Dataset:
    frame = pl.DataFrame(rows, ["request", "user", "time", "item", "position", "click"], orient="row")
    frame = frame.with_columns(pl.col("time") + DAY, action=pl.col("item") % 7, tab=pl.col("request") % 2)
    frame.write_parquet(root / "log.parquet")
    build(parse_spec(spec).with_paths_from(root), root / "dataset")
    return open_dataset(root / "dataset")


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Dataset:
    return build_rows(tmp_path_factory.mktemp("tiny"), ROWS)


@pytest.fixture(scope="module")
def larger(tmp_path_factory: pytest.TempPathFactory) -> Dataset:
    rng = np.random.default_rng(3)
    rows = [
        (request, request % 20, int(rng.integers(0, 5_000)), int(rng.integers(1, 500)), position, 0)
        for request in range(400)
        for position in range(int(rng.integers(1, 6)))
    ]
    return build_rows(tmp_path_factory.mktemp("larger"), rows)


@pytest.fixture(scope="module")
def measured(tiny: Dataset, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Savings]:
    out = tmp_path_factory.mktemp("measured") / "report"
    return out, measure(tiny, out)


def named(dataset: Dataset) -> dict[str, Layout]:
    return {
        layout.name: layout for layout in layouts(survey(dataset, np.random.default_rng(0)), np.random.default_rng(1))
    }


def whole(layout: Layout, slices: int = 1) -> pa.Table:
    edges = np.linspace(0, layout.bytes, slices + 1).astype(int).tolist()
    parts = [layout.between(start, stop) for start, stop in pairwise(edges)]
    return pa.concat_tables([layout.tables(part)[-1] for part in parts if len(part.owners)])


def expand_slowly(dataset: Dataset, by_time: bool) -> list[dict[str, object]]:
    """Sample-level rows from the dataset's own scan, one target at a time."""
    requests = [row for batch in dataset.scan() for row in batch.to_pylist()]
    if by_time:
        requests.sort(key=lambda row: row["request_time"])
    return [
        {
            **{name: row[name] for name in ("request_id", "user_id", "request_time", "tab")},
            **{f"history_{name}": [e[name] for e in row["history"]] for name in ("item_id", "event_time", "action")},
            **{f"target_{name}": value for name, value in target.items()},
        }
        for row in requests
        for target in row["targets"]
    ]


def test_the_sample_level_copies_each_history_into_each_target(tiny: Dataset) -> None:
    table = whole(named(tiny)["sample_level_by_log"])
    shown = [(r["request_id"], r["target_item_id"], r["history_item_id"]) for r in table.to_pylist()]
    assert shown == [
        (10, 101, []),
        (10, 102, []),
        (20, 201, []),
        (11, 103, [101, 102]),
        (11, 104, [101, 102]),
        (11, 105, [101, 102]),
        (21, 202, [201]),
        (12, 106, [103, 104, 105]),
    ]


@pytest.mark.parametrize("slices", [1, 7, 60])
@pytest.mark.parametrize("order", ["log", "user"])
def test_slices_of_the_sample_level_add_up_to_the_expansion(larger: Dataset, order: str, slices: int) -> None:
    table = whole(named(larger)[f"sample_level_by_{order}"], slices)
    assert table.to_pylist() == expand_slowly(larger, by_time=order == "log")


@pytest.mark.parametrize("slices", [1, 7, 60])
def test_shuffled_samples_are_those_in_order_each_once(larger: Dataset, slices: int) -> None:
    rows = whole(named(larger)["sample_level_shuffled"], slices).to_pylist()
    wanted = expand_slowly(larger, by_time=False)
    assert rows != wanted
    assert sorted(map(repr, rows)) == sorted(map(repr, wanted))
    apart = [a["request_id"] != b["request_id"] for a, b in pairwise(rows)]
    assert sum(apart) > 0.9 * len(apart)


@pytest.mark.parametrize("order", ["log", "user"])
def test_slices_of_the_request_level_hold_each_request_once(larger: Dataset, order: str) -> None:
    rows = whole(named(larger)[f"request_level_by_{order}"], 9).to_pylist()
    expanded = [(r["request_id"], r["history_item_id"], t["item_id"]) for r in rows for t in r["targets"]]
    wanted = expand_slowly(larger, by_time=order == "log")
    assert expanded == [(r["request_id"], r["history_item_id"], r["target_item_id"]) for r in wanted]
    assert len(rows) == larger.counts.requests


def test_slices_of_the_user_level_point_into_their_own_timelines(larger: Dataset) -> None:
    layout = named(larger)["user_level"]
    histories = []
    for start in range(0, layout.bytes, 2_000):
        part = layout.between(start, start + 2_000)
        if len(part.owners):
            timelines, requests = (table.to_pylist() for table in layout.tables(part))
            for row in requests:
                owner, end = timelines[row["timeline_row"]], row["history_end"]
                assert owner["user_id"] == row["user_id"]
                histories.append([event["item_id"] for event in owner["events"][max(0, end - 3) : end]])
    wanted = [[e["item_id"] for e in row["history"]] for b in larger.scan() for row in b.to_pylist()]
    assert histories == wanted


def test_the_line_of_bytes_is_as_long_as_the_decoded_tables(larger: Dataset) -> None:
    for layout in named(larger).values():
        tables = layout.tables(layout.between(0, layout.bytes))
        assert sum(table.nbytes for table in tables) == pytest.approx(layout.bytes, rel=0.01)


@settings(max_examples=50, deadline=None)
@given(st.lists(st.tuples(st.integers(1, 9), st.integers(1, 50)), min_size=1, max_size=20), st.data())
def test_every_row_starts_in_exactly_one_of_adjoining_slices(
    owners: list[tuple[int, int]], data: st.DataObject
) -> None:
    rows, sizes = (np.array(column, dtype=np.int64) for column in zip(*owners, strict=True))
    layout = Layout("x", "x", np.arange(len(rows)), rows, sizes, lambda part: (), 1.0)
    cuts = sorted(data.draw(st.lists(st.integers(0, layout.bytes), max_size=6)))
    starts = (np.cumsum(rows * sizes) - rows * sizes).tolist()
    for start, stop in zip([0, *cuts], [*cuts, layout.bytes], strict=True):
        part = layout.between(start, stop)
        found = {
            (int(o), int(f) + k) for o, f, c in zip(part.owners, part.first, part.count, strict=True) for k in range(c)
        }
        wanted = {
            (o, k) for o, (n, size) in enumerate(owners) for k in range(n) if start <= starts[o] + k * size < stop
        }
        assert found == wanted
        assert layout.bytes_of(part) == sum(owners[o][1] for o, _ in wanted)


@settings(max_examples=50, deadline=None)
@given(st.integers(1, 10**7), st.integers(1_000, 10**6), st.integers(0, 5))
def test_slices_are_disjoint_and_within_the_budget(rows: int, budget: int, seed: int) -> None:
    one = np.ones(1, dtype=np.int64)
    layout = Layout("x", "x", one - 1, one * rows, one * 7, lambda part: Slice(one, one, one, one), 1.0)
    slices = cut_slices(layout, budget, np.random.default_rng(seed))
    assert all(stop <= start for (_, stop), (start, _) in pairwise(slices))
    taken = sum(stop - start for start, stop in slices)
    assert taken == layout.bytes if layout.bytes <= budget else taken <= budget
    assert slices[0][0] >= 0
    assert slices[-1][1] <= layout.bytes


def test_totals_are_scaled_up_with_their_standard_error() -> None:
    total, error = scale_up([10.0, 14.0], [100, 100], 1_000.0)
    assert total == pytest.approx(120)
    # residuals -2 and 2; (1 - 0.2) * 2/1 * 8 / 200^2 = 0.00032; times 1000
    assert error == pytest.approx(1_000 * 0.00032**0.5)
    assert scale_up([10.0, 14.0], [100, 100], 200.0) == (24.0, 0.0)
    assert scale_up([10.0], [100], 1_000.0) == (100.0, None)


@pytest.mark.parametrize("storage", STORAGES, ids=lambda s: s.title)
def test_every_format_reads_back_what_it_wrote(larger: Dataset, tmp_path: Path, storage: Storage) -> None:
    for layout in named(larger).values():
        tables = layout.tables(layout.between(0, layout.bytes))
        for chosen in (ParquetSettings(), choose_settings(tables, "zstd")):
            found = read(write(tables, storage, chosen, tmp_path), storage)
            assert all(f.cast(t.schema).equals(t) for f, t in zip(found, tables, strict=True))


def test_the_report_holds_the_exact_numbers_of_a_small_dataset(measured: tuple[Path, Savings]) -> None:
    out, savings = measured
    assert json.loads((out / "savings.json").read_text()) == savings.as_dict()
    assert [p.name for p in sorted(out.iterdir())] == [
        "savings-at-rest.png", "savings-decoded.png", "savings-read.png", "savings.html", "savings.json",
    ]  # fmt: skip
    # histories: 0, 0, 2, 1, 3 events with 2, 1, 3, 1, 1 targets; five stored events of user 1, one of user 2
    formula = savings.formula
    assert formula["event_bytes"] == 8 + 8 + 2
    assert formula["history_per_request"] == pytest.approx(6 / 5)
    assert formula["history_per_target"] == pytest.approx((2 * 3 + 1 + 3) / 8)
    assert formula["requests_per_event"] == pytest.approx(6 / 6)
    assert formula["targets_per_request"] == pytest.approx(8 / 5)
    assert savings.layout("sample_level_by_log").copies_of_event == pytest.approx(10 / 6)
    for layout in savings.layouts:
        assert layout.sample["share"] == 1
        assert layout.sample["targets"] == 8
        assert layout.sample["requests"] == 5
        assert layout.sample["users"] == 2
        for file in layout.files:
            assert file.standard_error == 0
            assert min(file.bytes, file.write_seconds, file.read_seconds) > 0


def test_columns_are_told_as_stored_and_as_plain_tables(measured: tuple[Path, Savings]) -> None:
    columns = {column.name: column for column in measured[1].columns}
    assert set(columns) >= {"timelines.user_id", "events.item_id", "events.action", "targets.#event", "requests.tab"}
    assert columns["events.item_id"].stored is not None
    assert columns["events.item_id"].parquet is not None
    assert columns["targets.#event"].stored is not None
    assert columns["targets.#event"].arrow is None
    stored = sum(column.stored or 0 for column in columns.values())
    assert stored == pytest.approx(measured[1].on_disk["bytes"])
    assert 0 < (columns["headers"].stored or 0) < stored


def test_rates_are_bytes_of_records_and_of_shuffled_rows(measured: tuple[Path, Savings], tiny: Dataset) -> None:
    rates = measured[1].rates
    assert rates["log_rows"] == 8
    # item, user, request, two times (8 bytes each), action and tab and position and click, two roles
    assert rates["row_bytes"] == 4 * 8 + 2 + 1 + 1 + 1 + 2 / 8
    assert rates["row_shuffle_bytes"] == tiny.snapshot.shuffled_bytes / 8
    assert 8 < rates["row_shuffle_bytes"] < rates["row_bytes"]
    assert min(rates.values()) > 0


@pytest.fixture(scope="module")
def exact(larger: Dataset, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Savings]:
    out = tmp_path_factory.mktemp("exact") / "report"
    return out, measure(larger, out)


def test_the_formula_predicts_the_decoded_bytes(exact: tuple[Path, Savings]) -> None:
    for layout in exact[1].layouts:
        # the rest is list offsets, counted per list and not per table
        assert layout.predicted_per_target == pytest.approx(layout.decoded_per_target, rel=0.02)


def test_a_sample_is_drawn_by_its_seed_and_is_near_the_whole(
    larger: Dataset, exact: tuple[Path, Savings], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("longbatch.jobs.savings.measure.LEAST_BUDGET_BYTES", 0)
    first, again, other = (measure(larger, tmp_path, budget_bytes=20_000, seed=s) for s in (1, 1, 2))
    sizes = [[file.bytes for layout in run.layouts for file in layout.files] for run in (first, again, other)]
    assert sizes[0] == sizes[1] != sizes[2]
    for layout, truth in zip(first.layouts, exact[1].layouts, strict=True):
        assert layout.decoded_bytes == pytest.approx(truth.decoded_bytes, rel=0.03)
    sampled = first.layout("sample_level_by_log")
    assert sampled.sample["share"] < 1
    assert (sampled.file("Arrow lz4").standard_error or 0) > 0


def test_a_dataset_too_large_for_memory_is_surveyed_by_blocks(larger: Dataset, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(layouts_module, "SURVEY_RECORDS", 900)
    part = survey(larger, np.random.default_rng(0))
    assert 0 < len(part.blocks) < sum(len(shard.blocks) for shard in larger.shards)
    assert int(part.history_sizes.sum()) * part.history_scale == pytest.approx(larger.counts.history_events)
    assert len(part.events) * part.event_scale == pytest.approx(larger.counts.stored_with_overlap)
    owner = part.timelines["user_id"].take(part.requests["timeline_row"])
    assert pc.all(pc.equal(owner, part.requests["user_id"])).as_py()


def test_of_a_part_of_the_blocks_mixed_layouts_are_lower_bounds_and_say_so(
    larger: Dataset, exact: tuple[Path, Savings], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert not any(layout.at_least for layout in exact[1].layouts)
    monkeypatch.setattr(layouts_module, "SURVEY_RECORDS", 900)
    found = measure(larger, tmp_path / "part")
    assert [layout.name for layout in found.layouts if layout.at_least] == [
        "sample_level_shuffled", "sample_level_by_log", "request_level_by_log",
    ]  # fmt: skip
    page = (tmp_path / "part" / "savings.html").read_text()
    assert "these figures are lower bounds" in page
    assert "at least " in page
    assert "lower bounds" not in (exact[0] / "savings.html").read_text()


def test_a_feature_may_be_called_as_the_offsets_are(tmp_path: Path) -> None:
    spec = SPEC.replace("features = { action", 'features = { offsets = { column = "action", type = "int16" }, action')
    names = [column.name for column in measure(build_rows(tmp_path, ROWS, spec), tmp_path / "out").columns]
    assert names.count("events.offsets") == names.count("events.#offsets") == 1


def test_an_output_that_is_a_file_is_refused(tiny: Dataset, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("mine")
    for out in (tmp_path / "file", tmp_path / "file" / "report"):
        with pytest.raises(SpecError, match=r"file is a file, and the report is a folder; choose another output"):
            measure(tiny, out)


def test_a_dataset_without_any_history_is_measured_too(tmp_path: Path) -> None:
    savings = measure(build_rows(tmp_path, ROWS[:3]), tmp_path / "out")
    assert savings.formula["history_per_target"] == 0
    assert savings.layout("sample_level_by_log").copies_of_event == 0


def test_a_budget_too_small_is_refused(tiny: Dataset, tmp_path: Path) -> None:
    with pytest.raises(SpecError, match="budget_bytes is 10; measuring needs at least 1,000,000"):
        measure(tiny, tmp_path, budget_bytes=10)


def test_a_full_disk_is_named(tiny: Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*arguments: object) -> list[Path]:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("longbatch.jobs.savings.measure.write", full)
    threads = pa.cpu_count()
    with pytest.raises(MachineError, match=r"cannot write .*: No space left on device. Free space"):
        measure(tiny, tmp_path / "out")
    assert list((tmp_path / "out").iterdir()) == []
    assert pa.cpu_count() == threads


def test_the_page_loads_nothing_and_names_where_others_win(measured: tuple[Path, Savings]) -> None:
    out, savings = measured
    html = (out / "savings.html").read_text()
    assert html == savings_page(savings)
    assert "http" not in html
    assert "src=" not in html
    assert "What longbatch saves: tiny &lt;log&gt;" in html
    smaller = [f for layout in savings.layouts for f in layout.files if f.bytes < savings.on_disk["bytes"]]
    assert html.count("of ours)") >= len(smaller)
    assert "user level, Arrow zstd" in html


def parse(figure: str) -> ElementTree.Element:
    return ElementTree.fromstring(figure)


def test_bars_start_at_zero_and_are_as_long_as_their_values() -> None:
    figure = plots.bar_chart("Sizes", ["a", "b & c", "none"], [50_000.0, 25_000.0, 0.0], "B", highlight=[1])
    bars = parse(figure).findall(".//rect")
    assert [bar.get("x") for bar in bars] == ["0", "0", "0"]
    long, half, none = (float(str(bar.get("width")).rstrip("%")) for bar in bars)
    assert (half, none) == (pytest.approx(long / 2), 0.3)
    assert "bars start at zero" in figure
    assert "b &amp; c" in figure
    assert [t.text for t in parse(figure).findall(".//text") if t.text and "KB" in t.text] == ["50 KB", "25 KB"]


def test_a_log_scale_draws_dots_and_says_so() -> None:
    figure = plots.bar_chart("Seconds", ["a", "b"], [0.1, 10.0], "s", log=True)
    assert not parse(figure).findall(".//rect")
    assert [dot.get("cx") for dot in parse(figure).findall(".//circle")] == ["0.00%", "72.00%"]
    assert "logarithmic scale" in figure


def test_lines_leave_gaps_and_say_when_they_do_not_start_at_zero() -> None:
    x = [500.0, 1_000.0, 2_000.0, 10_000.0]
    series = {"STCA": [0.61, 0.62, None, 0.65], "DIN <1>": [0.6, 0.6, 0.61, 0.62]}
    near = plots.line_chart("AUC", x, series, "history", "AUC", log_x=True, from_zero=False)
    assert "the vertical axis does not start at zero" in near
    assert "history (logarithmic)" in near
    assert "DIN &lt;1&gt;" in near
    assert len(parse(near).findall(".//circle")) == 7
    assert len([line for line in parse(near).findall(".//line") if line.get("stroke")]) == 1 + 3
    from_zero = plots.line_chart("AUC", x, series, "history", "AUC")
    assert "does not start" not in from_zero
    assert "0" in [text.text for text in parse(from_zero).findall(".//text")]


@given(st.floats(-1e6, 1e6), st.floats(0, 1e6))
@example(0.0, 5e-324)
@example(3.0, 1e-13)
def test_ticks_enclose_the_values(low: float, span: float) -> None:
    ticks = plots._ticks(low, low + span)
    slack = 1e-6 * max(1, abs(low), span)
    assert ticks[0] <= low + slack
    assert ticks[-1] >= low + span - slack
    assert 2 <= len(ticks) <= 7


@pytest.mark.parametrize(
    ("value", "unit", "text"),
    [
        (0, "B", "0 B"),
        (388, "B", "388 B"),
        (96_422, "B", "96.4 KB"),
        (7.85e9, "B", "7.85 GB"),
        (0.0042, "s", "4.2 ms"),
        (62.5, "s", "62.5 s"),
        (1_000, "B", "1 KB"),
        (999_999, "B", "1 MB"),
        (248.79, "", "249"),
        (0.976, "", "0.98"),
        (81_400, "", "81,400"),
    ],
)
def test_numbers_read_as_people_write_them(value: float, unit: str, text: str) -> None:
    assert plots.format_number(value, unit) == text


def test_what_cannot_be_drawn_is_refused() -> None:
    with pytest.raises(ValueError, match="2 labels for 1 values"):
        plots.bar_chart("x", ["a", "b"], [1.0])
    with pytest.raises(ValueError, match=r"cannot draw .*above 0"):
        plots.bar_chart("x", ["a"], [0.0], log=True)
    with pytest.raises(ValueError, match="one value, or None, for each of the 2 x values"):
        plots.line_chart("x", [1.0, 2.0], {"a": [1.0]}, "x", "y")
    with pytest.raises(ValueError, match="x starts at 0"):
        plots.line_chart("x", [0.0, 2.0], {"a": [1.0, 2.0]}, "x", "y", log_x=True)


def test_tables_and_pages_escape_what_they_show() -> None:
    html = plots.page("<t>", [("a & b", plots.table(["h<"], [["<c>"]], highlight=[0]) + plots.bullets(["x>y"]))])
    for escaped in ("&lt;t&gt;", "a &amp; b", "h&lt;", "&lt;c&gt;", "x&gt;y", "<tr class=mine>"):
        assert escaped in html
    assert plots.facts([("2×", "<less>")]) == '<div class="facts"><div><b>2×</b><span>&lt;less&gt;</span></div></div>'
