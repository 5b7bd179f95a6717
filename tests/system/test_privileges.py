"""Apps that run as another account than the supervisor: settings user, group, initgroups, umask.

They need root, which acts as the administrator here.
"""

import ast
import os
import signal
import socket
import stat
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.kit.accounts import NOBODY, second_account, shown
from tests.kit.daemon import OSTLER, Daemon, Place, fork_server
from tests.kit.http_client import ask
from tests.kit.processes import Process, children, title
from tests.kit.tiers import thorough
from tests.kit.waiting import until
from tests.system.conftest import furnished

APP = """\
import os

def app(environ, start_response):
    umask = os.umask(0)
    os.umask(umask)
    nice = os.getpriority(os.PRIO_PROCESS, 0)
    ids = [*os.getresuid(), *os.getresgid(), sorted(os.getgroups()), oct(umask), nice, os.environ["HOME"]]
    try:
        os.setuid(0)
        ids.append("way back")
    except OSError:
        pass
    start_response("200 OK", [("Content-Type", "text/plain")])
    return [repr(ids).encode()]
"""


pytestmark = [
    pytest.mark.system,
    pytest.mark.skipif(not second_account(), reason="needs root, and the right to mount"),
]


@pytest.fixture
def open_place() -> Iterator[Place]:
    """A place that other users may enter; its folder `mine` belongs to the account nobody."""
    with furnished() as place:
        place.open_to_others()
        place.add("who.py", APP)
        mine = place.folder / "mine"
        mine.mkdir()
        os.chown(mine, NOBODY.pw_uid, NOBODY.pw_gid)
        yield place


def start(place: Place, *args: str, before: str = "", **more: object) -> Daemon:
    return place.start("who:app", *args, argv=[*shown(before), *OSTLER], **more)  # type: ignore[arg-type]


def credentials(daemon: Daemon) -> list[object]:
    found: list[object] = ast.literal_eval(daemon.get("/").text)
    return found


UID, GID = NOBODY.pw_uid, NOBODY.pw_gid


def test_user(open_place: Place) -> None:
    """A user brings its group and no others, permanently; the supervisor stays root; HOME is unchanged."""
    daemon = start(open_place, "-u", "nobody", "-m", "027")
    nice = os.getpriority(os.PRIO_PROCESS, daemon.pid)
    assert credentials(daemon) == [UID, UID, UID, GID, GID, GID, [GID], "0o27", nice, os.environ["HOME"]]
    assert Path(f"/proc/{daemon.pid}").stat().st_uid == 0
    server = fork_server(daemon).pid
    # It may contain data that only root may read: no other process of the user may inspect it (prctl(2)).
    assert {Path(f"/proc/{pid}/mem").stat().st_uid for pid in (server, *daemon.pids())} == {0}
    assert "Uid:\t" + f"{UID}\t" * 3 in Path(f"/proc/{server}/status").read_text()
    assert daemon.stop() == 0


@pytest.mark.parametrize(
    ("args", "ids"),
    [
        *thorough((("-u", "12345"), [12345] * 6 + [[12345]])),
        *thorough((("-u", "12345", "-g", "0"), [12345] * 3 + [0] * 3 + [[0]])),
        (("-u", "12345", "-g", "23456"), [12345] * 3 + [23456] * 3 + [[23456]]),
        (("-u", "nobody", "-g", "daemon", "--initgroups"), [UID] * 3 + [1] * 3 + [[1]]),
        *thorough((("-u", "root"), [0] * 6 + [sorted(os.getgroups())])),
    ],
)
def test_numbers_and_groups(open_place: Place, args: tuple[str, ...], ids: list[object]) -> None:
    """Numbers need no account;
    the group of a number is the same number, with a warning, as there is for root's group.
    """
    daemon = start(open_place, *args)
    assert credentials(daemon)[:7] == ids
    warned = [event["problem"] for event in daemon.events("configuration")]
    expected = {("-u", "12345"): ["no account"], ("-u", "12345", "-g", "0"): ["root's group"]}.get(args, [])
    assert len(warned) == len(expected)
    assert all(part in text for part, text in zip(expected, warned, strict=True))
    assert daemon.stop() == 0


@pytest.mark.thorough
def test_group_alone(open_place: Place) -> None:
    """A group without a user leaves the user as it is, which is root."""
    daemon = start(open_place, "-g", "23456")
    assert credentials(daemon)[:6] == [0] * 3 + [23456] * 3
    assert daemon.stop() == 0


@pytest.mark.thorough
def test_unknown_accounts(open_place: Place) -> None:
    """Unknown names end the start with one line."""
    for args, problem in (
        (("-u", "no_such_user"), "user (command line): there is no user 'no_such_user'"),
        (("-g", "no_such_group"), "group (command line): there is no group 'no_such_group'"),
    ):
        done = open_place.run("who:app", "-b", "127.0.0.1:0", *args, argv=[*shown(), *OSTLER])
        assert (done.code, done.error) == (1, f"ostler: error: {problem}")


