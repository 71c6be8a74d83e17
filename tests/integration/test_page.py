"""The page in a real browser: no complaint, nothing fetched, sorting by mouse and keyboard, a phone, print, the search."""

import base64
import json
import re
from collections.abc import Iterator
from pathlib import Path

import pytest
from chromium import PROGRAM, Tab, chromium
from compatibility_tables import make_section, make_tables
from pages import EVIL, a_page, a_report

from gch_bench.report.compatibility import page as compatibility_page

pytestmark = pytest.mark.skipif(PROGRAM is None, reason="no Chromium is installed (Debian: apt-get install chromium)")
TABLE = "#tables table"  # the first: clean images
BUTTONS = f"{TABLE} th button"


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Tab]:
    with chromium(tmp_path_factory.mktemp("chromium") / "profile") as tab:
        yield tab


@pytest.fixture(scope="module")
def file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("page") / "report.html"
    path.write_text(a_page(a_report(8), figures=3))
    return path


@pytest.fixture
def tab(browser: Tab, file: Path) -> Tab:
    browser.size(1280, 900)
    browser.open(file)
    return browser


def column(tab: Tab, number: int) -> list[str]:
    """The texts of a column of the first table, first lines only."""
    cells = f"[...document.querySelector('{TABLE}').tBodies[0].rows].map(row => row.cells[{number}].innerText)"
    return [text.split("\n")[0] for text in tab.run(cells)]


def numbers(texts: list[str]) -> list[float]:
    return [float(re.match(r"[-+.\d]+", text)[0]) for text in texts]


def test_no_complaint_and_no_request_beyond_the_file(tab: Tab, file: Path) -> None:
    tab.events.clear()
    tab.open(file)
    for summary in range(tab.run("document.querySelectorAll('summary').length")):
        tab.run(f"document.querySelectorAll('summary')[{summary}].click()")
    assert tab.complaints() == []
    assert {url for url in tab.requests() if not url.startswith("data:")} == {file.as_uri()}


def test_the_page_on_compatibility_has_no_complaint_and_a_search(browser: Tab, tmp_path: Path) -> None:
    section = make_section(make_tables({EVIL: True, "mask": False}, ("L3", "L4")))
    file = tmp_path / "report.html"
    file.write_text(compatibility_page(section))
    browser.events.clear()
    browser.open(file)
    for summary in range(browser.run("document.querySelectorAll('summary').length")):
        browser.run(f"document.querySelectorAll('summary')[{summary}].click()")
    assert browser.complaints() == []
    assert {url for url in browser.requests() if not url.startswith("data:")} == {file.as_uri()}
    rows = len(section.tables["measurements"])
    browser.run("document.querySelector('#results input').dispatchEvent(new Event('input'))")
    assert browser.run("document.querySelector('#results [role=status]').textContent").startswith(f"{rows} of {rows} rows")


def test_a_complaint_and_a_request_would_be_seen(browser: Tab, tmp_path: Path) -> None:
    path = tmp_path / "bad.html"
    path.write_text("<img src='missing.png'><script>console.error('bad'); throw Error('worse')</script>")
    browser.events.clear()
    browser.open(path)
    assert len(browser.complaints()) == 3
    assert (tmp_path / "missing.png").as_uri() in browser.requests()


def test_a_script_in_a_name_does_not_run(browser: Tab, file: Path, tmp_path: Path) -> None:
    path = tmp_path / "hostile.html"  # as if the escaping had failed
    path.write_text(file.read_text().replace("</main>", "<script>window.obeyed = true</script></main>"))
    browser.open(path)
    assert browser.run("window.obeyed === undefined")
    assert browser.run("document.documentElement.classList.contains('scripted')")  # the page's own script did run


def test_the_mouse_sorts_up_down_and_back(tab: Tab) -> None:
    first, names = column(tab, 1), column(tab, 0)
    assert numbers(first) not in (sorted(numbers(first)), sorted(numbers(first), reverse=True))
    state = f"document.querySelectorAll('{TABLE} th')[1].ariaSort"
    for expected, reverse in (("ascending", False), ("descending", True)):
        tab.click(f"{TABLE} thead th:nth-child(2) button")
        assert tab.run(state) == expected
        assert numbers(column(tab, 1)) == sorted(numbers(first), reverse=reverse)
        assert sorted(column(tab, 0)) == sorted(names)
        assert column(tab, 0) != names  # whole rows move
    tab.click(f"{TABLE} thead th:nth-child(2)")  # anywhere in the head of the column
    assert (tab.run(state), column(tab, 0)) == ("none", names)


