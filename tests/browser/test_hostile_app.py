"""An app attacks the dashboard through the operator's browser, which has both open: one host, two ports.

Real daemon, real browser. The app's page tries what a page may try; the fleet keeps its size, and the
dashboard keeps working.
"""

import json
import re
from collections.abc import Iterator
from urllib.parse import urlsplit

import pytest
from playwright.sync_api import Browser, BrowserContext, Page, expect, sync_playwright

from ostler.control.routes import LOGIN_LINK
from tests.browser.test_dashboard import CHROMIUM, needs_browser
from tests.kit.daemon import Daemon, Place
from tests.kit.http_client import ask

pytestmark = needs_browser

# Long enough for a busy machine; a test that passes never waits so long.
expect.set_options(timeout=60_000)

APP = """
def app(environ, start_response):
    start_response("200 OK", [("Content-Type", "text/html")])
    return [b"<title>app</title><pre>", environ.get("HTTP_COOKIE", "").encode("latin-1"), b"</pre>"]
"""

SCALE = json.dumps({"delta": 1})

# Each gets the dashboard's address and a body that would scale the fleet, and returns what it could read.
ATTACKS = {
    "simple request": """([url, body]) => fetch(url + '/v1/scale',
        {method: 'POST', mode: 'no-cors', credentials: 'include', body}).then(() => '')""",
    "JSON request": """([url, body]) => fetch(url + '/v1/scale',
        {method: 'POST', credentials: 'include', headers: {'content-type': 'application/json'}, body})
        .then((answer) => answer.text())""",
    "beacon": """([url, body]) => { navigator.sendBeacon(url + '/v1/scale', body); return ''; }""",
    "reading": """([url]) => fetch(url + '/v1/status', {credentials: 'include'})
        .then((answer) => answer.text())""",
    "stream": """([url]) => new Promise((done) => {
        const source = new EventSource(url + '/v1/stream', {withCredentials: true});
        source.onmessage = (message) => done(message.data);
        source.addEventListener('status', (message) => done(message.data));
        source.onerror = () => { source.close(); done(''); };
    })""",
    "script": """([url]) => new Promise((done) => {
        const script = document.createElement('script');
        script.onload = () => done('loaded');
        script.onerror = () => done('');
        script.src = url + '/healthz';
        document.head.append(script);
    })""",
    "storage": "() => Object.keys(localStorage).concat(Object.keys(sessionStorage)).join()",
}

BOMB = """() => {
    for (let i = 0; i < 400; i++) {
        const name = 'bomb' + i;
        document.cookie = name + '=' + 'x'.repeat(4096 - name.length) + '; path=/; max-age=9999';
    }
    return document.cookie.length;
}"""


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(
            executable_path=CHROMIUM,
            args=["--no-sandbox", "--disable-gpu", "--no-first-run", "--disable-background-networking"],
        )
        yield browser
        browser.close()


@pytest.fixture(scope="module")
def daemon() -> Iterator[Daemon]:
    with Place() as place:
        place.add("evil.py", APP)
        yield place.start("--control-bind", "127.0.0.1:0", "evil:app")


@pytest.fixture
def context(browser: Browser) -> Iterator[BrowserContext]:
    """One operator's cookies and storage."""
    context = browser.new_context()
    yield context
    context.close()


@pytest.fixture
def dashboard(context: BrowserContext, daemon: Daemon) -> Page:
    """Logged in and live."""
    page = context.new_page()
    page.goto(daemon.client.call(LOGIN_LINK).url)
    assert_live(page)
    return page


@pytest.fixture
def app(context: BrowserContext, daemon: Daemon, dashboard: Page) -> Page:
    """The app's page, in another tab; it has the path of the API in case a cookie asks for that."""
    page = context.new_page()
    page.goto(f"{daemon.url}/v1/status")
    return page


def address(dashboard: Page) -> str:
    parts = urlsplit(dashboard.url)
    return f"{parts.scheme}://{parts.netloc}"


def assert_live(dashboard: Page) -> None:
    expect(dashboard.get_by_text("Live", exact=True)).to_be_visible()


