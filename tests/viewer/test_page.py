"""A page holds what it is given, escapes it, and needs nothing from elsewhere."""

import numpy as np

from cloudreg.viewer.charts import histogram, lines, tile_layout
from cloudreg.viewer.page import Fact, Part, Section, write_page


def test_a_page_holds_every_kind_of_part_and_nothing_from_elsewhere(tmp_path):
    chart = lines({"a": (np.arange(3.0), np.arange(3.0)), "b": (np.arange(3.0), np.ones(3))}, "x", "y", "two lines")
    spread = histogram(np.array([1.0, 2.0, np.nan]), "px", "links", "a spread")
    layout = tile_layout(
        np.array([[0.0, 0.0], [0.0, 90.0]]), (100.0, 100.0), ["LOC000", "LOC001"], [(0, 1, float("nan"))], "two tiles"
    )
    meter = [{"name": "CP", "percent": 50, "value": "0.50"}]
    parts = [
        Part("charts", title="Charts", pictures=[chart, spread, layout]),
        Part("table", rows=[("name", "value"), ("<b>bold</b>", "7")]),
        Part("bars", rows=meter),
        Part("meters", rows=meter),
        Part("sortable", rows=[("name", "value"), ("x", "1")]),
        Part("text", summary="Settings", text="a: 1"),
    ]
    path = tmp_path / "page.html"
    write_page(path, "title & more", "below", [Fact("fact", "42")], [Section("one", "One", "first", parts)])
    page = path.read_text()
    assert "title &amp; more" in page
    assert "&lt;b&gt;bold&lt;/b&gt;" in page
    assert page.count("data:image/svg+xml") == 3
    assert 'src="http' not in page
    assert 'href="http' not in page
    assert list(tmp_path.iterdir()) == [path]


def test_a_histogram_of_nothing_is_still_a_chart():
    assert histogram(np.array([]), "px", "links", "nothing").source.startswith("data:image/svg")