def test_without_privileges(open_place: Place) -> None:
    """Without root, only the process's own account may be named."""
    before = f"setpriv --reuid {UID} --regid {GID} --clear-groups"
    runtime = open_place.folder / "mine"
    done = open_place.run(
        *("who:app", "-b", "127.0.0.1:0", "-u", "daemon"),
        argv=[*shown(before), *OSTLER],
        XDG_RUNTIME_DIR=str(runtime),
    )
    why = "can't become 'daemon' (Operation not permitted); that needs root's rights"
    assert (done.code, done.error) == (1, f"ostler: error: user (command line): {why}")
    done = open_place.run("who:app", "--check-config", "-u", "daemon", argv=[*shown(before), *OSTLER])
    assert (done.code, "only root can become 'daemon'" in done.error) == (0, True)
    os.chown(open_place.runtime, UID, GID)
    daemon = start(open_place, "-u", "nobody", "-g", str(GID), before=before)
    assert credentials(daemon)[0] == UID
    assert daemon.stop() == 0


def test_logs(open_place: Place) -> None:
    """Logs in root's own folder are made for the workers, also after logrotate has moved them away."""
    logs = open_place.folder / "logs"
    logs.mkdir()
    names = [logs / "error.log", logs / "access.log"]
    args = ["--error-logfile", str(names[0]), "--access-logfile", str(names[1])]
    daemon = start(open_place, "-u", "nobody", *args, serving=False)
    daemon.settled(1)
    url = daemon.status().listeners[0].removeprefix("http://")
    host, port = url.split(":")

    def knock() -> None:
        with socket.create_connection((host, int(port))) as client:
            client.sendall(b"GET /asked HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")
            while client.recv(4096):
                pass

    def written() -> bool:
        return "/asked" in names[1].read_text() and all(path.stat().st_uid == UID for path in names)

    knock()
    until(written, "a line in the access log")
    for path in names:
        path.rename(path.with_suffix(".old"))
    daemon.send(signal.SIGUSR1)
    until(
        lambda: all(path.exists() for path in names) and "logs_reopened" in names[0].read_text(), "reopened"
    )

    def comes() -> bool:
        knock()
        return written()

    until(comes, "a line in the new access log")
    assert daemon.stop() == 0


def test_log_behind_a_link(open_place: Place) -> None:
    """The owner of a log's folder can't make root write to a file of root, or change its owner."""
    victim = open_place.folder / "victim"
    victim.write_text("root's\n")
    victim.chmod(0o600)
    link = open_place.folder / "mine" / "error.log"
    link.symlink_to(victim)
    os.chown(link, UID, GID, follow_symlinks=False)
    done = open_place.run(
        *("who:app", "-b", "127.0.0.1:0", "-u", "nobody", "--error-logfile", str(link)),
        argv=[*shown(), *OSTLER],
    )
    problem = f"errorlog (command line): can't open '{link}': Permission denied"
    assert (done.code, done.error) == (1, f"ostler: error: {problem}")
    assert (victim.read_text(), victim.stat().st_uid) == ("root's\n", 0)


def test_check_of_a_log_that_root_makes(open_place: Place) -> None:
    """A check must not fail because of a log in a folder of root where the user can't remove it again."""
    log = open_place.folder / "access.log"
    done = open_place.run(
        *("who:app", "--check-config", "-u", "nobody", "--access-logfile", str(log)),
        argv=[*shown(), *OSTLER],
    )
    assert (done.code, done.err) == (0, "")
    assert log.stat().st_uid == UID


FORGER = """\
import gc
from msgspec.structs import replace
from ostler.forkserver.preparation import Preparation
from ostler.ipc import messages

(preparation,) = [found for found in gc.get_objects() if isinstance(found, Preparation)]
loaded = preparation._loaded
forged = replace(loaded, settings=replace(loaded.settings, bind=("unix:{}",)))
preparation._channel.send(messages.Configured(forged, ["forged"]))

from who import app
"""


def test_an_app_can_not_say_what_to_bind(open_place: Place) -> None:
    """The fork server reports the configuration, but not once the app runs in it:
    then it is killed for that.
    """
    wanted = open_place.folder / "roots.sock"
    open_place.add("forger.py", FORGER.format(wanted))
    words = ("forger:app", "-u", "nobody", "--preload")
    daemon = open_place.start(*words, argv=[*shown(), *OSTLER], serving=False)
    assert daemon.wait() == 3
    assert not wanted.exists()
    assert "it sent Configured while it is loading the app" in daemon.event("protocol_error")["problem"]
    assert not daemon.events("configuration")


def test_standard_descriptors_by_name(open_place: Place) -> None:
    """/dev/stderr as a log works, although the pipe behind it belongs to root."""
    daemon = start(
        open_place, "-u", "nobody", "--error-logfile", "/dev/stderr", "--access-logfile", "/dev/stdout"
    )
    assert daemon.get("/asked").status == 200
    daemon.until(lambda: "/asked" in daemon.out.read_text(), "a line in the access log")
    assert daemon.stop() == 0


