"""A report in a real browser: no errors, no overflow, toggles, keyboard, both themes, paper."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from report_runs import TINY, Pictures, labelled, made, named, pictures

from gaprune import InputOptions, compare
from gaprune.io.run_files import REPORT
from gaprune.report.palette import DARK, LIGHT

if TYPE_CHECKING:
    from playwright.sync_api import Browser, Page

NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
KINDS = ("run", "plain", "comparison")
WIDTHS = {"desktop": 1280, "tablet": 820, "phone": 390, "small": 320}


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    """Headless Chromium, as the system has it."""
    api = pytest.importorskip(
        "playwright.sync_api", reason="playwright is missing: pip install playwright"
    )
    program = next(filter(None, map(shutil.which, NAMES)), None)
    if program is None:
        pytest.skip("no Chromium is installed: apt-get install chromium")
    unsafe = ["--no-sandbox"] if os.geteuid() == 0 else []  # root may have no sandbox
    with api.sync_playwright() as playwright:
        opened = playwright.chromium.launch(executable_path=program, args=unsafe)
        yield opened
        opened.close()


@pytest.fixture(scope="module")
def reports(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A run with labels, one without and with naughty names, and a comparison."""
    place = tmp_path_factory.mktemp("reports")
    compare(
        made(Pictures),
        sparsity=(0.5, 0.8, 0.9),
        methods=("magnitude", "lamp", "erk", "snip", "synflow", "taylor", "wanda", "random"),
        seeds=(0, 1),
        inputs=InputOptions((2, 8, 8), kind="image", range=(0, 1)),
        test=labelled(2, 8, 8),
        out=place / "comparison",
        **TINY,
    )
    return {
        "run": pictures(place / "run", pareto=True) / REPORT,
        "plain": named(place / "plain") / REPORT,
        "comparison": place / "comparison" / REPORT,
    }


class Opened:
    """A page with everything that it complained about, or asked the network for."""

    def __init__(
        self, browser: Browser, file: Path, width: int = 1280, scheme: str = "light"
    ) -> None:
        context = browser.new_context(
            viewport={"width": width, "height": 800},
            color_scheme="dark" if scheme == "dark" else "light",
            reduced_motion="reduce",
        )
        self.page: Page = context.new_page()
        self.complaints: list[str] = []
        self.asked: list[str] = []
        self.page.on("console", lambda message: self.complaints.append(message.text))
        self.page.on("pageerror", lambda error: self.complaints.append(str(error)))
        self.page.on("dialog", lambda dialog: self.complaints.append(dialog.message))
        self.page.on("request", lambda request: self.asked.append(request.url))
        self.address = file.as_uri()
        self.page.goto(self.address)

    def close(self) -> None:
        """Close it, and make sure that it was content."""
        self.page.context.close()
        assert not self.complaints
        assert not [url for url in self.asked if not url.startswith(("data:", self.address))]

    def ground(self) -> str:
        """Return the colour behind everything, as the browser has it."""
        found: str = self.page.evaluate("getComputedStyle(document.body).backgroundColor")
        return found


def as_rgb(colour: str) -> str:
    """`#ff0010` → `rgb(255, 0, 16)`."""
    return f"rgb({', '.join(str(int(colour[at : at + 2], 16)) for at in (1, 3, 5))})"


@pytest.mark.parametrize("width", WIDTHS.values(), ids=WIDTHS)
@pytest.mark.parametrize("kind", KINDS)
def test_it_opens_without_complaints_and_fits(
    browser: Browser, reports: dict[str, Path], kind: str, width: int
) -> None:
    """Nothing is wider than the window, nothing is asked of the network, no script but ours."""
    opened = Opened(browser, reports[kind], width)
    assert opened.page.evaluate("document.documentElement.scrollWidth") <= width
    opened.page.locator("summary").evaluate_all("all => all.forEach(one => one.click())")
    assert opened.page.evaluate("document.documentElement.scrollWidth") <= width
    opened.close()


@pytest.mark.parametrize("kind", KINDS)
def test_the_theme_is_the_system_s_until_the_reader_chooses(
    browser: Browser, reports: dict[str, Path], kind: str
) -> None:
    """Auto, light, dark, and round again; the choice is there on the next visit."""
    opened = Opened(browser, reports[kind], scheme="dark")
    page = opened.page
    button = page.get_by_role("button", name="Theme")
    assert opened.ground() == as_rgb(DARK["page"])
    button.click()
    assert button.inner_text() == "Theme: light"
    assert opened.ground() == as_rgb(LIGHT["page"])
    button.click()
    assert opened.ground() == as_rgb(DARK["page"])
    page.emulate_media(media="print")
    assert page.evaluate("getComputedStyle(document.body).color") == as_rgb(LIGHT["ink"])
    page.emulate_media(media="screen")
    page.reload()
    assert button.inner_text() == "Theme: dark"
    opened.close()


