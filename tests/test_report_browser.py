"""Reports in a real browser: no console message, no overflow, keyboard, themes, printing."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from report_runs import TINY, Pictures, built, labelled, named, pictures

from gaprune import InputOptions, compare
from gaprune.io.run_files import REPORT
from gaprune.report.render import DARK, LIGHT

if TYPE_CHECKING:
    from playwright.sync_api import Browser, Page

pytestmark = pytest.mark.slow  # some twenty seconds for all

NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
KINDS = ("run", "plain", "comparison")
WIDTHS = {"desktop": 1280, "tablet": 820, "phone": 390, "small": 320}
Open = Callable[..., "Page"]
LABEL = "document.activeElement.getAttribute('aria-label')"
BACKGROUND = "getComputedStyle(document.body).backgroundColor"
SCROLL_WIDTH = "document.documentElement.scrollWidth"


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    """Headless Chromium of the system."""
    api = pytest.importorskip("playwright.sync_api")
    program = next(filter(None, map(shutil.which, NAMES)), None)
    if program is None:
        pytest.skip("no Chromium is installed: apt-get install chromium")
    unsafe = ["--no-sandbox"] if os.geteuid() == 0 else []  # Chromium has no sandbox for root
    with api.sync_playwright() as playwright:
        chromium = playwright.chromium.launch(executable_path=program, args=unsafe)
        yield chromium
        chromium.close()


@pytest.fixture(scope="module")
def reports(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A run with labels, one without and with markup as names, and a comparison."""
    folder = tmp_path_factory.mktemp("reports")
    compare(
        built(Pictures),
        sparsity=(0.5, 0.8, 0.9),
        methods=("magnitude", "lamp", "erk", "snip", "synflow", "taylor", "wanda", "random"),
        inputs=InputOptions((2, 8, 8), kind="image", range=(0, 1)),
        test=labelled(2, 8, 8),
        out=folder / "comparison",
        **TINY,
    )
    return {
        "run": pictures(folder / "run", pareto=True) / REPORT,
        "plain": named(folder / "plain") / REPORT,
        "comparison": folder / "comparison" / REPORT,
    }


@pytest.fixture
def open_report(browser: Browser, reports: dict[str, Path]) -> Iterator[Open]:
    """Open reports; afterwards fail if one logged a message, raised, or requested anything."""
    messages: list[str] = []
    requests: list[str] = []
    pages: list[Page] = []

    def open_page(kind: str, width: int = 1280, *, dark: bool = False) -> Page:
        context = browser.new_context(
            viewport={"width": width, "height": 800},
            color_scheme="dark" if dark else "light",
            reduced_motion="reduce",
        )
        page = context.new_page()
        page.on("console", lambda message: messages.append(message.text))
        page.on("pageerror", lambda error: messages.append(str(error)))
        page.on("dialog", lambda dialog: messages.append(dialog.message))
        page.on("request", lambda request: requests.append(request.url))
        page.goto(reports[kind].as_uri())
        pages.append(page)
        return page

    yield open_page
    for page in pages:
        page.context.close()
    addresses = ("data:", *(path.as_uri() for path in reports.values()))
    assert not messages
    assert not [url for url in requests if not url.startswith(addresses)]


def rgb(colour: str) -> str:
    """`#ff0010` → `rgb(255, 0, 16)`."""
    return f"rgb({', '.join(str(int(colour[at : at + 2], 16)) for at in (1, 3, 5))})"


@pytest.mark.parametrize("width", WIDTHS.values(), ids=WIDTHS)
@pytest.mark.parametrize("kind", KINDS)
def test_pages_fit_every_width(open_report: Open, kind: str, width: int) -> None:
    """Nothing is wider than the window, with all details open or closed."""
    page = open_report(kind, width)
    assert page.evaluate(SCROLL_WIDTH) <= width
    page.locator("summary").evaluate_all("items => items.forEach(item => item.click())")
    assert page.evaluate(SCROLL_WIDTH) <= width


@pytest.mark.parametrize("kind", KINDS)
def test_nothing_is_cut_on_a_phone(open_report: Open, kind: str) -> None:
    """No table and no code needs scrolling sideways, with all details open."""
    page = open_report(kind, WIDTHS["phone"])
    page.locator("details").evaluate_all("items => items.forEach(item => { item.open = true; })")
    wider = "items => items.filter(item => item.scrollWidth > item.clientWidth + 1).length"
    assert page.locator(".scroll, pre").evaluate_all(wider) == 0


@pytest.mark.parametrize("kind", ["run", "plain"])
def test_one_screen_has_the_result_and_the_next_steps(open_report: Open, kind: str) -> None:
    """They end above 800 px, and the page above 3,500 px, at 1,200 px width."""
    page = open_report(kind, 1200)
    bottom = "item => item.getBoundingClientRect().bottom"
    assert page.locator(".steps").evaluate(bottom) <= 800
    assert page.evaluate("document.documentElement.scrollHeight") <= 3500


