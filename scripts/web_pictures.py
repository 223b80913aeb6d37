"""The pictures of docs/web.md: drives Chromium through the page of `flamboyance web`, as a person would use it.

    python -m scripts.web_pictures [FOLDER]      # default: docs/pictures

Needs Chromium and its driver (Debian: chromium, chromium-driver) and selenium. tests/web/test_browser.py checks the
same flow.
"""

from __future__ import annotations

import io
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Generator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from PIL import Image

import flamboyance as fl

NAMES = ("chrome", "chromium", "chromium-browser", "google-chrome")
CHROMIUM = next(filter(None, map(shutil.which, NAMES)), None)
DRIVER = shutil.which("chromedriver")
FLAGS = (
    *("--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run"),
    *("--disable-background-networking", "--disable-component-update", "--disable-sync", "--hide-scrollbars"),
)
DESKTOP, PHONE = (1240, 900), (390, 844)
PATIENCE = 240  # seconds, for machines that do other work


@contextmanager
def served(*options: str) -> Generator[str]:
    """The address of `flamboyance web` in a process of its own."""
    command = [sys.executable, "-m", "flamboyance", "web", "--port", "0", *options]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout is not None
            line = process.stdout.readline()
            assert line.startswith("http://127.0.0.1:"), line
            yield line.split()[0]
        finally:
            process.terminate()


