"""Syslog: gunicorn's format; a syslog server that is gone, slow or full only causes lost lines."""

import os
import socket
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec
import pytest

from ostler.logs.syslog import Syslog, syslog_of
from ostler.settings.table import Settings

PID = os.getpid()
RESET = struct.pack("ii", 1, 0)  # SO_LINGER: close with a reset


class Clock:
    """A clock that a test sets."""

    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


class LoggedEvents:
    """The events that were logged."""

    def __init__(self) -> None:
        self.events: list[tuple[str, Any]] = []

    def __call__(self, name: str, **fields: Any) -> None:
        self.events.append((name, fields.get("lines")))


@pytest.fixture
def udp() -> Iterator[socket.socket]:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        sock.bind(("127.0.0.1", 0))
        sock.settimeout(5)
        yield sock


made: list[Syslog] = []


@pytest.fixture(autouse=True)
def _close() -> Iterator[None]:
    yield
    while made:
        made.pop().close()


def new(address: str, logged: LoggedEvents | None = None, clock: Clock | None = None) -> Syslog:
    made.append(Syslog(address, "local3", "shop", logged or LoggedEvents(), clock or Clock()))
    return made[-1]


def udp_address(sock: socket.socket) -> str:
    return f"udp://127.0.0.1:{sock.getsockname()[1]}"


@pytest.mark.parametrize(
    ("level", "severity"), [("debug", 7), ("info", 6), ("warning", 4), ("error", 3), ("critical", 2)]
)
def test_an_event(udp: socket.socket, level: str, severity: int) -> None:
    """Priority, gunicorn's program name, the pid, the event; a datagram ends with NUL."""
    new(udp_address(udp)).event(level, "request_failed", {"path": "/a b", "gone": None})
    text = f'<{19 << 3 | severity}>gunicorn.shop.error: [{PID}] request_failed path="/a b"\0'
    assert udp.recv(9000) == text.encode()


def test_an_access_line(udp: socket.socket) -> None:
    """Lines of the access log are sent as informational, without their line end."""
    new(udp_address(udp)).access(b'127.0.0.1 "GET / HTTP/1.1" 200\n')
    assert udp.recv(9000) == f'<158>gunicorn.shop.access: [{PID}] 127.0.0.1 "GET / HTTP/1.1" 200\0'.encode()


def test_a_value_forges_nothing(udp: socket.socket) -> None:
    """A line feed of a client begins no new line; lines of a traceback are indented."""
    new(udp_address(udp)).event("info", "e\n<0>f", {"path": "/\n<0>x", "traceback": "Trace\n<0>y"})
    assert udp.recv(9000).split(b"] ", 1)[1] == b'e path="/\\n<0>x"\n    <0>f\n    Trace\n    <0>y\0'


def test_the_prefix_is_the_app_s_name(udp: socket.socket) -> None:
    """As in gunicorn: MODULE:NAME with a dot, unless the instance or the setting has another name."""
    settings = Settings(wsgi_app="a:app", syslog=True, syslog_addr=udp_address(udp))
    for more, name in ({}, "a.app"), ({"proc_name": "shop"}, "shop"), ({"syslog_prefix": "x:y"}, "x:y"):
        syslog = syslog_of(msgspec.structs.replace(settings, **more), LoggedEvents())
        assert syslog is not None
        syslog.event("info", "e", {})
        assert udp.recv(9000).startswith(f"<14>gunicorn.{name}.error: ".encode())
        syslog.close()
    assert syslog_of(Settings(), LoggedEvents()) is None


def test_one_that_comes_late(tmp_path: Path) -> None:
    """Lines are lost while there is no socket.

    That is reported once, and their number as soon as there is one.
    """
    path, logged, clock = tmp_path / "log", LoggedEvents(), Clock()
    syslog = new(f"unix://{path}", logged, clock)
    for _ in range(3):
        syslog.event("info", "lost", {})
    assert logged.events == [("syslog_unreachable", None)]
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sock:
        sock.bind(str(path))
        syslog.event("info", "too soon", {})
        clock.now += 2
        syslog.event("info", "here", {})
        assert b"here" in sock.recv(9000)
        assert logged.events[1:] == [("syslog_lines_lost", 4)]
        # The server was restarted: a new socket at the same path.
        path.unlink()
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as other:
            other.bind(str(path))
            sock.close()
            syslog.event("info", "again", {})
            assert b"again" in other.recv(9000)


