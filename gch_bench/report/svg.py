"""Figures as parts of one HTML page: several matplotlib SVGs share the page's ids and styles unless they are kept apart."""

import base64
import re
import xml.etree.ElementTree as ET
from collections.abc import Mapping
from typing import NamedTuple

from markupsafe import Markup
from matplotlib.figure import Figure

from gch_bench.report.figure_style import drawn

PIXELS = {"pt": 96 / 72, "in": 96.0, "px": 1.0, "": 1.0}  # CSS pixels of a unit of length
DROPPED = {"metadata", "script"}
DPI = 200  # of a PNG, and of what is not drawn in lines in an SVG
BUDGET = 1_200_000  # bytes of all figures of a page; while they need more, the largest become PNGs


class Embedded(NamedTuple):
    """A figure as HTML that can stand beside others, and its natural width in CSS pixels."""

    name: str
    caption: str
    html: str
    width: float


def embed(figures: Mapping[str, Figure], budget: int = BUDGET, prefix: str = "figure") -> list[Embedded]:
    """The figures as inline SVG, or as PNG inside the page. The label of a figure is its caption, else its name.

    While all figures together are larger than `budget` bytes, the largest SVG gives way to a PNG if that is smaller.

    Args:
        prefix: how the ids of these figures begin, which no other element of the page may have.
    """
    found = []
    for number, (name, figure) in enumerate(figures.items()):
        caption = str(figure.get_label()) or name
        inline = inline_svg(drawn(name, figure, "svg", DPI).decode(), f"{prefix}-{number}", _first_sentence(caption))
        found.append(Embedded(name, caption, *inline))
    for at in sorted(range(len(found)), key=lambda at: -len(found[at].html)):
        if sum(len(each.html.encode()) for each in found) <= budget:
            break
        png = drawn(found[at].name, figures[found[at].name], "png", DPI)
        image = _image(png, _first_sentence(found[at].caption))
        if len(image) < len(found[at].html):
            found[at] = found[at]._replace(html=image)
    return [each._replace(html=Markup(each.html)) for each in found]


class Inline(NamedTuple):
    """An SVG as part of an HTML page, and its natural width in CSS pixels."""

    html: str
    width: float


def inline_svg(text: str, prefix: str, alt: str) -> Inline:
    """An SVG file as an element of an HTML page, with `prefix` before all its ids, and its styles limited to itself.

    Metadata and scripts are left out. The size follows the page: width and height go, the viewBox stays.

    Args:
        alt: what a screen reader says instead of the drawing.

    Raises:
        ValueError: the text is no SVG.
    """
    try:
        root = ET.fromstring(text)
    except ET.ParseError as error:
        raise ValueError(f"svg must be the text of an SVG file, got one that cannot be parsed: {error}") from error
    if _local(root.tag) != "svg":
        raise ValueError(f"svg must be the text of an SVG file, got the element {_local(root.tag)}")
    width = _pixels(root.get("width", ""))
    for parent in list(root.iter()):
        for child in list(parent):
            if _local(child.tag) in DROPPED:
                parent.remove(child)
    for element in root.iter():
        element.tag = _local(element.tag)  # HTML needs no namespace on svg and what is in it
        element.attrib = _own_ids(element.attrib, prefix)
        if element.tag == "style":
            element.text = f"#{prefix} {{{element.text}}}"  # nested rules apply inside this drawing alone
    for name in ("width", "height"):
        root.attrib.pop(name, None)
    root.attrib |= {"id": prefix, "role": "img", "aria-label": alt}
    return Inline(ET.tostring(root, encoding="unicode"), width)


def _own_ids(attributes: Mapping[str, str], prefix: str) -> dict[str, str]:
    """The attributes without namespaces and handlers of events; ids and the references to them begin with `prefix`."""
    own = {}
    for key, value in attributes.items():
        name = _local(key)
        if name.startswith("on"):
            continue
        if name == "id":
            value = f"{prefix}-{value}"
        elif name == "href" and value.startswith("#"):
            value = f"#{prefix}-{value[1:]}"
        own[name] = re.sub(r"url\(#", f"url(#{prefix}-", value)
    return own


def _local(name: str) -> str:
    return name.rsplit("}", 1)[-1]


def _pixels(length: str) -> float:
    match = re.fullmatch(r"([\d.]+)(pt|in|px|)", length)
    return float(match[1]) * PIXELS[match[2]] if match else 640.0


def _first_sentence(caption: str) -> str:
    """What a screen reader says in the place of the drawing; the whole caption is below it."""
    return caption.split(". ")[0]


def _image(png: bytes, alt: str) -> str:
    image = ET.Element("img", {"alt": alt, "src": f"data:image/png;base64,{base64.b64encode(png).decode()}"})
    return ET.tostring(image, encoding="unicode")
