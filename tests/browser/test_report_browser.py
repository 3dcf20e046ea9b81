"""The report as a reader meets it: opened from disk in a real browser."""

from __future__ import annotations

import base64
import itertools
import json
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final

import numpy as np
import pytest

from tests.browser import browser
from tests.unit import report_samples

pytestmark = pytest.mark.browser

PAGES: Final = (
    "extended.html",
    "two_recipes.html",
    "flagged.html",
    "standin.html",
    "incomplete.html",
    "hostile.html",
    "pytest-one_failed/report.html",
    "pytest-standin/report.html",
)
INSIDE_PYTEST_HTML: Final = "pytest-one_failed/report.html"
KEYS: Final = {"Enter": "\ue007", "Space": " "}


def find(driver: Any, selector: str) -> Any:
    return driver.find_element("css selector", selector)


def all_of(driver: Any, selector: str) -> list[Any]:
    return list(driver.find_elements("css selector", selector))


def choose(driver: Any, name: str, value: str) -> None:
    from selenium.webdriver.support.select import Select

    Select(find(driver, f"select[name={name}]")).select_by_visible_text(value)


@pytest.mark.parametrize("page", PAGES)
def test_opens_from_disk_and_asks_nobody_for_anything(
    chromium: Any, folder: Path, page: str
) -> None:
    chromium.get((folder / page).as_uri())
    events = [json.loads(entry["message"])["message"] for entry in chromium.get_log("performance")]
    asked = [
        event["params"]["request"]["url"]
        for event in events
        if event["method"] == "Network.requestWillBeSent"
    ]
    assert (folder / page).as_uri() in asked
    assert not [url for url in asked if not url.startswith(("data:", (folder / page).as_uri()))]
    assert chromium.execute_script("return document.documentElement.lang") == "en"
    # get_log("browser") is empty: see the fixture


@pytest.mark.parametrize("page", PAGES)
def test_fits_a_phone(chromium: Any, folder: Path, page: str) -> None:
    browser.look(chromium, browser.PHONE)
    chromium.get((folder / page).as_uri())
    for _ in range(2):
        width = chromium.execute_script("return document.documentElement.scrollWidth")
        assert width == browser.PHONE
        browser.unfold(chromium)


DESK_LIGHT: Final = (browser.DESK, False)
PHONE_DARK: Final = (browser.PHONE, True)
"""Colours do not depend on the width."""


@pytest.mark.parametrize(
    ("page", "width", "dark"),
    [
        ("extended.html", *DESK_LIGHT),
        ("extended.html", *PHONE_DARK),
        (INSIDE_PYTEST_HTML, *DESK_LIGHT),
        (INSIDE_PYTEST_HTML, *PHONE_DARK),
        ("pytest-standin/report.html", *PHONE_DARK),  # its strip is of one colour in both themes
    ],
)
def test_axe_finds_no_violation(
    chromium: Any, folder: Path, axe: str, page: str, width: int, dark: bool
) -> None:
    browser.look(chromium, width, dark=dark)
    chromium.get((folder / page).as_uri())
    browser.unfold(chromium)
    chromium.execute_script(axe)
    assert chromium.execute_async_script(VIOLATIONS) == []


VIOLATIONS: Final = """
// axe spends nearly all its time on the contrast of one cell after the other. Contrast is a matter
// of a text's own look and of what lies behind it: one text of each kind is enough. What lies on
// something else than what it lies in, as in drawings and controls, is looked at one by one.
const behind = (e) => {
  if (!e) return "";
  const s = getComputedStyle(e);
  const own = [s.backgroundColor, s.backgroundImage, s.opacity, s.filter, s.position];
  return [...own, behind(e.parentElement)].join();
};
const texts = [...document.querySelectorAll("body *")].filter(
  (e) => [...e.childNodes].some((n) => n.nodeType === 3 && n.data.trim()) && e.checkVisibility());
const kinds = new Map(texts.map((e) => {
  const s = getComputedStyle(e);
  const look = [s.color, s.fontSize, s.fontWeight, s.textShadow, s.display, behind(e)].join();
  return [e.closest("svg, button, input, select, label") ? e : look, e];
}));
const contrast = {runOnly: ["color-contrast"]};
const others = {rules: {"color-contrast": {enabled: false}}};
(async () => {
  const found = [];
  for (const [where, what] of [[{include: [...kinds.values()]}, contrast], [document, others]]) {
    const {violations} = await axe.run(where, {...what, resultTypes: ["violations"]});
    for (const {id, nodes} of violations)
      for (const node of nodes) found.push([id, node.html, node.failureSummary]);
  }
  return found;
})().then(arguments[0])
"""


