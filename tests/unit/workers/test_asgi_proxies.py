"""What trusted proxies say about clients of ASGI apps."""

import asyncio
from typing import Any

import pytest

pytest.importorskip("uvicorn")

from ostler.errors import SettingError
from ostler.settings.table import Settings
from ostler.workers.asgi import uvicorn_setup
from ostler.workers.asgi.proxies import BehindProxies

TRUSTED = ("127.0.0.1", "10.0.0.0/8", "::1", "fe80::/10")


def seen(
    client: tuple[str, int] | None,
    *fields: tuple[bytes, bytes],
    trusted: Any = TRUSTED,
    unix: bool = False,
    kind: str = "http",
) -> tuple[Any, str]:
    """Client and scheme as the app gets them."""
    scopes = []

    async def app(scope: Any, receive: Any, send: Any) -> None:
        scopes.append(scope)

    scheme = "ws" if kind == "websocket" else "http"
    scope = {"type": kind, "client": client, "scheme": scheme, "headers": list(fields)}
    asyncio.run(BehindProxies(app, trusted, unix)(scope, None, None))  # type: ignore[arg-type]
    return scopes[0]["client"], scopes[0]["scheme"]


def forwarded(*values: bytes) -> list[tuple[bytes, bytes]]:
    return [(b"x-forwarded-for", value) for value in values]


HTTPS = (b"x-forwarded-proto", b" https ")


@pytest.mark.parametrize(
    "proxy", ["127.0.0.1", "10.1.2.3", "::1", "::ffff:127.0.0.1", "::ffff:10.1.2.3", "fe80::1%eth0"]
)
def test_trusted(proxy: str) -> None:
    """Addresses and networks as in the other worker classes, IPv4 clients of IPv6 sockets included."""
    assert seen((proxy, 99), *forwarded(b"1.2.3.4"), HTTPS) == (("1.2.3.4", 0), "https")


@pytest.mark.parametrize("client", ["127.0.0.2", "::ffff:127.0.0.2", "11.1.2.3", "::2", "nonsense"])
def test_not_trusted(client: str) -> None:
    assert seen((client, 99), *forwarded(b"1.2.3.4"), HTTPS) == ((client, 99), "http")


@pytest.mark.parametrize("unix", [True, False])
def test_without_an_address(unix: bool) -> None:
    """A client without an address is trusted where there are Unix sockets, and only there."""
    got = seen(None, *forwarded(b"1.2.3.4"), HTTPS, unix=unix)
    assert got == ((("1.2.3.4", 0), "https") if unix else (None, "http"))


@pytest.mark.parametrize(
    ("values", "client"),
    [
        ([b"1.2.3.4, 10.0.0.9"], ("1.2.3.4", 0)),
        ([b"6.6.6.6, 1.2.3.4, ::ffff:10.0.0.9"], ("1.2.3.4", 0)),
        ([b"6.6.6.6", b"1.2.3.4:5678"], ("1.2.3.4", 5678)),
        ([b"[2001:db8::1]:80,[::1]:7"], ("2001:db8::1", 80)),
        ([b"2001:db8::1"], ("2001:db8::1", 0)),
        ([b"10.0.0.7, 10.0.0.8"], ("10.0.0.7", 0)),
        ([b"[2001:db8::1"], ("[2001:db8::1", 0)),
        ([b"host:name"], ("host", 0)),
        ([b""], ("127.0.0.1", 99)),
        ([b"10.0.0.7,"], ("127.0.0.1", 99)),
    ],
)
def test_which_client(values: list[bytes], client: tuple[str, int]) -> None:
    """The last that is no trusted proxy, with its port if the proxy names it."""
    assert seen(("127.0.0.1", 99), *forwarded(*values))[0] == client


def test_everyone() -> None:
    """With `*` the first is the client, as in uvicorn."""
    got = seen(("9.9.9.9", 1), *forwarded(b"6.6.6.6, 1.2.3.4"), HTTPS, trusted="*")
    assert got == (("6.6.6.6", 0), "https")


def test_schemes() -> None:
    """Only schemes that there are; a websocket has one of its own."""
    assert seen(("::1", 1), HTTPS, kind="websocket")[1] == "wss"
    assert seen(("::1", 1), (b"x-forwarded-proto", b"gopher"))[1] == "http"


def test_a_lifespan_has_no_client() -> None:
    async def app(scope: Any, receive: Any, send: Any) -> None:
        assert scope == {"type": "lifespan"}

    asyncio.run(BehindProxies(app, TRUSTED, True)({"type": "lifespan"}, None, None))  # type: ignore[arg-type]


def test_what_is_no_network() -> None:
    """uvicorn's own argument, as a project's subclass may set it, is checked like the setting."""

    async def app(scope: Any, receive: Any, send: Any) -> None:
        pass

    with pytest.raises(SettingError, match="expected an address") as caught:
        uvicorn_setup.make_config(app, Settings(), {"forwarded_allow_ips": "localhost"})
    assert "\n" not in str(caught.value)