def test_the_keyboard_sorts(tab: Tab) -> None:
    first = numbers(column(tab, 1))
    tab.press("Tab")
    assert tab.run("document.activeElement.className") == "skip"
    assert tab.run("document.activeElement.getBoundingClientRect().left >= 0")  # it is seen when it has the focus
    for _ in range(40):
        tab.press("Tab")
        if tab.run(f"document.activeElement === document.querySelectorAll('{BUTTONS}')[1]"):
            break
    assert tab.run("document.activeElement.ariaLabel").startswith("Sort by ")
    assert tab.run("getComputedStyle(document.activeElement).outlineStyle") == "solid"
    for key, reverse in (("Enter", False), ("Space", True)):
        tab.press(key)
        assert numbers(column(tab, 1)) == sorted(first, reverse=reverse)


def test_sorting_is_stable_and_what_is_missing_comes_last(browser: Tab, tmp_path: Path) -> None:
    rows = [("a", 2), ("b", None), ("c", 10), ("d", 2), ("e", -1)]
    cells = "".join(f"<tr><th>{name}</th><td data-sort='{'' if n is None else n}'>{n}</td></tr>" for name, n in rows)
    script = (Path(__file__).parents[2] / "gch_bench/report/page/page.js").read_text()
    path = tmp_path / "table.html"
    path.write_text(
        f"<section id=tables><table class=sortable><thead><tr><th>n</th><th>v</th></tr></thead><tbody>{cells}</tbody></table>"
        f"</section><details id=results></details><script>{script}</script>"
    )
    browser.open(path)
    for expected in ("eadcb", "cadeb", "abcde"):
        browser.click(f"{TABLE} thead th:nth-child(2) button")
        assert "".join(column(browser, 0)) == expected


@pytest.mark.parametrize("opened", [False, True])
def test_a_phone_never_scrolls_sideways(tab: Tab, file: Path, opened: bool) -> None:
    tab.size(390, 844, phone=True)
    tab.open(file)
    if opened:
        tab.run("document.querySelectorAll('details').forEach(each => { each.open = true; })")
        tab.complaints()  # lets the page draw the full table
    assert tab.run("innerWidth") == 390
    assert tab.run("document.documentElement.scrollWidth") <= 390
    wide = "[...document.querySelectorAll('.scroll')].filter(each => each.scrollWidth > each.clientWidth).length"
    assert tab.run(wide) > 0  # the tables scroll inside their own containers


def test_print_shows_all_parts_and_no_button(tab: Tab) -> None:
    hidden = "[...document.querySelectorAll('details:not(#results) > :not(summary)')].filter(each => !each.checkVisibility())"
    assert tab.run(f"{hidden}.length") > 0
    tab.send("Emulation.setEmulatedMedia", media="print")
    try:
        assert tab.run(f"{hidden}.length") == 0 or not tab.run("CSS.supports('selector(::details-content)')")
        assert tab.run(f"[...document.querySelectorAll('{BUTTONS}, nav')].some(each => each.checkVisibility())") is False
    finally:
        tab.send("Emulation.setEmulatedMedia", media="")
    opened = "document.querySelectorAll('details[open]').length"
    tab.run("dispatchEvent(new Event('beforeprint'))")
    assert tab.run(opened) == tab.run("document.querySelectorAll('details').length") - 1  # all but the search
    tab.run("dispatchEvent(new Event('afterprint'))")
    assert tab.run(opened) == 0
    assert base64.b64decode(tab.send("Page.printToPDF")["data"]).startswith(b"%PDF")


def test_the_search_finds_rows_by_words(tab: Tab) -> None:
    tab.click("#results summary")
    count = "document.querySelector('#results [role=status]').textContent"
    tab.complaints()
    total = int(re.match(r"\d+ of (\d+) rows", tab.run(count))[1])
    assert total == len(a_report(8).rows)
    tab.click("#results input")
    tab.type(f"{EVIL} CLEAN aurc raw")
    shown = "[...document.querySelectorAll('#results tbody tr')].map(row => [...row.cells].map(cell => cell.textContent))"
    rows = tab.run(shown)
    assert [[row[1], *row[5:9]] for row in rows] == [[EVIL, "clean", "0", "aurc", "raw"]]
    assert tab.run(count) == f"1 of {total} rows"
    tab.run("document.querySelector('#results input').value = ''")
    tab.click("#results input")
    tab.type(" ")
    tab.click("#results thead th:nth-child(10) button")  # value, upwards
    values = [float(row[9]) for row in tab.run(shown)]
    assert values == sorted(values)
    everything = json.loads(tab.run("document.getElementById('results-data').textContent"))["value"]["numbers"]
    assert values == sorted(everything)[: len(values)]
