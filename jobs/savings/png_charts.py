"""The pictures of a report as PNG files, for those who paste them elsewhere; matplotlib draws them, if it is installed."""

from __future__ import annotations

from pathlib import Path

from .charts import Bars, format_number

BAR, MINE, INK = "#9db4c8", "#1f6fb2", "#1c2430"


def write_pngs(charts: dict[str, Bars], folder: Path, prefix: str) -> list[Path]:
    """Write `<prefix>-<name>.png` for each chart; none where matplotlib is not installed."""
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


def _draw(figure: object, bars: Bars) -> None:
    """Bars from zero, or dots on a logarithmic axis, the first on top, each with its value."""
    axes = figure.subplots()  # type: ignore[attr-defined]
    places = range(len(bars.values))
    colors = [MINE if place in bars.highlight else BAR for place in places]
    if bars.log:
        axes.scatter(bars.values, places, s=60, c=colors, zorder=3)
        axes.set_xscale("log")
    else:
        axes.barh(places, bars.values, color=colors)
        axes.set_xlim(left=0)
    for place, value in zip(places, bars.values, strict=True):
        axes.annotate(
            format_number(value, bars.unit), (value, place), (8, 0), textcoords="offset points", va="center", color=INK
        )
    axes.set_yticks(list(places), bars.labels)
    axes.invert_yaxis()
    axes.margins(x=0.15)
    axes.xaxis.set_major_formatter(lambda value, place: format_number(value, bars.unit))
    axes.set_title(
        f"{bars.title} ({'logarithmic scale' if bars.log else 'bars start at zero'})", loc="left", fontsize=11
    )
    axes.grid(axis="x", color="#dfe4ea")
    axes.spines[["top", "right", "left"]].set_visible(False)