@pytest.mark.parametrize(
    ("page", "cause"),
    [
        ("weak_model.html", "The model itself is not above 85 %"),
        ("bad_conversion.html", "Conversion lost the rest"),
        ("one_bad_layer.html", "conv2d_8"),
        ("flagged.html", "PyTorch int8, tuned alone is off"),
        ("one_milestone.html", "PyTorch int8, tuned alone is off"),
        ("saturated.html", "saturate"),
        ("failed_stage.html", "MemoryError: planted"),
        ("missing.html", "pytest -m v1_1"),
        (INSIDE_PYTEST_HTML, "RuntimeError: the session ended"),
    ],
)
def test_the_first_900_pixels_name_the_cause(
    chromium: Any, folder: Path, page: str, cause: str
) -> None:
    chromium.get((folder / page).as_uri())
    for width in (browser.DESK, 768, 390):
        browser.look(chromium, width)
        bottoms = chromium.execute_script(
            "return [...document.querySelectorAll('.diagnosis')]"
            ".filter((e) => e.textContent.includes(arguments[0]))"
            ".map((e) => e.getBoundingClientRect().bottom)",
            cause,
        )
        assert bottoms
        assert min(bottoms) <= 900


@pytest.mark.parametrize("page", ["weak_model.html", "one_bad_layer.html", "failed_stage.html"])
def test_a_diagnosis_leads_to_what_it_speaks_of(chromium: Any, folder: Path, page: str) -> None:
    chromium.get((folder / page).as_uri())
    links = all_of(chromium, ".diagnosis a")
    assert links
    for link in links:
        assert find(chromium, f"[id='{link.get_attribute('hash')[1:]}']").is_displayed()


def rectangles(driver: Any, selector: str) -> list[tuple[float, float, float, float]]:
    """Left, top, right and bottom of every element that is not folded away."""
    return [
        tuple(found)
        for found in driver.execute_script(
            "return [...document.querySelectorAll(arguments[0])]"
            ".filter((e) => e.checkVisibility()).map((e) => {"
            "const r = e.getBoundingClientRect(); return [r.left, r.top, r.right, r.bottom]; })",
            selector,
        )
    ]


@pytest.mark.parametrize("page", ["flagged.html", "missing.html"])
def test_phone_shows_the_answer_without_scrolling_sideways(
    chromium: Any, folder: Path, page: str
) -> None:
    browser.look(chromium, browser.PHONE)
    chromium.get((folder / page).as_uri())
    found = rectangles(chromium, ".comparison-table :is(th[scope=row], td:not(.none), .unit)")
    assert len(found) > 20
    assert all(left >= 0 and right <= browser.PHONE for left, _, right, _ in found)
    cards = [row.text for row in all_of(chromium, ".comparison-table tbody tr")]
    if page == "flagged.html":
        (flagged,) = [card for card in cards if "flagged" in card]
        for words in ("PyTorch", "int8", "▼ degraded", "−14.69 pp", "128.7 kB"):
            assert words in flagged
        answer, delta = (
            find(chromium, f".comparison-table tr.flagged {selector}").location["y"]
            for selector in (".word", "[data-label=agreement]")
        )
        assert answer < delta
    else:
        assert sum("not evaluated" in card for card in cards) == 5


def test_headings_of_cards_are_seen_while_they_have_the_focus(chromium: Any, folder: Path) -> None:
    browser.look(chromium, browser.PHONE)
    chromium.get((folder / "flagged.html").as_uri())
    heading = find(chromium, ".comparison-table thead")
    assert heading.value_of_css_property("clip-path") != "none"
    find(chromium, ".comparison-table thead button").send_keys(KEYS["Enter"])
    assert heading.value_of_css_property("clip-path") == "none"


