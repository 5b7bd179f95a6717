"""Access control of both listeners."""

import asyncio
import os
from typing import Any

import pytest

from ostler.control.guard import (
    CODE_SECONDS,
    FAILED_LOGINS,
    FAILURE_SECONDS,
    SESSION_SECONDS,
    Secrets,
    UnixGuard,
    loopback_address,
)
from ostler.control.problems import Forbidden
from ostler.control.routes import ROUTES
from ostler.errors import SettingError
from tests.unit.control.conftest import Clock, Rig


def code_of(rig: Rig) -> str:
    link = rig.server.login_link()
    assert link is not None
    base, _, code = link.partition("/#login=")
    assert base == rig.url
    return code


async def login(rig: Rig, code: str) -> tuple[int, dict[str, str]]:
    """Log in; returns the status, and headers with the session's secret."""
    async with rig.tcp.post("/v1/login", json={"code": code}) as answer:
        assert "Set-Cookie" not in answer.headers
        view = await answer.json()
        return answer.status, {"Authorization": f"Bearer {view.get('token')}"}


async def status(rig: Rig, method: str, path: str, headers: dict[str, str], **more: Any) -> int:
    async with rig.tcp.request(method, path, headers=headers, **more) as answer:
        return answer.status


@pytest.mark.parametrize("route", [r for r in ROUTES if not r.open], ids=lambda r: r.name)
@pytest.mark.parametrize("authorization", [None, "Bearer wrong", "Bearer", "Basic YTpi", "Bearer \xe4"])
async def test_tcp_needs_a_token(rig: Rig, route: Any, authorization: str | None) -> None:
    """Without the token every route that is not open answers 401, and submits no event."""
    headers = {"Authorization": authorization} if authorization else {}
    async with rig.tcp.request(route.method, route.path.format(slot=1), headers=headers) as answer:
        assert answer.status == 401
        assert answer.headers["WWW-Authenticate"] == "Bearer"
    assert rig.backend.submitted == []


async def test_a_token_in_the_url_does_not_count(rig: Rig) -> None:
    """Only the header counts, because query strings are stored in logs and histories."""
    assert await status(rig, "GET", "/v1/status?token=a-token-for-the-tests", {}) == 401
    assert await status(rig, "GET", "/v1/status", rig.bearer) == 200


@pytest.mark.parametrize(
    "host", ["evil.example:{port}", "127.0.0.1", "127.0.0.1:1", "localhost.evil:{port}", "", "[::2]:{port}"]
)
@pytest.mark.parametrize("path", ["/", "/healthz", "/v1/status", "/nothing"])
async def test_a_foreign_host_is_refused(rig: Rig, host: str, path: str) -> None:
    """DNS rebinding: a page under another host name is refused, also for open routes and the page."""
    headers = rig.bearer | {"Host": host.format(port=rig.port)}
    assert await status(rig, "GET", path, headers) == 403


@pytest.mark.parametrize("host", ["localhost", "LOCALHOST", "127.0.0.1", "[::1]"])
async def test_all_names_of_loopback_are_ours(rig: Rig, host: str) -> None:
    """Any of the usual names of loopback is accepted."""
    assert await status(rig, "GET", "/v1/status", rig.bearer | {"Host": f"{host}:{rig.port}"}) == 200


@pytest.mark.parametrize(
    "origin",
    [
        "http://evil.example",
        "null",
        "http://127.0.0.1:1",
        "https://127.0.0.1:{port}",
        "http://localhost:{port}",
    ],
)
async def test_a_foreign_origin_changes_nothing(rig: Rig, origin: str) -> None:
    """Requests from scripts of other origins, and preflights, are refused even with valid credentials."""
    headers = rig.bearer | {"Origin": origin.format(port=rig.port)}
    assert await status(rig, "POST", "/v1/scale", headers, json={"delta": 1}) == 403
    for path in ("/v1/stream", "/v1/status", "/healthz", "/"):
        assert await status(rig, "GET", path, headers) == 403
    async with rig.tcp.options("/v1/scale", headers=headers) as answer:
        assert answer.status == 403
        assert not [name for name in answer.headers if name.startswith("Access-Control-")]
    assert rig.backend.submitted == []


