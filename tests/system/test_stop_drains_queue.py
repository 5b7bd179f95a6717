"""A graceful stop answers what waits in the kernel's queue, in every worker class."""

import signal
import socket
import ssl
import threading
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from importlib.util import find_spec
from pathlib import Path

import pytest

from tests.kit.certificates import Authority
from tests.kit.daemon import Daemon, Place
from tests.kit.ports import free_port
from tests.kit.tiers import thorough
from tests.kit.waiting import PATIENCE, until

pytestmark = pytest.mark.system

WSGI = """\
import os, time
def app(environ, start_response):
    while not os.path.exists("go"):
        time.sleep(0.01)
    start_response("200 OK", [("Content-Length", "2")])
    return [b"ok"]
"""
ASGI = """\
import os, time
async def app(scope, receive, send):
    assert scope["type"] == "http"
    while not os.path.exists("go"):
        time.sleep(0.01)  # it blocks the loop, so that others wait in the queue
    await send({"type": "http.response.start", "status": 200, "headers": [(b"content-length", b"2")]})
    await send({"type": "http.response.body", "body": b"ok"})
"""
# The app's handler is called as soon as its worker drains.
TOLD = """
import asyncio, signal
from pathlib import Path
signal.signal(signal.SIGTERM, lambda signum, frame: Path("told").touch())
"""
TLS_CLASSES = [("gthread", 2), ("asgi", 1), *thorough(("sync", 1), ("gevent", 1), ("eventlet", 1))]
CLASSES = [*TLS_CLASSES, *thorough(("meinheld", 1))]


def begin(
    place: Place,
    kind: str,
    threads: int,
    workers: int,
    *args: str,
    bind: str | None = "127.0.0.1:0",
    pass_fds: Sequence[int] = (),
) -> Daemon:
    if kind in ("gevent", "eventlet", "meinheld") and find_spec(kind) is None:
        pytest.skip(f"{kind} is not installed")
    source = ASGI if kind == "asgi" else WSGI
    if kind in ("gevent", "eventlet"):
        # Blocking, as in the other classes: else all requests would be in the app.
        source = source.replace("import os, time", "import os, time\nimport select")
        source = source.replace("time.sleep(0.01)", "SLEEP(0.01)")
        source = f"from ostler.osapi.original import sleep as SLEEP\n{source}"
    place.add("slow.py", source)
    extra = ("--threads", str(threads)) if threads > 1 else ()
    return place.start(
        "-w", str(workers), "-k", kind, *extra, *args, "slow:app", bind=bind, popen={"pass_fds": pass_fds}
    )


def ask(family: int, address: object) -> socket.socket:
    sock = socket.socket(family)
    sock.settimeout(60)
    sock.connect(address)  # type: ignore[arg-type]
    sock.sendall(b"GET / HTTP/1.1\r\nHost: x\r\n\r\n")
    return sock


def listens(address: object) -> bool:
    with socket.socket() as sock:
        return sock.connect_ex(address) == 0  # type: ignore[arg-type]


def answer(sock: socket.socket) -> bytes:
    try:
        data = b""
        while piece := sock.recv(4096):
            data += piece
            if data.endswith(b"ok"):
                break
        return data[9:12]
    except OSError as error:
        return repr(error).encode()
    finally:
        sock.close()


def answered_at_a_stop(place: Place, daemon: Daemon, clients: list[socket.socket]) -> None:
    """Stop while a request is in the app and the others wait: all clients get their answers."""
    daemon.in_app("/")
    daemon.send(signal.SIGTERM)
    daemon.event("stop")
    (place.app_folder / "go").touch()
    assert [answer(client) for client in clients] == [b"200"] * len(clients)
    assert daemon.wait() == 0


@pytest.mark.parametrize("workers", [*thorough(1), 2])
@pytest.mark.parametrize(("kind", "threads"), CLASSES)
def test_all_that_wait_are_answered(place: Place, kind: str, threads: int, workers: int) -> None:
    """More requests than the workers can take, then TERM: all are answered, then the port is free."""
    daemon = begin(place, kind, threads, workers)
    daemon.settled(workers)
    address = daemon.address
    clients = [ask(socket.AF_INET, address) for _ in range(8 * workers)]
    answered_at_a_stop(place, daemon, clients)
    with socket.socket() as sock:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # connections that ended are no listeners
        sock.bind(address)


@pytest.mark.parametrize(("kind", "threads"), TLS_CLASSES)
def test_tls_clients_that_wait(place: Place, tmp_path: Path, kind: str, threads: int) -> None:
    """The same over TLS: those in the queue whose handshake no worker has seen, and one that has only
    connected.
    """
    authority = Authority(tmp_path)
    server, context = authority.issue("localhost"), authority.client_context()
    tls = ("--certfile", server.cert, "--keyfile", server.key)
    daemon = begin(place, kind, threads, 1, *tls)

    def connected() -> ssl.SSLSocket:
        plain = socket.create_connection(daemon.address, PATIENCE)
        return context.wrap_socket(plain, server_hostname="localhost", do_handshake_on_connect=False)

    def asked(client: ssl.SSLSocket) -> bytes:
        try:
            client.do_handshake()
            client.sendall(b"GET / HTTP/1.1\r\nHost: x\r\n\r\n")
        except OSError as error:
            client.close()
            return repr(error).encode()
        return answer(client)

    with ThreadPoolExecutor(9) as pool:
        answers = [pool.submit(asked, connected()) for _ in range(threads)]
        daemon.in_app("/")
        waiting = [connected() for _ in range(8)]
        for client in waiting[1:]:
            client.setblocking(False)
            with pytest.raises(ssl.SSLWantReadError):
                client.do_handshake()  # it has sent its first message
            client.settimeout(PATIENCE)
        daemon.send(signal.SIGTERM)
        daemon.event("stop")
        answers += [pool.submit(asked, client) for client in waiting]
        (place.app_folder / "go").touch()
        assert [each.result() for each in answers] == [b"200"] * len(answers)
    assert daemon.wait() == 0


