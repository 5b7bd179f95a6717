"""Attacks on the dashboard's port through a browser, or by any user of the machine, byte for byte.

The same attacks from a page in a real browser are in `tests/browser/test_hostile_app.py`.
"""

import json
import socket
import threading
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from http.cookies import SimpleCookie
from pathlib import Path

import pytest

from ostler.control.routes import LOGIN_LINK
from tests.kit.daemon import Daemon, Place
from tests.kit.hostile import APP, assert_unharmed
from tests.kit.http_client import Answer, ask

pytestmark = pytest.mark.system

SCALE = json.dumps({"delta": 1})
JSON = {"Content-Type": "application/json"}
COOKIE = "; ".join(f"bomb{number}={'x' * 4088}" for number in range(180))
"""As many as Chromium keeps of one host: 737 KB."""


@pytest.fixture(scope="module")
def daemon() -> Iterator[Daemon]:
    with Place() as place:
        place.add("attacked.py", APP)
        yield place.start("--control-bind", "127.0.0.1:0", "--preload", "attacked:app")


def url(daemon: Daemon) -> str:
    return str(daemon.event("control")["url"])


def token(daemon: Daemon) -> dict[str, str]:
    text = daemon.socket.with_suffix(".token").read_text().strip()
    return {"Authorization": f"Bearer {text}"}


def code(daemon: Daemon) -> str:
    return daemon.client.call(LOGIN_LINK).url.partition("#login=")[2]


def log_in(daemon: Daemon, word: str, **headers: str) -> Answer:
    return ask(url(daemon), "/v1/login", "POST", body=json.dumps({"code": word}), headers=JSON | headers)


def secret(answer: Answer) -> str:
    """The secret that a login gives, wherever in its answer it is."""
    if "set-cookie" in answer.headers:
        return next(iter(SimpleCookie(answer.headers["set-cookie"]).values())).value
    return str(json.loads(answer.body)["token"])


def session(daemon: Daemon) -> dict[str, str]:
    """A header with a session's secret."""
    return {"Authorization": f"Bearer {secret(log_in(daemon, code(daemon)))}"}


def scale(daemon: Daemon, headers: dict[str, str]) -> int:
    """Ask for one more worker; returns the status code. At the end one worker is wanted in any case."""
    status = ask(url(daemon), "/v1/scale", "POST", body=SCALE, headers=JSON | headers).status
    assert daemon.status().wanted == (2 if status == 200 else 1)
    if status == 200:
        ask(url(daemon), "/v1/scale", "POST", body='{"workers":1}', headers=JSON | token(daemon))
    return status


def test_no_right_follows_from_a_cookie(daemon: Daemon) -> None:
    """A session's secret, sent as browsers send it to every port of a host, neither reads nor changes."""
    answer = log_in(daemon, code(daemon))
    assert "set-cookie" not in answer.headers
    word, port = secret(answer), url(daemon).rpartition(":")[2]
    for name in (f"ostler-{port}", "ostler", "ostler-session", "session", "Authorization"):
        headers = {"Cookie": f"{name}={word}"}
        assert ask(url(daemon), "/v1/status", headers=headers).status == 401
        assert scale(daemon, headers) == 401
    assert scale(daemon, {"Authorization": f"Bearer {word}"}) == 200


def test_a_session_can_not_be_chosen(daemon: Daemon) -> None:
    """Session fixation: secrets that the client sends before and with the login are not valid after it."""
    word = "chosen-by-the-attacker-in-advance"
    chosen = {"Cookie": f"ostler={word}", "Authorization": f"Bearer {word}"}
    answer = log_in(daemon, code(daemon), **chosen)
    assert answer.status == 200
    assert secret(answer) != word
    assert scale(daemon, chosen) == 401


@pytest.mark.parametrize("site", ["cross-site", "same-site"])
def test_other_origins_change_and_read_nothing(daemon: Daemon, site: str) -> None:
    """Requests from other origins fail, even with valid credentials and our own Origin;
    only a link to the page is allowed.
    """
    fetch = {"Sec-Fetch-Site": site, "Sec-Fetch-Mode": "cors", "Sec-Fetch-Dest": "empty"}
    visit = {"Sec-Fetch-Site": site, "Sec-Fetch-Mode": "navigate", "Sec-Fetch-Dest": "document"}
    good = session(daemon)
    for origin in ({}, {"Origin": url(daemon)}, {"Origin": daemon.url}, {"Origin": "null"}):
        for kind in (fetch, visit, {"Sec-Fetch-Site": site}):
            for credentials in (good, token(daemon)):
                assert scale(daemon, credentials | origin | kind) == 403
        for path in ("/v1/status", "/v1/stream", "/metrics", "/healthz", "/"):
            assert ask(url(daemon), path, headers=good | origin | fetch).status == 403
    assert ask(url(daemon), "/", headers=visit).status == 200


