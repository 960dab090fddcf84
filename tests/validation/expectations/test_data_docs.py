"""The pages of Data Docs."""

from __future__ import annotations

import re
from dataclasses import replace
from html import unescape
from pathlib import Path
from urllib.parse import unquote

import pytest
from expectation_inputs import Inputs

from longbatch.schemas.errors import SpecError
from longbatch.validation.expectations.runner import ExpectationResults

pytestmark = pytest.mark.slow


def pages_of(results: ExpectationResults) -> dict[str, str]:
    folder = Path(results.data_docs).parent
    return {path.relative_to(folder).as_posix(): path.read_text() for path in folder.rglob("*") if path.is_file()}


def test_data_docs_have_a_page_for_each_suite_and_result_and_an_index(
    wrong_run: ExpectationResults,
) -> None:
    pages = pages_of(wrong_run)
    index = pages.pop("index.html")
    links = [unquote(link) for link in re.findall('href="([^"]*)"', index)]
    assert sorted(links) == sorted(pages)
    assert len(links) == 2 * len(wrong_run.suites)
    for suite in wrong_run.suites:
        assert f">{suite.name}</a></td><td>{suite.checked}</td>" in index
    assert '<td class="failed">3 not met</td>' in index
    assert all(sentence in unescape(index) for sentence in wrong_run.failures)
    (result,) = [page for name, page in pages.items() if name.startswith("validations/requests, counters/")]
    assert result.count("fa-times") == 3 + 1  # and the style
    assert "the largest history_length is at most 3" in result


def test_pages_load_nothing_from_the_network_and_run_no_script(wrong_run: ExpectationResults) -> None:
    for name, page in pages_of(wrong_run).items():
        assert "default-src 'none'" in page, name
        assert not re.search(r"https?://|<script|<link|<img|@import|url\(", page), name


def test_result_pages_link_to_their_suite_and_the_index(valid_run: ExpectationResults) -> None:
    folder = Path(valid_run.data_docs).parent
    for page in (folder / "validations").rglob("*.html"):
        home, suite = re.findall('href="(\\.\\.[^"]*)"', page.read_text())
        assert (page.parent / home).resolve() == (folder / "index.html").resolve()
        assert (page.parent / unquote(suite)).is_file()


def test_a_run_replaces_all_pages_of_an_earlier_one(valid: Inputs, tmp_path: Path) -> None:
    out = tmp_path / "reports" / "data_docs"
    (out / "validations").mkdir(parents=True)
    (out / "validations" / "old.html").write_text("old")
    results = valid.run(out)
    assert "validations/old.html" not in pages_of(results)
    assert [path.name for path in out.parent.iterdir()] == ["data_docs"]
    lost = valid.spec.expectations.model_copy(update={"requests": str(tmp_path / "lost.json")})
    with pytest.raises(SpecError, match=r"cannot read the expectation suite .*lost\.json: No such file"):
        replace(valid, spec=valid.spec.model_copy(update={"expectations": lost})).run(out)
    assert [path.name for path in out.parent.iterdir()] == ["data_docs"]
    assert Path(results.data_docs).is_file()