def test_a_unix_socket(place: Place) -> None:
    """The same for a Unix socket, whose file is gone at once."""
    path = place.app_folder / "s"
    daemon = begin(place, "gthread", 2, 1, bind=f"unix:{path}")
    clients = [ask(socket.AF_UNIX, str(path)) for _ in range(6)]
    daemon.in_app("/")
    daemon.send(signal.SIGTERM)
    until(lambda: not path.exists(), "the socket's file is removed")
    (place.app_folder / "go").touch()
    assert [answer(client) for client in clients] == [b"200"] * len(clients)
    assert daemon.wait() == 0


@pytest.mark.parametrize(("kind", "threads"), CLASSES)
def test_beside_a_listener_of_another_program(place: Place, kind: str, threads: int) -> None:
    """What waits at the daemon's own address is answered, although a listener that was handed over stays
    open.
    """
    with socket.create_server(("127.0.0.1", 0)) as outer:
        fd = outer.fileno()
        daemon = begin(place, kind, threads, 1, "-b", f"fd://{fd}", pass_fds=[fd])
        clients = [ask(socket.AF_INET, daemon.address) for _ in range(8)]
        answered_at_a_stop(place, daemon, clients)


@pytest.mark.parametrize("kind", ["gthread", "asgi", *thorough("gevent", "eventlet")])
def test_what_waits_for_another_program(place: Place, kind: str) -> None:
    """At a stop a worker accepts no more from a listener that was handed over: the program that accepts from
    it next has what waits.
    """
    if kind in ("gevent", "eventlet") and find_spec(kind) is None:
        pytest.skip(f"{kind} is not installed")
    wait = ("time.sleep(0.01)", "await asyncio.sleep(0.01)")
    place.add("slow.py", (ASGI.replace(*wait) if kind == "asgi" else WSGI) + TOLD)
    threads = ("--threads", "2") if kind == "gthread" else ()
    with socket.create_server(("127.0.0.1", 0)) as outer:
        fd = outer.fileno()
        args = ("-k", kind, *threads, "-b", f"fd://{fd}", "slow:app")
        daemon = place.start(*args, popen={"pass_fds": [fd]})
        client = ask(socket.AF_INET, daemon.address)
        daemon.in_app("/")
        daemon.send(signal.SIGTERM)
        until((place.app_folder / "told").exists, "the worker drains")
        with ask(socket.AF_INET, outer.getsockname()):
            (place.app_folder / "go").touch()
            assert answer(client) == b"200"
            assert daemon.wait() == 0
            accepted, _ = outer.accept()
            with accepted:
                assert accepted.recv(100).startswith(b"GET / ")


def test_the_time_is_limited(place: Place) -> None:
    """What is not answered within graceful_timeout is cut, and the daemon ends."""
    place.add("slow.py", WSGI)
    daemon = place.start("-w", "1", "--graceful-timeout", "1", "slow:app")
    clients = [ask(socket.AF_INET, daemon.address) for _ in range(4)]
    daemon.in_app("/")
    daemon.send(signal.SIGTERM)
    assert daemon.wait() == 0
    for client in clients:
        assert answer(client) != b"200"


@pytest.mark.parametrize(("kind", "threads"), CLASSES)
def test_a_listener_that_a_reload_drops(place: Place, kind: str, threads: int) -> None:
    """What waits in its queue is answered, by workers of the new generation, too; then its port is free."""
    place.add("gunicorn.conf.py", f"bind = '127.0.0.1:{free_port()}'")
    daemon = begin(place, kind, threads, 1, bind=None)
    address = daemon.address
    clients = [ask(socket.AF_INET, address) for _ in range(8)]
    daemon.in_app("/")
    port = free_port()
    place.add("gunicorn.conf.py", f"bind = '127.0.0.1:{port}'")
    assert daemon.ctl("reload", "--no-wait").code == 0
    daemon.until(lambda: "draining" in [worker.state for worker in daemon.workers()], "the old worker drains")
    (place.app_folder / "go").touch()
    daemon.event("listener_closed")
    assert [answer(client) for client in clients] == [b"200"] * len(clients)
    until(lambda: not listens(address), "the port is free")
    assert answer(ask(socket.AF_INET, ("127.0.0.1", port))) == b"200"
    assert daemon.stop() == 0


@pytest.mark.parametrize(("kind", "threads"), CLASSES)
def test_clients_that_come_all_the_time(place: Place, kind: str, threads: int) -> None:
    """Of clients that connect all the time, each connection that was made before the end is answered."""
    daemon = begin(place, kind, threads, 2)
    daemon.settled(2)
    (place.app_folder / "go").touch()
    address = daemon.address
    found: list[bytes] = []

    def client() -> None:
        while True:
            sock = socket.socket()
            sock.settimeout(60)
            try:
                sock.connect(address)
                sock.sendall(b"GET / HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")
            except ConnectionRefusedError:
                sock.close()
                return
            found.append(answer(sock))

    threads_ = [threading.Thread(target=client) for _ in range(4)]
    for thread in threads_:
        thread.start()
    until(lambda: len(found) > 50, "fifty answers")
    daemon.send(signal.SIGTERM)
    assert daemon.wait() == 0
    for thread in threads_:
        thread.join(60)
    assert set(found) == {b"200"}
