"""`[::]` and IPv4: a real daemon over its starts, reloads and upgrades."""

import http.client
import json
import signal
from importlib.util import find_spec
from typing import Any

import pytest

from tests.kit.daemon import Daemon, Place
from tests.kit.http_client import ask
from tests.kit.ports import free_port
from tests.kit.tiers import thorough
from tests.kit.waiting import PATIENCE, until

pytestmark = pytest.mark.system


def served(port: int) -> None:
    """Both versions are answered."""
    for url in (f"http://127.0.0.1:{port}", f"http://[::1]:{port}"):
        assert ask(url).text == "one", url


def listening(daemon: Daemon, urls: list[str]) -> None:
    until(lambda: daemon.status().listeners == urls, f"listeners {urls}")


@pytest.mark.parametrize("worker_class", ["gthread", "asgi", *thorough("sync", "gevent")])
def test_every_worker_class_answers_both(place: Place, worker_class: str) -> None:
    """-b [::]:PORT alone takes IPv4 in each worker class; the client's address is the kernel's."""
    place.add(
        "hello.py",
        "async def app(scope, receive, send):\n"
        "    if scope['type'] == 'http':\n"
        "        await send({'type': 'http.response.start', 'status': 200, 'headers': []})\n"
        "        await send({'type': 'http.response.body', 'body': b'one'})\n",
    )
    app = "hello:app" if worker_class == "asgi" else "plain:app"
    daemon = place.start("-k", worker_class, app, bind="[::]:0")
    assert len(daemon.urls) == 1
    assert daemon.url.startswith("http://[::]:")
    assert daemon.status().listeners == daemon.urls
    served(daemon.port)


def seen(port: int, path: str, proxy: str, forwarded: str) -> dict[str, Any]:
    """What the app sees of a request that a proxy with this IPv4 address forwards."""
    headers = {"X-Forwarded-Proto": "https", "X-Forwarded-For": forwarded}
    connection = http.client.HTTPConnection("127.0.0.1", port, PATIENCE, source_address=(proxy, 0))
    try:
        connection.request("GET", path, headers=headers)
        found: dict[str, Any] = json.loads(connection.getresponse().read())
        return found
    finally:
        connection.close()


@pytest.mark.parametrize("kind", ["gthread", "asgi", *thorough("sync", "gevent", "eventlet")])
def test_an_ipv4_proxy_is_trusted(place: Place, kind: str) -> None:
    """forwarded_allow_ips names IPv4 networks; the kernel shows their proxies as ::ffff:a.b.c.d at [::]."""
    if kind in ("gevent", "eventlet") and find_spec(kind) is None:
        pytest.skip(f"{kind} is not installed")
    trusted = ("--forwarded-allow-ips", "127.0.1.0/24")
    path, app, scheme = "/environ", "plain:app", "wsgi.url_scheme"
    if kind == "asgi":
        path, app, scheme = "/scope", "waiter:app", "scheme"
    daemon = place.start("-k", kind, *trusted, app, bind="[::]:0")
    forwarded = "192.0.2.7, ::ffff:127.0.1.9, 127.0.1.8"
    from_proxy = seen(daemon.port, path, "127.0.1.1", forwarded)
    assert from_proxy[scheme] == "https"
    assert seen(daemon.port, path, "127.0.2.1", forwarded)[scheme] == "http"
    if kind == "asgi":
        assert from_proxy["client"] == ["192.0.2.7", 0]
        assert seen(daemon.port, path, "127.0.2.1", forwarded)["client"][0] == "::ffff:127.0.2.1"
    else:
        assert from_proxy["REMOTE_ADDR"] == "::ffff:127.0.1.1"


@pytest.mark.thorough
def test_reloads_and_upgrades_keep_ipv4(place: Place) -> None:
    """Adding 0.0.0.0 beside [::], removing it again, and upgrades in place: both versions are answered, and
    the log and the API show the sockets that there are.
    """
    port = free_port()
    both, alone = [f"[::]:{port}", f"0.0.0.0:{port}"], [f"[::]:{port}"]
    place.add("conf.py", f"bind = {both!r}\n")
    daemon = place.start("-c", "conf.py", "plain:app", bind=None)
    assert daemon.urls == [f"http://{address}" for address in both]
    served(port)
    place.add("conf.py", f"bind = {alone!r}\n")
    assert daemon.ctl("reload").code == 0
    served(port)
    # [::] can't become a socket for both versions without a gap: the one for IPv4 stays beside it.
    listening(daemon, daemon.urls)
    assert daemon.ctl("upgrade").code == 0
    served(port)
    listening(daemon, daemon.urls)
    daemon.stop(signal.SIGTERM)
    daemon = place.start("-c", "conf.py", "plain:app", bind=None)
    assert daemon.urls == [f"http://[::]:{port}"]
    place.add("conf.py", f"bind = {both!r}\n")
    assert daemon.ctl("reload").code == 0
    served(port)
    listening(daemon, daemon.urls)
    assert daemon.ctl("upgrade").code == 0
    served(port)


def test_one_ipv4_address_beside_it(place: Place) -> None:
    """A single IPv4 address with the port of [::] is one clear line."""
    port = free_port()
    done = place.run("-b", f"127.0.0.1:{port}", "-b", f"[::]:{port}", "plain:app")
    assert done.code == 1
    assert f"it overlaps with 127.0.0.1:{port}, as [::] takes IPv4 as well" in done.err.splitlines()[-1]
