"""The built dashboard in a real browser, against a scripted API. Every wait is for something on the page."""

import asyncio
import os
import time
from collections.abc import AsyncIterator
from pathlib import Path

import msgspec
import pytest
import pytest_asyncio
from playwright.async_api import Browser, Page, async_playwright, expect

from ostler.control.pages import STATIC
from ostler.control.views import ChangeView, ErrorView, EventView
from tests.browser.fake_api import (
    CODE,
    TRACEBACK,
    FakeApi,
    a_reload,
    a_request,
    a_status,
    a_worker,
    an_exit,
    some_workers,
)
from tests.kit.tiers import thorough

# Long enough for a busy machine; a test that passes never waits so long.
expect.set_options(timeout=60_000)

CHROMIUM = Path(os.environ.get("CHROMIUM", "/usr/bin/chromium"))

needs_browser = [
    pytest.mark.browser,
    pytest.mark.skipif(not CHROMIUM.exists(), reason=f"there is no {CHROMIUM} (apt install chromium)"),
    pytest.mark.skipif(
        not (STATIC / "index.html").exists(),
        reason="the dashboard is not built (cd web; npm ci; npm run build)",
    ),
]
# One loop for all tests, as they share the browser.
pytestmark = [*needs_browser, pytest.mark.asyncio(loop_scope="module")]


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def chromium() -> AsyncIterator[Browser]:
    """One browser for all tests, because its start takes longer than most tests."""
    async with async_playwright() as playwright:
        browser = await playwright.chromium.launch(
            executable_path=CHROMIUM,
            args=[
                "--no-sandbox",
                "--disable-gpu",
                "--disable-quic",
                "--no-first-run",
                "--disable-background-networking",
                "--disable-component-update",
                "--disable-sync",
            ],
        )
        try:
            yield browser
        finally:
            await browser.close()


@pytest_asyncio.fixture(loop_scope="module")
async def browser(chromium: Browser) -> AsyncIterator[Browser]:
    """A browser without pages, cookies and storage."""
    yield chromium
    for context in chromium.contexts:
        await context.close()


@pytest_asyncio.fixture(loop_scope="module")
async def api() -> AsyncIterator[FakeApi]:
    async with FakeApi() as api:
        yield api


@pytest_asyncio.fixture(loop_scope="module")
async def page(browser: Browser, api: FakeApi) -> Page:
    """The dashboard, logged in and live."""
    return await opened(await browser.new_page(), api)


async def opened(page: Page, api: FakeApi) -> Page:
    await page.goto(api.login_url)
    await expect(page.get_by_text("Live", exact=True)).to_be_visible()
    return page


async def has_asked(api: FakeApi, path: str) -> None:
    """Wait until this is the last request of the page:
    a click returns before the server has the request that it causes.
    """
    deadline = time.monotonic() + 60
    while api.asked[-1] != (path, {}):
        assert time.monotonic() < deadline, api.asked
        await asyncio.sleep(0.01)


async def test_health_and_workers_are_shown(page: Page) -> None:
    """The health sentence and a row for every worker appear, with the requests in flight."""
    await expect(page.get_by_role("heading", level=1)).to_contain_text("All 4 workers are ready.")
    rows = page.locator("tr[data-slot]")
    await expect(rows).to_have_count(4)
    await expect(rows.nth(2)).to_contain_text("41203")
    await expect(rows.nth(2)).to_contain_text("POST /checkout/confirm")
    await expect(rows.nth(1)).to_contain_text("idle")
    await expect(page.locator(".plot canvas")).to_have_count(2)
    await expect(page).to_have_title("shop · Ostler")


async def test_page_follows_the_stream(page: Page, api: FakeApi) -> None:
    """The page shows what the supervisor reports at once, and marks an overdue request."""
    api.send("status", a_status(state="degraded", ready=3, health="3 of 4 workers are ready."))
    await expect(page.get_by_role("heading", level=1)).to_contain_text("degraded: 3 of 4 workers are ready.")
    await expect(page).to_have_title("shop: degraded · Ostler")
    slow = a_request(4, "GET", "/reports", 31.5)
    api.send("workers", [*some_workers()[:3], a_worker(4, slow)])
    await expect(page.locator("tr[data-slot='4']")).to_contain_text("over")
    api.send("workers", some_workers()[:2])
    await expect(page.locator("tr[data-slot]")).to_have_count(2)


