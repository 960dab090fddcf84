"""The pages of Data Docs: Great Expectations' own content in a page that needs no network and no script.

Its stock pages load their styles, icons and tables from six web servers; without them icons and the index are
missing. This view keeps what its renderers say about suites and results, and puts it in a page of its own.
"""

from __future__ import annotations

import shutil
from collections.abc import Mapping, Sequence
from html import escape
from pathlib import Path
from typing import Any
from urllib.parse import quote

from great_expectations import __version__ as version
from great_expectations.render.view import DefaultJinjaPageView

STYLE = """
body { font: 15px/1.5 system-ui, sans-serif; color: #1d2733; max-width: 68rem; margin: 0 auto; padding: 1rem 1.5rem 4rem; }
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
# No script, no font and no picture is loaded, and none that stands in the data would be.
HEAD = (
    '<meta charset="utf-8"><meta name="viewport" content="width=device-width, initial-scale=1">'
    """<meta http-equiv="Content-Security-Policy" content="default-src 'none'; style-src 'unsafe-inline'">"""
)
PAGE = """<!DOCTYPE html>
<html lang="en"><head>{{ head | safe }}<title>{{ title }}</title>
<style>{{ style | safe }}</style></head><body>
<nav><a href="{{ home }}">Data Docs</a> / {{ kind }}</nav>
<h1>{{ title }}</h1>
{{ about | safe }}
{% for section in sections %}{% set section_loop = loop %}{% include 'section.j2' %}{% endfor %}
</body></html>
"""


class PageView(DefaultJinjaPageView):  # type: ignore[misc]
    """Renders the page of a suite or of a result; `about` maps a suite's name to lines of HTML for its pages."""

    def __init__(
        self,
        about: Mapping[str, str],
        custom_styles_directory: str | None = None,
        custom_views_directory: str | None = None,
    ) -> None:
        super().__init__(custom_styles_directory, custom_views_directory)
        self.about = about

    def render(self, document: Any, template: str | None = None, **options: Any) -> str:
        """Return the HTML of a document of Great Expectations' renderers.

        Its overview is left out but for counts, notes and what it says of the whole table: the rest repeats the
        title, or describes how the rows came into memory.
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
            kind="results" if is_result else "suite",
            home="../../../../index.html" if is_result else "../index.html",
            style=STYLE,
            head=HEAD,
        )
        return page


def _escape_cells(part: Any) -> None:
    """Escape the text in the cells of all tables, where Great Expectations puts values of the data as they are."""
    if isinstance(part, dict):
        for row in part.get("table") or []:
            row[:] = [escape(cell) if isinstance(cell, str) else cell for cell in row]
        part = list(part.values())
    if isinstance(part, list):
        for inner in part:
            _escape_cells(inner)


def write_site(context: Any, folder: Path, about: Mapping[str, tuple[str, str, str]]) -> dict[str, tuple[str, str]]:
    """Write the pages of all suites and results of a context; return each suite's links: to its result, to itself.

    `about` says of each suite what was checked, what came of it, and the class of its color.
    """
    lines = {  # a dollar sign would be taken for a variable of a configuration
        name: f'<p>Checked: {escape(checked)}</p><p class="{mark}">{verdict}</p>'.replace("$", "&#36;")
        for name, (checked, verdict, mark) in about.items()
    }
    view = {"module_name": __name__, "class_name": "PageView", "about": lines}
    sections = {"expectations": {"view": view}, "validations": {"view": view}, "profiling": "None"}
    store = {"class_name": "TupleFilesystemStoreBackend", "base_directory": str(folder)}
    site = {"class_name": "SiteBuilder", "store_backend": store, "site_section_builders": sections}
    context.add_data_docs_site("longbatch", site)
    context.build_data_docs(site_names=["longbatch"], build_index=False)
    shutil.rmtree(folder / "static", ignore_errors=True)
    return {name: (_result_link(folder, name), quote(f"expectations/{name}.html")) for name in about}


def _result_link(folder: Path, name: str) -> str:
    (page,) = (folder / "validations" / name).rglob("*.html")
    return quote(page.relative_to(folder).as_posix())


def index_page(
    title: str,
    rows: Sequence[tuple[str, str, str, str, str]],
    links: Mapping[str, tuple[str, str]],
    lists: Mapping[str, Sequence[str]],
) -> str:
    """Return the first page, in HTML: `lists` are headings with their sentences, `rows` the suites.

    A row is a suite's name, what was checked, how many expectations, what came of it, and the class of its color.
    """
    head = "".join(f"<th>{name}</th>" for name in ("Suite", "Checked", "Expectations", "Result"))
    body = "".join(_row(row, *links[row[0]]) for row in rows)
    sections = "".join(_list(heading, sentences) for heading, sentences in lists.items() if sentences)
    return (
        f'<!DOCTYPE html>\n<html lang="en"><head>{HEAD}<title>{escape(title)}</title><style>{STYLE}</style></head>'
        f"<body><h1>{escape(title)}</h1><h2>Suites</h2>"
        f"<table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>{sections}"
        f"<p><br>Suites and results by Great Expectations {version}.</p></body></html>\n"
    )


def _row(row: tuple[str, str, str, str, str], result_link: str, suite_link: str) -> str:
    name, checked, expectations, verdict, mark = map(escape, row)
    return (
        f'<tr><td><a href="{result_link}">{name}</a></td><td>{checked}</td>'
        f'<td><a href="{suite_link}">{expectations}</a></td><td class="{mark}">{verdict}</td></tr>'
    )


def _list(heading: str, sentences: Sequence[str]) -> str:
    items = "".join(f"<li>{escape(sentence)}</li>" for sentence in sentences)
    return f"<h2>{escape(heading)}</h2><ul>{items}</ul>"