def test_series_can_be_hidden_and_shown(browser: Browser, reports: dict[str, Path]) -> None:
    """One by one, and all at once."""
    opened = Opened(browser, reports["comparison"])
    plot = opened.page.locator("#sparsity [data-plot]")
    key = plot.get_by_role("button", name="lamp")
    series = plot.locator(".series", has=opened.page.locator('[aria-label^="lamp:"]'))
    was = key.get_attribute("aria-pressed") == "true"
    assert series.is_visible() == was
    key.click()
    assert key.get_attribute("aria-pressed") == str(not was).lower()
    assert series.is_visible() != was
    plot.get_by_role("button", name="show all").click()
    assert plot.locator(".series.off").count() == 0
    plot.get_by_role("button", name="show none").click()
    assert plot.locator(".series:not(.off)").count() == 0
    opened.close()


def test_points_are_reached_by_keyboard(browser: Browser, reports: dict[str, Path]) -> None:
    """One stop of the Tab key a chart; arrows go on, words appear, Escape takes them away."""
    opened = Opened(browser, reports["comparison"])
    page = opened.page
    plot = page.locator("#sparsity [data-plot]")
    assert plot.locator('.pt[tabindex="0"]').count() == 1
    plot.get_by_role("button", name="show all").focus()
    page.keyboard.press("Tab")
    tip = page.locator(".tip")
    first = page.evaluate("document.activeElement.getAttribute('aria-label')")
    assert tip.inner_text() == first
    page.keyboard.press("ArrowRight")
    second = page.evaluate("document.activeElement.getAttribute('aria-label')")
    assert second != first
    assert second.split(":")[0] == first.split(":")[0]
    assert tip.inner_text() == second
    page.keyboard.press("ArrowDown")
    below = page.evaluate("document.activeElement.getAttribute('aria-label')")
    assert below.split(":")[0] != first.split(":")[0]
    page.keyboard.press("Home")
    page.keyboard.press("ArrowLeft")  # there is nothing further left
    assert "50" in page.evaluate("document.activeElement.getAttribute('aria-label')")
    page.keyboard.press("Escape")
    assert tip.is_hidden()
    page.keyboard.press("Shift+Tab")
    assert page.evaluate("document.activeElement.tagName") == "BUTTON"
    opened.close()


def test_what_is_pointed_at_is_told(browser: Browser, reports: dict[str, Path]) -> None:
    """Also a little beside it; and its words stay in the window."""
    opened = Opened(browser, reports["run"], WIDTHS["phone"])
    page = opened.page
    point = page.locator("#methods .pt").first
    point.scroll_into_view_if_needed()
    box = point.bounding_box()
    assert box is not None
    page.mouse.move(box["x"] + box["width"] / 2 + 7, box["y"] + box["height"] / 2)
    tip = page.locator(".tip")
    assert (
        "agreement on the validation inputs" in tip.inner_text()
        or "test accuracy" in tip.inner_text()
    )
    place = tip.bounding_box()
    assert place is not None
    assert place["x"] >= 0
    assert place["x"] + place["width"] <= WIDTHS["phone"]
    page.mouse.move(5, 5)
    assert tip.is_hidden()
    opened.close()


def test_what_a_search_is_drawn_against_can_be_chosen(
    browser: Browser, reports: dict[str, Path]
) -> None:
    """Evaluations first, then seconds."""
    opened = Opened(browser, reports["run"])
    section = opened.page.locator("#search")
    panels = {
        name: section.locator(f'[data-panel="{name}"]') for name in ("evaluations", "seconds")
    }
    assert panels["evaluations"].is_visible()
    assert panels["seconds"].is_hidden()
    section.get_by_role("button", name="seconds").click()
    assert panels["evaluations"].is_hidden()
    assert panels["seconds"].is_visible()
    opened.close()


def test_points_lie_where_their_values_are(browser: Browser, reports: dict[str, Path]) -> None:
    """On the screen, in pixels: better is higher, sparser is further right."""
    opened = Opened(browser, reports["comparison"])
    found = opened.page.locator("#sparsity .series:not(.off)").first.locator(".pt")
    boxes = [box for box in (one.bounding_box() for one in found.all()) if box is not None]
    scores = [
        float(str(one.get_attribute("aria-label")).split(": ")[-1].split("\u00a0")[0])
        for one in found.all()
    ]
    assert [box["x"] for box in boxes] == sorted(box["x"] for box in boxes)
    order = sorted(range(len(boxes)), key=lambda place: boxes[place]["y"])
    assert [scores[place] for place in order] == sorted(scores, reverse=True)
    opened.close()


def test_it_can_be_printed(browser: Browser, reports: dict[str, Path]) -> None:
    """As a PDF of some pages."""
    opened = Opened(browser, reports["run"], scheme="dark")
    paper = opened.page.pdf(format="A4")
    assert paper.startswith(b"%PDF")
    assert 2 <= paper.count(b"/Type /Page\n") <= 20
    opened.close()
