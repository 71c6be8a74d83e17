"""Figures in one page: their ids and styles stay apart, nothing of them runs, and large ones become PNGs."""

import base64
import re
import xml.etree.ElementTree as ET

import pytest
from pages import EVIL, a_figure

from gch_bench.report.svg import embed, inline_svg

HOSTILE = """<?xml version="1.0"?>
<svg xmlns="http://www.w3.org/2000/svg" xmlns:xlink="http://www.w3.org/1999/xlink" width="72pt" height="36pt" onload="alert(1)">
<metadata>secret</metadata><script>alert(1)</script><style>* {fill: red}</style>
<defs><path id="a" d="M0 0"/></defs><use xlink:href="#a" clip-path="url(#a)" onclick="alert(1)"/></svg>"""


def test_ids_of_two_figures_differ_and_references_follow_them() -> None:
    ids, texts = [], [each.html for each in embed({"one": a_figure(), "two": a_figure()})]
    for text in texts:
        own = [element.get("id") for element in ET.fromstring(text).iter() if element.get("id")]
        references = re.findall(r'(?:href="#|url\(#)([^")]+)', text)
        assert references
        assert set(references) <= set(own)
        ids += own
    assert len(ids) == len(set(ids)) > 20


def test_scripts_handlers_metadata_and_namespaces_are_left_out() -> None:
    text, width = inline_svg(HOSTILE, "figure-7", f'a "caption" {EVIL}')
    assert width == 96  # 72 points are an inch, and an inch is 96 pixels
    root = ET.fromstring(text)
    assert [element.tag for element in root.iter()] == ["svg", "style", "defs", "path", "use"]
    assert root.attrib == {"id": "figure-7", "role": "img", "aria-label": f'a "caption" {EVIL}'}
    assert root[0].text == "#figure-7 {* {fill: red}}"
    assert root[2].attrib == {"href": "#figure-7-a", "clip-path": "url(#figure-7-a)"}


@pytest.mark.parametrize("text", ["", "<svg", "<html></html>"])
def test_other_text_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="text of an SVG file"):
        inline_svg(text, "figure-0", "")


def test_the_largest_figures_become_pngs_until_all_fit() -> None:
    figures = {"small": a_figure(points=5), "large": a_figure(points=5000)}
    small, large = embed(figures, budget=10**9)
    assert small.html.startswith("<svg")
    assert large.html.startswith("<svg")
    room = len(small.html) + 100_000
    assert room < len(large.html)
    small, large = embed(figures, budget=room)
    assert small.html.startswith("<svg")
    image = ET.fromstring(large.html)
    assert image.get("alt") == f"Reliability of {EVIL}, power 1"
    assert base64.b64decode(image.attrib["src"].removeprefix("data:image/png;base64,")).startswith(b"\x89PNG")