def test_steps_are_copied(open_report: Open) -> None:
    """The button copies the code as it is displayed."""
    page = open_report("run")
    page.context.grant_permissions(["clipboard-read", "clipboard-write"])
    page.locator("[data-copy]").first.click()
    code = page.locator(".step code").first.text_content()
    assert page.evaluate("navigator.clipboard.readText()") == code


def test_a_link_opens_a_folded_section(open_report: Open) -> None:
    """Sections are folded until they are asked for."""
    page = open_report("run")
    details = page.locator("#layers > details")
    assert details.get_attribute("open") is None
    page.locator(".toc a[href='#layers']").click()
    assert details.get_attribute("open") is not None


@pytest.mark.parametrize("kind", KINDS)
def test_the_theme_is_the_system_s_until_it_is_chosen(open_report: Open, kind: str) -> None:
    """The button switches auto, light, dark; the choice is stored, and paper is light."""
    page = open_report(kind, dark=True)
    button = page.get_by_role("button", name="Theme")
    assert page.evaluate(BACKGROUND) == rgb(DARK["page"])
    button.click()
    assert "light" in button.inner_text()
    assert page.evaluate(BACKGROUND) == rgb(LIGHT["page"])
    button.click()
    assert page.evaluate(BACKGROUND) == rgb(DARK["page"])
    page.emulate_media(media="print")
    assert page.evaluate("getComputedStyle(document.body).color") == rgb(LIGHT["ink"])
    page.emulate_media(media="screen")
    page.reload()
    assert "dark" in button.inner_text()


def test_series_are_switched_on_and_off(open_report: Open) -> None:
    """One by one in the legend, or all at once."""
    plot = open_report("comparison").locator("#sparsity [data-plot]")
    key = plot.get_by_role("button", name="lamp")
    series = plot.locator(".series", has=plot.page.locator('[aria-label^="lamp:"]'))
    visible = key.get_attribute("aria-pressed") == "true"
    assert series.is_visible() == visible
    key.click()
    assert key.get_attribute("aria-pressed") == str(not visible).lower()
    assert series.is_visible() != visible
    plot.get_by_role("button", name="show all").click()
    assert plot.locator(".series.off").count() == 0
    plot.get_by_role("button", name="show none").click()
    assert plot.locator(".series:not(.off)").count() == 0


def test_points_are_reached_by_keyboard(open_report: Open) -> None:
    """A chart is one stop of the Tab key; arrow keys move, and Escape hides the tooltip."""
    page = open_report("comparison")
    plot = page.locator("#sparsity [data-plot]")
    assert plot.locator('.pt[tabindex="0"]').count() == 1
    plot.get_by_role("button", name="show all").focus()
    page.keyboard.press("Tab")
    tip = page.locator(".tip")
    first = page.evaluate(LABEL)
    assert tip.inner_text() == first
    page.keyboard.press("ArrowRight")
    second = page.evaluate(LABEL)
    assert second != first
    assert second.split(":")[0] == first.split(":")[0]
    assert tip.inner_text() == second
    page.keyboard.press("ArrowDown")
    assert page.evaluate(LABEL).split(":")[0] != first.split(":")[0]
    page.keyboard.press("Home")
    page.keyboard.press("ArrowLeft")  # already at the left end
    assert "50" in page.evaluate(LABEL)
    page.keyboard.press("Escape")
    assert tip.is_hidden()
    page.keyboard.press("Shift+Tab")
    assert page.evaluate("document.activeElement.tagName") == "BUTTON"


def test_tooltips_stay_in_the_window(open_report: Open) -> None:
    """They also appear when the pointer is a few pixels beside a point."""
    page = open_report("run", WIDTHS["phone"])
    point = page.locator("#methods .pt").first
    point.scroll_into_view_if_needed()
    box = point.bounding_box()
    assert box is not None
    page.mouse.move(box["x"] + box["width"] / 2 + 7, box["y"] + box["height"] / 2)
    tip = page.locator(".tip")
    assert "%" in tip.inner_text()
    edges = tip.bounding_box()
    assert edges is not None
    assert 0 <= edges["x"] <= edges["x"] + edges["width"] <= WIDTHS["phone"]
    page.mouse.move(5, 5)
    assert tip.is_hidden()


def test_the_axis_of_a_search_is_chosen(open_report: Open) -> None:
    """Its charts show evaluations first, and seconds on demand."""
    section = open_report("run").locator("#search")
    panels = [section.locator(f'[data-panel="{name}"]') for name in ("evaluations", "seconds")]
    assert [panel.is_visible() for panel in panels] == [True, False]
    section.get_by_role("button", name="seconds").click()
    assert [panel.is_visible() for panel in panels] == [False, True]


def test_a_report_is_printed(open_report: Open) -> None:
    """A PDF has a few pages."""
    paper = open_report("run", dark=True).pdf(format="A4")
    assert paper.startswith(b"%PDF")
    assert 2 <= paper.count(b"/Type /Page\n") <= 20
