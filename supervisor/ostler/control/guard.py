"""Authentication and authorisation.

A Unix socket uses the kernel's peer credentials: the peer's uid must be ours or root. If the socket's mode
lets others connect, they may operate; only the user that the app runs as may just read, as a compromised app
must not control its supervisor.

Loopback TCP trusts nothing that a web page or another user on this machine could send. `Host` must name this
listener, otherwise a rebound DNS name would make us same-origin with another site. Pages of other origins,
including those on other ports of this host, may only link to us: `Sec-Fetch-Site` and `Origin` show where a
request comes from. And each request needs the bearer token or a session's secret in its `Authorization`
header.

Cookies grant no rights: browsers send cookies to every port of a host, so the supervised app would receive
them. The dashboard keeps its secret in the storage of its origin, which includes the port, and no browser
sends that by itself. A session begins with a one-time code, which is in the fragment of a URL and so never
reaches a server's log. Secrets are stored as digests, so the time of a look-up does not depend on the secret.
"""

import hashlib
import hmac
import ipaddress
import os
import secrets
from collections import deque
from collections.abc import Callable
from typing import TYPE_CHECKING, Protocol

from ostler.control.control_state import Digests, TcpControlState
from ostler.control.handlers import Answer, Call, Caller
from ostler.control.problems import Conflict, Forbidden, TooManyLogins, Unauthorized
from ostler.control.tcp_listener import url_host
from ostler.control.views import Login, LoginLink, SessionView
from ostler.errors import SettingError
from ostler.osapi.peers import unix_peer

if TYPE_CHECKING:
    from aiohttp import web

Clock = Callable[[], float]
"""Monotonic seconds."""

CODE_SECONDS = 600.0
SESSION_SECONDS = 12 * 3600.0
MAX_CODES = 32
MAX_SESSIONS = 64
FAILED_LOGINS = 10
"""After so many failures within FAILURE_SECONDS more are answered with 429. A valid code always logs in: it
has 192 random bits, so guesses need not be slowed down, and failures of one user must not lock out
another."""
FAILURE_SECONDS = 60.0

SAFE_METHODS = frozenset({"GET", "HEAD", "OPTIONS"})
READ_METHODS = frozenset({"GET", "HEAD"})


class Guard(Protocol):
    """The access control of one listener."""

    def identify(self, request: "web.Request") -> str:
        """The sender, for the audit log: `unix uid 1000` or `127.0.0.1`."""
        ...

    def perimeter(self, request: "web.Request") -> None:
        """The checks for every request, also for pages and open routes. Raises Forbidden."""
        ...

    def authenticate(self, request: "web.Request", identity: str) -> Caller:
        """Raises Unauthorized."""
        ...


class UnixGuard:
    """Peer credentials: the daemon's own user and root may do everything.

    Args:
        uid: the daemon's.
        shared: other users may operate if they can connect; otherwise they have no rights.
        app_uid: the app's, if that is another user; it may read if others may operate.
    """

    def __init__(self, uid: int | None = None, shared: bool = False, app_uid: int | None = None) -> None:
        self._allowed = {0, os.geteuid() if uid is None else uid}
        self._shared = shared
        self._app_uid = app_uid

    def identify(self, request: "web.Request") -> str:
        return f"unix uid {_peer_uid(request)}"

    def perimeter(self, request: "web.Request") -> None:
        uid = _peer_uid(request)
        if uid not in self._allowed and (uid is None or not self._shared):
            raise Forbidden(f"uid {uid} is neither the daemon's user nor root")

    def authenticate(self, request: "web.Request", identity: str) -> Caller:
        uid = _peer_uid(request)
        if uid in self._allowed:
            return Caller(identity, "admin")
        return Caller(identity, "read" if uid is None or uid == self._app_uid else "operate")


class Secrets:
    """A bounded set of random secrets that expire. A new one replaces the oldest if the set is full."""

    def __init__(self, limit: int, seconds: float, clock: Clock) -> None:
        self._limit = limit
        self._seconds = seconds
        self._clock = clock
        self._expiry: dict[bytes, float] = {}

    def issue(self) -> str:
        secret = secrets.token_urlsafe(24)
        self._remove_expired()
        while len(self._expiry) >= self._limit:
            del self._expiry[next(iter(self._expiry))]
        self._expiry[_digest(secret)] = self._clock() + self._seconds
        return secret

    def is_valid(self, secret: str) -> bool:
        self._remove_expired()
        return _digest(secret) in self._expiry

    def revoke(self, secret: str) -> bool:
        """Remove a secret; returns whether it was valid. This is the one use of a code."""
        self._remove_expired()
        return self._expiry.pop(_digest(secret), None) is not None

    def snapshot(self) -> Digests:
        return list(self._expiry.items())

    def take_over(self, digests: Digests) -> None:
        self._expiry.update(digests)

    def _remove_expired(self) -> None:
        now = self._clock()
        self._expiry = {digest: expiry for digest, expiry in self._expiry.items() if expiry > now}