async def test_upgraded_connections_are_named(page: Page, api: FakeApi) -> None:
    """Websockets are marked, and stand behind ordinary requests, however old they are."""
    websocket = msgspec.structs.replace(a_request(4, "GET", "/ws", 90_000.0), deadline_in=None, upgraded=True)
    api.send("workers", [a_worker(4, websocket, a_request(4, "GET", "/slow", 2.0, thread=1))])
    requests = page.locator("tr[data-slot='4'] .flights li")
    await expect(requests.nth(0)).to_contain_text("/slow")
    await expect(requests.nth(1)).to_contain_text("GET /ws upgraded")


async def test_exits_are_shown(page: Page, api: FakeApi) -> None:
    """The newest ends are listed with their causes; unplanned ones are marked and have a stack;
    a new end is added on top.
    """
    rows = page.locator("[data-exit]")
    await expect(rows).to_have_count(4)
    await expect(rows.first).to_contain_text("deadline")
    await expect(rows.first).to_contain_text("GET /reports/2026/q2")
    await expect(rows.first).to_have_class("alarming")
    await rows.first.get_by_text("stack", exact=True).click()
    await expect(rows.first.locator("pre")).to_contain_text("reports.py")
    await expect(rows.nth(3)).to_contain_text("fork server")
    api.send("exit", an_exit(5, 0.0, cause="killed by the kernel for memory", status="signal 9 (KILL)"))
    await expect(rows).to_have_count(5)
    await expect(rows.first).to_contain_text("killed by the kernel for memory")


async def test_refork_is_followed(page: Page, api: FakeApi) -> None:
    """The button is busy until the outcome is known; a refusal shows what the audit has found."""
    button = page.get_by_role("button", name="Refork")
    await button.click()
    await expect(page.get_by_role("button", name="Reforking…")).to_be_visible()
    await has_asked(api, "/v1/refork")
    api.recorded.append(EventView(8, 0.0, "refork_refused", {"problem": "2 threads are alive"}))
    await expect(page.get_by_role("alert")).to_contain_text("No refork: 2 threads are alive")
    await expect(button).to_have_attribute("aria-disabled", "false")
    api.recorded[:] = [EventView(9, 0.0, "refork_done", {"slot": 2})]
    await button.click()
    await expect(page.get_by_role("alert")).not_to_contain_text("refork")
    await expect(button).to_have_attribute("aria-disabled", "false")


async def test_scale_up(page: Page, api: FakeApi) -> None:
    """The + button asks for one more worker, and the page shows the new wanted number."""
    api.asked.clear()
    await page.get_by_role("button", name="Add a worker").click()
    await expect(page.get_by_role("group", name="Number of workers")).to_contain_text("4 of 5 ready")
    assert api.asked == [("/v1/scale", {"delta": 1})]


async def test_refusal_is_explained(page: Page, api: FakeApi) -> None:
    """For an action that the supervisor refuses the page shows the supervisor's message."""
    api.refusals["/v1/workers/3/recycle"] = ErrorView("conflict", "Worker 3 is being replaced already.")
    await page.get_by_role("button", name="Recycle worker 3").click()
    await expect(page.get_by_role("alert")).to_contain_text("Worker 3 is being replaced already.")
    assert api.asked[-1][0] == "/v1/workers/3/recycle"


async def test_failed_reload_shows_its_traceback(page: Page, api: FakeApi) -> None:
    """A reload is followed from the click to its failure; the reason and the whole traceback are readable."""
    await page.get_by_role("button", name="Reload", exact=True).click()
    await has_asked(api, "/v1/reload")
    button = page.get_by_role("button", name="Reloading…")
    await expect(button).to_have_attribute("aria-disabled", "true")
    api.send("status", a_status(state="reloading", health="Reloading.", reload=a_reload("canary")))
    await expect(page.get_by_role("progressbar")).to_have_attribute("aria-valuenow", "1")

    reason = "ImportError: cannot import name 'vat_rate'"
    api.send("status", a_status(reload=a_reload("failed", reason=reason, traceback=TRACEBACK)))
    panel = page.locator(".failure")
    await expect(panel).to_contain_text(reason)
    await expect(panel).to_contain_text("The old generation continues to serve.")
    await expect(panel.locator("pre")).to_have_text(TRACEBACK.strip())
    await expect(page.get_by_role("button", name="Reload", exact=True)).to_have_attribute(
        "aria-disabled", "false"
    )


