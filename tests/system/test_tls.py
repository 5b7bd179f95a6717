"""https for clients: certificates that change, client certificates, clients that do not use TLS."""

import http.client
import json
import shutil
import socket
import ssl
import subprocess
from pathlib import Path
from typing import Any

import pytest

from tests.kit.certificates import Authority, Certificate
from tests.kit.daemon import Daemon, Place
from tests.kit.http_client import ask
from tests.kit.tiers import thorough
from tests.kit.waiting import PATIENCE

pytestmark = pytest.mark.system


@pytest.fixture(scope="module")
def authority(tmp_path_factory: pytest.TempPathFactory) -> Authority:
    return Authority(tmp_path_factory.mktemp("authority"))


@pytest.fixture(scope="module")
def server(authority: Authority) -> Certificate:
    return authority.issue("localhost")


class Https(http.client.HTTPSConnection):
    """A connection to the daemon's port, as `localhost`; `first` is sent before the handshake."""

    def __init__(self, daemon: Daemon, context: ssl.SSLContext, first: bytes = b"") -> None:
        super().__init__("localhost", daemon.port, timeout=PATIENCE, context=context)
        self._first = first
        self._tls = context

    def connect(self) -> None:
        plain = socket.create_connection(("127.0.0.1", self.port), PATIENCE)
        if self._first:
            plain.sendall(self._first)
        self.sock = self._tls.wrap_socket(plain, server_hostname=self.host)

    def get(self, target: str = "/") -> str:
        self.request("GET", target)
        return self.getresponse().read().decode()

    def environ(self) -> dict[str, Any]:
        seen: dict[str, Any] = json.loads(self.get("/environ"))
        return seen

    @property
    def serial(self) -> str:
        """The number of the server's certificate."""
        assert isinstance(self.sock, ssl.SSLSocket)
        certificate = self.sock.getpeercert()
        assert certificate is not None
        return str(certificate["serialNumber"])


def files(certificate: Certificate) -> tuple[str, ...]:
    return ("--certfile", certificate.cert, "--keyfile", certificate.key)


@pytest.mark.parametrize("kind", [["--threads", "3"], *thorough([])])
def test_requests(place: Place, authority: Authority, server: Certificate, kind: list[str]) -> None:
    """Small and large requests on one connection; the environ shows https, protocol and cipher."""
    source = (
        "def app(environ, start_response):\n"
        "    body = environ['wsgi.input'].read()[::-1]\n"
        "    start_response('200 OK', [('Content-Length', str(len(body)))])\n"
        "    return [body]\n"
    )
    place.add("mirror.py", source)
    daemon = place.start(*files(server), *kind, "plain:app")
    connection = Https(daemon, authority.client_context())
    seen = connection.environ()
    assert (seen["wsgi.url_scheme"], seen["HTTPS"], seen["REMOTE_ADDR"]) == ("https", "on", "127.0.0.1")
    assert seen["SSL_PROTOCOL"] == "TLSv1.3"
    assert seen["SSL_CIPHER"].startswith("TLS_")
    assert [connection.get() for _ in range(3)] == ["one"] * 3
    connection.close()
    daemon.stop()

    daemon = place.start(*files(server), *kind, "mirror:app")
    connection = Https(daemon, authority.client_context())
    body = bytes(range(256)) * 12_000
    for _ in range(2):
        connection.request("POST", "/", body)
        assert connection.getresponse().read() == body[::-1]
    connection.close()


def test_large_file(place: Place, authority: Authority, server: Certificate) -> None:
    """A file by wsgi.file_wrapper, which the kernel can't send under TLS, arrives completely."""
    data = bytes(range(251)) * 10_000
    (place.app_folder / "data.bin").write_bytes(data)
    source = (
        "def app(environ, start_response):\n"
        "    start_response('200 OK', [('Content-Length', '2510000')])\n"
        "    return environ['wsgi.file_wrapper'](open('data.bin', 'rb'))\n"
    )
    place.add("files.py", source)
    daemon = place.start(*files(server), "files:app")
    connection = Https(daemon, authority.client_context())
    for _ in range(2):
        connection.request("GET", "/")
        assert connection.getresponse().read() == data
    connection.close()


