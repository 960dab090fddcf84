"""The page of `longbatch measure`."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from longbatch.jobs.savings.html_report import savings_page
from longbatch.jobs.savings.results import Savings


def test_the_page_loads_nothing_and_lists_layouts_that_are_better(measured: tuple[Path, Savings]) -> None:
    out, savings = measured
    html = (out / "savings.html").read_text()
    assert html == savings_page(savings)
    assert "http" not in html
    assert "src=" not in html
    assert "What longbatch saves: tiny &lt;log&gt;" in html
    smaller = [f for layout in savings.layouts for f in layout.files if f.disk_bytes < savings.stored.disk_bytes]
    assert html.count("of the dataset)") >= len(smaller)
    assert "user level, Arrow zstd" in html


def test_names_from_the_data_cannot_add_markup_to_the_page(measured: tuple[Path, Savings]) -> None:
    savings, attack = measured[1], '<img src=x onerror="alert(1)">'
    hostile = replace(
        savings,
        dataset=replace(savings.dataset, name=attack),
        settings={**savings.settings, "machine": attack},
        layouts=[replace(layout, title=attack) for layout in savings.layouts],
        stored=replace(savings.stored, codec=attack),
        columns=[replace(column, name=attack) for column in savings.columns],
        headline=replace(savings.headline, smallest_title=attack),
    )
    html = savings_page(hostile)
    assert "<img" not in html
    assert html.count("&lt;img src=x onerror=&quot;alert(1)&quot;&gt;") > 20