async def test_reload_shows_its_environment(page: Page, api: FakeApi) -> None:
    """A reload that has changed the environment says from what to what."""
    await expect(page.locator(".reload")).to_contain_text("generation 7")
    await expect(page.locator(".reload .environment")).to_have_count(0)
    folders = ("/srv/shop/1/.venv", "/srv/shop/2/.venv")
    changes = [
        ChangeView("environment", *folders, "generation"),
        ChangeView("Python", "3.12.1", "3.13.0", "generation"),
    ]
    api.send("status", a_status(reload=a_reload("done", replaced=4, environment=changes)))
    await expect(page.locator(".reload .environment")).to_have_text(
        "environment /srv/shop/1/.venv → /srv/shop/2/.venv, Python 3.12.1 → 3.13.0"
    )


async def test_login_link_is_used_up(browser: Browser, api: FakeApi) -> None:
    """The code goes to the API once and leaves the address bar; the session survives a reload of the page."""
    page = await opened(await browser.new_page(), api)
    assert page.url == f"{api.url}/"
    await page.reload()
    await expect(page.get_by_text("Live", exact=True)).to_be_visible()
    assert api.asked == [("/v1/login", {"code": CODE})]


async def test_login_by_hand(browser: Browser, api: FakeApi) -> None:
    """Without a session the page explains how to get a link.
    A wrong link is refused, a valid one that is pasted logs in.
    """
    page = await browser.new_page()
    await page.goto(api.url)
    await expect(page.get_by_text("ctl open")).to_be_visible()
    field = page.get_by_label("Login link or code")
    await field.fill("wrong")
    await field.press("Enter")
    await expect(page.get_by_role("alert")).to_contain_text("used up or wrong")
    await field.fill(api.login_url)
    await field.press("Enter")
    await expect(page.locator("tr[data-slot]")).to_have_count(4)


async def test_lost_connection_comes_back(page: Page, api: FakeApi) -> None:
    """A broken stream is opened again, and the page then shows what happened meanwhile."""
    api.status = a_status(health="All is well again.")
    api.close_connections()
    await expect(page.get_by_role("heading", level=1)).to_contain_text("All is well again.")
    await expect(page.get_by_text("Live", exact=True)).to_be_visible()


async def test_gone_supervisor_is_named(browser: Browser) -> None:
    """Without a supervisor the page says so, shows the age of its data, and disables all actions."""
    async with FakeApi() as api:
        page = await opened(await browser.new_page(), api)
    await expect(page.get_by_role("heading", level=1)).to_contain_text("The supervisor does not answer.")
    await expect(page.get_by_text("Connection lost, last data")).to_be_visible()
    await expect(page.get_by_role("button", name="Add a worker")).to_have_attribute("aria-disabled", "true")


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [390, *thorough(1280)])
async def test_both_schemes_render_cleanly(browser: Browser, api: FakeApi, scheme: str, width: int) -> None:
    """In light and dark mode the console has no error (of the content security policy either) and nothing
    scrolls sideways.
    """
    page = await browser.new_page(
        color_scheme="dark" if scheme == "dark" else "light", viewport={"width": width, "height": 800}
    )
    complaints: list[str] = []
    page.on("console", lambda message: complaints.append(message.text) if message.type == "error" else None)
    page.on("pageerror", lambda error: complaints.append(str(error)))
    await opened(page, api)
    await expect(page.locator("tr[data-slot]")).to_have_count(4)
    await expect(page.locator(".plot canvas")).to_have_count(2)

    ground = await page.evaluate("getComputedStyle(document.documentElement).backgroundColor")
    lightness = sum(int(part) for part in ground.strip("rgb()").split(",")) / 3
    assert (lightness < 128) == (scheme == "dark")
    assert await page.evaluate("document.documentElement.scrollWidth") == width
    assert complaints == []
