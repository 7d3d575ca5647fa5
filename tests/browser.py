"""A real browser for tests: Chromium without a window, driven by selenium."""

import base64
import io
import json
import os
import shutil
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import pytest
from PIL import Image

# Boxes that reach over the right edge of the page, unless a box around them scrolls.
STICKING_OUT = """
const scrolls = box => box && (getComputedStyle(box).overflowX != "visible"
    && box !== document.body || scrolls(box.parentElement));
return [...document.body.querySelectorAll("*")].filter(
    box => box.getBoundingClientRect().right > innerWidth + 1 && !scrolls(box.parentElement)
).map(box => box.outerHTML.slice(0, 80)).concat(
    document.documentElement.scrollWidth > innerWidth ? ["the page scrolls sideways"] : []);
"""


def asset_folder() -> str:
    """Return the folder with the files of visdom's page, or skip the test."""
    folder = os.environ.get("DOGCAT_BOARD_ASSETS")
    if not folder:
        pytest.skip("DOGCAT_BOARD_ASSETS is not set: see tests/board_assets.sh")
    return folder


@contextmanager
def open_browser() -> Iterator[Any]:
    """Yield a browser, or skip the test."""
    webdriver = pytest.importorskip("selenium.webdriver")
    chromium, driver = shutil.which("chromium"), shutil.which("chromedriver")
    if not (chromium and driver):
        pytest.skip("there is no chromium, or no chromedriver")
    options = webdriver.ChromeOptions()
    options.binary_location = chromium
    for word in ("--headless=new", "--no-sandbox", "--disable-dev-shm-usage"):
        options.add_argument(word)
    options.add_argument("--window-size=1400,900")
    options.set_capability("goog:loggingPrefs", {"performance": "ALL", "browser": "ALL"})
    with webdriver.Chrome(options=options, service=webdriver.ChromeService(driver)) as browser:
        yield browser


def wait_for(browser: Any, script: str) -> Any:
    """Return what a script returns as soon as it is true."""
    deadline = time.monotonic() + 60
    while not (result := browser.execute_script(script)):
        assert time.monotonic() < deadline, f"{script}\n{browser.page_source}"
        time.sleep(0.1)
    return result


def requested(browser: Any) -> Iterator[str]:
    """Yield the address of every request since the last call."""
    for entry in browser.get_log("performance"):
        message = json.loads(entry["message"])["message"]
        if message["method"] == "Network.requestWillBeSent":
            yield message["params"]["request"]["url"]


def complaints(browser: Any) -> list[str]:
    """Return what the page has written to the console since the last call."""
    return [entry["message"] for entry in browser.get_log("browser")]


def look(browser: Any, width: int = 1280, height: int = 900, dark: bool = False) -> None:
    """Give the page a size in pixels, and a light or dark scheme."""
    size = {"width": width, "height": height, "deviceScaleFactor": 1, "mobile": width < 600}
    browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", size)
    scheme = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
    browser.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": [scheme]})


def colors_of(browser: Any, selector: str) -> int:
    """Return how many colours a screenshot of the first element of a CSS selector has."""
    element = browser.find_element("css selector", selector)
    browser.execute_script("arguments[0].scrollIntoView({block: 'center'})", element)
    with Image.open(io.BytesIO(element.screenshot_as_png)) as image:
        return len(np.unique(np.asarray(image.convert("RGB")).reshape(-1, 3), axis=0))


def printed(browser: Any) -> bytes:
    """Return the page as a PDF."""
    answer = browser.execute_cdp_cmd("Page.printToPDF", {"printBackground": True})
    return base64.b64decode(answer["data"])
