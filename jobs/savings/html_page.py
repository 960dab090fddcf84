"""Pieces of self-contained HTML pages: paragraphs, lists, tables, and the page around them.

Every function escapes the text it is given, so no value of a dataset can add markup. A page loads nothing from
anywhere. Colors follow the reader's light or dark scheme.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from html import escape

CSS = """
:root{color-scheme:light dark;--ink:#1c2430;--soft:#5b6675;--paper:#fff;--line:#dfe4ea;--panel:#f5f7f9;
--c0:#1f6fb2;--c1:#c2571a;--c2:#2a8558;--c3:#8a4fa3;--c4:#a8842c;--c5:#4a5a6a;--bar:#9db4c8;--highlight:#1f6fb2}
@media(prefers-color-scheme:dark){:root{--ink:#e4e9ef;--soft:#9aa7b5;--paper:#12171d;--line:#2c3540;--panel:#1a2129;
--c0:#6db3ee;--c1:#f0975c;--c2:#67c596;--c3:#c497dc;--c4:#dcbc62;--c5:#a9b8c7;--bar:#4d6274;--highlight:#6db3ee}}
*{box-sizing:border-box}
body{margin:0;background:var(--paper);color:var(--ink);font:16px/1.55 system-ui,-apple-system,"Segoe UI",sans-serif}
main{max-width:900px;margin:0 auto;padding:24px 16px 64px}
h1{font-size:1.75rem;line-height:1.2;margin:.4em 0 .3em}
h2{font-size:1.2rem;margin:2.2em 0 .5em;padding-top:.7em;border-top:1px solid var(--line)}
p,ul{margin:.6em 0}
li{margin:.35em 0}
.soft,small{color:var(--soft)}
code{font-size:.92em;overflow-wrap:anywhere}
figure{margin:1.2em 0}
figcaption{font-weight:600;margin-bottom:.4em}
figcaption small{font-weight:400}
svg{display:block;width:100%;overflow:visible;font-size:13px}
svg text{fill:var(--ink)}
svg .tick{fill:var(--soft);font-size:12px}
svg .grid{stroke:var(--line)}
.key{display:inline-block;margin-right:1.2em;white-space:nowrap}
.key i{display:inline-block;width:18px;height:3px;margin-right:6px;vertical-align:middle}
.facts{display:grid;grid-template-columns:repeat(auto-fit,minmax(180px,1fr));gap:12px;margin:1.2em 0}
.facts div{background:var(--panel);border-radius:8px;padding:12px 14px}
.facts b{display:block;font-size:1.6rem;line-height:1.2}
.facts span{color:var(--soft);font-size:.9rem}
.scroll{overflow-x:auto;margin:1em 0}
table{border-collapse:collapse;font-size:.87rem;min-width:100%}
th,td{padding:5px 8px;text-align:right;border-bottom:1px solid var(--line);white-space:nowrap;
font-variant-numeric:tabular-nums}
th{font-weight:600;color:var(--soft);white-space:normal;vertical-align:bottom;line-height:1.25}
th:first-child,td:first-child{text-align:left;position:sticky;left:0;background:var(--paper);padding-left:0}
tr.highlight td{background:var(--panel);font-weight:600}
@media(max-width:600px){th,td{padding:5px 4px}td:first-child{white-space:normal;min-width:96px}}
"""


def table(headers: Sequence[str], rows: Sequence[Sequence[str]], *, highlight: Collection[int] = ()) -> str:
    """Render a table: the first column aligned left, the others right.

    Args:
        headers: Text of the column headers.
        rows: Text of the cells.
        highlight: Indices of the rows to emphasize.

    Returns:
        HTML.
    """
    head = "".join(f"<th>{escape(header)}</th>" for header in headers)
    body = ""
    for index, row in enumerate(rows):
        cells = "".join(f"<td>{escape(cell)}</td>" for cell in row)
        body += f"<tr{' class=highlight' if index in highlight else ''}>{cells}</tr>"
    return f'<div class="scroll"><table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table></div>'


def facts(figures: Sequence[tuple[str, str]]) -> str:
    """Render the main figures, large: pairs of a figure and its explanation, as text."""
    cards = "".join(f"<div><b>{escape(figure)}</b><span>{escape(what)}</span></div>" for figure, what in figures)
    return f'<div class="facts">{cards}</div>'


def paragraph(text: str) -> str:
    """Render a paragraph of plain text."""
    return f"<p>{escape(text)}</p>"


def bullets(items: Sequence[str]) -> str:
    """Render a list of plain strings."""
    return f"<ul>{''.join(f'<li>{escape(item)}</li>' for item in items)}</ul>"


def page(title: str, sections: Sequence[tuple[str, str]]) -> str:
    """Render an HTML document.

    Args:
        title: Text of the title.
        sections: Pairs of a heading (may be empty) and HTML from the functions of this module or of `charts`.

    Returns:
        The document.
    """
    body = "".join(
        f"<section>{f'<h2>{escape(heading)}</h2>' if heading else ''}{html}</section>" for heading, html in sections
    )
    return (
        '<!doctype html><html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width,initial-scale=1">'
        f"<title>{escape(title)}</title><style>{CSS}</style></head><body><main><h1>{escape(title)}</h1>{body}"
        "</main></body></html>\n"
    )
