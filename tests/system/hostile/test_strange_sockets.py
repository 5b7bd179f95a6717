"""Another user of the machine was there first: with the folder, the socket or the port where `ctl` looks for
the daemon, or where the daemon would put its socket.

`ctl` runs as root, the other user is the second account; both are real processes.
"""

import os
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from ostler.control.client import Client
from ostler.control.routes import STATUS
from tests.kit.accounts import NOBODY, as_nobody, second_account, shown
from tests.kit.daemon import OSTLER, Done, Place

pytestmark = [
    pytest.mark.thorough,
    pytest.mark.system,
    pytest.mark.skipif(not second_account(), reason="needs root and a second account"),
]

ME = os.geteuid()
WHO = f"{NOBODY.pw_name!r} (uid {NOBODY.pw_uid})"
TOKEN = "s3cret-and-long-enough"

STRANGER = """\
import socket, sys
if sys.argv[1:]:
    sock = socket.socket(socket.AF_UNIX)
    sock.bind(sys.argv[1])
    sock.listen()
else:
    sock = socket.create_server(("127.0.0.1", 0))
print(sock.getsockname()[1], flush=True)
while True:
    with sock.accept()[0] as client:
        data = client.recv(65536)
        print(ascii(data), flush=True)
        if b"HTTP" in data:
            client.sendall(b"HTTP/1.1 200 OK\\r\\nContent-Length: 2\\r\\n\\r\\n{}")
"""


class Stranger:
    """A server of the second account; it records what it receives."""

    def __init__(self, process: subprocess.Popen[str], address: str | tuple[str, int]) -> None:
        self._process = process
        self._address = address

    def line(self) -> str:
        assert self._process.stdout is not None
        return self._process.stdout.readline().strip()

    def received(self) -> list[str]:
        """Data since the last call; connections that sent nothing are not counted."""
        family = socket.AF_UNIX if isinstance(self._address, str) else socket.AF_INET
        with socket.socket(family) as sock:
            sock.connect(self._address)
            sock.sendall(b"that is all")
            found = []
            while (line := self.line()) != ascii(b"that is all"):
                assert line, "the stranger ended"
                found.append(line)
        return [line for line in found if line != ascii(b"")]


@contextmanager
def stranger(place: Place, path: Path | None = None) -> Iterator[tuple[Stranger, int]]:
    """Listens on a path or on a port; the port is passed on."""
    argv = [*as_nobody(), sys.executable, "-c", STRANGER, *([str(path)] if path else [])]
    with subprocess.Popen(argv, stdout=subprocess.PIPE, text=True, cwd="/", env=place.environ) as process:
        try:
            assert process.stdout is not None
            said = process.stdout.readline().strip()
            port = 0 if path else int(said)
            yield Stranger(process, str(path) if path else ("127.0.0.1", port)), port
        finally:
            process.kill()


@pytest.fixture
def shared(place: Place) -> Path:
    """A folder like /tmp in which `ctl` looks; the second account can enter it."""
    place.folder.chmod(0o711)
    shared = place.folder / "tmp"
    shared.mkdir()
    shared.chmod(0o1777)
    return shared


def theirs(path: Path) -> Path:
    """Give a file to the second account."""
    os.lchown(path, NOBODY.pw_uid, NOBODY.pw_gid)
    return path


def ctl(place: Place, shared: Path, *args: str, **environ: str) -> Done:
    return place.run("ctl", *args, TMPDIR=str(shared), **environ)


def test_a_folder_of_another_user(place: Place, shared: Path) -> None:
    """`ctl` does not look into their folder and says so in one line; it still finds our own daemon."""
    folder = shared / f"ostler-{ME}"
    folder.mkdir(mode=0o755)
    theirs(folder)
    with stranger(place, folder / "shop.sock") as (other, _):
        for command in ("status", "stop"):
            done = ctl(place, shared, command)
            assert done.code == 1
            warning, error = done.err.splitlines()
            assert warning == f"ctl: warning: {folder} belongs to {WHO}; it is not used"
            assert error.startswith("ostler ctl: error: no running Ostler found in ")
        daemon = place.start("plain:app")
        done = ctl(place, shared, "status")
        assert done.code == 0
        assert f"pid {daemon.pid}" in done.out
        assert done.err == f"{warning}\n"
        assert other.received() == []