def test_a_preflight_is_refused(daemon: Daemon) -> None:
    """No answer has a header that permits anything to another origin."""
    asked = {"Access-Control-Request-Method": "POST", "Access-Control-Request-Headers": "authorization"}
    for origin in (daemon.url, "null", url(daemon)):
        for path in ("/v1/scale", "/v1/login", "/v1/status", "/"):
            answer = ask(url(daemon), path, "OPTIONS", headers=asked | {"Origin": origin})
            assert answer.status in (403, 405)
            assert not [name for name in answer.headers if name.startswith("access-control-")]


def test_failed_logins_lock_no_one_out(daemon: Daemon) -> None:
    """After a hundred wrong codes valid codes still log in at once and sessions continue;
    further wrong ones get 429.
    """
    before = session(daemon)
    statuses = [log_in(daemon, f"guess {number}").status for number in range(100)]
    assert set(statuses) == {401, 429}
    assert statuses[-1] == 429
    after = session(daemon)
    assert scale(daemon, before) == scale(daemon, after) == 200


def test_a_session_ends_at_logout_and_outlives_an_upgrade(daemon: Daemon) -> None:
    """An upgrade in place keeps sessions, and revoked sessions stay revoked."""
    left, kept = session(daemon), session(daemon)
    assert ask(url(daemon), "/v1/logout", "POST", headers=left).status == 204
    assert daemon.ctl("upgrade", within=90).code == 0
    assert scale(daemon, left) == 401
    assert scale(daemon, kept) == 200


def test_a_cookie_bomb_locks_no_one_out(daemon: Daemon) -> None:
    """With all the cookies that a browser can keep, the page and its files are served and a session works."""
    bomb = {"Cookie": COOKIE}
    page = ask(url(daemon), "/", headers=bomb)
    assert page.status == 200
    for word in page.text.split('"'):
        if word.startswith("/assets/"):
            assert ask(url(daemon), word, headers=bomb).status == 200
    assert scale(daemon, session(daemon) | bomb) == 200


def test_large_fields_are_bounded(daemon: Daemon) -> None:
    """Only cookies may be so large; any other field of that size is refused, and the connection is closed."""
    answer = ask(url(daemon), "/", headers={"X-Other": COOKIE[:100_000]})
    assert answer.status == 400


def resident(pid: int) -> int:
    """Resident bytes of the process (proc_pid_statm(5))."""
    return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * 4096


def test_nothing_is_kept_of_cookies(daemon: Daemon) -> None:
    """Incomplete heads with as many cookies as a browser can send do not make the supervisor grow."""
    before = resident(daemon.pid)
    host, port = "127.0.0.1", int(url(daemon).rpartition(":")[2])
    head = f"GET / HTTP/1.1\r\nHost: {host}:{port}\r\nCookie: {COOKIE}".encode()
    with ExitStack() as opened:
        clients = [opened.enter_context(socket.create_connection((host, port))) for _ in range(16)]
        for client in clients:
            client.settimeout(30)
            client.sendall(head)
        clients[-1].sendall(b"\r\n\r\n")
        assert clients[-1].recv(64).startswith(b"HTTP/1.1 200 ")
        assert resident(daemon.pid) - before < 5_000_000


def test_more_cookies_than_browsers_send_are_refused(daemon: Daemon) -> None:
    """A connection with an endless cookie field is closed."""
    port = int(url(daemon).rpartition(":")[2])
    with socket.create_connection(("127.0.0.1", port)) as client:
        client.settimeout(30)
        client.sendall(b"GET / HTTP/1.1\r\nHost: a\r\nCookie: ")
        with pytest.raises(ConnectionError):
            client.sendall(b"x" * 64_000_000)


@contextmanager
def endless_cookies(daemon: Daemon, connections: int = 8) -> Iterator[None]:
    """Connections that send cookies endlessly, as fast as they are received."""
    address = ("127.0.0.1", int(url(daemon).rpartition(":")[2]))
    stop = threading.Event()

    def send() -> None:
        while not stop.is_set():
            try:
                with socket.create_connection(address, 1) as client:
                    client.sendall(b"GET / HTTP/1.1\r\nHost: a\r\nCookie: ")
                    while not stop.is_set():
                        client.sendall(b"x" * 65_536)
            except OSError:
                continue  # the connection was closed, or has to wait: try again

    threads = [threading.Thread(target=send) for _ in range(connections)]
    for thread in threads:
        thread.start()
    try:
        yield
    finally:
        stop.set()
        for thread in threads:
            thread.join()


def test_endless_cookies_delay_nothing(daemon: Daemon) -> None:
    """While eight connections send endless cookies, workers are replaced and the status answers as usual."""
    with endless_cookies(daemon):
        assert_unharmed(daemon)