def test_certificate_is_reread_at_a_reload(place: Place, authority: Authority) -> None:
    """A renewed certificate is used from the reload on;
    an unusable one makes the reload fail and affects no client.
    """
    cert, key = place.app_folder / "cert.pem", place.app_folder / "key.pem"

    def install(certificate: Certificate) -> None:
        shutil.copy(certificate.cert, cert)
        shutil.copy(certificate.key, key)

    def serial() -> str:
        connection = Https(daemon, authority.client_context())
        assert connection.get() == "one"
        number = connection.serial
        connection.close()
        return number

    install(authority.issue("localhost"))
    daemon = place.start("-w", "2", "--certfile", "cert.pem", "--keyfile", "key.pem", "plain:app")
    first = serial()
    assert serial() == first
    install(authority.issue("localhost"))
    assert serial() == first
    assert daemon.ctl("reload").code == 0
    second = serial()
    assert second != first

    shutil.copy(authority.issue("localhost").key, key)
    done = daemon.ctl("reload")
    assert done.code == 1
    assert "keyfile (command line): the key in 'key.pem' does not belong to the certificate" in done.err
    assert serial() == second
    cert.unlink()
    assert "certfile (command line): can't read 'cert.pem'" in daemon.ctl("reload").err
    assert serial() == second


@pytest.mark.thorough
def test_broken_certificate_at_the_start(place: Place, server: Certificate) -> None:
    """One line names the setting, the file and the reason; --check-config prints the same."""
    for check in ([], ["--check-config"]):
        done = place.run("-b", "127.0.0.1:0", "--certfile", "no.pem", *check, "plain:app")
        assert done.code == 1
        assert done.error == (
            "ostler: error: certfile (command line): can't read 'no.pem': No such file or directory"
        )


def test_client_certificates(place: Place, authority: Authority, server: Certificate) -> None:
    """A client without a required certificate is refused; the app gets the certificate of others."""
    daemon = place.start(*files(server), "--ca-certs", authority.cert, "--cert-reqs", "2", "plain:app")
    connection = Https(daemon, authority.client_context(authority.issue("alice")))
    seen = connection.environ()
    assert (seen["SSL_CLIENT_VERIFY"], seen["SSL_CLIENT_S_DN"]) == ("SUCCESS", "CN=alice")
    assert seen["SSL_CLIENT_CERT"].startswith("-----BEGIN CERTIFICATE-----\n")
    connection.close()
    stranger = Https(daemon, authority.client_context())
    with pytest.raises(OSError, match=r"(?i)certificate required|reset|eof|closed|broken"):
        stranger.get()
    stranger.close()
    assert daemon.status().totals.deaths == 0
    assert "Traceback" not in place.logs()


def test_hook(place: Place, authority: Authority, server: Certificate) -> None:
    """ssl_context in the configuration file makes the context;
    its exceptions fail a reload, with the line.
    """
    source = (
        "import ssl\n"
        f"certfile, keyfile = {server.cert!r}, {server.key!r}\n"
        "def ssl_context(conf, default_ssl_context_factory):\n"
        "    context = default_ssl_context_factory()\n"
        "    context.{change}\n"
        "    return context\n"
    )
    change = "maximum_version = ssl.TLSVersion.TLSv1_2"
    place.add("gunicorn.conf.py", source.replace("{change}", change))
    daemon = place.start("plain:app")
    connection = Https(daemon, authority.client_context())
    assert connection.environ()["SSL_PROTOCOL"] == "TLSv1.2"
    connection.close()
    place.add("gunicorn.conf.py", source.replace("{change}", "no_such_method()"))
    done = daemon.ctl("reload")
    assert done.code == 1
    assert "ssl_context: gunicorn.conf.py line 5: AttributeError: " in done.err


def test_hook_without_certificate(place: Place) -> None:
    """Files for gunicorn may always define the hook and only sometimes a certificate;
    without one they serve plain HTTP.
    """
    place.add("gunicorn.conf.py", "def ssl_context(conf, factory):\n    return factory()\n")
    daemon = place.start("plain:app")
    assert daemon.get().text == "one"
    warning = daemon.event("configuration")
    assert warning["problem"] == "ssl_context: without effect, because certfile is not set"


HOOK_ALONE = """\
import ssl

def ssl_context(conf, factory):
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    context.load_cert_chain({cert!r}, {key!r})
    return context
"""


@pytest.mark.parametrize(
    ("worker_class", "app"), [("gthread", "plain"), *thorough(("gevent", "plain"), ("asgi", "waiter"))]
)
def test_hook_alone(
    place: Place, authority: Authority, server: Certificate, worker_class: str, app: str
) -> None:
    """A hook that makes a context without certfile: clients are served over TLS, and the API shows https."""
    place.add("gunicorn.conf.py", HOOK_ALONE.format(cert=server.cert, key=server.key))
    daemon = place.start("-k", worker_class, f"{app}:app")
    connection = Https(daemon, authority.client_context())
    assert connection.get() == "one"
    connection.close()
    assert daemon.status().listeners == [f"https://127.0.0.1:{daemon.port}"]
    assert daemon.ctl("upgrade", within=90).code == 0
    daemon.event("upgraded")
    assert daemon.status().listeners == [f"https://127.0.0.1:{daemon.port}"]