@pytest.mark.parametrize("kind", ["link", "loose"])
def test_a_folder_that_another_user_can_change(place: Place, shared: Path, kind: str) -> None:
    """`ctl` does not look into a folder that is a link to others' sockets, or that others can write."""
    folder, real = shared / f"ostler-{ME}", place.folder / "real"
    if kind == "link":
        real.mkdir(mode=0o755)
        theirs(real)
        folder.symlink_to(real)
        theirs(folder)
    else:
        folder.mkdir()
        folder.chmod(0o777)
    with stranger(place, folder / "shop.sock") as (other, _):
        done = ctl(place, shared, "status")
        assert done.code == 1
        expected = "no folder" if kind == "link" else "others can write to"
        assert expected in done.err.splitlines()[0]
        assert other.received() == []


def test_a_socket_that_changed_hands(place: Place, shared: Path) -> None:
    """Folder and socket have the right owner, but the listening process belongs to another user,
    as if the socket had been exchanged after the check: `ctl` connects, sees that, and sends nothing.
    """
    path = shared / f"ostler-{ME}" / "shop.sock"
    path.parent.mkdir()
    path.parent.chmod(0o777)
    with stranger(place, path) as (other, _):
        path.parent.chmod(0o755)
        os.chown(path, 0, 0)
        done = ctl(place, shared, "stop")
        assert done.code == 1
        warning = done.err.splitlines()[0]
        assert warning == f"ctl: warning: {path} is served by a process of {WHO}; it is not used"
        assert other.received() == []


def test_a_socket_that_was_named(place: Place, shared: Path) -> None:
    """A socket that the user names is used, with a warning about its owner; --owner makes that an error."""
    path = shared / "named.sock"
    with stranger(place, path) as (other, _):
        done = ctl(place, shared, "--socket", str(path), "status")
        warning, error = done.err.splitlines()
        assert warning.startswith(
            f"ctl: warning: {path} is served by a process of {WHO}, not yours or root's"
        )
        assert "not as Ostler's API" in error
        assert "GET /v1/status" in other.received()[0]
        done = ctl(place, shared, "--socket", str(path), "--owner", NOBODY.pw_name, "status")
        assert "not as Ostler's API" in done.error
        assert len(other.received()) == 1
        for owner in ("root", "4321"):
            done = ctl(place, shared, "--socket", str(path), "status", OSTLER_OWNER=owner)
            assert done.error.startswith(
                f"ostler ctl: error: {path} is served by a process of {WHO}, not of "
            )
            assert other.received() == []
        assert (
            "there is no user 'nosuch'"
            in ctl(place, shared, "--owner", "nosuch", "--socket", "x", "stop").error
        )


def test_a_port_that_changed_hands(place: Place, shared: Path) -> None:
    """The daemon has ended and another user listens on its port: that user does not get the token."""
    with stranger(place) as (other, port):
        url = f"http://127.0.0.1:{port}"
        done = ctl(place, shared, "--url", url, "status", OSTLER_TOKEN=TOKEN)
        assert done.code == 1
        assert f"a process of {WHO} listens, not yours or root's; the token was not sent" in done.error
        done = ctl(place, shared, "--url", f"http://localhost:{port}", "stop", OSTLER_TOKEN=TOKEN)
        assert "the token was not sent" in done.error
        assert other.received() == []
        ctl(place, shared, "--url", url, "--owner", NOBODY.pw_name, "status", OSTLER_TOKEN=TOKEN)
        assert TOKEN in other.received()[0]


