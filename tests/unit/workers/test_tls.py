"""TLS: errors of contexts that can't be made, and the socket that the engine uses like a plain one."""

import select
import socket
import ssl
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest

from ostler.errors import SettingError
from ostler.settings import Settings
from ostler.workers.tls import make_context
from ostler.workers.tls_peer_info import distinguished_name
from ostler.workers.tls_socket import HandshakeFailed, TlsSocket
from tests.kit.certificates import Authority, Certificate

PATIENCE = 10.0


@pytest.fixture(scope="module")
def server(authority: Authority) -> Certificate:
    return authority.issue("localhost")


def context_of(certificate: Certificate, hook: Any = None, **settings: Any) -> ssl.SSLContext:
    context = make_context(Settings(certfile=certificate.cert, keyfile=certificate.key, **settings), hook)
    assert context is not None
    return context


class Ends:
    """A connection: our end, and a client that runs in a thread."""

    def __init__(self, context: ssl.SSLContext) -> None:
        ours, self.plain = socket.socketpair()
        ours.setblocking(False)
        self.plain.settimeout(PATIENCE)
        self.fd = ours.fileno()
        self.ours = TlsSocket(ours, context)
        self._thread: threading.Thread | None = None
        self.client: ssl.SSLSocket | None = None
        self.result: Any = None

    def play(self, context: ssl.SSLContext, part: Callable[[ssl.SSLSocket], Any]) -> None:
        """Let the client do the handshake and then `part`; `result` is its return value or exception."""

        def run() -> None:
            try:
                self.client = context.wrap_socket(self.plain, server_hostname="localhost")
                self.result = part(self.client)
            except OSError as error:
                self.result = error

        self._thread = threading.Thread(target=run)
        self._thread.start()

    def ended(self) -> Any:
        """Wait for the client's part and return its result."""
        assert self._thread is not None
        self._thread.join(PATIENCE)
        assert not self._thread.is_alive()
        return self.result

    def receive(self, size: int = 65536) -> bytes:
        """As the loop does: call recv when the descriptor is ready, until there is data."""
        poll = select.poll()
        deadline = time.monotonic() + PATIENCE
        while True:
            try:
                return self.ours.recv(size)
            except BlockingIOError:
                poll.register(self.ours.fileno(), select.POLLOUT if self.ours.wants_write else select.POLLIN)
                assert time.monotonic() < deadline
                assert poll.poll(PATIENCE * 1000), "nothing comes"

    def send(self, data: bytes) -> None:
        poll = select.poll()
        poll.register(self.ours.fileno(), select.POLLOUT)
        left = memoryview(data)
        while left:
            try:
                left = left[self.ours.send(left) :]
            except BlockingIOError:
                assert poll.poll(PATIENCE * 1000), "nothing goes"

    def close(self) -> None:
        self.ours.close()
        if self._thread is not None:
            self._thread.join(PATIENCE)
        (self.client or self.plain).close()


Connect = Callable[[ssl.SSLContext], Ends]


@pytest.fixture
def connect() -> Iterator[Connect]:
    with ExitStack() as stack:

        def make(context: ssl.SSLContext) -> Ends:
            ends = Ends(context)
            stack.callback(ends.close)
            return ends

        yield make


# -- contexts --------------------------------------------------------------------------------------------


def test_no_tls() -> None:
    """Without certificate and hook HTTP is not encrypted."""
    assert make_context(Settings(), None) is None


def test_default_context(server: Certificate) -> None:
    """At least TLS 1.2, HTTP/1.1 by ALPN, no compression, no renegotiation, no client certificate."""
    context = context_of(server)
    assert context.minimum_version == ssl.TLSVersion.TLSv1_2
    assert context.verify_mode == ssl.CERT_NONE
    assert context.options & ssl.OP_NO_COMPRESSION
    assert context.options & ssl.OP_NO_RENEGOTIATION
    assert context_of(server, ssl_minimum_version="TLSv1.3").minimum_version == ssl.TLSVersion.TLSv1_3


def test_key_in_the_certificates_file(server: Certificate, tmp_path: Path) -> None:
    """One file with both needs no keyfile."""
    both = tmp_path / "both.pem"
    both.write_text(Path(server.key).read_text() + Path(server.cert).read_text())
    assert make_context(Settings(certfile=str(both)), None) is not None


