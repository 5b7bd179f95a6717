"""Listeners and the proxies behind them: socket modes, PROXY headers, forwarded headers, trust."""

import http.client
import json
import os
import socket
import stat
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest

from tests.kit.daemon import Daemon, Place
from tests.kit.http_client import ask
from tests.kit.tiers import thorough
from tests.kit.waiting import PATIENCE, until

pytestmark = pytest.mark.system

V1 = b"PROXY TCP4 192.0.2.1 198.51.100.2 56324 443\r\n"
V2 = (
    b"\r\n\r\n\0\r\nQUIT\n\x21\x21\x00\x27"
    + socket.inet_pton(socket.AF_INET6, "2001:db8::1")
    + socket.inet_pton(socket.AF_INET6, "2001:db8::2")
    + b"\x12\x34\x01\xbb\x04\x00\x00"
)
LOCAL = b"\r\n\r\n\0\r\nQUIT\n\x20\x00\x00\x00"
REQUEST = b"GET /environ HTTP/1.1\r\nHost: a\r\n\r\n"


class Raw:
    """A connection on which arbitrary bytes are sent."""

    def __init__(self, daemon: Daemon) -> None:
        url = daemon.url
        if url.startswith("unix:"):
            self.sock = socket.socket(socket.AF_UNIX)
            self.sock.settimeout(PATIENCE)
            self.sock.connect(url.removeprefix("unix:"))
        else:
            self.sock = socket.create_connection(("127.0.0.1", daemon.port), PATIENCE)

    def send(self, *pieces: bytes) -> None:
        """Send pieces, each when the daemon has read the one before."""
        for piece in pieces:
            until(lambda: self._unread() == 0, "the daemon has read what was sent")
            self.sock.sendall(piece)

    def _unread(self) -> int:
        """Bytes in the other end's queue (proc_pid_net(5), rx_queue); over loopback none are in transit."""
        if self.sock.family == socket.AF_UNIX:
            return 0
        here, there = (f":{address[1]:04X}" for address in (self.sock.getsockname(), self.sock.getpeername()))
        for line in Path("/proc/net/tcp").read_text().splitlines()[1:]:
            fields = line.split()
            if fields[1].endswith(there) and fields[2].endswith(here):
                return int(fields[4].partition(":")[2], 16)
        return -1

    def answer(self) -> tuple[int, bytes]:
        response = http.client.HTTPResponse(self.sock)
        response.begin()
        return response.status, response.read()

    def environ(self, *pieces: bytes) -> dict[str, Any]:
        self.send(*pieces)
        status, body = self.answer()
        assert status == 200
        seen: dict[str, Any] = json.loads(body)
        return seen

    def close(self) -> None:
        self.sock.close()


@pytest.fixture
def raw() -> Iterator[Callable[[Daemon], Raw]]:
    with ExitStack() as stack:

        def connect(daemon: Daemon) -> Raw:
            connection = Raw(daemon)
            stack.callback(connection.close)
            return connection

        yield connect


Connect = Callable[[Daemon], Raw]


# -- the PROXY protocol ----------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", [["--threads", "3"], *thorough([])])
def test_proxy_headers(place: Place, raw: Connect, kind: list[str]) -> None:
    """Both versions name the client, in one piece with the request or in many,
    for all requests of the connection.
    """
    daemon = place.start("--proxy-protocol", "--keep-alive", "75", *kind, "plain:app")
    for pieces in [(V1 + REQUEST,), (V1, REQUEST), (V1[:3], V1[3:20], V1[20:] + REQUEST)]:
        connection = raw(daemon)
        seen = connection.environ(*pieces)
        assert (seen["REMOTE_ADDR"], seen["REMOTE_PORT"]) == ("192.0.2.1", "56324")
        assert (seen["PROXY_PROTOCOL"], seen["PROXY_ADDR"], seen["PROXY_PORT"]) == (
            *("TCP4", "198.51.100.2"),
            "443",
        )
        assert connection.environ(REQUEST)["REMOTE_ADDR"] == "192.0.2.1"
    for pieces in [(V2 + REQUEST,), (V2[:5], V2[5:14], V2[14:40], V2[40:], REQUEST)]:
        seen = raw(daemon).environ(*pieces)
        assert (seen["REMOTE_ADDR"], seen["REMOTE_PORT"]) == ("2001:db8::1", "4660")
        assert seen["PROXY_PROTOCOL"] == "TCP6"


