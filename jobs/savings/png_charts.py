"""The charts of a report as PNG files, for use in other documents. Requires matplotlib."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from .charts import Bars, format_number

if TYPE_CHECKING:
    from matplotlib.figure import Figure

BAR, HIGHLIGHT, INK, GRID = "#9db4c8", "#1f6fb2", "#1c2430", "#dfe4ea"


def write_pngs(charts: dict[str, Bars], folder: Path, prefix: str) -> list[Path]:
    """Write each chart as `<prefix>-<name>.png`.

    Args:
        charts: The charts by name.
        folder: An existing folder.
        prefix: Start of the file names.

    Returns:
        The files that were written; none if matplotlib is not installed.
    """
    try:
        from matplotlib.figure import Figure
    except ModuleNotFoundError:
        return []
    paths = []
    for name, bars in charts.items():
        figure = Figure(figsize=(9, 1.2 + 0.36 * len(bars.values)), dpi=120, layout="constrained")
        _draw(figure, bars)
        paths.append(folder / f"{prefix}-{name}.png")
        figure.savefig(paths[-1])
    return paths


def _draw(figure: Figure, bars: Bars) -> None:
    """Draw bars from zero, or dots on a logarithmic axis, the first on top, each labeled with its value."""
    axes = figure.subplots()
    rows = range(len(bars.values))
    colors = [HIGHLIGHT if row in bars.highlight else BAR for row in rows]
    if bars.log:
        axes.scatter(bars.values, rows, s=60, c=colors, zorder=3)
        axes.set_xscale("log")
    else:
        axes.barh(rows, bars.values, color=colors)
        axes.set_xlim(left=0)
    for row, value in zip(rows, bars.values, strict=True):
        label = format_number(value, bars.unit)
        axes.annotate(label, (value, row), (8, 0), textcoords="offset points", va="center", color=INK)
    axes.set_yticks(list(rows), bars.labels)
    axes.invert_yaxis()
    axes.margins(x=0.15)
    axes.xaxis.set_major_formatter(lambda value, _: format_number(value, bars.unit))
    axes.set_title(
        f"{bars.title} ({'logarithmic scale' if bars.log else 'bars start at zero'})", loc="left", fontsize=11
    )
    axes.grid(axis="x", color=GRID)
    axes.spines[["top", "right", "left"]].set_visible(False)
