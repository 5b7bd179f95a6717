"""Notifying systemd never fails, whatever is wrong with its socket or with this process."""

import resource
import socket
from pathlib import Path

import pytest

from ostler.daemon.process.notify import SystemdNotifier


@pytest.mark.parametrize("address", ["/nowhere/notify", "@no-process-listens-here", "x" * 200, "a\0b", "@"])
def test_no_process_listens(monkeypatch: pytest.MonkeyPatch, address: str) -> None:
    """A socket that does not exist, or an impossible name, does not stop the daemon."""
    notifier = SystemdNotifier()
    monkeypatch.setattr(notifier, "path", address)
    notifier.send("READY=1")


def test_out_of_descriptors(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The message is lost; the next one, when there are descriptors again, is not."""
    path = str(tmp_path / "notify")
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sock:
        sock.bind(path)
        sock.setblocking(False)
        monkeypatch.setenv("NOTIFY_SOCKET", path)
        notifier = SystemdNotifier()
        before = resource.getrlimit(resource.RLIMIT_NOFILE)
        resource.setrlimit(resource.RLIMIT_NOFILE, (3, before[1]))
        try:
            notifier.send("STATUS=lost")
        finally:
            resource.setrlimit(resource.RLIMIT_NOFILE, before)
        notifier.send("READY=1", "STATUS=all is well")
        assert sock.recv(100) == b"READY=1\nSTATUS=all is well"


def test_a_full_socket_does_not_block(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A receiver that does not read does not block the sender."""
    path = str(tmp_path / "notify")
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sock:
        sock.bind(path)
        monkeypatch.setenv("NOTIFY_SOCKET", path)
        notifier = SystemdNotifier()
        for _ in range(2000):
            notifier.send("STATUS=" + "x" * 1000)
        assert sock.recv(10) == b"STATUS=xxx"
