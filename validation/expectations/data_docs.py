"""The pages of Data Docs: Great Expectations' own content, in pages that need no network and no script.

Its stock pages load styles, icons and tables from six web servers, and lack icons and the index without them. The view
here keeps the content that its renderers produce and puts it into a page of its own. This module imports Great
Expectations, so it is itself imported on first use only.
"""

from __future__ import annotations

import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from html import escape
from pathlib import Path
from urllib.parse import quote

from great_expectations import __version__ as version
from great_expectations.render.view import DefaultJinjaPageView

from .gx_import import GxContext, GxResult

STYLE = """
body { font: 15px/1.5 system-ui, sans-serif; color: #1d2733; max-width: 68rem; }
body { margin: 0 auto; padding: 1rem 1.5rem 4rem; }
h1 { font-size: 1.6rem; margin: .6rem 0 .2rem; } h2 { font-size: 1.15rem; margin: 2rem 0 .4rem; }
h5, h6 { font-size: 1.02rem; margin: 1.6rem 0 .3rem; } p { margin: .2rem 0; } hr { display: none; }
a { color: #1258a8; } nav { color: #5b6876; font-size: .9rem; }
table { border-collapse: collapse; width: 100%; } .table-bordered { width: auto; margin: .4rem 0; }
th, td { text-align: left; vertical-align: top; padding: .35rem .8rem .35rem 0; border-bottom: 1px solid #e1e6eb; }
th { color: #5b6876; font-weight: 600; font-size: .85rem; } thead[hidden] { display: none; }
td:first-child:has(i) { width: 3rem; } td:nth-child(3) { width: 16rem; overflow-wrap: anywhere; }
li { margin: .2rem 0; } .badge { background: #eef2f6; border-radius: 4px; padding: 0 .35rem; }
i.fas { font-style: normal; font-weight: 700; }
i.fa-check-circle::before { content: "\\2713"; } i.fa-times::before { content: "\\2717"; }
i.fa-exclamation-triangle::before { content: "!"; }
.passed, .text-success { color: #18794e; } .failed, .text-danger { color: #b42318; } .warned { color: #93600a; }
.passed, .failed, .warned { font-weight: 600; } .collapse:not(:target) { display: none; }
"""
# The policy forbids scripts, fonts and images, including any that values of the data might contain.
HEAD = (
    '<meta charset="utf-8"><meta name="viewport" content="width=device-width, initial-scale=1">'
    """<meta http-equiv="Content-Security-Policy" content="default-src 'none'; style-src 'unsafe-inline'">"""
)
PAGE = """<!DOCTYPE html>
<html lang="en"><head>{{ head | safe }}<title>{{ title }}</title>
<style>{{ style | safe }}</style></head><body>
<nav><a href="{{ home }}">Data Docs</a> / {{ page_type }}</nav>
<h1>{{ title }}</h1>
{{ about | safe }}
{% for section in sections %}{% set section_loop = loop %}{% include 'section.j2' %}{% endfor %}
</body></html>
"""


@dataclass(frozen=True)
class SuiteSummary:
    """What the pages show of one suite.

    Attributes:
        name: Its name.
        checked: What it ran on, in words.
        expectations: Number of expectations.
        verdict: The result in words.
        css_class: Class of the verdict's color: "passed", "warned" or "failed".
    """

    name: str
    checked: str
    expectations: int
    verdict: str
    css_class: str


@dataclass(frozen=True)
class SuiteLinks:
    """Links from the first page to the pages of a suite, relative and quoted."""

    result: str
    suite: str


class PageView(DefaultJinjaPageView):  # type: ignore[misc]  # its base class is untyped
    """Renders the page of a suite or of a result.

    Args:
        about: For each suite lines of HTML to put on its pages.
        custom_styles_directory: Passed on; Great Expectations requires the parameter.
        custom_views_directory: Passed on; Great Expectations requires the parameter.
    """

    def __init__(
        self,
        about: Mapping[str, str],
        custom_styles_directory: str | None = None,
        custom_views_directory: str | None = None,
    ) -> None:
        super().__init__(custom_styles_directory, custom_views_directory)
        self.about = about

    def render(self, document: GxResult, template: str | None = None, **options: object) -> str:
        """Return the HTML of a document.

        Of its overview only counts, notes and statements about the table are kept: the rest repeats the title or
        describes how the rows came into memory.

        Args:
            document: A document from Great Expectations' renderers.
            template: Ignored; the template is `PAGE`.
            options: Ignored.
        """
        content = document.to_json_dict()
        name = content["expectation_suite_name"]
        is_result = content["renderer_type"] == "ValidationResultsPageRenderer"
        overview = content["sections"][0]
        overview["content_blocks"] = overview["content_blocks"][1:2] if is_result else overview["content_blocks"][2:]
        _escape_cells(content["sections"])
        content["about"] = self.about[name]
        if is_result:
            content["about"] += f'<p><a href="../../../../expectations/{name}.html">What this suite expects</a></p>'
        page: str = self.env.from_string(PAGE).render(
            content,
            title=name,
            page_type="results" if is_result else "suite",
            home="../../../../index.html" if is_result else "../index.html",
            style=STYLE,
            head=HEAD,
        )
        return page