class LoopbackGuard:
    """Host, Origin and Sec-Fetch-Site, and a bearer token or a session's secret.

    Args:
        host: the address as bound; port: as bound; token: the bearer token, not empty.
    """

    def __init__(self, host: str, port: int, token: str, clock: Clock) -> None:
        names = {"localhost", "127.0.0.1", "[::1]", url_host(host)}
        self._hosts = {f"{name}:{port}" for name in names}
        if port == 80:
            self._hosts |= names  # browsers omit the scheme's default port
        self.base_url = f"http://{url_host(host)}:{port}"
        self._host, self._port = host, port
        self._word = token
        self._token = _digest(token)
        self._clock = clock
        self._codes = Secrets(MAX_CODES, CODE_SECONDS, clock)
        self._sessions = Secrets(MAX_SESSIONS, SESSION_SECONDS, clock)
        self._failures: deque[float] = deque(maxlen=FAILED_LOGINS)

    def identify(self, request: "web.Request") -> str:
        return request.remote or "loopback"

    def perimeter(self, request: "web.Request") -> None:
        host = request.headers.get("Host", "").lower()
        if host not in self._hosts:
            raise Forbidden(f"Host {host[:80]!r} does not name this listener; use {self.base_url}")
        origin = request.headers.get("Origin")
        if origin is not None and origin.lower() != f"http://{host}":
            raise Forbidden(f"Origin {origin[:80]!r} is not this dashboard")
        if not _from_here(request):
            raise Forbidden("pages of other origins may only link to this one")

    def authenticate(self, request: "web.Request", identity: str) -> Caller:
        scheme, _, secret = request.headers.get("Authorization", "").partition(" ")
        if not scheme:
            raise Unauthorized(
                "send `Authorization: Bearer TOKEN`, or log in with the address that `ctl open` prints",
                {"WWW-Authenticate": "Bearer"},
            )
        secret = secret.strip()
        if scheme.lower() == "bearer":
            if hmac.compare_digest(_digest(secret), self._token):
                return Caller(identity, "admin")
            if self._sessions.is_valid(secret):
                return Caller(identity, "operate", secret, lambda: self._sessions.is_valid(secret))
        raise Unauthorized(
            "the bearer token is wrong, or the session has ended", {"WWW-Authenticate": "Bearer"}
        )

    def login_link(self) -> str:
        return f"{self.base_url}/#login={self._codes.issue()}"

    def login(self, code: str) -> str:
        """Exchange a one-time code for the secret of a new session.

        Raises:
            Unauthorized: the code is not valid.
            TooManyLogins: likewise, after many other failures.
        """
        if self._codes.revoke(code):
            return self._sessions.issue()
        now = self._clock()
        problem = "the login code is unknown, used or expired; get a new one with `ctl open`"
        if len(self._failures) == FAILED_LOGINS and now - self._failures[0] < FAILURE_SECONDS:
            wait = int(FAILURE_SECONDS - (now - self._failures[0])) + 1
            raise TooManyLogins(f"{problem} (too many logins have failed)", {"Retry-After": str(wait)})
        self._failures.append(now)
        raise Unauthorized(problem)

    def logout(self, session: str) -> None:
        self._sessions.revoke(session)

    def snapshot(self, fd: int) -> TcpControlState:
        """The state for the next program; `fd` is the listener."""
        codes, sessions = self._codes.snapshot(), self._sessions.snapshot()
        return TcpControlState(self._host, self._port, fd, self._word, codes, page_sessions=sessions)

    def take_over(self, before: TcpControlState) -> None:
        """Accept the codes and sessions of the program before."""
        self._codes.take_over(before.codes)
        self._sessions.take_over(before.page_sessions)


class LoginHandlers:
    """The routes about sessions. `guard` is that of the TCP listener, None without a listener."""

    def __init__(self) -> None:
        self.guard: LoopbackGuard | None = None

    async def login(self, call: Call[Login]) -> Answer:
        guard = self._tcp()
        if call.caller.identity.startswith("unix "):
            raise Conflict("the Unix socket needs no login")
        return Answer(SessionView(guard.login(call.ask.code), SESSION_SECONDS))

    async def logout(self, call: Call[None]) -> Answer:
        if self.guard is not None and call.caller.session is not None:
            self.guard.logout(call.caller.session)
        return Answer()

    async def login_link(self, _call: Call[None]) -> Answer:
        return Answer(LoginLink(self._tcp().login_link()))

    def _tcp(self) -> LoopbackGuard:
        if self.guard is None:
            raise Conflict("the dashboard is off: start the daemon with --control-bind 127.0.0.1:PORT")
        return self.guard


def _from_here(request: "web.Request") -> bool:
    """Whether a request comes from our own page, from the user, or from a client that is no browser.

    Browsers add Sec-Fetch-Site, -Mode and -Dest; scripts can't set them (Fetch Metadata Request Headers,
    W3C). Another port of the same host is `same-site`. `none` is an address that the user has entered.
    """
    site = request.headers.get("Sec-Fetch-Site", "same-origin").lower()
    if site == "same-origin":
        return True
    if request.method not in READ_METHODS:
        return False
    if site == "none":
        return True
    # A link on another page: it sends no credentials, and only the user sees the answer.
    mode, target = request.headers.get("Sec-Fetch-Mode"), request.headers.get("Sec-Fetch-Dest")
    return mode == "navigate" and target == "document"


def _peer_uid(request: "web.Request") -> int | None:
    """The uid at connect(2); None if the connection is closed already."""
    peer = request.get_extra_info("socket")
    if peer is None:
        return None
    return unix_peer(peer).uid


def loopback_address(host: str) -> str:
    """The address to bind for `host`.

    Raises:
        SettingError: `host` is not this machine's loopback; names `control_bind`.
    """
    if host.lower() == "localhost":
        return "127.0.0.1"
    try:
        address = ipaddress.ip_address(host.strip("[]"))
    except ValueError:
        address = None
    if address is None or not address.is_loopback:
        raise SettingError(
            "control_bind",
            f"{host or 'an empty host'} is not loopback; use 127.0.0.1:PORT (and ssh -L from other machines)",
        )
    return str(address)


def _digest(secret: str) -> bytes:
    return hashlib.sha256(secret.encode("utf-8", "surrogateescape")).digest()
