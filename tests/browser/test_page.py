"""The report's page in a real browser: wide, narrow, light, dark, by pointer and keyboard, without script, printed."""

from __future__ import annotations

import base64
import json
from pathlib import Path
from typing import Any

import axe_core_python
import pytest
from selenium.webdriver import ActionChains, Chrome, Keys
from selenium.webdriver.common.by import By
from selenium.webdriver.remote.webelement import WebElement

AXE = Path(axe_core_python.__file__).with_name("axe.min.js")
TABLE = "#tables table.sortable"


def show(browser: Chrome, path: Path, *, width: int = 1280, scheme: str = "light") -> None:
    browser.execute_cdp_cmd(
        "Emulation.setDeviceMetricsOverride", {"width": width, "height": 800, "deviceScaleFactor": 1, "mobile": False}
    )
    media = {"features": [{"name": "prefers-color-scheme", "value": scheme}]}
    browser.execute_cdp_cmd("Emulation.setEmulatedMedia", media)
    browser.get(path.as_uri())


def script(browser: Chrome, code: str, *values: Any) -> Any:
    return browser.execute_script(code, *values)


def column(browser: Chrome, number: int) -> list[str]:
    """The texts of a column of the first table."""
    rows = script(
        browser, f"return [...document.querySelector('{TABLE}').tBodies[0].rows].map(r => r.cells[{number}].innerText)"
    )
    return [str(text).strip() for text in rows]


def head(browser: Chrome, name: str) -> tuple[int, WebElement]:
    buttons = browser.find_elements(By.CSS_SELECTOR, f"{TABLE}:first-of-type thead button")
    names = [button.text.split("\n")[0] for button in buttons]
    return names.index(name), buttons[names.index(name)]


def test_no_request_leaves_the_page_and_nothing_is_wrong(browser: Chrome, report_file: Path) -> None:
    show(browser, report_file)
    assert browser.title == "shown · report"
    assert [entry["message"] for entry in browser.get_log("browser")] == []
    sent = [json.loads(entry["message"])["message"] for entry in browser.get_log("performance")]
    asked = [each["params"]["request"]["url"] for each in sent if each["method"] == "Network.requestWillBeSent"]
    assert [url for url in asked if not url.startswith(("data:", report_file.as_uri()))] == []


def test_a_click_on_a_head_sorts_and_another_one_turns_it_round(browser: Chrome, report_file: Path) -> None:
    show(browser, report_file)
    number, button = head(browser, "validation loss")
    button.click()
    up = column(browser, number)
    assert [text[:5] for text in up] == ["0.408", "1.020", "", ""]
    head(browser, "validation loss")[1].click()
    assert [text[:5] for text in column(browser, number)] == ["1.020", "0.408", "", ""]
    sorts = script(browser, f"return [...document.querySelectorAll('{TABLE} th[aria-sort]')].map(h => h.ariaSort)")
    assert sorts == ["descending"]


def test_a_table_is_sorted_by_keyboard(browser: Chrome, report_file: Path) -> None:
    show(browser, report_file)
    number, button = head(browser, "experiment")
    script(browser, "arguments[0].focus()", button)
    ActionChains(browser).send_keys(Keys.ENTER, Keys.ENTER).perform()
    assert column(browser, number)[0].startswith("majority")


def test_a_line_is_put_out_and_comes_back(browser: Chrome, report_file: Path) -> None:
    show(browser, report_file)
    button = browser.find_element(By.CSS_SELECTOR, "#c1 .legend button")
    line = "return getComputedStyle(document.getElementById('c1-accuracy-s0-line')).display"
    assert script(browser, line) == "inline"
    button.click()
    assert (script(browser, line), button.get_attribute("aria-pressed")) == ("none", "false")
    button.click()
    assert (script(browser, line), button.get_attribute("aria-pressed")) == ("inline", "true")