def assert_unharmed(daemon: Daemon, dashboard: Page) -> None:
    """The fleet has its size; the page is still logged in and receives updates after it is loaded again."""
    assert daemon.status().wanted == 1
    dashboard.reload()
    assert_live(dashboard)


def test_what_the_app_receives_gives_no_rights(daemon: Daemon, dashboard: Page, app: Page) -> None:
    """The app's server receives none of the dashboard's secrets,
    and the cookies that it receives can't scale the fleet.
    """
    received = app.locator("pre").inner_text()
    headers = {"Cookie": received, "Content-Type": "application/json"}
    for target, method, body in (("/v1/scale", "POST", SCALE), ("/v1/status", "GET", None)):
        answer = ask(address(dashboard), target, method, body=body, headers=headers)
        assert answer.status == 401, received
    assert received == ""
    assert_unharmed(daemon, dashboard)


def test_scripts_of_the_app_learn_and_change_nothing(daemon: Daemon, dashboard: Page, app: Page) -> None:
    """Requests with credentials, beacons, the stream, scripts and storage:
    all fail, although the site is the same.
    """
    for name, attack in ATTACKS.items():
        refused = f"(given) => Promise.resolve(given).then({attack}).catch(() => '')"
        assert app.evaluate(refused, [address(dashboard), SCALE]) == "", name
        assert daemon.status().wanted == 1, name
    assert_unharmed(daemon, dashboard)


def test_a_form_of_the_app_changes_nothing(daemon: Daemon, dashboard: Page, app: Page) -> None:
    """A form can be sent without permission, and its text can look like JSON: it changes nothing."""
    app.set_content(
        f"<form method=post enctype=text/plain action='{address(dashboard)}/v1/scale'>"
        """<input name='{"delta":1,"x":"' value='"}'><button>send</button></form>"""
    )
    app.get_by_role("button").click()
    expect(app.locator("body")).to_contain_text("is not this dashboard")
    assert_unharmed(daemon, dashboard)


def test_the_app_can_not_frame_the_dashboard(daemon: Daemon, dashboard: Page, app: Page) -> None:
    """Neither the page nor an answer of the API can be shown in a frame,
    so a user can't be made to click in it.
    """
    for path in ("/", "/healthz"):
        app.set_content(f"<iframe src='{address(dashboard)}{path}'></iframe>")
        frame = app.frame_locator("iframe").locator("body")
        expect(frame).not_to_contain_text(re.compile("ok|Ostler|worker"))
        assert [frame.url for frame in app.frames if frame.url.startswith(address(dashboard))] == []
    assert_unharmed(daemon, dashboard)


def test_the_app_keeps_no_hold_on_a_window(daemon: Daemon, dashboard: Page, app: Page) -> None:
    """A page may open the dashboard in a window, but has no reference to that window afterwards."""
    with app.context.expect_page() as opened:
        app.evaluate("url => { window.opened = window.open(url); }", address(dashboard))
    assert_live(opened.value)
    assert app.evaluate("() => window.opened.closed")
    assert opened.value.evaluate("() => window.opener") is None
    assert_unharmed(daemon, dashboard)


def test_a_cookie_bomb_locks_no_one_out(daemon: Daemon, dashboard: Page, app: Page) -> None:
    """The app sets as many cookies as the browser keeps, for the whole host:
    open pages, new pages and changes still work.
    """
    assert app.evaluate(BOMB) > 500_000
    assert_unharmed(daemon, dashboard)
    fresh = app.context.new_page()
    fresh.goto(daemon.client.call(LOGIN_LINK).url)
    assert_live(fresh)
    for button, wanted in (("Add a worker", 2), ("Remove a worker", 1)):
        fresh.get_by_role("button", name=button).click()
        daemon.until(lambda wanted=wanted: daemon.status().wanted == wanted, button)
    daemon.settled(1)


@pytest.mark.thorough
def test_the_code_leaves_no_trace(context: BrowserContext, daemon: Daemon) -> None:
    """The login code is gone from the address bar, the history and the referrer; no cookie is left behind."""
    page = context.new_page()
    link = daemon.client.call(LOGIN_LINK).url
    page.goto(link)
    assert_live(page)
    assert page.url == f"{link.partition('#')[0]}"
    assert page.evaluate("() => history.length") <= 2
    assert context.cookies() == []