def test_hook(server: Certificate) -> None:
    """The hook reads settings as attributes, gets the default context,
    and the context that it returns is used.
    """
    seen: list[Any] = []

    def hook(config: Any, factory: Callable[[], ssl.SSLContext]) -> ssl.SSLContext:
        seen.extend((config.certfile, config.cert_reqs, config.is_ssl, config.workers))
        context = factory()
        context.minimum_version = ssl.TLSVersion.TLSv1_3
        return context

    assert context_of(server, hook).minimum_version == ssl.TLSVersion.TLSv1_3
    assert seen == [server.cert, ssl.CERT_NONE, True, 1]


def test_hook_without_certfile(server: Certificate) -> None:
    """As in gunicorn it changes nothing, unless it makes a complete context itself."""
    assert make_context(Settings(), lambda config, factory: factory()) is None
    own = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    assert make_context(Settings(), lambda config, factory: own) is own


def _raise(config: object, factory: object) -> None:
    raise ValueError("wrong\nidea")


@pytest.mark.parametrize(
    ("hook", "problem"),
    [
        (lambda config, factory: None, "the function must return an ssl.SSLContext, got None"),
        (_raise, "ValueError: wrong idea"),
        (lambda config, factory: config.no_such_setting, "AttributeError: "),
        (lambda config, factory: ssl.create_default_context(), "the function returned a client's context"),
    ],
)
def test_hook_that_fails(server: Certificate, hook: Any, problem: str) -> None:
    """An exception of the hook is one line that names it."""
    with pytest.raises(SettingError) as caught:
        context_of(server, hook)
    assert str(caught.value).startswith("ssl_context: ")
    assert problem in str(caught.value)
    assert "\n" not in str(caught.value)


def test_hook_with_a_broken_certificate(tmp_path: Path) -> None:
    """The error of the default context about the files is not hidden by the hook."""
    settings = Settings(certfile=str(tmp_path / "none.pem"))
    with pytest.raises(SettingError, match=r"^certfile: can't read "):
        make_context(settings, lambda config, factory: factory())


def problem_of(**settings: Any) -> str:
    with pytest.raises(SettingError) as caught:
        make_context(Settings(**settings), None)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_files_that_cannot_be_used(authority: Authority, server: Certificate, tmp_path: Path) -> None:
    """The error has the setting, the file, and what is wrong with it."""
    cert, key = server
    other = authority.issue("other").key
    junk, missing = str(tmp_path / "junk.pem"), str(tmp_path / "missing.pem")
    Path(junk).write_text("hello\n")
    broken = tmp_path / "broken.pem"
    broken.write_text("-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n")
    reason = "No such file or directory"
    assert problem_of(certfile=missing) == f"certfile: can't read {missing!r}: {reason}"
    assert problem_of(certfile=cert, keyfile=missing) == f"keyfile: can't read {missing!r}: {reason}"
    assert problem_of(certfile=str(tmp_path)).endswith(f"{str(tmp_path)!r}: Is a directory")
    assert problem_of(certfile=junk) == f"certfile: {junk!r} holds no certificate in PEM form"
    assert problem_of(certfile=key, keyfile=key) == f"certfile: {key!r} holds no certificate in PEM form"
    assert problem_of(certfile=cert).startswith(f"certfile: {cert!r} holds no private key in PEM form; name")
    assert problem_of(certfile=cert, keyfile=junk) == f"keyfile: {junk!r} holds no private key in PEM form"
    assert problem_of(certfile=cert, keyfile=cert) == f"keyfile: {cert!r} holds no private key in PEM form"
    assert problem_of(certfile=cert, keyfile=other) == (
        f"keyfile: the key in {other!r} does not belong to the certificate in {cert!r}"
    )
    assert problem_of(certfile=str(broken), keyfile=key).startswith("certfile: OpenSSL does not take ")
    both = {"certfile": cert, "keyfile": key}
    assert problem_of(**both, ca_certs=missing) == f"ca_certs: can't read {missing!r}: {reason}"
    assert problem_of(**both, ca_certs=junk) == f"ca_certs: {junk!r} holds no certificate in PEM form"
    assert problem_of(**both, ciphers="NONSENSE").startswith("ciphers: OpenSSL knows no cipher of 'NONSENSE'")


def test_encrypted_key(server: Certificate, tmp_path: Path) -> None:
    """A daemon can't ask for a passphrase: that is an error."""
    locked = str(tmp_path / "locked.key")
    command = ["openssl", "ec", "-in", server.key, "-aes256", "-passout", "pass:secret", "-out", locked]
    subprocess.run(command, check=True, capture_output=True)
    problem = problem_of(certfile=server.cert, keyfile=locked)
    assert problem == f"keyfile: the key in {locked!r} is encrypted; give one without a passphrase"


