"""The report page in a real browser: nothing is fetched, nothing sticks out, everything can be read. `make test-browser`.

HF_GLMD_CHROMIUM names the browser (else it is looked for in PATH), HF_GLMD_SCREENSHOTS a folder that keeps the pictures.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from report_helpers import FOLDERS

from hf_glmd.reports.page import write_report

pytestmark = pytest.mark.browser

NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable", "chrome")

STICKING_OUT = """() => [...document.querySelectorAll('body *')].filter(e => {
  const box = e.getBoundingClientRect(), scroller = e.parentElement.closest('.scroll, pre');
  return box.width && !scroller && (box.right > innerWidth + 0.5 || box.left < -0.5);
}).map(e => e.outerHTML.slice(0, 120))"""

PALE = """() => {
  const parse = text => text.match(/[\\d.]+/g).map(Number);
  const light = ([r, g, b]) => [r, g, b].map(v => (v /= 255) <= 0.03928 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4)
    .reduce((sum, v, i) => sum + v * [0.2126, 0.7152, 0.0722][i], 0);
  const page = e => { for (; e; e = e.parentElement) { const c = parse(getComputedStyle(e).backgroundColor);
    if (c.length < 4 || c[3] > 0) return c; } return [255, 255, 255]; };
  const found = [];
  for (const e of document.querySelectorAll('body *')) {
    if (![...e.childNodes].some(n => n.nodeType === 3 && n.textContent.trim()) || !e.getClientRects().length) continue;
    const [a, b] = [light(parse(getComputedStyle(e).color)), light(page(e))].sort((x, y) => y - x);
    if ((a + 0.05) / (b + 0.05) < 4.5) found.push([e.outerHTML.slice(0, 90), (a + 0.05) / (b + 0.05)]);
  }
  return found;
}"""

SMALL = """() => [...document.querySelectorAll('body *')].filter(e => e.textContent.trim() && e.getClientRects().length
  && parseFloat(getComputedStyle(e).fontSize) < 12).map(e => e.outerHTML.slice(0, 90))"""

SHRUNK = """() => [...document.querySelectorAll('svg')].filter(e => e.getClientRects().length
  && e.getBoundingClientRect().width < e.width.baseVal.value - 0.5).map(e => e.outerHTML.slice(0, 90))"""

OVERLAPPING = """() => [...document.querySelectorAll('svg')].flatMap(svg => {
  const page = svg.getBoundingClientRect();
  const boxes = [...svg.querySelectorAll('g[id*="-text_"]')].map(e => [e.id, e.getBoundingClientRect()])
    .filter(([, b]) => b.width);
  const apart = (a, b) => a.left >= b.right || b.left >= a.right || a.top >= b.bottom || b.top >= a.bottom;
  const out = boxes.filter(([, b]) => b.left < page.left || b.right > page.right || b.top < page.top || b.bottom > page.bottom);
  const pairs = boxes.flatMap(([one, a], i) => boxes.slice(0, i).filter(([, b]) => !apart(a, b)).map(([two]) => one + ' ' + two));
  return [...out.map(([id]) => id), ...pairs, ...(boxes.length ? [] : ['no text'])];
})"""
"""Texts of a chart that lie on one another or leave it: they are outlines, in groups."""


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    program = os.environ.get("HF_GLMD_CHROMIUM") or next(filter(None, map(shutil.which, NAMES)), None)
    if program is None:
        pytest.skip("no Chromium: HF_GLMD_CHROMIUM names none, and none is in PATH. `make test-browser` brings one.")
    playwright = pytest.importorskip("playwright.sync_api", reason="playwright is not installed: pip install hf_glmd[browser]")
    with playwright.sync_playwright() as driver:
        chromium = driver.chromium.launch(executable_path=program, args=["--no-sandbox", "--disable-gpu"])
        yield chromium
        chromium.close()


@pytest.fixture(scope="module")
def pages(tmp_path_factory) -> dict[str, Path]:
    """Name -> the report of that folder."""
    written = {}
    for name, write in FOLDERS.items():
        folder = tmp_path_factory.mktemp("folders") / name
        folder.mkdir()
        write(folder)
        written[name] = write_report(folder)
    return written


@pytest.fixture
def screenshots(tmp_path) -> Path:
    return Path(os.environ.get("HF_GLMD_SCREENSHOTS") or tmp_path)


@pytest.mark.parametrize("width", [400, 1200])
@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("name", FOLDERS)
def test_the_page_can_be_read_and_asks_nobody(browser, pages, screenshots, name, scheme, width):
    context = browser.new_context(viewport={"width": width, "height": 900}, color_scheme=scheme)
    page, said, asked = context.new_page(), [], []
    page.on("console", lambda message: said.append(message.text))
    page.on("pageerror", lambda error: said.append(str(error)))
    page.on("request", lambda request: asked.append(request.url))
    page.goto(pages[name].as_uri(), wait_until="networkidle")
    page.screenshot(path=screenshots / f"{name}_{scheme}_{width}.png", full_page=True)
    assert said == [], "the console is silent"
    assert [url for url in asked if not url.startswith("data:")] == [pages[name].as_uri()], "only the page itself is read"
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    assert page.evaluate(STICKING_OUT) == []
    assert page.evaluate(PALE) == [], "text has a contrast of 4.5 or more"
    assert page.evaluate(SMALL) == [], "no text is smaller than 12 pixels"
    assert page.evaluate(SHRUNK) == [], "no chart either, where the smallest text has 12 pixels"
    assert page.evaluate(OVERLAPPING) == []
    page.evaluate("document.querySelectorAll('details').forEach(e => e.open = true)")
    assert page.evaluate("document.documentElement.scrollWidth") <= width, "also with all tables open"
    assert page.evaluate(STICKING_OUT) == []
    context.close()


@pytest.mark.parametrize("width", [400, 1200])
def test_charts_have_a_name_and_say_their_numbers_when_asked(browser, pages, width):
    page = browser.new_page(viewport={"width": width, "height": 900})
    page.goto(pages["run"].as_uri())
    chart = page.get_by_role("figure").filter(has_text="KL to the teacher").first
    assert chart.get_by_role("img", name="KL to the teacher (nats)").is_visible()
    rows = chart.locator("tbody tr")
    assert not rows.first.is_visible()
    chart.locator("summary").click()
    box = chart.locator("table").bounding_box()
    assert rows.first.is_visible() and box is not None and box["x"] >= 0 and box["x"] + box["width"] <= width
    texts = [row.inner_text().split() for row in rows.all()]
    assert texts[0] == ["0", "3.581"] and texts[-1] == ["811", "1.263"] and len(texts) == 6
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    page.close()


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_a_chart_is_dark_on_white_in_either_scheme(browser, pages, scheme):
    page = browser.new_page(color_scheme=scheme)
    page.goto(pages["run"].as_uri())
    pages_of_charts = "[...document.querySelectorAll('svg')].map(e => getComputedStyle(e.querySelector('path')).fill)"
    assert set(page.evaluate(pages_of_charts)) == {"rgb(255, 255, 255)"}
    page.close()


def test_the_page_prints_dark_text_on_white(browser, pages):
    page = browser.new_page(color_scheme="dark")
    page.goto(pages["run"].as_uri())
    page.emulate_media(media="print")
    assert page.evaluate("getComputedStyle(document.body).backgroundColor") == "rgb(255, 255, 255)"
    assert page.evaluate("getComputedStyle(document.body).color") == "rgb(0, 0, 0)"
    assert page.locator("nav").is_hidden()
    assert page.pdf()[:5] == b"%PDF-"
    page.close()
