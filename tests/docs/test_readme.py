"""The code of the README runs, and the pages use only names that the public API has."""

import re
from pathlib import Path

import polars as pl
import pytest
from paths import ROOT

import longbatch as lb

README = (ROOT / "README.md").read_text(encoding="utf-8")
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md"))]


def code_block(language: str) -> str:
    """The README's first code block of a language."""
    match = re.search(rf"```{language}\n(.*?)```", README, re.DOTALL)
    assert match
    return match[1]


def test_the_spec_and_the_python_code_of_the_readme_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("log").mkdir()
    pl.DataFrame(
        {
            "user_id": [1, 1, 2],
            "item_id": [10, 11, 10],
            "event_time": [1_700_000_001_000, 1_700_000_100_000, 1_700_000_002_000],
            "request_time": [1_700_000_000_000, 1_700_000_090_000, 1_700_000_000_000],
            "request_id": [1, 2, 3],
            "author_id": [5, 6, 5],
            "dwell_ms": [900, 100, 0],
            "click": [1, 0, 0],
        }
    ).write_parquet("log/day.parquet")
    Path("spec.toml").write_text(code_block("toml"), encoding="utf-8")
    names: dict[str, object] = {}
    exec(compile(code_block("python").replace("num_workers=2", "num_workers=0"), "README.md", "exec"), names)
    counts = lb.open_dataset("dataset").snapshot.counts
    assert (counts.requests, counts.targets, counts.stored) == (3, 3, 1)
    batch = names["batch"]
    assert isinstance(batch, lb.RequestBatch)
    assert batch.num_requests == 3
    assert batch.history["item_id"].tolist() == [10]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_a_page_uses_only_the_public_api(page: Path) -> None:
    for block in re.findall(r"```python\n(.*?)```", page.read_text(encoding="utf-8"), re.DOTALL):
        assert "longbatch." not in block.replace("import longbatch as lb", ""), block
        assert set(re.findall(r"\blb\.(\w+)", block)) <= set(lb.__all__), block


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_every_link_of_a_page_leads_to_a_file_and_a_heading(page: Path) -> None:
    for target in re.findall(r"\]\(([^)\s]+)\)", page.read_text(encoding="utf-8")):
        if "://" in target:
            continue
        name, _, anchor = target.partition("#")
        linked = page.parent / name if name else page
        assert linked.exists(), f"{page.name} links to {target}"
        if anchor:
            headings = re.findall(r"^#+ (.*)$", linked.read_text(encoding="utf-8"), re.MULTILINE)
            anchors = {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}
            assert anchor in anchors, f"{page.name} links to {target}"


def test_the_pages_name_only_files_that_exist() -> None:
    pattern = re.compile(
        r"`((?:schemas|pipelines|validation|jobs|loaders|trainer|benchmarks|src|tests|examples)/(?:[\w/.\-]+\.(?:py|c|toml)|[\w/\-]*/)?)`"
    )
    missing = {
        f"{page.name}: {name}"
        for page in PAGES
        for name in pattern.findall(page.read_text(encoding="utf-8"))
        if not (ROOT / name).exists()
    }
    assert not missing