def test_arrow_keys_tell_each_epochs_values_but_those_of_lines_that_are_out(browser: Chrome, report_file: Path) -> None:
    show(browser, report_file)
    browser.find_element(By.CSS_SELECTOR, "#c1 .legend button").click()
    panel = browser.find_element(By.CSS_SELECTOR, "[data-panel='c1-loss']")
    script(browser, "arguments[0].focus()", panel)
    ActionChains(browser).send_keys(Keys.HOME, Keys.ARROW_RIGHT).perform()
    told = panel.get_attribute("aria-valuetext")
    assert told is not None
    assert told.startswith("epoch 2: lr=0.01 0.3000")
    assert "lr=0.001" not in told
    assert "epoch 2" in panel.find_element(By.CSS_SELECTOR, ".tip").text
    ActionChains(browser).send_keys(Keys.ESCAPE).perform()
    assert not panel.find_element(By.CSS_SELECTOR, ".tip").is_displayed()


def test_the_pointer_shows_the_values_below_it(browser: Chrome, report_file: Path) -> None:
    show(browser, report_file)
    panel = browser.find_element(By.CSS_SELECTOR, "[data-panel='c1-accuracy']")
    ActionChains(browser).move_to_element(panel).perform()
    tip = panel.find_element(By.CSS_SELECTOR, ".tip")
    assert "epoch 4, validation accuracy" in tip.text or "epoch 3, validation accuracy" in tip.text
    box = "const b = arguments[0].getBoundingClientRect(); return [b.x + b.width / 2, b.y + b.height / 2]"
    dot = script(browser, box, panel.find_elements(By.CSS_SELECTOR, ".pointer circle")[1])
    marks = panel.find_elements(By.CSS_SELECTOR, "#c1-accuracy-s1-line use")
    places = [script(browser, box, mark) for mark in marks]
    near = min(abs(place[0] - dot[0]) + abs(place[1] - dot[1]) for place in places)
    assert near < 2  # pixels between the dot and the marker that Matplotlib drew for the same epoch


def test_a_link_to_a_run_opens_it(browser: Chrome, report_file: Path) -> None:
    show(browser, report_file)
    link = browser.find_element(By.CSS_SELECTOR, f"{TABLE} tbody a")
    target = str(link.get_attribute("href")).rpartition("#")[2]
    link.click()
    assert script(browser, "return document.getElementById(arguments[0]).open", target)


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [360, 1280])
def test_axe_finds_nothing(browser: Chrome, report_file: Path, width: int, scheme: str) -> None:
    show(browser, report_file, width=width, scheme=scheme)
    script(browser, "document.querySelectorAll('details').forEach(each => { each.open = true; })")
    script(browser, AXE.read_text(encoding="utf-8"))
    code = "const done = arguments[arguments.length - 1]; axe.run().then(done, error => done(String(error)))"
    found = browser.execute_async_script(code)
    told = [(each["id"], each["nodes"][0]["html"][:200], each["nodes"][0]["any"][:1]) for each in found["violations"]]
    assert told == []


@pytest.mark.parametrize("width", [360, 768, 1280])
def test_the_page_is_no_wider_than_the_window(browser: Chrome, report_file: Path, width: int) -> None:
    show(browser, report_file, width=width)
    script(browser, "document.querySelectorAll('details').forEach(each => { each.open = true; })")
    assert script(browser, "return innerWidth") == width
    beyond = "return document.documentElement.scrollWidth - document.documentElement.clientWidth"
    assert script(browser, beyond) == 0


def test_light_and_dark_differ(browser: Chrome, report_file: Path) -> None:
    grounds = []
    for scheme in ("light", "dark"):
        show(browser, report_file, scheme=scheme)
        grounds.append(script(browser, "return getComputedStyle(document.body).backgroundColor"))
    assert grounds == ["rgb(255, 255, 255)", "rgb(20, 23, 27)"]


