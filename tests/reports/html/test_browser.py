"""The page in headless Chromium: it draws, answers to pointer and keys, and says nothing on the console."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from page_cases import HOSTILE, page, runs, value

webdriver = pytest.importorskip("selenium.webdriver", reason="selenium is not installed")
BROWSER, DRIVER = shutil.which("chromium") or shutil.which("google-chrome"), shutil.which("chromedriver")
pytestmark = pytest.mark.skipif(not (BROWSER and DRIVER), reason="no chromium and chromedriver")

FLAGS = (
    "--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-sync",
    "--disable-background-networking", "--disable-component-update", "--window-size=1200,900",
)  # fmt: skip


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    options = webdriver.ChromeOptions()
    options.binary_location = BROWSER
    for flag in (*FLAGS, f"--user-data-dir={tmp_path_factory.mktemp('profile')}"):
        options.add_argument(flag)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    driver = webdriver.Chrome(options=options, service=webdriver.ChromeService(DRIVER))
    yield driver
    driver.quit()


@pytest.fixture(scope="module")
def file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("page") / "page.html"
    path.write_text(page(path), encoding="utf-8")
    return path


@pytest.fixture
def opened(browser: Any, file: Path) -> Iterator[Any]:
    browser.get(file.as_uri())
    yield browser
    assert browser.get_log("browser") == []


def find(driver: Any, selector: str) -> Any:
    return driver.find_element("css selector", selector)


def coloured(driver: Any, name: str) -> int:
    """Pixels of the curves' canvas in a colour of the style sheet."""
    script = """
        const probe = document.body.appendChild(document.createElement("i"));
        probe.style.color = `var(--${arguments[0]})`;
        const wanted = getComputedStyle(probe).color.match(/\\d+/g).map(Number);
        probe.remove();
        const canvas = document.querySelector("#curves canvas");
        const context = new OffscreenCanvas(canvas.width, canvas.height).getContext("2d", { willReadFrequently: true });
        context.drawImage(canvas, 0, 0);
        const { data } = context.getImageData(0, 0, canvas.width, canvas.height);
        let count = 0;
        for (let i = 0; i < data.length; i += 4)
          if (data[i + 3] === 255 && wanted.every((each, j) => Math.abs(each - data[i + j]) < 3)) count++;
        return count;
    """
    return int(driver.execute_script(script, name))


def hover(driver: Any, share: float, place: str = "#curves") -> tuple[str, dict[str, float]]:
    """Caption of the tip, and value by arm, with the pointer at ``share`` of the width of a first chart."""
    over = find(driver, f"{place} .u-over")
    driver.execute_script("arguments[0].scrollIntoView({ block: 'center' })", over)
    offset = int((share - 0.5) * over.size["width"])
    webdriver.ActionChains(driver, duration=0).move_to_element_with_offset(over, offset, 0).perform()
    tip = f"document.querySelector('{place} .tip')"
    lines = driver.execute_script(
        f"return [...{tip}.querySelectorAll('tr')].map(row => [...row.cells].map(c => c.textContent))"
    )
    values = {name: float(value.replace("−", "-").replace(",", "")) for name, value, _ in lines}
    return str(driver.execute_script(f"return {tip}.querySelector('caption').textContent")), values


def number(caption: str) -> float:
    return float(caption.split()[0].replace(",", ""))


def test_curves_are_drawn_and_the_legend_hides_them(opened: Any) -> None:
    before = [coloured(opened, f"arm-{arm}") for arm in range(8)]
    assert min(before) > 300
    button = find(opened, "#legend button:nth-of-type(4)")
    assert button.text == "arm 3"
    button.click()
    assert button.get_attribute("aria-pressed") == "false"
    assert coloured(opened, "arm-3") == 0
    assert coloured(opened, "arm-7") > 300
    assert "arm 3" not in hover(opened, 0.5)[1]
    find(opened, "#legend .all").click()
    assert coloured(opened, "arm-3") > 300
    webdriver.ActionChains(opened).double_click(button).perform()
    assert list(hover(opened, 0.5)[1]) == ["arm 3"]


def test_hover_shows_the_values_of_all_arms(opened: Any) -> None:
    caption, found = hover(opened, 0.75)
    step = number(caption)
    assert step == pytest.approx(150_000, rel=0.01)
    assert list(found) == [*(f"arm {arm}" for arm in range(7, 0, -1)), HOSTILE]  # the best first
    for arm in range(1, 8):
        assert found[f"arm {arm}"] == pytest.approx(value(arm, 2, step), abs=0.01)  # the middle of five seeds


