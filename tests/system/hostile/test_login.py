"""The app's user gets nothing of root's login: not its terminal, its keys, or its token."""

import os
import pty
import sys
from collections.abc import Iterator

import pytest

from tests.kit.accounts import NOBODY, second_account, shown
from tests.kit.daemon import OSTLER, Place
from tests.system.conftest import furnished

pytestmark = [
    pytest.mark.system,
    pytest.mark.skipif(not second_account(), reason="needs root, and the right to mount"),
]

APP = """\
import ctypes, fcntl, os, termios

KEYCTL, SESSION, SEARCH = {"x86_64": 250}.get(os.uname().machine, 219), ctypes.c_long(-3), 10

def tried(step):
    try:
        return step()
    except OSError as error:
        return error.strerror

def keys():
    found = ctypes.CDLL(None).syscall(KEYCTL, SEARCH, SESSION, b"user", b"ostler-test", 0)
    return "no key" if found < 0 else "a key"

def app(environ, start_response):
    start_response("200 OK", [("Content-Type", "text/plain")])
    said = [keys(), os.environ.get("OSTLER_TOKEN", "no token")]
    for fd in (0, 1, 2):
        if os.isatty(fd):
            tried(lambda: [fcntl.ioctl(fd, termios.TIOCSTI, bytes([byte])) for byte in b"pushed"])
            said.append("may read" if fcntl.fcntl(fd, fcntl.F_GETFL) & os.O_ACCMODE != os.O_WRONLY else "")
    said.append(tried(lambda: os.close(os.open("/dev/tty", os.O_RDWR | os.O_NOCTTY)) or "opens the terminal"))
    return [", ".join(filter(None, said)).encode()]
"""

# Runs a command as root's shell would: on a terminal, with a key in its session keyring.
LOGIN = """\
import ctypes, fcntl, os, sys, termios
terminal = int(sys.argv[1])
fcntl.ioctl(terminal, termios.TIOCSCTTY, 0)
for fd in (0, 1):
    os.dup2(terminal, fd)
call = ctypes.CDLL(None).syscall
keyctl, add_key = {"x86_64": (250, 248)}.get(os.uname().machine, (219, 217))
if call(keyctl, 1, None) >= 0:
    call(add_key, b"user", b"ostler-test", b"secret", ctypes.c_size_t(6), ctypes.c_long(-3))
os.execvp(sys.argv[2], sys.argv[2:])
"""
NOTHING = "no key, no token, No such device or address"


@pytest.fixture
def place() -> Iterator[Place]:
    with furnished() as place:
        place.open_to_others()
        place.add("who.py", APP)
        os.chown(place.app_folder, NOBODY.pw_uid, NOBODY.pw_gid)
        yield place


@pytest.fixture
def terminal() -> Iterator[tuple[int, int]]:
    """Both ends of a terminal; the second is the one that a process uses."""
    ends = pty.openpty()
    yield ends
    for fd in ends:
        os.close(fd)


@pytest.mark.parametrize("words", [(), ("--preload",), ("-k", "gevent")], ids=["sync", "preload", "gevent"])
def test_in_the_foreground(place: Place, terminal: tuple[int, int], words: tuple[str, ...]) -> None:
    """Root starts it in a shell:
    the app can push no characters into the terminal, reads none, and has no keys.
    """
    ours, theirs = terminal
    daemon = place.start(
        *("who:app", "-u", "nobody", *words),
        argv=[sys.executable, "-c", LOGIN, str(theirs), *shown(), *OSTLER],
        popen={"pass_fds": [theirs]},
        OSTLER_TOKEN="sesame",
    )
    assert daemon.get("/").text == NOTHING
    os.set_blocking(ours, False)
    with pytest.raises(BlockingIOError):
        os.read(ours, 100)  # it would have been echoed
    # Input still reaches the supervisor.
    os.write(ours, b"\x03")
    assert daemon.event("stop")["by"] == "signal INT"
    assert daemon.wait() == 0
