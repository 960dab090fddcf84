"""Charts as SVG: scales, labels and notes."""

from __future__ import annotations

from xml.etree import ElementTree

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from longbatch.jobs.savings.charts import Bars, Lines, _ticks, format_number


def parse(figure: str) -> ElementTree.Element:
    return ElementTree.fromstring(figure)


def test_bars_start_at_zero_and_are_as_long_as_their_values() -> None:
    figure = Bars("Sizes", ["a", "b & c", "none"], [50_000.0, 25_000.0, 0.0], "B", highlight=[1]).svg()
    bars = parse(figure).findall(".//rect")
    assert [bar.get("x") for bar in bars] == ["0", "0", "0"]
    longest, half, none = (float(str(bar.get("width")).rstrip("%")) for bar in bars)
    assert half == pytest.approx(longest / 2)
    assert none == 0.3
    assert "bars start at zero" in figure
    assert "b &amp; c" in figure
    assert [t.text for t in parse(figure).findall(".//text") if t.text and "KB" in t.text] == ["50 KB", "25 KB"]


def test_a_logarithmic_scale_draws_dots_and_is_labeled() -> None:
    figure = Bars("Seconds", ["a", "b"], [0.1, 10.0], "s", log=True).svg()
    assert not parse(figure).findall(".//rect")
    assert [dot.get("cx") for dot in parse(figure).findall(".//circle")] == ["0.00%", "72.00%"]
    assert "logarithmic scale" in figure


def test_lines_leave_gaps_and_note_when_they_do_not_start_at_zero() -> None:
    x = [500.0, 1_000.0, 2_000.0, 10_000.0]
    series: dict[str, list[float | None]] = {"STCA": [0.61, 0.62, None, 0.65], "DIN <1>": [0.6, 0.6, 0.61, 0.62]}
    detail = Lines("AUC", x, series, "history", "AUC", log_x=True, from_zero=False).svg()
    assert "the vertical axis does not start at zero" in detail
    assert "history (logarithmic)" in detail
    assert "DIN &lt;1&gt;" in detail
    assert len(parse(detail).findall(".//circle")) == 7
    assert len([line for line in parse(detail).findall(".//line") if line.get("stroke")]) == 1 + 3
    from_zero = Lines("AUC", x, series, "history", "AUC").svg()
    assert "does not start" not in from_zero
    assert "0" in [text.text for text in parse(from_zero).findall(".//text")]


@given(st.floats(-1e6, 1e6), st.floats(0, 1e6))
@example(0.0, 5e-324)
@example(3.0, 1e-13)
def test_ticks_enclose_the_values(low: float, span: float) -> None:
    ticks = _ticks(low, low + span)
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
def test_numbers_are_formatted_with_three_digits_and_a_unit(value: float, unit: str, text: str) -> None:
    assert format_number(value, unit) == text


def test_values_that_cannot_be_drawn_are_refused() -> None:
    with pytest.raises(ValueError, match="2 labels for 1 values"):
        Bars("x", ["a", "b"], [1.0]).svg()
    with pytest.raises(ValueError, match=r"cannot draw .*above 0"):
        Bars("x", ["a"], [0.0], log=True).svg()
    with pytest.raises(ValueError, match="one value, or None, for each of the 2 x values"):
        Lines("x", [1.0, 2.0], {"a": [1.0]}, "x", "y").svg()
    with pytest.raises(ValueError, match="x starts at 0"):
        Lines("x", [0.0, 2.0], {"a": [1.0, 2.0]}, "x", "y", log_x=True).svg()