def test_everything_that_forks(open_place: Place) -> None:
    """Scaling, a reload, a new fork server, a refork and an upgrade in place all run workers as the user."""
    daemon = start(open_place, "-u", "nobody", "-w", "1")

    def all_are_nobody() -> bool:
        found = children(daemon.pid)
        return all(
            Path(f"/proc/{pid}/status").read_text().split("Uid:\t")[1].split()[0] == str(UID)
            for pid in found
            if title(pid).startswith("ostler: ")
        )

    daemon.send(signal.SIGTTIN)
    daemon.settled(2)
    server = fork_server(daemon)
    server.send(signal.SIGKILL)
    assert server.ended()
    server.close()
    fork_server(daemon).close()
    assert daemon.ctl("reload").code == 0
    done = daemon.ctl("refork")
    assert done.code == 0, done
    daemon.settled(2)
    assert all_are_nobody()
    assert credentials(daemon)[0] == UID
    daemon.send(signal.SIGUSR2)
    daemon.event("upgraded")
    daemon.settled(2)
    assert all_are_nobody()
    assert daemon.stop() == 0


def test_daemon(open_place: Place) -> None:
    """A daemon whose pid file and logs are in folders of root:
    the logs belong to the workers, the pid file to root.
    """
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        port = sock.getsockname()[1]
    log, pidfile = open_place.folder / "error.log", open_place.folder / "app.pid"
    args = ["-D", "-u", "nobody", "-b", f"127.0.0.1:{port}", "-p", str(pidfile), "--error-logfile", str(log)]
    done = open_place.run(*args, "who:app", argv=[*shown(), *OSTLER])
    assert (done.code, done.out, done.err) == (0, "", "")
    daemon = Process(int(pidfile.read_text()))
    try:
        assert (pidfile.stat().st_uid, log.stat().st_uid) == (0, UID)
        assert ast.literal_eval(ask(f"http://127.0.0.1:{port}").text)[0] == UID
    finally:
        daemon.send(signal.SIGTERM)
        assert daemon.ended()
        daemon.close()
    assert not pidfile.exists()


def test_unix_socket(open_place: Place) -> None:
    """A listener's socket belongs to the workers, with a mode from the umask;
    its own settings have precedence.
    """
    path = open_place.folder / "app.sock"
    for args, mode, uid, gid in (
        ((), 0o777, UID, GID),
        (("-m", "007"), 0o770, UID, GID),
        (("-m", "007", "--socket-mode", "0600", "--socket-owner", ":1"), 0o600, 0, 1),
    ):
        daemon = start(open_place, "-u", "nobody", *args, bind=f"unix:{path}")
        info = path.stat()
        assert (stat.S_IMODE(info.st_mode), info.st_uid, info.st_gid) == (mode, uid, gid)
        assert credentials(daemon)[0] == UID
        assert daemon.stop() == 0


@pytest.mark.thorough
def test_control_socket_for_others(open_place: Place) -> None:
    """Accounts that the mode admits may operate, the app's user may only read; the default admits none."""
    path = open_place.folder / "control.sock"
    args = ["-u", "nobody", "--control-socket", str(path)]

    def ctl(uid: int, *words: str) -> tuple[int, str]:
        argv = [*shown(f"setpriv --reuid {uid} --regid {uid} --clear-groups"), *OSTLER]
        done = open_place.run("ctl", "--socket", str(path), *words, argv=argv, cwd=Path("/"))
        return done.code, done.err

    daemon = start(open_place, *args)
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert "ermission" in ctl(UID, "status")[1]
    assert daemon.stop() == 0
    daemon = start(open_place, *args, "--control-socket-mode", "0666")
    assert stat.S_IMODE(path.stat().st_mode) == 0o666
    assert ctl(UID, "status")[0] == 0
    code, problem = ctl(UID, "scale", "2")
    assert (code, "may not scale, only read" in problem) == (1, True)
    assert ctl(4321, "scale", "2")[0] == 0
    code, problem = ctl(4321, "stop")
    assert (code, "may not stop, only operate" in problem) == (1, True)
    assert daemon.stop() == 0


def test_temporary_folder(open_place: Place) -> None:
    """One that root had found, and that the app's account may not write, is looked for again."""
    private = open_place.folder / "private"
    private.mkdir(mode=0o700)
    open_place.add("gunicorn.conf.py", "import tempfile\nassert tempfile.gettempdir().endswith('private')\n")
    open_place.add(
        "temporary.py",
        "import tempfile\n"
        "def app(environ, start_response):\n"
        "    with tempfile.NamedTemporaryFile() as file:\n"
        "        start_response('200 OK', [])\n"
        "        return [file.name.encode()]\n",
    )
    daemon = open_place.start("--user", "nobody", "temporary:app", TMPDIR=str(private))
    answer = daemon.get()
    assert answer.status == 200
    assert not answer.text.startswith(str(private))