def test_without_script_the_figures_and_tables_are_there(browser: Chrome, report_file: Path) -> None:
    browser.execute_cdp_cmd("Emulation.setScriptExecutionDisabled", {"value": True})
    show(browser, report_file)
    assert browser.find_elements(By.CSS_SELECTOR, "button") == []
    figures = browser.find_elements(By.CSS_SELECTOR, "#curves .panel[role=img] svg")
    assert len(figures) == 6
    assert all(figure.rect["width"] > 200 and figure.rect["height"] > 100 for figure in figures)
    assert len(browser.find_elements(By.CSS_SELECTOR, f"{TABLE} tbody tr")) > 5


def test_it_prints_with_every_run_and_without_what_a_screen_needs(browser: Chrome, report_file: Path) -> None:
    show(browser, report_file, scheme="dark")
    num_open = "return document.querySelectorAll('details[open]').length"
    before = script(browser, num_open)
    pdf = base64.b64decode(browser.execute_cdp_cmd("Page.printToPDF", {"printBackground": True})["data"])
    assert pdf.startswith(b"%PDF")
    assert pdf.count(b"/Type /Page\n") + pdf.count(b"/Type /Page ") > 3
    assert script(browser, num_open) == before  # those are closed again that were
    browser.execute_cdp_cmd("Emulation.setEmulatedMedia", {"media": "print"})
    look = "const s = getComputedStyle(document.querySelector(arguments[0])); return [s.display, s.color]"
    assert script(browser, look, "nav")[0] == "none"
    assert script(browser, look, "body")[1] == "rgb(0, 0, 0)"
    assert {script(browser, look, part)[0] for part in (".rest", ".unprinted", ".more")} == {"none"}


def test_no_number_of_a_printed_table_is_broken_and_every_table_fits_the_paper(
    browser: Chrome, report_file: Path
) -> None:
    show(browser, report_file, width=1032)  # A4 across, less its margins
    browser.execute_cdp_cmd("Emulation.setEmulatedMedia", {"media": "print"})
    breaks = "return [...document.querySelectorAll('#tables td:not(.text)')].map(c => getComputedStyle(c).whiteSpace)"
    assert set(script(browser, breaks)) == {"nowrap"}
    code = (
        "return [...document.querySelectorAll('#tables table')].map(t => t.getBoundingClientRect().right - innerWidth)"
    )
    assert max(script(browser, code)) <= 0


def test_the_deciding_metric_is_in_sight_and_the_rest_is_there_when_asked_for(
    browser: Chrome, report_file: Path
) -> None:
    show(browser, report_file)
    heads = "return [...document.querySelectorAll(arguments[0] + ' thead th')].map(h => [h.innerText, h.offsetWidth])"
    shown = [str(text).split("\n")[0].strip() for text, width in script(browser, heads, TABLE) if width]
    assert shown[2].replace("\u00a0", " ").startswith("validation loss")
    assert not any("memory" in text for text in shown)
    area = "const a = document.querySelector('#tables .scroll'); "
    assert script(browser, area + "return a.scrollWidth <= a.clientWidth + 1")  # rounded
    browser.find_element(By.CSS_SELECTOR, "#more-1").click()
    assert any("memory" in str(text) and width for text, width in script(browser, heads, TABLE))
    hint = area + "return [a.classList.contains('goes-on'), !a.nextElementSibling.hidden]"
    browser.execute_async_script("requestAnimationFrame(() => requestAnimationFrame(arguments[0]))")
    assert script(browser, hint) == [True, True]


def test_no_text_of_a_figure_is_cut(browser: Chrome, report_file: Path) -> None:
    show(browser, report_file)
    script(browser, "document.querySelectorAll('details').forEach(each => { each.open = true; })")
    code = """
        return [...document.querySelectorAll('figure svg text')].flatMap(text => {
          const own = text.getBoundingClientRect(), all = text.closest('svg').getBoundingClientRect();
          const isIn = own.left > all.left - 1 && own.right < all.right + 1
            && own.top > all.top - 1 && own.bottom < all.bottom + 1;
          return isIn ? [] : [text.textContent];
        })"""
    assert script(browser, code) == []