def test_one_that_does_not_read(tmp_path: Path) -> None:
    """No process waits for a full socket: lines that do not fit are lost and counted."""
    path, logged = tmp_path / "log", LoggedEvents()
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sock:
        sock.bind(str(path))
        syslog = new(f"unix://{path}#dgram", logged)
        while not logged.events:
            syslog.event("info", "more", {"text": "x" * 1000})
        assert logged.events == [("syslog_unreachable", None)]
        while logged.events[-1][0] == "syslog_unreachable":
            sock.recv(9000)
            syslog.event("info", "more", {})
        assert logged.events[-1] == ("syslog_lines_lost", 1)


@pytest.mark.parametrize("kind", ["tcp", "unix", "unix#stream"])
def test_a_stream(tmp_path: Path, kind: str) -> None:
    """Each line ends with a line feed, whatever it contains;
    Unix sockets are tried as stream and as datagram.
    """
    with socket.socket(socket.AF_INET if kind == "tcp" else socket.AF_UNIX) as server:
        server.bind(("127.0.0.1", 0) if kind == "tcp" else str(tmp_path / "log"))
        server.listen()
        server.settimeout(5)
        port = server.getsockname()[1] if kind == "tcp" else 0
        address = (
            f"tcp://127.0.0.1:{port}" if kind == "tcp" else kind.replace("unix", f"unix://{tmp_path}/log")
        )
        syslog = new(address)
        accepted, _ = server.accept()
        with accepted:
            accepted.settimeout(5)
            syslog.event("error", "one", {"traceback": "Trace\nback"})
            syslog.access(b"two\n")
            received = b""
            while received.count(b"\n") < 2:
                received += accepted.recv(9000)
            first, second = received.decode().splitlines()
            assert first.endswith("] one#012    Trace#012    back")
            assert second.endswith("] two")
            syslog.close()
            assert accepted.recv(1) == b""


def test_a_stream_that_is_reset(tmp_path: Path) -> None:
    """The next line after the end of a connection is sent on a new one."""
    logged = LoggedEvents()
    with socket.create_server(("127.0.0.1", 0)) as server:
        server.settimeout(5)
        syslog = new(f"tcp://127.0.0.1:{server.getsockname()[1]}", logged)
        accepted, _ = server.accept()
        accepted.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, RESET)
        accepted.close()
        syslog.event("info", "after", {})
        second, _ = server.accept()
        with second:
            second.settimeout(5)
            assert b"after" in second.recv(9000)
    assert logged.events == []


def test_a_stream_that_does_not_read() -> None:
    """Lines are buffered up to a limit; beyond it whole lines are lost."""
    logged = LoggedEvents()
    with socket.create_server(("127.0.0.1", 0)) as server:
        server.settimeout(5)
        syslog = new(f"tcp://127.0.0.1:{server.getsockname()[1]}", logged)
        accepted, _ = server.accept()
        with accepted:
            accepted.settimeout(5)
            sent = 0
            while not logged.events:
                syslog.event("info", "line", {"n": sent, "text": "x" * 4000})
                sent += 1
            received = b""
            while f" n={sent - 2} ".encode() not in received or not received.endswith(b"\n"):
                received += accepted.recv(1 << 20)
                syslog._write_rest()
            lines = received.decode().splitlines()
            assert len(lines) == sent - 1
            assert all(line.startswith("<158>") and line.endswith("x") for line in lines)


def test_an_unknown_host() -> None:
    """The name is resolved once, because a slow name server would make clients wait."""
    logged, clock = LoggedEvents(), Clock()
    syslog = new("udp://nowhere.invalid", logged, clock)
    for _ in range(3):
        clock.now += 10
        syslog.event("info", "lost", {})
    assert [name for name, _ in logged.events] == ["syslog_unreachable"]