def test_a_daemon_of_another_user_that_root_has_given_a_folder(place: Place, shared: Path) -> None:
    """As systemd does with RuntimeDirectory=:
    root's `ctl` finds it without the owner's name, and uses it without a warning if its socket is named.
    """
    given = place.folder / "given"
    given.mkdir(mode=0o755)
    theirs(given)
    for folder in (place.folder, place.app_folder):
        folder.chmod(0o755)
    daemon = place.start("plain:app", argv=[*as_nobody(), *OSTLER], RUNTIME_DIRECTORY=str(given))
    daemon.until(lambda: any(given.glob("*.sock")), "the control socket")
    (path,) = given.glob("*.sock")
    done = ctl(place, shared, "scale", "2", RUNTIME_DIRECTORY=str(given))
    assert (done.code, done.err) == (0, "")
    assert ctl(place, shared, "--socket", str(path), "status").err == ""


# -- where the daemon would put its socket ---------------------------------------------------------------


def squatted(shared: Path, shm: bool) -> list[str]:
    """The program as the second account, whose usual folders a third user has already created.

    /tmp is not writable except for `shared`, of which this daemon sees a copy of its own. `shm`: that user
    has been in /dev/shm as well.
    """
    squat = f"mkdir -m 777 $d/ostler-{NOBODY.pw_uid}; chown 4321 $d/ostler-{NOBODY.pw_uid}"
    steps = [
        "set -e",
        "mount --bind /tmp /tmp; mount -o remount,bind,ro /tmp",
        f"for d in {shared} /var/tmp /dev/shm; do mount -t tmpfs -o mode=1777 tmpfs $d; done",
        f"for d in {shared} /var/tmp {'/dev/shm' if shm else ''}; do {squat}; done",
    ]
    user = f"setpriv --reuid {NOBODY.pw_uid} --regid {NOBODY.pw_gid} --clear-groups"
    before = f"sh -c '{'; '.join(steps)}; exec \"$@\"' sh env -u XDG_RUNTIME_DIR TMPDIR={shared} {user}"
    return [*shown(before), *OSTLER]


def test_a_place_that_is_taken(place: Place, shared: Path) -> None:
    """The daemon uses the next folder, and creates nothing in the other user's folder."""
    for folder in (place.folder, place.app_folder):
        folder.chmod(0o755)
    daemon = place.start("plain:app", argv=squatted(shared, shm=False))
    root = Path(f"/proc/{daemon.pid}/root")
    found = daemon.until(lambda: sorted(root.glob("dev/shm/ostler-*/*.sock")), "the socket in /dev/shm")
    client = Client.unix(found[0])
    assert client.call(STATUS).pid == daemon.pid
    client.close()
    for strange in (shared, Path("/var/tmp")):
        assert list(Path(f"{root}{strange}/ostler-{NOBODY.pw_uid}").iterdir()) == []
    assert [event for event in daemon.events() if event["level"] != "info"] == []
    assert daemon.stop() == 0


def test_all_places_are_taken(place: Place, shared: Path) -> None:
    """One warning names them; the app is served, and TCP control starts with a token from a file."""
    for folder in (place.folder, place.app_folder):
        folder.chmod(0o755)
    token = place.folder / "token"
    token.write_text(TOKEN)
    token.chmod(0o400)
    theirs(token)
    daemon = place.start(
        *("--control-bind", "127.0.0.1:0", "--control-token-file", str(token), "plain:app"),
        argv=squatted(shared, shm=True),
    )
    warning = daemon.event("control_unavailable")
    assert f"{shared}/ostler-{NOBODY.pw_uid} (belongs to uid 4321, not to this user)" in str(
        warning["problem"]
    )
    assert "--control-socket" in str(warning["problem"])
    url = str(daemon.event("control")["url"])
    assert daemon.get().text == "one"
    done = ctl(place, shared, "--url", url, "--owner", NOBODY.pw_name, "status", OSTLER_TOKEN=TOKEN)
    assert (done.code, done.err) == (0, "")
    assert len(daemon.events(level="warning")) == 1
    assert daemon.stop() == 0