@pytest.mark.thorough
@pytest.mark.parametrize("worker_class", ["meinheld", "reference.ReferenceWorker"])
@pytest.mark.parametrize("by", ["certfile", "ssl_context"])
def test_classes_that_speak_no_tls(place: Place, server: Certificate, worker_class: str, by: str) -> None:
    """They are refused where TLS is configured, with the setting in the line,
    because they would serve plain HTTP.
    """
    if worker_class == "meinheld":
        pytest.importorskip("meinheld.server", exc_type=ImportError)
    source = HOOK_ALONE if by == "ssl_context" else "\ncertfile, keyfile = {cert!r}, {key!r}\n"
    place.add("conf.py", source.format(cert=server.cert, key=server.key))
    done = place.run("-c", "conf.py", "-b", "127.0.0.1:0", "-k", worker_class, "plain:app")
    assert done.code != 0
    line = 3 if by == "ssl_context" else 2
    assert (
        f"ostler: error: {by} (conf.py line {line}): the worker class {worker_class} can't speak TLS;"
        in done.error
    )
    assert "gthread" in done.error


def test_curl(place: Place, authority: Authority, server: Certificate) -> None:
    """curl, with its own TLS library, offers HTTP/2 and is served HTTP/1.1."""
    if shutil.which("curl") is None:
        pytest.skip("asks with Debian's curl")
    daemon = place.start(*files(server), "plain:app")
    url = f"https://localhost:{daemon.port}/environ"
    command = ["curl", "-sS", "--cacert", authority.cert, "--resolve", f"localhost:{daemon.port}:127.0.0.1"]
    done = subprocess.run([*command, url, url], capture_output=True, text=True, timeout=30, check=False)
    assert done.returncode == 0, done.stderr
    first, second = done.stdout.replace("}{", "}\n{").splitlines()
    assert json.loads(first)["SERVER_PROTOCOL"] == "HTTP/1.1"
    # On one connection, for the whole transfer: nothing of it may have changed.
    assert json.loads(first)["REMOTE_PORT"] == json.loads(second)["REMOTE_PORT"]
    assert json.loads(first)["SSL_SESSION_ID"] == json.loads(second)["SSL_SESSION_ID"]


def test_clients_without_tls(place: Place, authority: Authority, server: Certificate) -> None:
    """Plain HTTP gets a plain 400, garbage and silence have no effect, and others are served meanwhile."""
    daemon = place.start(*files(server), "--header-timeout", "1", "plain:app")
    silent = socket.create_connection(daemon.address, PATIENCE)
    assert ask(daemon.url.replace("https:", "http:")).status == 400
    nonsense = socket.create_connection(daemon.address, PATIENCE)
    nonsense.sendall(b"\x16\x03\x01\x00\x05hello" + b"x" * 100)
    while nonsense.recv(100):
        pass
    nonsense.close()
    connection = Https(daemon, authority.client_context())
    assert connection.get() == "one"
    connection.close()
    assert silent.recv(100) == b"", "a client that never begins its handshake is cut off"
    silent.close()
    assert "Traceback" not in place.logs()
    assert not daemon.events("internal_error")


@pytest.mark.thorough
def test_proxy_header_before_tls(place: Place, authority: Authority, server: Certificate) -> None:
    """A proxy that passes TLS through sends the client's address first, also in several pieces."""
    daemon = place.start(*files(server), "--proxy-protocol", "plain:app")
    header = b"PROXY TCP4 192.0.2.1 198.51.100.2 56324 443\r\n"
    connection = Https(daemon, authority.client_context(), header)
    seen = connection.environ()
    assert (seen["REMOTE_ADDR"], seen["REMOTE_PORT"]) == ("192.0.2.1", "56324")
    assert seen["wsgi.url_scheme"] == "https"
    assert connection.get() == "one"
    connection.close()
    direct = Https(daemon, authority.client_context())
    assert direct.environ()["REMOTE_ADDR"] == "127.0.0.1"
    direct.close()


@pytest.mark.thorough
def test_listeners_are_shown_as_https(place: Place, server: Certificate) -> None:
    """The address in the log and the status can be opened in a browser."""
    daemon = place.start(*files(server), "plain:app")
    assert daemon.urls == [f"https://127.0.0.1:{daemon.port}"]
    assert daemon.status().listeners == daemon.urls


def test_plain_http_does_without_openssl(place: Place) -> None:
    """Workers that serve plain HTTP do not load OpenSSL, which takes some megabytes."""
    daemon = place.start("plain:app")
    assert "ssl" not in json.loads(daemon.get("/modules").body)
    assert Path(f"/proc/{daemon.pids()[0]}/maps").read_text().count("libssl") == 0