# -- connections -----------------------------------------------------------------------------------------


def echo(data: bytes) -> Callable[[ssl.SSLSocket], bytes]:
    """A client that sends `data` and reads the same number of bytes."""

    def part(client: ssl.SSLSocket) -> bytes:
        client.sendall(data)
        got = b""
        while len(got) < len(data) and (more := client.recv(65536)):
            got += more
        return got

    return part


def test_bytes_go_both_ways(authority: Authority, server: Certificate, connect: Connect) -> None:
    """The handshake happens during receive, and the descriptor is that of the accepted socket."""
    ends = connect(context_of(server))
    assert ends.ours.fileno() == ends.fd
    with pytest.raises(BlockingIOError):
        ends.ours.recv(100)
    assert not ends.ours.handshaken
    with pytest.raises(OSError, match="handshake"):
        ends.ours.send(b"early")
    ends.play(authority.client_context(), echo(b"hello"))
    assert ends.receive() == b"hello"
    assert ends.ours.handshaken
    ends.send(b"world")
    assert ends.ended() == b"world"


def test_alpn(authority: Authority, server: Certificate, connect: Connect) -> None:
    """A client that also supports HTTP/2 gets HTTP/1.1."""
    client = authority.client_context()
    client.set_alpn_protocols(["h2", "http/1.1"])
    ends = connect(context_of(server))
    ends.play(client, lambda client: (client.sendall(b"x"), client.selected_alpn_protocol())[1])
    assert ends.receive() == b"x"
    assert ends.ended() == "http/1.1"


@pytest.mark.parametrize("size", [1, 100, 16384, 65536, 10**6])
def test_no_byte_stays_in_openssl(
    authority: Authority, server: Certificate, connect: Connect, size: int
) -> None:
    """However few bytes are read at a time, a loop that waits for the descriptor gets every byte."""
    data = bytes(range(256)) * 600
    ends = connect(context_of(server))
    ends.play(authority.client_context(), lambda client: client.sendall(data))
    got = b""
    while len(got) < len(data):
        part = ends.receive(size)
        assert ends.ours.pending() == 0
        assert 0 < len(part) <= size + 16384
        got += part
    assert got == data
    ends.ended()


def test_large_answers(authority: Authority, server: Certificate, connect: Connect) -> None:
    """Data counts as sent as the slow client reads it, and arrives unchanged."""
    data = bytes(range(251)) * 20_000
    ends = connect(context_of(server))
    reading = threading.Event()

    def part(client: ssl.SSLSocket) -> bytes:
        client.sendall(b"go")
        assert reading.wait(PATIENCE)
        got = bytearray()
        while len(got) < len(data):
            got += client.recv(65536)
        return bytes(got)

    ends.play(authority.client_context(), part)
    assert ends.receive() == b"go"
    sent = ends.ours.send(data)
    assert 0 < sent < len(data)
    with pytest.raises(BlockingIOError):
        ends.ours.send(data[sent:])
    reading.set()
    ends.send(data[sent:])
    assert ends.ended() == data


def with_close_notify(client: ssl.SSLSocket) -> None:
    client.sendall(b"bye")
    client.unwrap()


def without_close_notify(client: ssl.SSLSocket) -> None:
    client.sendall(b"bye")
    socket.socket.shutdown(client, socket.SHUT_WR)


@pytest.mark.parametrize("part", [with_close_notify, without_close_notify])
def test_end_with_and_without_close_notify(
    authority: Authority, server: Certificate, connect: Connect, part: Callable[[ssl.SSLSocket], None]
) -> None:
    """Both close_notify and a closed connection are the end, and recv repeats it."""
    ends = connect(context_of(server))
    ends.play(authority.client_context(), part)
    assert ends.receive() == b"bye"
    assert ends.receive() == b""
    assert ends.ours.recv(10) == b""
    ends.ours.shutdown(socket.SHUT_RDWR)
    assert ends.ended() is None


def test_end_in_the_handshake(server: Certificate, connect: Connect) -> None:
    """A client that disconnects before it has sent anything is an end or an error, never a wait."""
    ends = connect(context_of(server))
    ends.plain.close()
    with pytest.raises(OSError, match=r".") as caught:
        ends.ours.recv(100)
    assert not isinstance(caught.value, BlockingIOError)