VISIT = {"Sec-Fetch-Mode": "navigate", "Sec-Fetch-Dest": "document"}
FETCH = {"Sec-Fetch-Mode": "cors", "Sec-Fetch-Dest": "empty"}


@pytest.mark.parametrize("site", ["cross-site", "same-site", "Same-Site", "", "unheard-of"])
@pytest.mark.parametrize("origin", [{}, {"Origin": "http://127.0.0.1:{port}"}], ids=["no origin", "ours"])
async def test_other_pages_may_only_link(rig: Rig, site: str, origin: dict[str, str]) -> None:
    """Sec-Fetch-Site is checked, with or without an Origin; a page on another port is `same-site`."""
    origin = {name: value.format(port=rig.port) for name, value in origin.items()}
    headers = rig.bearer | origin | {"Sec-Fetch-Site": site}
    for kind in ({}, VISIT, FETCH):
        assert await status(rig, "POST", "/v1/scale", headers | kind, json={"delta": 1}) == 403
    frame = {"Sec-Fetch-Mode": "navigate", "Sec-Fetch-Dest": "iframe"}
    script = {"Sec-Fetch-Mode": "no-cors", "Sec-Fetch-Dest": "script"}
    for kind in ({}, FETCH, frame, script):
        for path in ("/", "/v1/status", "/v1/stream", "/healthz"):
            assert await status(rig, "GET", path, headers | kind) == 403
    assert await status(rig, "GET", "/", headers | VISIT) == 200
    assert rig.backend.submitted == []


async def test_own_pages_and_tools_may_change(rig: Rig) -> None:
    """The dashboard's requests are same-origin, tools send no such header; typed addresses may only read."""
    for headers in ({}, {"Sec-Fetch-Site": "same-origin"} | FETCH):
        assert await status(rig, "POST", "/v1/scale", rig.bearer | headers, json={"delta": 1}) == 200
    typed = rig.bearer | {"Sec-Fetch-Site": "none"} | VISIT
    assert await status(rig, "GET", "/v1/status", typed) == 200
    assert await status(rig, "POST", "/v1/scale", typed, json={"delta": 1}) == 403


@pytest.mark.parametrize("path", ["/", "/healthz", "/v1/status", "/nothing"])
async def test_no_answer_is_of_use_to_other_pages(rig: Rig, path: str) -> None:
    """No answer can be framed or loaded as a script, style or image, and each has its declared type."""
    async with rig.tcp.get(path, headers=rig.bearer) as answer:
        assert "frame-ancestors 'none'" in answer.headers["Content-Security-Policy"]
        assert answer.headers["Cross-Origin-Resource-Policy"] == "same-origin"
        assert answer.headers["X-Content-Type-Options"] == "nosniff"
        assert not [name for name in answer.headers if name.startswith("Access-Control-")]


async def test_the_page_has_one_origin(rig: Rig) -> None:
    """The page, which keeps a secret, is served by address only:
    `localhost` may be another user's port on ::1.
    """
    named = {"Host": f"localhost:{rig.port}"}
    async with rig.tcp.get("/", headers=named, allow_redirects=False) as answer:
        assert (answer.status, answer.headers["Location"]) == (307, f"{rig.url}/")
    assert await status(rig, "GET", "/", {}) == 200


async def test_the_own_origin_may_change(rig: Rig) -> None:
    """The dashboard's own requests are accepted."""
    headers = rig.bearer | {"Origin": rig.url}
    assert await status(rig, "POST", "/v1/scale", headers, json={"delta": 1}) == 200


