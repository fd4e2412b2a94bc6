"""The pages in a real browser: nothing fails, nothing is fetched, tables sort, everything can be read in light and in dark."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from selenium import webdriver
from selenium.webdriver.chrome.service import Service
from selenium.webdriver.common.by import By
from selenium.webdriver.common.keys import Keys

from paft_plugin.inspection.inspected import write_inspection
from paft_plugin.report.run_report import write_report
from tests.report.runs import inspect, three_deltas, write_run

pytestmark = pytest.mark.slow

INSTALL = (
    "The report is tested in a real browser: chromium and chromedriver must be installed (Debian: "
    "apt-get install chromium chromium-driver)."
)
SMALL_TEXT, GRAPHICS = 4.5, 3.0  # WCAG 2.2, 1.4.3 and 1.4.11
CONTRASTS = """
const hue = (text) => {
  const canvas = Object.assign(document.createElement("canvas"), { width: 1, height: 1 });
  const paint = canvas.getContext("2d");
  paint.fillStyle = text;
  paint.fillRect(0, 0, 1, 1);
  return [...paint.getImageData(0, 0, 1, 1).data];
};
const light = ([r, g, b]) => {
  const [x, y, z] = [r, g, b].map((c) => (c /= 255) <= 0.04045 ? c / 12.92 : ((c + 0.055) / 1.055) ** 2.4);
  return 0.2126 * x + 0.7152 * y + 0.0722 * z;
};
const contrast = (one, other) => {
  const [low, high] = [light(one), light(other)].sort((a, b) => a - b);
  return (high + 0.05) / (low + 0.05);
};
const behind = (element) => {
  for (; element; element = element.parentElement) {
    const paper = hue(getComputedStyle(element).backgroundColor);
    if (paper[3] === 255) return paper;
  }
  return [255, 255, 255, 255];
};
for (const fold of document.querySelectorAll("details")) fold.open = true;
const found = [];
const walker = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT);
while (walker.nextNode()) {
  const element = walker.currentNode.parentElement;
  if (!walker.currentNode.textContent.trim() || element.closest("script, style, title")) continue;
  const style = getComputedStyle(element);
  const inSvg = element.closest("svg") !== null;
  const ink = hue(inSvg ? style.fill : style.color);
  if (inSvg && element.closest("#interference")) continue;  // numbers on the map's own colours: see test_plots
  found.push(["text", element.textContent.trim().slice(0, 40), contrast(ink, behind(element))]);
}
for (const path of document.querySelectorAll("svg path, svg use")) {
  const { stroke, strokeOpacity, clipPath } = getComputedStyle(path);
  const name = (path.getAttribute("style") || "").match(/stroke: var\\(--(series-\\d|ink|muted)/);
  if (name) found.push(["graphics", name[1], contrast(hue(stroke), behind(path))]);
}
return found;
"""


@pytest.fixture(scope="module")
def browser() -> Iterator[webdriver.Chrome]:
    chromium = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    driver = shutil.which("chromedriver")
    if chromium is None or driver is None:
        pytest.fail(INSTALL)
    options = webdriver.ChromeOptions()
    options.binary_location = chromium
    for argument in ("--headless=new", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage"):
        options.add_argument(argument)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL", "performance": "ALL"})
    started = webdriver.Chrome(options=options, service=Service(driver))
    yield started
    started.quit()


@pytest.fixture(scope="module", params=["report", "inspection"])
def page(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("browser") / "run"
    if request.param == "report":
        return write_report(write_run(folder))
    write_inspection(inspect(three_deltas()), folder)
    return write_report(folder)


def look(browser: webdriver.Chrome, page: Path, width: int = 1280, scheme: str = "light") -> None:
    media = [{"name": "prefers-color-scheme", "value": scheme}]
    browser.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": media})
    size = {"width": width, "height": 900, "deviceScaleFactor": 1, "mobile": False}
    browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", size)
    browser.get(page.as_uri())
    browser.execute_script("try { localStorage.clear(); } catch {}")
    browser.get(page.as_uri())


def requested(browser: webdriver.Chrome) -> list[str]:
    events: list[dict[str, Any]] = [json.loads(entry["message"])["message"] for entry in browser.get_log("performance")]
    sent = [event["params"] for event in events if event["method"] == "Network.requestWillBeSent"]
    return [params["request"]["url"] for params in sent]


def test_it_renders_without_an_error_and_fetches_nothing(browser: webdriver.Chrome, page: Path) -> None:
    browser.get("about:blank")
    browser.get_log("browser")
    browser.get_log("performance")
    look(browser, page)
    assert browser.get_log("browser") == []
    asked = requested(browser)
    assert page.as_uri() in asked
    assert [url for url in asked if not url.startswith("data:") and url != page.as_uri()] == []
    heading = browser.find_element(By.TAG_NAME, "h1")
    assert heading.is_displayed()
    assert heading.location["y"] + heading.size["height"] < 900  # the result is seen without scrolling
    for picture in browser.find_elements(By.CSS_SELECTOR, "figure svg"):
        assert picture.size["width"] > 200
        assert picture.size["height"] > 100
    assert page.stat().st_size < 3_000_000


def test_nothing_is_wider_than_the_screen(browser: webdriver.Chrome, page: Path) -> None:
    for width in (320, 400, 768, 1280, 2200):
        look(browser, page, width)
        assert browser.execute_script("return document.documentElement.scrollWidth") <= width


def column(browser: webdriver.Chrome, table: str, place: int) -> list[str]:
    return [cell.text for cell in browser.find_elements(By.CSS_SELECTOR, f"#{table} tbody tr > :nth-child({place})")]


def sorted_by(browser: webdriver.Chrome) -> list[tuple[str, str | None]]:
    heads = browser.find_elements(By.CSS_SELECTOR, "th[aria-sort]")
    return [(head.text.split()[0], head.get_attribute("aria-sort")) for head in heads]


@pytest.mark.parametrize("page", ["report"], indirect=True)
def test_tables_sort_by_click_and_by_keyboard(browser: webdriver.Chrome, page: Path) -> None:
    look(browser, page)
    before = column(browser, "arms", 1)
    buttons = browser.find_elements(By.CSS_SELECTOR, "#arms th button")
    browser.execute_script("arguments[0].scrollIntoView({block: 'center'})", buttons[0])

    buttons[2].click()  # preference: numbers from the greatest
    scores = [float(text.split()[0]) for text in column(browser, "arms", 3)]
    assert scores == sorted(scores, reverse=True)
    assert sorted_by(browser) == [("Preference", "descending")]
    assert "Sorted by Preference, descending" in browser.find_element(By.ID, "said").get_attribute("textContent")

    browser.execute_script("arguments[0].focus()", buttons[2])
    browser.switch_to.active_element.send_keys(Keys.ENTER)
    assert [float(text.split()[0]) for text in column(browser, "arms", 3)] == sorted(scores)
    assert sorted_by(browser) == [("Preference", "ascending")]

    browser.switch_to.active_element.send_keys(Keys.TAB)  # to the next heading
    browser.switch_to.active_element.send_keys(Keys.SPACE)
    assert sorted_by(browser) == [("Retained", "descending")]
    browser.switch_to.active_element.send_keys(Keys.TAB, Keys.NULL)
    browser.switch_to.active_element.send_keys(Keys.ENTER)
    taxes = column(browser, "arms", 5)
    measured = [float(text.replace("−", "-")) for text in taxes if text != "–"]
    assert measured == sorted(measured, reverse=True)
    assert taxes[len(measured) :] == ["–"] * (len(taxes) - len(measured))  # what was not measured stays last

    buttons[0].click()
    names = column(browser, "arms", 1)
    assert sorted(names) == sorted(before)
    assert names[0].startswith("base")


def test_everything_has_a_name_and_can_be_reached(browser: webdriver.Chrome, page: Path) -> None:
    look(browser, page)
    nodes = browser.execute_cdp_cmd("Accessibility.getFullAXTree", {})["nodes"]
    roles: dict[str, list[str]] = {}
    for node in nodes:
        if not node.get("ignored"):
            roles.setdefault(node["role"]["value"], []).append(node.get("name", {}).get("value", ""))
    for landmark in ("main", "banner", "navigation", "contentinfo"):
        assert len(roles[landmark]) == 1, landmark
    for role in ("image", "table", "region", "button", "link", "heading", "columnheader", "rowheader"):
        assert roles[role], role
        assert all(name.strip() for name in roles[role]), role
    browser.find_element(By.TAG_NAME, "body").send_keys(Keys.TAB)
    assert browser.switch_to.active_element.text == "Skip to the content"
    outline = browser.execute_script("return getComputedStyle(document.activeElement).outlineStyle")
    assert outline == "solid"


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_everything_can_be_read(scheme: str, browser: webdriver.Chrome, page: Path) -> None:
    look(browser, page, scheme=scheme)
    background = browser.execute_script("return getComputedStyle(document.body).backgroundColor")
    assert background == {"light": "rgb(255, 255, 255)", "dark": "rgb(20, 23, 27)"}[scheme]
    found = browser.execute_script(CONTRASTS)
    assert len([one for one in found if one[0] == "text"]) > 100
    assert [one for one in found if one[0] == "graphics"]
    least = {"text": SMALL_TEXT, "graphics": GRAPHICS}
    assert [one for one in found if one[2] < least[one[0]]] == []


def test_the_button_overrules_the_system(browser: webdriver.Chrome, page: Path) -> None:
    look(browser, page, scheme="light")
    toggle = browser.find_element(By.ID, "theme")
    shade = "return getComputedStyle(document.body).backgroundColor"
    light = browser.execute_script(shade)
    assert toggle.text == "Dark page"
    toggle.click()
    dark = browser.execute_script(shade)
    assert dark != light
    assert toggle.text == "Light page"
    look(browser, page, scheme="dark")
    browser.find_element(By.ID, "theme").click()
    assert browser.execute_script(shade) == light