def test_shutdown_sends_close_notify(authority: Authority, server: Certificate, connect: Connect) -> None:
    """The client sees the end of TLS, not only of the connection; data that it then sends is discarded."""
    ends = connect(context_of(server))
    going_on = threading.Event()

    def part(client: ssl.SSLSocket) -> bytes:
        client.suppress_ragged_eofs = False
        client.sendall(b"x")
        end = client.recv(10)  # an SSLEOFError if there was no close_notify
        assert going_on.wait(PATIENCE)
        client.sendall(b"late")
        socket.socket.shutdown(client, socket.SHUT_WR)
        return end

    ends.play(authority.client_context(), part)
    assert ends.receive() == b"x"
    ends.ours.shutdown(socket.SHUT_WR)
    going_on.set()
    while ends.receive():
        pass
    ends.ours.shutdown(socket.SHUT_RDWR)
    assert ends.ended() == b""


def test_plain_http_gets_an_explanation(server: Certificate, connect: Connect) -> None:
    """A client that uses plain HTTP at a TLS address gets an answer with the reason of the failure."""
    ends = connect(context_of(server))
    ends.plain.sendall(b"GET / HTTP/1.1\r\nHost: a\r\n\r\n")
    with pytest.raises(HandshakeFailed, match="http request"):
        ends.ours.recv(65536)
    ends.ours.close()
    answer = b""
    while part := ends.plain.recv(65536):
        answer += part
    head, _, body = answer.partition(b"\r\n\r\n")
    assert head.startswith(b"HTTP/1.1 400 Bad Request\r\n")
    assert f"Content-Length: {len(body)}".encode() in head
    assert b"https" in body


@pytest.mark.parametrize("data", [b"\x16\x03\x01\x00\x05hello", b"nonsense\r\n\r\n", b"\x00" * 64])
def test_nonsense(server: Certificate, connect: Connect, data: bytes) -> None:
    """Random bytes are an OSError with a short text."""
    ends = connect(context_of(server))
    ends.plain.sendall(data)
    with pytest.raises(HandshakeFailed, match=r"^[^\n]{3,60}$"):
        ends.ours.recv(65536)


def test_old_clients(authority: Authority, server: Certificate, connect: Connect) -> None:
    """A client below the minimum version is refused in the handshake."""
    client = authority.client_context()
    client.maximum_version = ssl.TLSVersion.TLSv1_2
    ends = connect(context_of(server, ssl_minimum_version="TLSv1.3"))
    ends.play(client, echo(b"x"))
    with pytest.raises(HandshakeFailed, match=r"protocol|version"):
        ends.receive()
    ends.close()
    assert isinstance(ends.ended(), ssl.SSLError)


# -- clients' certificates and what apps learn -----------------------------------------------------------


def test_peer_info(authority: Authority, server: Certificate, connect: Connect) -> None:
    """Apps get protocol, cipher and session under mod_ssl's names; all are text."""
    ends = connect(context_of(server, ciphers="ECDHE-ECDSA-AES128-GCM-SHA256"))
    client = authority.client_context()
    client.maximum_version = ssl.TLSVersion.TLSv1_2
    ends.play(client, lambda client: (client.sendall(b"x"), client.session.id)[1])
    assert ends.receive() == b"x"
    peer_info = ends.ours.peer_info()
    assert peer_info["HTTPS"] == "on"
    assert peer_info["SSL_PROTOCOL"] == "TLSv1.2"
    assert peer_info["SSL_CIPHER"] == "ECDHE-ECDSA-AES128-GCM-SHA256"
    assert (peer_info["SSL_CIPHER_USEKEYSIZE"], peer_info["SSL_CIPHER_ALGKEYSIZE"]) == ("128", "128")
    assert peer_info["SSL_SESSION_RESUMED"] == "Initial"
    assert peer_info["SSL_CLIENT_VERIFY"] == "NONE"
    assert "SSL_CLIENT_CERT" not in peer_info
    assert all(type(value) is str for value in peer_info.values())
    ends.ended()


def test_sessions_are_resumed(authority: Authority, server: Certificate, connect: Connect) -> None:
    """A client that returns with its session ticket does a short handshake."""
    context, client = context_of(server), authority.client_context()
    client.maximum_version = ssl.TLSVersion.TLSv1_2
    ends = connect(context)
    ends.play(client, lambda client: (client.sendall(b"x"), client.session)[1])
    assert ends.receive() == b"x"
    session = ends.ended()
    again = connect(context)
    resumed = client.wrap_socket(again.plain, server_hostname="localhost", do_handshake_on_connect=False)
    resumed.session = session
    again.plain = resumed
    thread = threading.Thread(target=lambda: (resumed.do_handshake(), resumed.sendall(b"y")))
    thread.start()
    assert again.receive() == b"y"
    thread.join(PATIENCE)
    assert again.ours.peer_info()["SSL_SESSION_RESUMED"] == "Resumed"


