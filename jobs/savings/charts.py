"""Pieces of self-contained HTML pages: charts as inline SVG, tables, and the page around them.

Nothing is loaded from anywhere. Sizes across are percentages and text is in pixels, so that a chart fills a phone
and a laptop alike; colors follow the reader's light or dark scheme. Axes start at zero or say that they do not.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from html import escape
from itertools import pairwise

PREFIXES = {-3: "n", -2: "µ", -1: "m", 0: "", 1: "k", 2: "M", 3: "G", 4: "T", 5: "P"}
BAR_SPAN = 72.0  # percent of the width that the longest bar takes; the value is written beside it
LEFT, RIGHT = 14.0, 97.0  # percent of the width between which a line chart is drawn
TOP_PX, PLOT_PX = 28, 220
COLORS = 6

CSS = """
:root{color-scheme:light dark;--ink:#1c2430;--soft:#5b6675;--paper:#fff;--line:#dfe4ea;--panel:#f5f7f9;
--c0:#1f6fb2;--c1:#c2571a;--c2:#2a8558;--c3:#8a4fa3;--c4:#a8842c;--c5:#4a5a6a;--bar:#9db4c8;--mine:#1f6fb2}
@media(prefers-color-scheme:dark){:root{--ink:#e4e9ef;--soft:#9aa7b5;--paper:#12171d;--line:#2c3540;--panel:#1a2129;
--c0:#6db3ee;--c1:#f0975c;--c2:#67c596;--c3:#c497dc;--c4:#dcbc62;--c5:#a9b8c7;--bar:#4d6274;--mine:#6db3ee}}
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
tr.mine td{background:var(--panel);font-weight:600}
@media(max-width:600px){th,td{padding:5px 4px}td:first-child{white-space:normal;min-width:96px}}
"""


def format_number(value: float, unit: str = "") -> str:
    """A number with its unit to three digits: bytes (B) and seconds (s) with a decimal prefix, others grouped."""
    if unit in ("B", "s") and value:
        value = float(f"{value:.3g}")
        power = min(
            max(math.floor(math.log10(abs(value)) / 3 + 1e-9), -3 if unit == "s" else 0),
            5 if unit == "B" else 0,
        )
        return f"{_digits(value / 1000**power)} {PREFIXES[power].upper() if unit == 'B' else PREFIXES[power]}{unit}"
    return f"{_digits(value)} {unit}".rstrip()


def _digits(value: float) -> str:
    if abs(value) >= 100 or value == int(value):
        return f"{value:,.0f}"
    return f"{value:.3g}" if abs(value) >= 1 else f"{value:.2g}"


@dataclass(frozen=True)
class Bars:
    """What a chart of bars shows, in whatever form it is drawn; see `bar_chart`."""

    title: str
    labels: Sequence[str]
    values: Sequence[float]
    unit: str = ""
    log: bool = False
    highlight: Collection[int] = ()

    def svg(self) -> str:
        """The chart as a figure of a page."""
        return bar_chart(self.title, self.labels, self.values, self.unit, log=self.log, highlight=self.highlight)


def bar_chart(
    title: str,
    labels: Sequence[str],
    values: Sequence[float],
    unit: str = "",
    *,
    log: bool = False,
    highlight: Collection[int] = (),
) -> str:
    """A horizontal bar for each value, from zero, its label above and its value beside it; or, on a log scale, a dot.

    A log scale has no zero for a bar to start from: it draws dots, and says so. `highlight` numbers the bars to
    stress. Raises ValueError if labels and values differ in number, or a value cannot be drawn.
    """
    if len(labels) != len(values) or not values:
        raise ValueError(f"{title}: {len(labels)} labels for {len(values)} values; give one label to each value")
    if not all(math.isfinite(v) and (v > 0 if log else v >= 0) for v in values):
        raise ValueError(
            f"{title}: cannot draw {list(values)}; values must be finite and {'above' if log else 'at least'} 0"
        )
    height = 42 * len(values)
    low, high = _decades(values) if log else (0, 0)
    marks = []
    for row, (label, value) in enumerate(zip(labels, values, strict=True)):
        share = (math.log10(value) - low) / (high - low) if log else value / (max(values) or 1)
        marks.append(_mark(42 * row, label, BAR_SPAN * share, format_number(value, unit), log, row in highlight))
    axis = (
        "".join(_decade(p, BAR_SPAN * (p - low) / (high - low), height, unit) for p in range(low, high + 1))
        if log
        else ""
    )
    note = "logarithmic scale: each line is ten times the one before" if log else "bars start at zero"
    return _figure(title, note, f"{axis}{''.join(marks)}", height + (24 if log else 4))


def _decades(values: Sequence[float]) -> tuple[int, int]:
    low, high = math.floor(math.log10(min(values))), math.ceil(math.log10(max(values)))
    return low, max(high, low + 1)


def _mark(y: int, label: str, x: float, value: str, log: bool, stressed: bool) -> str:
    color = "var(--mine)" if stressed else "var(--bar)"
    weight = ' font-weight="600"' if stressed else ""
    shape = (
        f'<line class="grid" x1="0" x2="{BAR_SPAN}%" y1="{y + 26}" y2="{y + 26}"/>'
        f'<circle cx="{x:.2f}%" cy="{y + 26}" r="7" fill="{color}"/>'
        if log
        else f'<rect x="0" y="{y + 17}" width="{max(x, 0.3):.2f}%" height="18" rx="2" fill="{color}"/>'
    )
    return (
        f'<text x="0" y="{y + 12}"{weight}>{escape(label)}</text>{shape}'
        f'<text x="{x:.2f}%" dx="{14 if log else 8}" y="{y + 31}"{weight}>{escape(value)}</text>'
    )


def _decade(power: int, x: float, height: int, unit: str) -> str:
    return (
        f'<line class="grid" x1="{x:.2f}%" x2="{x:.2f}%" y1="0" y2="{height}"/>'
        f'<text class="tick" x="{x:.2f}%" y="{height + 17}" text-anchor="{"middle" if x else "start"}">'
        f"{escape(format_number(10.0**power, unit))}</text>"
    )


def line_chart(
    title: str,
    x: Sequence[float],
    series: Mapping[str, Sequence[float | None]],
    x_label: str,
    y_label: str,
    *,
    log_x: bool = False,
    from_zero: bool = True,
) -> str:
    """A line for each series over the same x values, ascending; None leaves a gap. With `log_x` every x is above 0.

    The y axis starts at zero, or, without `from_zero`, near the smallest value, and then says so.
    Raises ValueError for series of another length than x, or nothing to draw.
    """
    known = [v for values in series.values() for v in values if v is not None]
    if not known or any(len(values) != len(x) for values in series.values()):
        raise ValueError(f"{title}: every series needs one value, or None, for each of the {len(x)} x values")
    if log_x and min(x) <= 0:
        raise ValueError(f"{title}: x starts at {min(x)}, which a logarithmic axis cannot show")
    ticks = _ticks(min(0.0, *known) if from_zero else min(known), max(known))
    across = _scale([math.log10(v) if log_x else v for v in x])
    down = {v: TOP_PX + PLOT_PX * (1 - (v - ticks[0]) / (ticks[-1] - ticks[0])) for v in (*known, *ticks)}
    grid = "".join(
        f'<line class="grid" x1="{LEFT}%" x2="{RIGHT}%" y1="{down[t]:.1f}" y2="{down[t]:.1f}"/>'
        f'<text class="tick" x="{LEFT - 1}%" y="{down[t] + 4:.1f}" text-anchor="end">{_digits(t)}</text>'
        for t in ticks
    )
    grid += "".join(
        f'<text class="tick" x="{across[k]:.2f}%" y="{TOP_PX + PLOT_PX + 18}" text-anchor="middle">'
        f"{_digits(x[k])}</text>"
        for k in _spread(across)
    )
    lines = "".join(
        _line(across, [None if v is None else down[v] for v in s], k) for k, s in enumerate(series.values())
    )
    names = (
        f'<text class="tick" x="0" y="12">{escape(y_label)}</text><text class="tick" x="{(LEFT + RIGHT) / 2}%" '
        f'y="{TOP_PX + PLOT_PX + 38}" text-anchor="middle">{escape(x_label)}{" (logarithmic)" if log_x else ""}</text>'
    )
    keys = "".join(
        f'<span class="key"><i style="background:var(--c{k % COLORS})"></i>{escape(name)}</span>'
        for k, name in enumerate(series)
    )
    note = "" if ticks[0] <= 0 else "the vertical axis does not start at zero"
    return _figure(title, note, grid + lines + names, TOP_PX + PLOT_PX + 46, keys)


def _scale(values: Sequence[float]) -> list[float]:
    """Percent across of each value, from LEFT to RIGHT."""
    span = (max(values) - min(values)) or 1.0
    return [LEFT + 2 + (RIGHT - LEFT - 4) * (v - min(values)) / span for v in values]


def _spread(across: Sequence[float], least: float = 9.0) -> list[int]:
    """Numbers of the x values to label, so that labels keep apart; the last is always among them."""
    kept = [len(across) - 1]
    for k in range(len(across) - 2, -1, -1):
        if across[kept[-1]] - across[k] >= least:
            kept.append(k)
    return kept[::-1]


def _ticks(low: float, high: float) -> list[float]:
    """Round values at equal distance that enclose [low, high]: three to seven of them."""
    widest = max(abs(low), abs(high))
    span = high - low
    if span <= 1e-12 * widest or span < 1e-300:  # no wider than the digits shown: one value
        span = widest if widest >= 1e-300 else 1.0
    rough = span / 4
    power = 10.0 ** math.floor(math.log10(rough))
    step = next(s * power for s in (1, 2, 5, 10) if s * power >= rough * (1 - 1e-9))
    first, last = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
    return [round(k * step, 12) for k in range(first, max(last, first + 1) + 1)]


def _line(across: Sequence[float], down: Sequence[float | None], number: int) -> str:
    color = f"var(--c{number % COLORS})"
    points = [(x, y) for x, y in zip(across, down, strict=True)]
    joined = "".join(
        f'<line x1="{x0:.2f}%" y1="{y0:.1f}" x2="{x1:.2f}%" y2="{y1:.1f}" stroke="{color}" stroke-width="2"/>'
        for (x0, y0), (x1, y1) in pairwise(points)
        if y0 is not None and y1 is not None
    )
    return joined + "".join(
        f'<circle cx="{x:.2f}%" cy="{y:.1f}" r="3.5" fill="{color}"/>' for x, y in points if y is not None
    )


def _figure(title: str, note: str, drawing: str, height: int, below: str = "") -> str:
    small = f" <small>{escape(note)}</small>" if note else ""
    return (
        f"<figure><figcaption>{escape(title)}{small}</figcaption>"
        f'<svg role="img" aria-label="{escape(title)}" height="{height}">{drawing}</svg>{below}</figure>'
    )


def table(headers: Sequence[str], rows: Sequence[Sequence[str]], *, highlight: Collection[int] = ()) -> str:
    """A table of text: first column to the left, the others to the right; `highlight` numbers the rows to stress."""
    head = "".join(f"<th>{escape(header)}</th>" for header in headers)
    body = "".join(
        f"<tr{' class=mine' if number in highlight else ''}>{''.join(f'<td>{escape(cell)}</td>' for cell in row)}</tr>"
        for number, row in enumerate(rows)
    )
    return f'<div class="scroll"><table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table></div>'


def facts(figures: Sequence[tuple[str, str]]) -> str:
    """The few numbers that matter, large: pairs of figure and what it says."""
    cards = "".join(f"<div><b>{escape(figure)}</b><span>{escape(what)}</span></div>" for figure, what in figures)
    return f'<div class="facts">{cards}</div>'


def paragraph(text: str) -> str:
    """A paragraph of plain text."""
    return f"<p>{escape(text)}</p>"


def bullets(texts: Sequence[str]) -> str:
    """A list of plain texts."""
    return f"<ul>{''.join(f'<li>{escape(text)}</li>' for text in texts)}</ul>"


def page(title: str, sections: Sequence[tuple[str, str]]) -> str:
    """An HTML document of sections: pairs of heading (plain text, may be empty) and HTML made by the functions above."""
    body = "".join(
        f"<section>{f'<h2>{escape(heading)}</h2>' if heading else ''}{html}</section>" for heading, html in sections
    )
    return (
        '<!doctype html><html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width,initial-scale=1">'
        f"<title>{escape(title)}</title><style>{CSS}</style></head><body><main><h1>{escape(title)}</h1>{body}</main></body></html>\n"
    )