def test_heat_map_is_seen_whole_on_a_phone(chromium: Any, folder: Path) -> None:
    browser.look(chromium, 390)
    chromium.get((folder / "extended.html").as_uri())
    ((left, _, right, _),) = rectangles(chromium, ".heat")
    assert left >= 0
    assert right <= 390


@pytest.mark.parametrize("page", ["extended.html", "flagged.html", "two_recipes.html"])
def test_no_text_of_a_chart_is_cut_or_crossed(chromium: Any, folder: Path, page: str) -> None:
    chromium.get((folder / page).as_uri())
    for width in (browser.DESK, 390, browser.PHONE):
        browser.look(chromium, width)
        _demand_whole_texts(chromium)


def _demand_whole_texts(chromium: Any) -> None:
    figures = rectangles(chromium, "figure:has(> .deltas, > .plane)")
    assert len(figures) == 2
    for selector, (left, _, right, _) in zip((".deltas", ".plane svg"), figures, strict=True):
        texts = rectangles(chromium, f"{selector} text")
        assert texts
        assert all(text[0] >= left and text[2] <= right for text in texts)
    for text, line in itertools.product(
        rectangles(chromium, ".deltas text"), rectangles(chromium, ".deltas > line.line")
    ):
        assert not _meet(text, line)
    for text, line in itertools.product(
        rectangles(chromium, ".plane .tick"), rectangles(chromium, ".plane .interval")
    ):
        assert not _meet(text, line)
    for one, other in itertools.combinations(rectangles(chromium, ".chart .tick"), 2):
        assert not _meet(one, other)


def _meet(one: tuple[float, ...], other: tuple[float, ...]) -> bool:
    return one[0] < other[2] and other[0] < one[2] and one[1] < other[3] and other[1] < one[3]


def test_what_goes_on_to_the_side_says_so_until_its_end(chromium: Any, folder: Path) -> None:
    browser.look(chromium, 390)
    chromium.get((folder / INSIDE_PYTEST_HTML).as_uri())
    browser.unfold(chromium)
    settled = "requestAnimationFrame(() => setTimeout(arguments[arguments.length - 1], 50))"
    chromium.execute_async_script(settled)
    wide, said = chromium.execute_script(
        "const all = [...document.querySelectorAll('.scroll')];"
        "const names = (found) => found.map((e) => e.ariaLabel);"
        "return [names(all.filter((e) => e.scrollWidth > e.clientWidth + 1)),"
        "names(all.filter((e) => getComputedStyle(e, '::after').content.includes('side')))]"
    )
    assert wide == said
    assert {"Timeline of the stages", "Table of tests"} <= set(said)
    region = find(chromium, ".scroll.more")
    chromium.execute_script("arguments[0].scrollLeft = 1e6", region)
    chromium.execute_async_script(settled)
    assert "more" not in region.get_attribute("class").split()


@pytest.mark.parametrize("page", ["extended.html", "flagged.html", "two_recipes.html"])
def test_no_table_is_cut_at_a_desk(chromium: Any, folder: Path, page: str) -> None:
    chromium.get((folder / page).as_uri())
    browser.unfold(chromium)
    assert (
        chromium.execute_script(
            "return [...document.querySelectorAll('.scroll')]"
            ".filter((e) => e.scrollWidth > e.clientWidth).map((e) => e.ariaLabel)"
        )
        == []
    )


def test_comparison_sorts_by_keyboard_below_the_baseline(chromium: Any, folder: Path) -> None:
    chromium.get((folder / "flagged.html").as_uri())
    heading = find(chromium, ".sortable-table th:nth-child(5)")
    button = heading.find_element("css selector", "button")
    for order, key in (("descending", "Enter"), ("ascending", "Space")):
        button.send_keys(KEYS[key])
        assert heading.get_attribute("aria-sort") == order
        rows = all_of(chromium, ".sortable-table tbody tr")
        assert "baseline" in rows[0].get_attribute("class")
        deltas = [
            float(row.find_element("css selector", "td:nth-child(5)").get_attribute("data-order"))
            for row in rows[1:]
        ]
        assert deltas == sorted(deltas, reverse=order == "descending")
        assert len(set(deltas)) > 2
    find(chromium, ".sortable-table th:nth-child(1) button").click()
    assert heading.get_attribute("aria-sort") is None
    names = [e.text for e in all_of(chromium, ".sortable-table tbody th")]
    assert names[1:] == sorted(names[1:])


