"""The page in Chromium, by mouse and keyboard: from dropped images to an answer, heat maps, a saved task, and back."""

import importlib.util
from collections.abc import Generator
from pathlib import Path

import pytest

import flamboyance as fl
from scripts import web_pictures
from scripts.web_pictures import CHROMIUM, DRIVER, PHONE, Browser, build_a_task, served

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(CHROMIUM is None or DRIVER is None, reason="no Chromium with its driver here"),
    pytest.mark.skipif(importlib.util.find_spec("gradio") is None, reason="gradio is not installed"),
    pytest.mark.skipif(importlib.util.find_spec("selenium") is None, reason="selenium is not installed"),
]
QUERY = fl.examples.queries[0]


@pytest.fixture(scope="module")
def address() -> Generator[str]:
    with served("--model", "mini") as address:
        yield address


@pytest.fixture
def browser(address: str, tmp_path: Path) -> Generator[Browser]:
    browser = Browser(address, tmp_path)
    browser.size(*web_pictures.DESKTOP)
    browser.open()
    yield browser
    browser.close()


def test_a_task_from_dropped_images_to_a_file_and_back(browser: Browser, tmp_path: Path) -> None:
    model, processor = fl.load_mini()
    shots = fl.examples.demonstrations[:3]
    task = fl.FewShotTask(model, processor, shots)
    [expected] = task([QUERY])

    build_a_task(browser)
    seen = browser.run()
    assert seen[-1] == expected
    growing = [text for text in seen if text and text != "…"]
    assert all(expected.startswith(text) for text in growing)
    assert browser.texts(".words figcaption") == expected.split()
    maps = browser.js("return [...document.querySelectorAll('.words img')].map((one) => one.naturalWidth)")
    assert maps == [300] * len(expected.split())
    assert sorted(browser.texts(".bars:not(.gates) .label")) == ["cross", "ring", "square", "triangle"]
    assert [text.split()[-1] for text in browser.texts(".gates .label")] == list("01234")
    pictures = browser.js("return [...document.querySelectorAll('.words img')].map((one) => one.src)")

    # Another block's maps.
    browser.click("#layer input")
    browser.until(lambda: browser.all("[role=option]"), "the list of blocks")[-1].click()
    now = "return [...document.querySelectorAll('.words img')].map((one) => one.src)"
    browser.until(lambda: browser.js(now) != pictures, "the maps of one block")

    # The file holds the task: the library answers the same with it.
    browser.write("#name", "three shapes")
    browser.click("#save")
    file = tmp_path / "three shapes.json"
    browser.until(file.is_file, "the saved task")
    loaded = fl.FewShotTask.load(file, model, processor)
    assert loaded.texts == task.texts and loaded([QUERY]) == [expected]

    # A new visit opens the file, and the page answers the same with it.
    browser.open()
    browser.upload("#open", file)
    browser.shots(3)
    assert browser.boxes(".shot .said") == [text for _, text in shots]
    browser.query(QUERY)
    assert browser.run()[-1] == expected

    asked = browser.requests()
    assert asked and all(url.startswith(browser.address) for url in asked)


def test_by_keyboard_on_a_phone(browser: Browser) -> None:
    browser.size(*PHONE)
    width = "return document.documentElement.scrollWidth"
    assert browser.js(width) <= PHONE[0]
    browser.click("#run")
    browser.until(lambda: browser.texts("[role=alert]"), "a message")
    assert "no image yet" in browser.texts("[role=alert]")[0]

    press(browser, "#example-captions")
    browser.shots(4)
    _, second, *others = [text for _, text in fl.examples.demonstrations]
    browser.write(".shot .said", "a ring, changed")
    press(browser, ".shot .down")  # the first one's
    browser.until(lambda: browser.boxes(".shot .said") == [second, "a ring, changed", *others], "the new order")
    press(browser, ".shot .remove")
    browser.shots(3)
    assert browser.boxes(".shot .said") == ["a ring, changed", *others]
    browser.until(lambda: browser.all("#query-image img"), "the example's query")
    press(browser, "#run")
    browser.until(lambda: browser.all(".words img") and not browser.all(".state"), "the heat maps")
    assert browser.js(width) <= PHONE[0]


def press(browser: Browser, selector: str) -> None:
    """Enter on what has the focus, after it was given to the first of these."""
    found = browser.until(lambda: browser.all(selector), selector)[0]
    browser.js("arguments[0].focus()", found)
    assert browser.js("return document.activeElement === arguments[0]", found), selector
    browser.driver.switch_to.active_element.send_keys("\ue007")