def test_proxy_speaks_for_itself(place: Place, raw: Connect) -> None:
    """LOCAL, UNKNOWN and a missing header keep the peer's own address,
    even if the first bytes look like a header.
    """
    daemon = place.start("--proxy-protocol", "plain:app")
    ways = [
        (LOCAL + REQUEST,),
        (b"PROXY UNKNOWN\r\n" + REQUEST,),
        (REQUEST,),
        (b"P", b"OST /environ HTTP/1.1\r\nHost: a\r\nContent-Length: 0\r\n\r\n"),
        (b"\r\n", REQUEST),
    ]
    for pieces in ways:
        seen = raw(daemon).environ(*pieces)
        assert seen["REMOTE_ADDR"] == "127.0.0.1", pieces
        assert "PROXY_ADDR" not in seen
    assert not daemon.events("internal_error")


def test_only_proxies_may_say(place: Place, raw: Connect) -> None:
    """A header from any other address is not HTTP and is refused; so is the version that is not expected."""
    strangers = place.start("--proxy-protocol", "v1", "--proxy-allow-from", "10.0.0.0/8", "plain:app")
    connection = raw(strangers)
    connection.send(V1 + REQUEST)
    assert connection.answer()[0] == 400
    assert raw(strangers).environ(REQUEST)["REMOTE_ADDR"] == "127.0.0.1"
    strangers.stop()
    second = place.start("--proxy-protocol", "v2", "plain:app")
    connection = raw(second)
    connection.send(V1 + REQUEST)
    assert connection.answer()[0] == 400
    assert raw(second).environ(V2 + REQUEST)["REMOTE_ADDR"] == "2001:db8::1"


def test_malformed_proxy_header(place: Place, raw: Connect) -> None:
    """Bytes that begin like a header and are malformed are refused;
    an endless one is cut off by the time-out.
    """
    daemon = place.start("--proxy-protocol", "auto", "--header-timeout", "4", "plain:app")
    connection = raw(daemon)
    connection.send(b"PROXY TCP4 192.0.2.1 here 1 2\r\n" + REQUEST)
    assert connection.answer()[0] == 400
    slow = raw(daemon)
    slow.send(V1[:10])
    while slow.sock.recv(1000):
        pass
    assert daemon.get().text == "one"
    assert not daemon.events("internal_error")


@pytest.mark.thorough
def test_unix_socket_behind_a_proxy(place: Place, raw: Connect) -> None:
    """A peer on a Unix socket may name the client, whatever addresses are listed."""
    path = place.folder / "app.sock"
    args = ("--proxy-protocol", "--proxy-allow-from", "192.0.2.77", "plain:app")
    daemon = place.start(*args, bind=f"unix:{path}")
    seen = raw(daemon).environ(V1 + REQUEST)
    assert (seen["REMOTE_ADDR"], seen["REMOTE_PORT"]) == ("192.0.2.1", "56324")


def test_a_unix_socket_is_called_what_the_client_calls_it(place: Place) -> None:
    """SERVER_NAME and SERVER_PORT are from Host and the scheme that the proxy reports."""
    daemon = place.start("plain:app", bind=f"unix:{place.folder}/app.sock")
    for scheme, port in (("https", "443"), ("http", "80")):
        seen = environ(daemon, Host="shop.example", X__Forwarded__Proto=scheme)
        assert (seen["SERVER_NAME"], seen["SERVER_PORT"]) == ("shop.example", port)


# -- forwarded headers -----------------------------------------------------------------------------------


def environ(daemon: Daemon, **headers: str) -> dict[str, Any]:
    answer = daemon.get(
        "/environ", headers={name.replace("__", "-"): value for name, value in headers.items()}
    )
    assert answer.status == 200
    seen: dict[str, Any] = json.loads(answer.body)
    return seen