def test_verdicts_sort_by_what_they_mean(chromium: Any, folder: Path) -> None:
    chromium.get((folder / "flagged.html").as_uri())
    find(chromium, ".sortable-table th:nth-child(3) button").click()
    words = [e.text.split(maxsplit=1)[1] for e in all_of(chromium, ".sortable-table .word")]
    assert words[:2] == ["baseline", "degraded"]
    assert set(words[2:]) == {"equivalent"}


def test_requirements_filter_by_milestone_and_status(chromium: Any, folder: Path) -> None:
    chromium.get((folder / "one_failed.html").as_uri())

    def shown() -> list[str]:
        return [e.text for e in all_of(chromium, "#requirements-table tbody tr:not([hidden]) th")]

    total = len(report_samples.one_failed()["requirements"])
    assert len(shown()) == total
    choose(chromium, "status", "not met")
    assert shown() == ["EVAL-03", "CAL-02", "ORT-03"]
    assert find(chromium, "output").text == f"3 of {total} shown"
    choose(chromium, "milestone", "v1_0")
    assert shown() == ["EVAL-03"]
    choose(chromium, "milestone", "v1_1")
    assert shown() == []
    assert find(chromium, ".none-shown").is_displayed()
    choose(chromium, "status", "all")
    assert shown() == [f"PT-0{i}" for i in range(1, 6)]


@pytest.mark.parametrize("page", ["extended.html", INSIDE_PYTEST_HTML])
def test_every_link_lands(chromium: Any, folder: Path, page: str) -> None:
    chromium.get((folder / page).as_uri())
    links, lost = chromium.execute_async_script(FOLLOW)
    assert links > 5
    assert lost == []


FOLLOW = """
(async () => {
  const links = [...document.querySelectorAll("a[href^='#']")];
  const lost = [];
  for (const link of links) {
    link.click();
    await new Promise((then) => setTimeout(then, 5));  // the page hears of it a little later
    const target = document.getElementById(link.hash.slice(1));
    if (!target || target.open === false || !target.checkVisibility()) lost.push(link.hash);
  }
  return [links.length, lost];
})().then(arguments[0])
"""


def test_link_to_a_requirement_that_is_filtered_out_shows_it(chromium: Any, folder: Path) -> None:
    chromium.get((folder / "one_failed.html").as_uri())
    choose(chromium, "status", "not met")
    row = find(chromium, "#req-PT-01")
    assert not row.is_displayed()
    chromium.execute_script("location.hash = 'req-PT-01'")
    chromium.execute_async_script("setTimeout(arguments[0], 50)")
    assert row.is_displayed()


def test_a_requirement_and_its_test_lead_to_each_other(chromium: Any, folder: Path) -> None:
    chromium.get((folder / INSIDE_PYTEST_HTML).as_uri())
    for name in ("EVAL-03", "ORT-03", "PT-01"):
        find(chromium, f"#req-{name} .small a").click()
        row = find(chromium, "#tests-table tr:target")
        assert row.text.find(f"test_{name.lower().replace('-', '_')}_holds") > 0
        row.find_element("css selector", "td a").click()
        assert find(chromium, "#requirements-table tr:target").get_attribute("id") == f"req-{name}"


def test_table_of_tests_sorts_and_filters(chromium: Any, folder: Path) -> None:
    chromium.get((folder / INSIDE_PYTEST_HTML).as_uri())

    def shown(selector: str) -> list[str]:
        return [e.text for e in all_of(chromium, f"#tests-table tbody tr:not([hidden]) {selector}")]

    total = len(report_samples.one_failed()["requirements"])
    results = [text.split()[1] for text in shown(".status")]
    assert len(results) == total
    assert set(results[:3]) == {"Failed", "Error"}
    assert set(results[3:]) == {"Passed"}
    logs = rectangles(chromium, "#tests-table pre")
    assert len(logs) == 3  # of the failures
    find(chromium, "#tests-table th:nth-child(2) button").send_keys(KEYS["Enter"])
    names = shown("summary")
    assert names == sorted(names)
    choose(chromium, "result", "Failed")
    assert set(shown(".status")) == {"✗ Failed"}