class Browser:
    """Chromium on the page, with an empty profile."""

    def __init__(self, address: str, folder: Path) -> None:
        from selenium import webdriver  # only developers have it
        from selenium.webdriver.chrome.service import Service

        options = webdriver.ChromeOptions()
        options.binary_location = CHROMIUM or ""
        for flag in (*FLAGS, f"--user-data-dir={folder / 'profile'}"):
            options.add_argument(flag)
        options.add_experimental_option("prefs", {"download.default_directory": str(folder)})
        options.set_capability("goog:loggingPrefs", {"performance": "ALL"})
        self.address, self.folder = address, folder
        self.driver = webdriver.Chrome(options, Service(executable_path=DRIVER))
        self.driver.set_page_load_timeout(PATIENCE)
        self.driver.set_script_timeout(PATIENCE)

    def close(self) -> None:
        self.driver.quit()

    def until(self, condition: Callable[[], Any], what: str) -> Any:
        """The condition's first value that is true."""
        end = time.monotonic() + PATIENCE
        while time.monotonic() < end:
            if value := condition():
                return value
            time.sleep(0.05)
        self.driver.save_screenshot(str(self.folder / "failed.png"))
        raise AssertionError(f"not within {PATIENCE} seconds: {what}")

    def js(self, code: str, *arguments: Any) -> Any:
        return self.driver.execute_script(code, *arguments)

    def all(self, selector: str) -> list[Any]:
        return self.driver.find_elements("css selector", selector)

    def texts(self, selector: str) -> list[str]:
        return self.js("return [...document.querySelectorAll(arguments[0])].map((one) => one.textContent)", selector)

    def open(self) -> None:
        self.driver.get(self.address)
        self.until(lambda: self.all("#run") and self.all(".hint"), "the page")

    def upload(self, selector: str, *paths: Path) -> None:
        # In an element, or beside it, as that of an upload button.
        nearest = """
            let one = document.querySelector(arguments[0]);
            while (one && !one.querySelector("input[type=file]")) one = one.parentElement;
            return one && one.querySelector("input[type=file]");
        """
        field = self.until(lambda: self.js(nearest, selector), f"a file input in {selector}")
        field.send_keys("\n".join(map(str, paths)))

    def write(self, selector: str, *texts: str) -> None:
        """Replaces the texts of boxes by typing."""
        boxes = self.until(
            lambda: len(found := self.all(f"{selector} :is(input, textarea)")) >= len(texts) and found, selector
        )
        for box, text in zip(boxes, texts, strict=False):
            box.send_keys("\ue009a\ue000", text)  # Ctrl-A, then all keys up

    def boxes(self, selector: str) -> list[str]:
        code = "return [...document.querySelectorAll(arguments[0])].map((one) => one.value)"
        return self.js(code, f"{selector} :is(input, textarea)")

    def click(self, selector: str) -> None:
        [found] = self.until(lambda: self.all(selector), selector)
        self.js("arguments[0].scrollIntoView({ block: 'center' })", found)
        found.click()

    def shots(self, number: int) -> None:
        self.until(lambda: len(self.all(".shot")) == number, f"{number} demonstrations")

    def query(self, path: Path) -> None:
        self.upload("#query-image", path)
        self.until(lambda: self.all("#query-image img"), "the query's image")

    def run(self) -> list[str]:
        """Runs, and returns the texts of the first answer as they were seen, the last one whole."""
        before = self.js("return document.querySelector('#result').innerHTML")
        watch = """
            window.seen = [];
            new MutationObserver(() => {
              const one = document.querySelector(".answer");
              if (one && window.seen.at(-1) !== one.textContent) window.seen.push(one.textContent);
            }).observe(document.querySelector("#result"), { childList: true, subtree: true, characterData: true });
        """
        self.js(watch)
        self.click("#run")
        self.until(lambda: self.js("return document.querySelector('#result').innerHTML") != before, "a beginning")
        self.until(lambda: self.all(".words img") and not self.all(".state"), "the heat maps")
        return self.js("return window.seen")

    def requests(self) -> list[str]:
        """The addresses on the network that were asked for."""
        entries = [json.loads(entry["message"])["message"] for entry in self.driver.get_log("performance")]
        urls = [one["params"]["request"]["url"] for one in entries if one["method"] == "Network.requestWillBeSent"]
        return [url for url in urls if not url.startswith(("chrome:", "data:", "blob:", "about:"))]

    def size(self, width: int, height: int) -> None:
        metrics = {"width": width, "height": height, "deviceScaleFactor": 1, "mobile": width < 500}
        self.driver.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", metrics)

    def dark(self, on: bool) -> None:
        self.js("document.body.classList.toggle('dark', arguments[0])", on)

    def picture(self, path: Path) -> None:
        """The whole page, at its present width, as a small file."""
        height = self.js("window.scrollTo(0, 0); return document.documentElement.scrollHeight")
        width = self.js("return window.innerWidth")
        self.size(width, height)
        self.js("document.activeElement.blur()")
        time.sleep(0.5)  # transitions of colors; nothing depends on it but the picture
        image = Image.open(io.BytesIO(self.driver.get_screenshot_as_png())).convert("RGB")
        image.save(path, quality=88, method=6)


def build_a_task(browser: Browser) -> None:
    """Adds three demonstrations and a query, by hand."""
    browser.upload("#add", *(path for path, _ in fl.examples.demonstrations[:3]))
    browser.shots(3)
    browser.write(".shot .said", *(text for _, text in fl.examples.demonstrations[:3]))
    browser.query(fl.examples.queries[0])
    browser.write("#labels", "ring, cross, square, triangle")


def main(folder: Path) -> None:
    os.environ["OMP_NUM_THREADS"] = "1"
    with tempfile.TemporaryDirectory() as scratch, served("--model", "mini") as address:
        browser = Browser(address, Path(scratch))
        try:
            browser.size(*DESKTOP)
            browser.open()
            build_a_task(browser)
            print(browser.run())
            for name, size in (("desktop", DESKTOP), ("phone", PHONE)):
                for dark in (False, True):
                    browser.size(*size)
                    browser.dark(dark)
                    browser.picture(folder / f"web-{name}-{'dark' if dark else 'light'}.webp")
        finally:
            browser.close()


if __name__ == "__main__":
    main(Path(sys.argv[1] if len(sys.argv) > 1 else "docs/pictures"))