async def test_a_code_gives_one_session(rig: Rig) -> None:
    """A code logs in once; the session's secret is in the answer's body and in no cookie."""
    code = code_of(rig)
    async with rig.tcp.post("/v1/login", json={"code": code}, headers={"Origin": rig.url}) as answer:
        assert answer.status == 200
        assert "Set-Cookie" not in answer.headers
        view = await answer.json()
    assert view["seconds"] == SESSION_SECONDS
    headers = {"Authorization": f"Bearer {view['token']}"}
    assert await status(rig, "GET", "/v1/status", headers) == 200
    assert await status(rig, "POST", "/v1/scale", headers, json={"delta": 1}) == 200
    assert (await login(rig, code))[0] == 401


async def test_a_session_is_not_admin(rig: Rig) -> None:
    """A session can't stop or upgrade the daemon or create further logins."""
    _, headers = await login(rig, code_of(rig))
    assert await status(rig, "POST", "/v1/stop", headers) == 403
    assert await status(rig, "POST", "/v1/login-link", headers) == 403
    assert await status(rig, "POST", "/v1/upgrade", headers) == 403
    assert rig.backend.submitted == []


async def test_a_cookie_gives_no_rights(rig: Rig) -> None:
    """A session's secret, or the token, counts in one header only,
    because browsers send cookies to every port.
    """
    _, headers = await login(rig, code_of(rig))
    secret = headers["Authorization"].removeprefix("Bearer ")
    for value in (secret, rig.bearer["Authorization"].removeprefix("Bearer ")):
        for name in (f"ostler-{rig.port}", "ostler", "ostler-session", "Authorization"):
            cookie = {"Cookie": f"{name}={value}"}
            assert await status(rig, "GET", "/v1/status", cookie) == 401
            assert await status(rig, "POST", "/v1/scale", cookie, json={"delta": 1}) == 401
    assert rig.backend.submitted == []


async def test_cookies_of_any_size_are_no_obstacle(rig: Rig) -> None:
    """Pages on another port can make browsers send some 700 KB of cookies with each request for the page."""
    bomb = {"Cookie": "; ".join(f"c{number}={'x' * 4090}" for number in range(180))}
    assert await status(rig, "GET", "/", bomb) == 200
    assert await status(rig, "GET", "/v1/status", rig.bearer | bomb) == 200


async def test_codes_and_sessions_expire(rig: Rig) -> None:
    """A code expires after exactly ten minutes, a session after twelve hours."""
    late, in_time = code_of(rig), code_of(rig)
    rig.clock.now += CODE_SECONDS - 1
    answered, headers = await login(rig, in_time)
    assert answered == 200
    rig.clock.now += 1
    assert (await login(rig, late))[0] == 401
    rig.clock.now += SESSION_SECONDS - 2
    assert await status(rig, "GET", "/v1/status", headers) == 200
    rig.clock.now += 1
    assert await status(rig, "GET", "/v1/status", headers) == 401


async def test_logout_ends_the_session(rig: Rig) -> None:
    """After logout the session's secret is invalid, and other sessions stay."""
    _, headers = await login(rig, code_of(rig))
    _, others = await login(rig, code_of(rig))
    assert await status(rig, "POST", "/v1/logout", headers) == 204
    assert await status(rig, "GET", "/v1/status", headers) == 401
    assert await status(rig, "GET", "/v1/status", others) == 200


async def test_failed_logins_lock_no_one_out(rig: Rig) -> None:
    """After some wrong codes further ones get 429; a valid code still logs in, and sessions stay."""
    _, session = await login(rig, code_of(rig))
    for _ in range(FAILED_LOGINS):
        assert (await login(rig, "guess"))[0] == 401
    async with rig.tcp.post("/v1/login", json={"code": "guess"}) as answer:
        assert answer.status == 429
        assert 0 < int(answer.headers["Retry-After"]) <= FAILURE_SECONDS + 1
    assert (await login(rig, code_of(rig)))[0] == 200
    assert await status(rig, "GET", "/v1/status", session) == 200
    rig.clock.now += FAILURE_SECONDS
    assert (await login(rig, "guess"))[0] == 401