def test_filters_stand_in_the_address(chromium: Any, folder: Path) -> None:
    chromium.get((folder / INSIDE_PYTEST_HTML).as_uri())
    choose(chromium, "status", "not met")
    choose(chromium, "milestone", "v1_2")
    assert chromium.current_url.endswith("?status=not+met&milestone=v1_2")
    chromium.get(chromium.current_url + "#requirements")
    chromium.refresh()
    shown = all_of(chromium, "#requirements-table tbody tr:not([hidden]) th")
    assert [e.text for e in shown] == ["CAL-02", "ORT-03"]
    assert len(all_of(chromium, "#tests-table tbody tr:not([hidden])")) > 3
    choose(chromium, "status", "all")
    choose(chromium, "milestone", "all")
    assert chromium.current_url.endswith("report.html#requirements")


@pytest.mark.parametrize("page", ["standin.html", "pytest-standin/report.html"])
def test_standin_stays_in_sight(chromium: Any, folder: Path, page: str) -> None:
    chromium.get((folder / page).as_uri())
    assert chromium.title.startswith("STAND-IN")
    strip = find(chromium, ".standin-strip")
    for anchor in ("verdict", "comparison", "requirements", "hurts", "made"):
        chromium.execute_script("document.getElementById(arguments[0]).scrollIntoView()", anchor)
        top, bottom = chromium.execute_script(
            "const r = arguments[0].getBoundingClientRect(); return [r.top, r.bottom]", strip
        )
        assert top >= 0
        assert bottom < 200


@contextmanager
def no_scripts(driver: Any) -> Iterator[None]:
    driver.execute_cdp_cmd("Emulation.setScriptExecutionDisabled", {"value": True})
    try:
        yield
    finally:
        driver.execute_cdp_cmd("Emulation.setScriptExecutionDisabled", {"value": False})


def test_page_without_scripts_has_all_that_it_has_with_them(chromium: Any, folder: Path) -> None:
    address = (folder / INSIDE_PYTEST_HTML).as_uri()
    chromium.get(address)
    everything = (
        "return [...document.querySelectorAll('section :is(td, p, h2, h3, summary, dd)')]"
        ".map((e) => e.checkVisibility() ? e.innerText : '')"
    )
    shown = chromium.execute_script(everything)
    margin = find(chromium, "#verdict").location["x"]
    with no_scripts(chromium):
        chromium.get(address)
        assert chromium.execute_script(everything) == shown
        assert "v1_2 not met: 10 of 12" in find(chromium, ".verdict").text
        tests = all_of(chromium, "#tests-table tbody tr")
        assert len(tests) == len(report_samples.one_failed()["requirements"])
        # nothing that would do nothing
        assert not [e for e in all_of(chromium, "form, button, input") if e.is_displayed()]
        assert find(chromium, "#verdict").location["x"] == margin >= 16
        assert find(chromium, "[download]").get_attribute("href").startswith("data:")


def test_page_reads_where_style_is_forbidden_too(chromium: Any, folder: Path) -> None:
    """As on a Jenkins server with its default policy."""
    page = folder / "no-style.html"
    text = (folder / INSIDE_PYTEST_HTML).read_text(encoding="utf-8")
    page.write_text(
        re.sub(r"<(style|script)>.*?</\1>", "", text, flags=re.DOTALL), encoding="utf-8"
    )
    chromium.get(page.as_uri())
    assert not [e for e in all_of(chromium, "form, button") if e.is_displayed()]
    wide = chromium.execute_script(
        "return [...document.querySelectorAll('svg')]"
        ".filter((e) => e.getBoundingClientRect().width > innerWidth).length"
    )
    assert wide == 0
    assert "v1_2 not met: 10 of 12" in find(chromium, "body").text


