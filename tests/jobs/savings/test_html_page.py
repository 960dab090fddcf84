"""Pieces of HTML pages."""

from __future__ import annotations

from longbatch.jobs.savings.html_page import bullets, facts, page, paragraph, table


def test_every_piece_of_a_page_escapes_its_text() -> None:
    html = page("<t>", [("a & b", table(["h<"], [["<c>"]], highlight=[0]) + bullets(["x>y"]))])
    for escaped in ("&lt;t&gt;", "a &amp; b", "h&lt;", "&lt;c&gt;", "x&gt;y", "<tr class=highlight>"):
        assert escaped in html
    assert facts([("2×", "<less>")]) == '<div class="facts"><div><b>2×</b><span>&lt;less&gt;</span></div></div>'


def test_a_paragraph_escapes_quotes_and_tags() -> None:
    assert paragraph("<script>\"&'") == "<p>&lt;script&gt;&quot;&amp;&#x27;</p>"