async def test_a_login_link_over_the_unix_socket(rig: Rig) -> None:
    """`ctl open`: a link from the Unix socket logs in on TCP; a login on the Unix socket is refused."""
    async with rig.unix.post("/v1/login-link") as answer:
        link = (await answer.json())["url"]
    code = link.partition("#login=")[2]
    async with rig.unix.post("/v1/login", json={"code": code}) as answer:
        assert answer.status == 409
    assert (await login(rig, code))[0] == 200


def test_secrets_are_bounded() -> None:
    """The oldest secret is replaced; their number never exceeds the limit."""
    words = Secrets(2, 10.0, Clock())
    first, second, third = words.issue(), words.issue(), words.issue()
    assert [words.is_valid(word) for word in (first, second, third)] == [False, True, True]


@pytest.mark.skipif(os.geteuid() != 0, reason="root is let in, so only root can play a stranger")
async def test_another_user_is_refused_on_the_unix_socket(rig: Rig) -> None:
    """The kernel's peer credentials decide, even if the file mode permits more."""
    rig.path.chmod(0o777)
    for folder in rig.path.parents:
        if folder.name.startswith("pytest-"):
            folder.chmod(0o755)
    rig.path.parent.chmod(0o755)
    script = (
        "import os, socket, sys; os.setgroups([]); os.setgid(65534); s = socket.socket(socket.AF_UNIX);"
        "os.chdir(os.path.dirname(sys.argv[1])); os.setuid(65534); s.connect(os.path.basename(sys.argv[1]));"
        "s.sendall(b'GET /healthz HTTP/1.0\\r\\n\\r\\n'); print(s.makefile().read())"
    )
    stranger = await asyncio.create_subprocess_exec(
        "/usr/bin/env", "python3", "-c", script, str(rig.path), stdout=asyncio.subprocess.PIPE
    )
    out, _ = await asyncio.wait_for(stranger.communicate(), 20)
    assert out.startswith(b"HTTP/1.0 403"), out
    assert b"uid 65534" in out


class Peer:
    """A request of a user on a Unix socket."""

    def __init__(self, uid: int) -> None:
        self._uid = uid

    def get_extra_info(self, _name: str) -> "Peer":
        return self

    def getsockopt(self, *_: int) -> bytes:
        return (1).to_bytes(4, "little") + self._uid.to_bytes(4, "little") + bytes(4)


def test_the_unix_guard_knows_uids() -> None:
    """Own uid and root pass, others do not."""
    guard: Any = UnixGuard(uid=1000)
    guard.perimeter(Peer(1000))
    guard.perimeter(Peer(0))
    assert guard.identify(Peer(1001)) == "unix uid 1001"
    with pytest.raises(Forbidden, match="uid 1001"):
        guard.perimeter(Peer(1001))


def test_the_unix_guard_of_a_shared_socket() -> None:
    """Users that the mode permits may operate, the app's user may only read;
    the daemon's own user is admin.
    """
    guard: Any = UnixGuard(uid=0, shared=True, app_uid=33)
    scopes = {}
    for uid in (0, 33, 1001):
        guard.perimeter(Peer(uid))
        scopes[uid] = guard.authenticate(Peer(uid), "").scope
    assert scopes == {0: "admin", 33: "read", 1001: "operate"}
    own: Any = UnixGuard(uid=33, shared=True, app_uid=None)
    assert own.authenticate(Peer(33), "").scope == "admin"
    gone: Any = type("Gone", (), {"get_extra_info": lambda *_: None})()
    with pytest.raises(Forbidden):
        guard.perimeter(gone)


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "", "192.168.1.2", "example.com", "127.0.0.1.evil.com"])
def test_only_loopback_is_bound(host: str) -> None:
    """An address that others can reach is refused with the setting's name; names are not resolved."""
    with pytest.raises(SettingError, match=r"^control_bind: "):
        loopback_address(host)


def test_spellings_of_loopback() -> None:
    """Spellings of loopback addresses."""
    assert [loopback_address(h) for h in ("localhost", "127.0.0.1", "::1", "[::1]", "127.8.8.8")] == [
        "127.0.0.1",
        "127.0.0.1",
        "::1",
        "::1",
        "127.8.8.8",
    ]