def test_client_certificates(authority: Authority, server: Certificate, connect: Connect) -> None:
    """The app gets all parts of the required client certificate."""
    alice = authority.issue(
        "alice",
        subject="/C=DE/O=Müller, Sons/OU=one/OU=two/CN=alice",
        extensions="subjectAltName=DNS:a.example,DNS:b.example,email:alice@a.example\n",
    )
    ends = connect(context_of(server, ca_certs=authority.cert, cert_reqs="required"))
    ends.play(authority.client_context(alice), lambda client: client.sendall(b"x"))
    assert ends.receive() == b"x"
    peer_info = ends.ours.peer_info()
    assert peer_info["SSL_CLIENT_VERIFY"] == "SUCCESS"
    name = peer_info["SSL_CLIENT_S_DN"].encode("latin-1").decode()
    assert name == "CN=alice,OU=two,OU=one,O=Müller\\, Sons,C=DE"
    assert peer_info["SSL_CLIENT_I_DN"] == "CN=Test CA,O=Ostler"
    assert (peer_info["SSL_CLIENT_S_DN_CN"], peer_info["SSL_CLIENT_I_DN_CN"]) == ("alice", "Test CA")
    assert (peer_info["SSL_CLIENT_S_DN_OU"], peer_info["SSL_CLIENT_S_DN_OU_1"]) == ("one", "two")
    assert (peer_info["SSL_CLIENT_SAN_DNS_0"], peer_info["SSL_CLIENT_SAN_DNS_1"]) == (
        "a.example",
        "b.example",
    )
    assert peer_info["SSL_CLIENT_SAN_Email_0"] == "alice@a.example"
    assert peer_info["SSL_CLIENT_M_SERIAL"].startswith("ABC0")
    assert peer_info["SSL_CLIENT_V_END"].endswith("GMT")
    given = Path(alice.cert).read_text()
    assert ssl.PEM_cert_to_DER_cert(peer_info["SSL_CLIENT_CERT"]) == ssl.PEM_cert_to_DER_cert(given)
    ends.ended()


@pytest.mark.parametrize("cert_reqs", ["optional", "required"])
def test_client_without_certificate(
    authority: Authority, server: Certificate, connect: Connect, cert_reqs: str
) -> None:
    """Optional accepts it and says so; required ends the handshake."""
    ends = connect(context_of(server, ca_certs=authority.cert, cert_reqs=cert_reqs))
    ends.play(authority.client_context(), lambda client: client.sendall(b"x"))
    if cert_reqs == "optional":
        assert ends.receive() == b"x"
        assert ends.ours.peer_info()["SSL_CLIENT_VERIFY"] == "NONE"
    else:
        with pytest.raises(HandshakeFailed, match="did not return a certificate"):
            ends.receive()


def test_client_of_a_stranger(
    authority: Authority, server: Certificate, connect: Connect, tmp_path: Path
) -> None:
    """A certificate of another authority is refused, also where none is required."""
    mallory = Authority(tmp_path, "Other CA").issue("mallory")
    ends = connect(context_of(server, ca_certs=authority.cert, cert_reqs="optional"))
    ends.play(authority.client_context(mallory), lambda client: client.sendall(b"x"))
    with pytest.raises(HandshakeFailed, match="certificate verify failed"):
        ends.receive()


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ((), ""),
        (((("commonName", "a"),),), "CN=a"),
        (((("countryName", "DE"),), (("commonName", "a"), ("userId", "7"))), "CN=a+UID=7,C=DE"),
        (((("commonName", ' a,b+c"d\\e<f>;#'),),), 'CN=\\ a\\,b\\+c\\"d\\\\e\\<f\\>\\;#'),
        (((("commonName", "#a "),),), "CN=\\#a\\ "),
        (((("commonName", "a\0b"),),), "CN=a\\00b"),
        (((("1.2.3.4", "x"),),), "1.2.3.4=x"),
    ],
)
def test_distinguished_names(name: Any, text: str) -> None:
    """RFC 4514: the last part first, and nothing in a value can look like its end."""
    assert distinguished_name(name) == text