def test_time_log_and_bands_redraw_the_curves(opened: Any) -> None:
    for choice in ("minutes", "log"):
        find(opened, f"#controls [value={choice}]").click()
    caption, found = hover(opened, 0.6)  # of 1600 minutes that the last arm took; the first was ready after 200
    assert caption.endswith("hours")
    assert number(caption) == pytest.approx(1600 / 60 * 0.6, rel=0.02)
    assert list(found) == ["arm 7", "arm 6", "arm 5", "arm 4"]
    for band in ("range", "seeds", "none"):
        find(opened, f"#band [value={band}]").click()
        assert coloured(opened, "arm-7") > 300


def test_dragging_zooms_and_the_button_shows_all_again(opened: Any) -> None:
    over, reset = find(opened, "#curves .u-over"), find(opened, "#curves figcaption button")
    assert not reset.is_displayed()
    width = over.size["width"]
    drag = webdriver.ActionChains(opened, duration=0).move_to_element_with_offset(over, int(-0.25 * width), 0)
    drag.click_and_hold().move_by_offset(int(0.25 * width), 0).release().perform()
    assert number(hover(opened, 0)[0]) == pytest.approx(50_000, abs=1500)
    reset.click()
    assert not reset.is_displayed()
    assert number(hover(opened, 0.5)[0]) == pytest.approx(100_000, abs=1500)


def test_keys_read_the_curves(opened: Any) -> None:
    plot = find(opened, "#curves .plot")
    plot.send_keys("\ue010")  # End
    said = find(opened, "#said").get_attribute("textContent")
    assert said.startswith("200,000 steps: arm 7")
    plot.send_keys("\ue012")  # left
    assert find(opened, "#said").get_attribute("textContent").startswith("199,000 steps")


def test_names_that_look_like_markup_are_text(opened: Any) -> None:
    assert opened.title == f"Sweep {HOSTILE}"
    assert find(opened, "h1").text == f"Sweep {HOSTILE}"
    assert find(opened, "#legend button").text == HOSTILE
    assert opened.execute_script("return document.images.length + document.scripts.length") == 3  # data, uPlot, ours


def test_adaptation_has_a_chart_and_its_tasks(opened: Any) -> None:
    caption, found = hover(opened, 0.85, "#adaptation")
    assert caption == "after 1 step"
    assert found.pop("random actions") == -20
    assert found == {HOSTILE: -8} | {f"arm {arm}": -8 - arm for arm in range(1, 8)}
    find(opened, "#tasks").click()
    assert hover(opened, 0.2, "#adaptation")[0] == "before adaptation"


def test_the_line_of_an_arm_ends_after_its_own_adaptation_steps(browser: Any, tmp_path: Path) -> None:
    file = tmp_path / "page.html"
    file.write_text(page(file, runs(arms=2), steps={1: 2}), encoding="utf-8")
    browser.get(file.as_uri())
    caption, found = hover(browser, 0.95, "#adaptation")
    assert caption == "after 2 steps"
    assert found == {"arm 1": -5, "random actions": -20}
    assert browser.get_log("browser") == []


def test_the_switch_turns_the_colours(opened: Any) -> None:
    def paper() -> str:
        return str(opened.execute_script("return getComputedStyle(document.body).backgroundColor"))

    light, ink = paper(), coloured(opened, "arm-0")
    find(opened, "#theme").click()
    assert paper() != light
    assert coloured(opened, "arm-0") == pytest.approx(ink, rel=0.3)


@pytest.mark.parametrize("width", [400, 1600])
def test_nothing_is_wider_than_the_window(opened: Any, width: int) -> None:
    opened.execute_cdp_cmd(
        "Emulation.setDeviceMetricsOverride", {"width": width, "height": 900, "deviceScaleFactor": 1, "mobile": False}
    )
    drawn = "requestAnimationFrame(() => setTimeout(() => arguments[0](document.documentElement.scrollWidth)))"
    assert opened.execute_async_script(drawn) <= width
    opened.execute_cdp_cmd("Emulation.clearDeviceMetricsOverride", {})


def test_columns_sort(opened: Any) -> None:
    def first() -> str:
        return str(find(opened, "#results ~ .scroll tbody th").text)

    heads = opened.find_elements("css selector", "#results ~ .scroll thead button")
    column = next(head for head in heads if head.text == "return")
    column.click()
    assert first() == "arm 7"
    column.click()
    assert first() == HOSTILE
