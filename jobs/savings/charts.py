"""Charts as inline SVG for self-contained HTML pages.

Horizontal sizes are percentages and text is in pixels, so that a chart fills a phone and a laptop alike. Axes start at
zero, or the chart states that they do not. All labels are escaped.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from html import escape
from itertools import pairwise

PREFIXES = {-3: "n", -2: "µ", -1: "m", 0: "", 1: "k", 2: "M", 3: "G", 4: "T", 5: "P"}
BAR_SPAN = 72.0  # percent of the width of the longest bar; the value is written to the right of it
LEFT, RIGHT = 14.0, 97.0  # percent of the width between which a line chart is drawn
TOP_PX, PLOT_PX = 28, 220
ROW_PX = 42  # height of a bar with its label
COLORS = 6


def format_number(value: float, unit: str = "") -> str:
    """Format a number with its unit, to three digits.

    Args:
        value: The number.
        unit: Bytes ("B") and seconds ("s") get a decimal prefix; other numbers get thousands separators.

    Example:
        assert format_number(96_422, "B") == "96.4 KB"
        assert format_number(0.0042, "s") == "4.2 ms"
        assert format_number(81_400) == "81,400"
    """
    if unit in ("B", "s") and value:
        value = float(f"{value:.3g}")  # round first: 999,999 B is 1 MB, not 1,000 KB
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
    """A chart of horizontal bars from zero, or of dots on a logarithmic scale, which has no zero for a bar to start at.

    Attributes:
        title: Title of the chart.
        labels: One for each bar, written above it.
        values: One for each bar, written next to it.
        unit: Unit of the values, see `format_number`.
        log: Whether the scale is logarithmic.
        highlight: Indices of the bars to emphasize.
    """

    title: str
    labels: Sequence[str]
    values: Sequence[float]
    unit: str = ""
    log: bool = False
    highlight: Collection[int] = ()

    def svg(self) -> str:
        """Render the chart as an HTML figure.

        Raises:
            ValueError: Labels and values differ in number, there are none, or a value cannot be drawn.
        """
        values = self.values
        if len(self.labels) != len(values) or not values:
            raise ValueError(
                f"{self.title}: {len(self.labels)} labels for {len(values)} values. Pass one label per value."
            )
        if not all(math.isfinite(v) and (v > 0 if self.log else v >= 0) for v in values):
            bound = "above" if self.log else "at least"
            raise ValueError(f"{self.title}: cannot draw {list(values)}. Values must be finite and {bound} 0.")
        height = ROW_PX * len(values)
        low, high = _decades(values) if self.log else (0, 0)
        marks = []
        for row, value in enumerate(values):
            share = (math.log10(value) - low) / (high - low) if self.log else value / (max(values) or 1)
            marks.append(self._mark(row, BAR_SPAN * share))
        axis = (
            "".join(
                _decade(power, BAR_SPAN * (power - low) / (high - low), height, self.unit)
                for power in range(low, high + 1)
            )
            if self.log
            else ""
        )
        note = "logarithmic scale: each line is ten times the one before" if self.log else "bars start at zero"
        return _figure(self.title, note, f"{axis}{''.join(marks)}", height + (24 if self.log else 4))

    def _mark(self, row: int, x: float) -> str:
        """A bar or a dot that ends at x percent, with its label and value."""
        y, label, value = ROW_PX * row, self.labels[row], format_number(self.values[row], self.unit)
        color, weight = ("var(--highlight)", ' font-weight="600"') if row in self.highlight else ("var(--bar)", "")
        shape = (
            f'<line class="grid" x1="0" x2="{BAR_SPAN}%" y1="{y + 26}" y2="{y + 26}"/>'
            f'<circle cx="{x:.2f}%" cy="{y + 26}" r="7" fill="{color}"/>'
            if self.log
            else f'<rect x="0" y="{y + 17}" width="{max(x, 0.3):.2f}%" height="18" rx="2" fill="{color}"/>'
        )
        return (
            f'<text x="0" y="{y + 12}"{weight}>{escape(label)}</text>{shape}'
            f'<text x="{x:.2f}%" dx="{14 if self.log else 8}" y="{y + 31}"{weight}>{escape(value)}</text>'
        )


def _decades(values: Sequence[float]) -> tuple[int, int]:
    """The powers of ten that enclose all values, at least one apart."""
    low, high = math.floor(math.log10(min(values))), math.ceil(math.log10(max(values)))
    return low, max(high, low + 1)


def _decade(power: int, x: float, height: int, unit: str) -> str:
    """A vertical grid line at a power of ten, with its label below."""
    return (
        f'<line class="grid" x1="{x:.2f}%" x2="{x:.2f}%" y1="0" y2="{height}"/>'
        f'<text class="tick" x="{x:.2f}%" y="{height + 17}" text-anchor="{"middle" if x else "start"}">'
        f"{escape(format_number(10.0**power, unit))}</text>"
    )


@dataclass(frozen=True)
class Lines:
    """A chart of lines over common x values.

    Attributes:
        title: Title of the chart.
        x: X values, ascending.
        series: For each name a value per x; None leaves a gap.
        x_label: Label of the x axis.
        y_label: Label of the y axis.
        log_x: Whether the x axis is logarithmic; every x is then above 0.
        from_zero: Whether the y axis starts at zero. Otherwise it starts near the smallest value, and the chart states
            so.
    """

    title: str
    x: Sequence[float]
    series: Mapping[str, Sequence[float | None]]
    x_label: str
    y_label: str
    log_x: bool = False
    from_zero: bool = True

    def svg(self) -> str:
        """Render the chart as an HTML figure.

        Raises:
            ValueError: A series has another length than x, there is nothing to draw, or an x cannot be drawn.
        """
        known = [v for values in self.series.values() for v in values if v is not None]
        if not known or any(len(values) != len(self.x) for values in self.series.values()):
            raise ValueError(
                f"{self.title}: every series needs one value, or None, for each of the {len(self.x)} x values"
            )
        if self.log_x and min(self.x) <= 0:
            raise ValueError(f"{self.title}: x starts at {min(self.x)}, which a logarithmic axis cannot show")
        ticks = _ticks(min(0.0, *known) if self.from_zero else min(known), max(known))
        across = _scale([math.log10(v) if self.log_x else v for v in self.x])
        down = {v: TOP_PX + PLOT_PX * (1 - (v - ticks[0]) / (ticks[-1] - ticks[0])) for v in (*known, *ticks)}
        lines = "".join(
            _line(across, [None if v is None else down[v] for v in values], number)
            for number, values in enumerate(self.series.values())
        )
        keys = "".join(
            f'<span class="key"><i style="background:var(--c{number % COLORS})"></i>{escape(name)}</span>'
            for number, name in enumerate(self.series)
        )
        note = "" if ticks[0] <= 0 else "the vertical axis does not start at zero"
        drawing = self._grid(ticks, down, across) + lines + self._axis_labels()
        return _figure(self.title, note, drawing, TOP_PX + PLOT_PX + 46, keys)

    def _grid(self, ticks: Sequence[float], down: Mapping[float, float], across: Sequence[float]) -> str:
        """Horizontal lines with the y values, and the x values below."""
        rows = "".join(
            f'<line class="grid" x1="{LEFT}%" x2="{RIGHT}%" y1="{down[t]:.1f}" y2="{down[t]:.1f}"/>'
            f'<text class="tick" x="{LEFT - 1}%" y="{down[t] + 4:.1f}" text-anchor="end">{_digits(t)}</text>'
            for t in ticks
        )
        return rows + "".join(
            f'<text class="tick" x="{across[k]:.2f}%" y="{TOP_PX + PLOT_PX + 18}" text-anchor="middle">'
            f"{_digits(self.x[k])}</text>"
            for k in _spaced(across)
        )

    def _axis_labels(self) -> str:
        return (
            f'<text class="tick" x="0" y="12">{escape(self.y_label)}</text>'
            f'<text class="tick" x="{(LEFT + RIGHT) / 2}%" y="{TOP_PX + PLOT_PX + 38}" text-anchor="middle">'
            f"{escape(self.x_label)}{' (logarithmic)' if self.log_x else ''}</text>"
        )


def _scale(values: Sequence[float]) -> list[float]:
    """Horizontal position of each value in percent, from LEFT to RIGHT."""
    span = (max(values) - min(values)) or 1.0
    return [LEFT + 2 + (RIGHT - LEFT - 4) * (v - min(values)) / span for v in values]


def _spaced(across: Sequence[float], least: float = 9.0) -> list[int]:
    """Indices of the x values to label, at least so many percent apart; the last is always among them."""
    kept = [len(across) - 1]
    for k in range(len(across) - 2, -1, -1):
        if across[kept[-1]] - across[k] >= least:
            kept.append(k)
    return kept[::-1]


def _ticks(low: float, high: float) -> list[float]:
    """Three to seven round values at equal distances that enclose [low, high], such as [0, 0.2, 0.4, 0.6] for [0, 0.5].

    The step is the smallest of 1, 2, 5 and 10 times a power of ten that needs about four intervals.
    """
    widest = max(abs(low), abs(high))
    span = high - low
    if span <= 1e-12 * widest or span < 1e-300:  # narrower than the digits shown: treat it as one value
        span = widest if widest >= 1e-300 else 1.0
    rough = span / 4
    power = 10.0 ** math.floor(math.log10(rough))
    step = next(s * power for s in (1, 2, 5, 10) if s * power >= rough * (1 - 1e-9))
    first, last = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
    return [round(k * step, 12) for k in range(first, max(last, first + 1) + 1)]


def _line(across: Sequence[float], down: Sequence[float | None], number: int) -> str:
    """A series: a dot for each known value, a line between adjacent ones."""
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