def test_forwarded_scheme(place: Place) -> None:
    """The scheme https from a trusted proxy counts; that from other peers does not."""
    https = {"X__Forwarded__Proto": "https"}
    daemon = place.start("plain:app")
    assert environ(daemon, **https)["wsgi.url_scheme"] == "https"
    assert environ(daemon, X__Forwarded__Proto="http")["wsgi.url_scheme"] == "http"
    assert environ(daemon)["wsgi.url_scheme"] == "http"
    contradiction = {"X-Forwarded-Proto": "https", "X-Forwarded-Ssl": "off"}
    assert daemon.get("/environ", headers=contradiction).status == 400
    daemon.stop()
    for args, env in [
        (("--forwarded-allow-ips", "10.0.0.0/8"), {}),
        ((), {"FORWARDED_ALLOW_IPS": "10.0.0.1"}),
    ]:
        daemon = place.start(*args, "plain:app", **env)
        assert environ(daemon, **https)["wsgi.url_scheme"] == "http"
        assert daemon.get("/environ", headers=contradiction).status == 200
        daemon.stop()
    place.add("conf.py", "secure_scheme_headers = {'X-Scheme': 'tls'}\nforwarded_allow_ips = '127.0.0.0/8'\n")
    daemon = place.start("-c", "conf.py", "plain:app")
    assert environ(daemon, X__Scheme="tls")["wsgi.url_scheme"] == "https"
    assert environ(daemon, **https)["wsgi.url_scheme"] == "http"


@pytest.mark.thorough
def test_forwarder_headers(place: Place) -> None:
    """Names with an underscore reach the app only from a trusted proxy, and only those that are listed."""
    sent = {"REMOTE_USER": "alice", "X_Other": "1"}
    daemon = place.start("--forwarder-headers", "REMOTE_USER", "plain:app")
    seen = environ(daemon, **sent)
    assert seen["HTTP_REMOTE_USER"] == "alice"
    assert "HTTP_X_OTHER" not in seen
    daemon.stop()
    daemon = place.start("--forwarder-headers", "REMOTE_USER", "--forwarded-allow-ips", "", "plain:app")
    assert "HTTP_REMOTE_USER" not in environ(daemon, **sent)
    daemon.stop()
    daemon = place.start("--header-map", "refuse", "plain:app")
    assert daemon.get("/environ", headers=sent).status == 400


# -- Unix sockets ----------------------------------------------------------------------------------------


def mode_of(path: Path) -> str:
    return f"{stat.S_IMODE(path.stat().st_mode):04o}"


@pytest.mark.thorough
def test_mode_of_a_unix_socket(place: Place) -> None:
    """The mode is as set, a reload changes it, and the socket itself stays the same."""
    path = place.folder / "app.sock"
    place.add("conf.py", f"bind = 'unix:{path}'\nsocket_mode = 0o640\n")
    daemon = place.start("-c", "conf.py", "plain:app", bind=None)
    assert mode_of(path) == "0640"
    inode = path.stat().st_ino
    place.add("conf.py", f"bind = 'unix:{path}'\nsocket_mode = '0600'\n")
    assert daemon.ctl("reload").code == 0
    assert (mode_of(path), path.stat().st_ino) == ("0600", inode)
    assert ask(f"unix:{path}").text == "one"
    place.add("conf.py", f"bind = 'unix:{path}'\nsocket_owner = 'no_such_user_'\n")
    done = daemon.ctl("reload")
    assert done.code == 1
    assert "socket_owner (conf.py line 2): there is no user 'no_such_user_'" in done.err
    assert ask(f"unix:{path}").text == "one"


@pytest.mark.thorough
@pytest.mark.skipif(os.geteuid() != 0, reason="gives a socket to others, which takes privileges")
def test_owner_of_a_unix_socket(place: Place) -> None:
    """A socket for the web server's group only."""
    path = place.folder / "app.sock"
    args = ("--socket-mode", "0660", "--socket-owner", ":65534", "plain:app")
    place.start(*args, bind=f"unix:{path}")
    assert (path.stat().st_uid, path.stat().st_gid, mode_of(path)) == (0, 65534, "0660")
    assert ask(f"unix:{path}").text == "one"


def test_spellings_of_addresses(place: Place) -> None:
    """tcp://HOST:PORT and unix://PATH as in gunicorn's files;
    relative paths are relative to the initial folder.
    """
    daemon = place.start("-b", "unix://app.sock", "plain:app", bind="tcp://127.0.0.1:0")
    assert daemon.urls == [f"http://127.0.0.1:{daemon.port}", "unix:app.sock"]
    assert ask(f"unix:{place.app_folder}/app.sock").text == "one"


def test_folder_of_temporary_files_is_looked_at(place: Place) -> None:
    """A missing folder is reported at the start, not at the first large body."""
    done = place.run("-b", "127.0.0.1:0", "--tmp-upload-dir", "nowhere", "plain:app")
    assert done.code == 1
    assert (
        "tmp_upload_dir (command line): can't write a file into 'nowhere': No such file or directory"
        in done.error
    )