def _escape_cells(part: object) -> None:
    """Escape the cells of all tables, because Great Expectations inserts values of the data unchanged."""
    if isinstance(part, dict):
        for row in part.get("table") or []:
            row[:] = [escape(cell) if isinstance(cell, str) else cell for cell in row]
        part = list(part.values())
    if isinstance(part, list):
        for inner in part:
            _escape_cells(inner)


def write_site(context: GxContext, folder: Path, summaries: Sequence[SuiteSummary]) -> dict[str, SuiteLinks]:
    """Write the pages of all suites and results of a context.

    Args:
        context: Great Expectations' context, after the suites ran.
        folder: The folder to write to.
        summaries: The suites.

    Returns:
        Links to the pages by the name of the suite.
    """
    about = {one.name: _about(one) for one in summaries}
    view = {"module_name": __name__, "class_name": "PageView", "about": about}
    sections = {"expectations": {"view": view}, "validations": {"view": view}, "profiling": "None"}
    store = {"class_name": "TupleFilesystemStoreBackend", "base_directory": str(folder)}
    site = {"class_name": "SiteBuilder", "store_backend": store, "site_section_builders": sections}
    context.add_data_docs_site("longbatch", site)
    context.build_data_docs(site_names=["longbatch"], build_index=False)
    shutil.rmtree(folder / "static", ignore_errors=True)  # styles and scripts that the pages do not use
    return {name: SuiteLinks(_result_link(folder, name), quote(f"expectations/{name}.html")) for name in about}


def _about(summary: SuiteSummary) -> str:
    html = f'<p>Checked: {escape(summary.checked)}</p><p class="{summary.css_class}">{summary.verdict}</p>'
    return html.replace("$", "&#36;")  # Great Expectations would replace $NAME by a configuration variable


def _result_link(folder: Path, name: str) -> str:
    (page,) = (folder / "validations" / name).rglob("*.html")
    return quote(page.relative_to(folder).as_posix())


def index_page(
    title: str,
    summaries: Sequence[SuiteSummary],
    links: Mapping[str, SuiteLinks],
    lists: Mapping[str, Sequence[str]],
) -> str:
    """Return the first page, in HTML.

    Args:
        title: The heading.
        summaries: The suites, one table row each.
        links: The links of each suite, from `write_site`.
        lists: Sentences to list below the table, by heading; an empty list is left out.
    """
    head = "".join(f"<th>{name}</th>" for name in ("Suite", "Checked", "Expectations", "Result"))
    body = "".join(_table_row(one, links[one.name]) for one in summaries)
    sections = "".join(_list(heading, sentences) for heading, sentences in lists.items() if sentences)
    return (
        f'<!DOCTYPE html>\n<html lang="en"><head>{HEAD}<title>{escape(title)}</title><style>{STYLE}</style></head>'
        f"<body><h1>{escape(title)}</h1><h2>Suites</h2>"
        f"<table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>{sections}"
        f"<p><br>Suites and results by Great Expectations {version}.</p></body></html>\n"
    )


def _table_row(summary: SuiteSummary, links: SuiteLinks) -> str:
    return (
        f'<tr><td><a href="{links.result}">{escape(summary.name)}</a></td><td>{escape(summary.checked)}</td>'
        f'<td><a href="{links.suite}">{summary.expectations}</a></td>'
        f'<td class="{summary.css_class}">{escape(summary.verdict)}</td></tr>'
    )


def _list(heading: str, sentences: Sequence[str]) -> str:
    items = "".join(f"<li>{escape(sentence)}</li>" for sentence in sentences)
    return f"<h2>{escape(heading)}</h2><ul>{items}</ul>"
