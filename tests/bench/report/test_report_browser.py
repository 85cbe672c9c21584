"""The report in a real Chromium: on a desk, on a phone, in print, and as a screen reader has it.

Screenshots and the printed pages are left in $SWAP_SCREENSHOTS, where it is set.
"""

from __future__ import annotations

import os
import shutil
import time
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from landscape_factory import bowl, cosine_path
from record_factory import V100, cpu_runs, make_record, make_telemetry, write_results

from bench.landscape.records import write_landscape
from bench.report.content import collect
from bench.report.write import write_report

if TYPE_CHECKING:
    from playwright.sync_api import Browser, Page

pytestmark = pytest.mark.slow

PHONE, DESK = {"width": 390, "height": 844}, {"width": 1280, "height": 900}
FLAGS = [
    "--no-sandbox",  # as root, as in CI, Chromium starts with no other
    "--disable-dev-shm-usage",  # a container's shared memory may be small
]


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    """Debian's Chromium; another one that is called so does too."""
    chromium = shutil.which("chromium")
    if chromium is None:
        pytest.skip("no Chromium")
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        launched = playwright.chromium.launch(executable_path=chromium, args=FLAGS)
        yield launched
        launched.close()


@pytest.fixture(scope="module")
def report(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A report with every kind of block: tables, figures, folded tables, warnings, energy."""
    results = tmp_path_factory.mktemp("results")
    watched = make_record("cifar10_swap", machine=V100, telemetry=[make_telemetry()])
    write_results(results, [*cpu_runs(), watched])
    plane = bowl(2, LB=(-1.5, 0.2), SGD=(1.5, 0.0), SWAP=(0.1, 0.0))
    for landscape in (plane, cosine_path(0.5, 0.3, 0.1)):
        write_landscape(landscape, results)
    write_report(collect(results), appendix=True)
    return results / "report.html"


@pytest.fixture(scope="module")
def screenshots(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where pictures go."""
    named = os.environ.get("SWAP_SCREENSHOTS")
    folder = Path(named) if named else tmp_path_factory.mktemp("screenshots")
    folder.mkdir(parents=True, exist_ok=True)
    return folder


def _open(browser: Browser, report: Path, size: dict[str, int], scheme: str) -> Page:
    """The page, opened; every request but its own, and every word on the console, is noted."""
    page = browser.new_page(viewport=size, color_scheme=scheme)
    page.requested, page.said = [], []
    page.on("request", lambda request: page.requested.append(request.url))
    page.on("console", lambda message: page.said.append(message.text))
    page.on("pageerror", lambda error: page.said.append(str(error)))
    page.goto(report.as_uri())
    return page


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("size", [DESK, PHONE], ids=["desk", "phone"])
def test_page_stands_alone_and_fits_the_screen(
    browser: Browser, report: Path, screenshots: Path, size: dict[str, int], scheme: str
) -> None:
    page = _open(browser, report, size, scheme)
    assert page.evaluate("document.documentElement.scrollWidth") <= size["width"]
    assert [url for url in page.requested if not url.startswith("data:")] == [report.as_uri()]
    assert page.said == []
    broken = "[...document.images].filter(i => !(i.complete && i.naturalWidth && i.alt)).length"
    assert page.evaluate(broken) == 0
    assert page.evaluate("document.images.length") == 5
    smallest = (
        "Math.min(...[...document.querySelectorAll('p, li, td, th, summary, a')]"
        ".map(e => parseFloat(getComputedStyle(e).fontSize)))"
    )
    assert page.evaluate(smallest) >= 12
    path = screenshots / f"report-{size['width']}-{scheme}.png"
    page.screenshot(path=path)
    assert path.stat().st_size > 10_000
    page.close()


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_a_screen_reader_finds_nothing_in_its_way(
    browser: Browser, report: Path, scheme: str
) -> None:
    from axe_playwright_python.sync_playwright import Axe

    page = _open(browser, report, PHONE, scheme)
    page.evaluate("document.querySelectorAll('details').forEach(each => { each.open = true })")
    found = Axe().run(page).response
    rules = {each["id"] for each in found["passes"]}
    assert {"color-contrast", "image-alt", "bypass", "heading-order", "region"} <= rules
    assert [(each["id"], each["nodes"][0]["html"]) for each in found["violations"]] == []
    page.close()


def _wait_until(page: Page, condition: str) -> None:
    """As the driver's own waiting, which the page's policy against evaluated scripts forbids."""
    deadline = time.monotonic() + 10
    while not page.evaluate(condition):
        assert time.monotonic() < deadline, condition
        time.sleep(0.05)


def test_keys_lead_past_the_contents_and_into_wide_tables(browser: Browser, report: Path) -> None:
    page = _open(browser, report, PHONE, "light")
    page.keyboard.press("Tab")
    _wait_until(page, "document.activeElement.textContent == 'Skip to the results'")
    page.keyboard.press("Enter")
    _wait_until(page, "document.activeElement.id == 'content'")
    wide = page.locator(".wide").first
    wide.focus()
    page.keyboard.press("ArrowRight")
    _wait_until(page, "document.querySelector('.wide').scrollLeft > 0")
    page.close()


def test_print_holds_all_and_clips_nothing(
    browser: Browser, report: Path, screenshots: Path
) -> None:
    import pypdfium2

    page = _open(browser, report.with_name("appendix.html"), DESK, "light")
    headings = page.locator("h2").all_text_contents()
    folded = page.locator("details caption").all_text_contents()
    path = screenshots / "report.pdf"
    page.pdf(path=path, prefer_css_page_size=True)
    # As laid out for print, at the width of a landscape A4 page between its margins.
    page.set_viewport_size({"width": round((297 - 24) / 25.4 * 96), "height": 700})
    page.emulate_media(media="print")
    clipped = (
        "[...document.querySelectorAll('table, img')].filter(e => "
        "e.getBoundingClientRect().right > innerWidth + 1).map(e => e.textContent.slice(0, 80))"
    )
    assert page.evaluate(clipped) == []
    page.close()
    printed = pypdfium2.PdfDocument(path)
    text = " ".join(
        " ".join(printed[i].get_textpage().get_text_range().split()) for i in range(len(printed))
    )
    assert [heading for heading in headings if heading not in text] == []
    assert len(folded) > 5
    assert "recipe.phase1.global_batch_size" in text  # of a folded table, which print opens
    printed.close()
