"""Claiming the path of a Unix socket."""

import os
import socket
import stat
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest

from ostler.osapi.unix_sockets import (
    Occupant,
    bind_path,
    identity,
    identity_of,
    remove_dead,
    remove_own,
)


@pytest.fixture
def path(tmp_path: Path) -> Iterator[str]:
    """A path in a folder whose name is short enough for sun_path."""
    before = os.getcwd()  # noqa: PTH109
    os.chdir(tmp_path)
    yield "app.sock"
    os.chdir(before)


def test_nothing_is_there(path: str) -> None:
    assert remove_dead(path) is Occupant.NOTHING
    assert identity(path) is None


def test_a_dead_socket_is_removed(path: str) -> None:
    bind_path(path, 0o600).close()
    assert Path(path).exists()
    assert remove_dead(path) is Occupant.NOTHING
    assert not Path(path).exists()


@pytest.mark.parametrize("backlog", [0, 5])
def test_a_live_socket_stays(path: str, backlog: int) -> None:
    """Also when its backlog is full."""
    with bind_path(path, 0o600) as sock:
        sock.listen(backlog)
        for _ in range(3):
            assert remove_dead(path) is Occupant.LIVE_SOCKET
        assert identity(path) is not None


def test_another_kind_of_socket_stays(path: str) -> None:
    """A datagram socket, to which a stream can't connect, may be in use."""
    with closing(socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)) as sock:
        sock.bind(path)
        assert remove_dead(path) is Occupant.LIVE_SOCKET


@pytest.mark.parametrize("make", [Path.touch, Path.mkdir, lambda path: path.symlink_to("elsewhere")])
def test_other_files_stay(path: str, make: object) -> None:
    """A file, a folder, and a link to anything."""
    bind_path("elsewhere", 0o600).close()
    make(Path(path))  # type: ignore[operator]
    assert remove_dead(path) is Occupant.NO_SOCKET
    assert os.path.lexists(path)
    assert Path("elsewhere").exists()


def test_the_mode_is_there_from_the_beginning(path: str) -> None:
    """For any umask, which is the same afterwards."""
    before = os.umask(0o022)
    try:
        with bind_path(path, 0o660):
            assert stat.S_IMODE(os.lstat(path).st_mode) == 0o660
        assert os.umask(0o022) == 0o022
        with pytest.raises(OSError, match="in use"):
            bind_path(path, 0o600)
        assert os.umask(0o022) == 0o022
    finally:
        os.umask(before)


def test_only_the_own_file_is_removed(path: str) -> None:
    """A file that others have put in its place stays."""
    with bind_path(path, 0o600):
        own = identity(path)
        assert own is not None
        fd = os.open(path, os.O_PATH)
        assert identity_of(fd) == own
        os.close(fd)
        os.rename(path, "moved")  # noqa: PTH104
        Path(path).touch()
        remove_own(path, own)
        assert Path(path).exists()
        remove_own("moved", own)
        assert not Path("moved").exists()
        remove_own("moved", own)