def printed(driver: Any) -> bytes:
    """The page that is open, as a PDF."""
    settings = {"printBackground": True, "preferCSSPageSize": True}
    pdf = driver.execute_cdp_cmd("Page.printToPDF", settings)["data"]
    return base64.b64decode(pdf)


def filled(pdf: bytes) -> list[float]:
    """How far down each page of a PDF there is ink, as a share of its height."""
    pdfium = pytest.importorskip("pypdfium2", reason="pypdfium2 is absent: pip install pypdfium2")
    pages = [page.render(grayscale=True).to_numpy() for page in pdfium.PdfDocument(pdf)]
    return [float(np.flatnonzero((page < 250).any(axis=1)).max() / len(page)) for page in pages]


NEARLY_EMPTY: Final = 0.3
"""The margins of a page are a tenth of its height."""


@pytest.mark.parametrize("page", sorted({*PAGES, "failed_stage.html"} - {"hostile.html"}))
def test_paper_has_no_nearly_empty_page(chromium: Any, folder: Path, page: str) -> None:
    chromium.get((folder / page).as_uri())
    assert min(filled(printed(chromium))) > NEARLY_EMPTY


def test_a_forced_break_is_seen_to_leave_a_page_nearly_empty(chromium: Any, folder: Path) -> None:
    chromium.get((folder / "incomplete.html").as_uri())
    chromium.execute_script(
        "document.head.insertAdjacentHTML('beforeend', "
        "'<style>@page { margin: 14mm } #verdict { break-after: page }</style>')"
    )
    assert min(filled(printed(chromium))) < NEARLY_EMPTY


def test_printing_opens_nothing_for_good(chromium: Any, folder: Path) -> None:
    chromium.get((folder / "extended.html").as_uri())
    pdf = printed(chromium)
    boxes = re.findall(rb"/MediaBox \[0 0 ([\d.]+) ([\d.]+)\]", pdf)
    assert 4 <= len(boxes) <= 14
    assert all(float(width) < float(height) for width, height in boxes)
    assert [e.get_attribute("class") for e in all_of(chromium, "details[open]")] == ["confusion"]


@pytest.mark.parametrize("page", ["extended.html", "flagged.html", INSIDE_PYTEST_HTML])
def test_paper_is_wide_enough_and_legible(chromium: Any, folder: Path, page: str) -> None:
    chromium.get((folder / page).as_uri())
    paper = {"deviceScaleFactor": 1, "mobile": False, "height": 1000, "width": 688}
    chromium.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", paper)
    chromium.execute_cdp_cmd("Emulation.setEmulatedMedia", {"media": "print"})
    chromium.execute_script("dispatchEvent(new Event('beforeprint'))")
    # whatever is wider makes the browser shrink every page
    cells = rectangles(chromium, "section :is(th, td, svg.chart, pre, dd)")
    assert max(right for _, _, right, _ in cells) <= paper["width"]
    sizes = chromium.execute_script(
        "return [...document.querySelectorAll('section :is(th, td)')]"
        ".map((e) => parseFloat(getComputedStyle(e).fontSize))"
    )
    assert min(sizes) >= 9.9  # 7.5 pt
    for one, other in itertools.combinations(rectangles(chromium, ".pairs table"), 2):
        assert not _meet(one, other)


def test_paper_unfolds_the_evidence_that_does_not_hold(chromium: Any, folder: Path) -> None:
    chromium.get((folder / INSIDE_PYTEST_HTML).as_uri())
    assert not find(chromium, ".on-paper").is_displayed()
    chromium.execute_cdp_cmd("Emulation.setEmulatedMedia", {"media": "print"})
    chromium.execute_script("dispatchEvent(new Event('beforeprint'))")
    unfolded = [e.get_attribute("id") for e in all_of(chromium, ".evidence[open]")]
    assert unfolded == ["evidence-CAL-02"]
    assert find(chromium, ".on-paper").is_displayed()
    assert not all_of(chromium, "details.confusion:not([open])")
    # a button is left out where a heading is repeated on the next page
    assert {
        button.value_of_css_property("display") for button in all_of(chromium, "th button")
    } == {"contents"}
