"""The error page of `reload` in a real browser: it shows what is wrong and follows the next edit."""

import os
from collections.abc import Iterator
from pathlib import Path

import pytest
from playwright.sync_api import expect, sync_playwright

from tests.kit.daemon import Place

CHROMIUM = Path(os.environ.get("CHROMIUM", "/usr/bin/chromium"))

pytestmark = [
    pytest.mark.browser,
    pytest.mark.skipif(not CHROMIUM.exists(), reason=f"there is no {CHROMIUM} (apt install chromium)"),
]

MENDED = """
def app(environ, start_response):
    start_response('200 OK', [('Content-Type', 'text/plain')])
    return [b'mended']
"""


@pytest.fixture
def place() -> Iterator[Place]:
    with Place() as place:
        yield place


@pytest.mark.thorough
def test_follows_the_next_edit(place: Place) -> None:
    """The line that fails is marked, and markup in it is shown as text.
    Another mistake and its correction appear without a reload.
    """
    place.add("shop.py", "price = '<b>1</b>'\nprint(undefined)\n")
    daemon = place.start("--reload", "shop:app")
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(
            executable_path=CHROMIUM,
            args=["--no-sandbox", "--disable-gpu", "--no-first-run", "--disable-background-networking"],
        )
        page = browser.new_page()
        page.goto(daemon.url)
        expect(page.locator("h1")).to_contain_text("NameError: name 'undefined' is not defined")
        expect(page.locator("pre .bad")).to_have_text("2print(undefined)")
        expect(page.locator("pre").first).to_contain_text("price = '<b>1</b>'")
        place.add("shop.py", "def app(:\n")
        expect(page.locator("h1")).to_contain_text("SyntaxError", timeout=60_000)
        place.add("shop.py", MENDED)
        expect(page.get_by_text("mended")).to_be_visible(timeout=60_000)
        browser.close()
