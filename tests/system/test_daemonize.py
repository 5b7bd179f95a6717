"""Daemons that detach from their parent process: settings daemon, enable_stdio_inheritance, pidfile."""

import os
import pty
import signal
import socket
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.kit.daemon import OSTLER, Done, Place
from tests.kit.http_client import ask
from tests.kit.processes import Process, children, descriptors, title
from tests.kit.tiers import thorough
from tests.kit.waiting import until

pytestmark = pytest.mark.system

LOST = "errorlog: the log ends here; --error-logfile FILE keeps it"
NULL = ["/dev/null"] * 3
WAITING = """\
from plain import app
open("loading", "w").close()
open("gate").read()
"""


@pytest.fixture
def port() -> int:
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        number: int = sock.getsockname()[1]
    return number


@contextmanager
def running(place: Place, name: str = "app.pid") -> Iterator[Process]:
    """The daemon of a pid file; it is stopped at the end, and removes its pid file."""
    path = place.app_folder / name
    daemon = Process(int(path.read_text()))
    try:
        yield daemon
    finally:
        daemon.send(signal.SIGTERM)
        assert daemon.ended()
        daemon.close()
    assert not path.exists()
    assert place.leftovers() == []


def run(place: Place, *args: str, **environ: str) -> Done:
    return place.run(*args, "-p", "app.pid", **environ)


def standard(pid: int) -> list[str]:
    return [str(Path(f"/proc/{pid}/fd/{fd}").readlink()) for fd in (0, 1, 2)]


def family(pid: int) -> list[int]:
    return [pid, *children(pid)]


@pytest.mark.parametrize("how", ["flag", "file"])
def test_detaches(place: Place, port: int, how: str) -> None:
    """The command exits with 0 when the app serves, and its daemon has no terminal and no parent."""
    url = f"http://127.0.0.1:{port}"
    args = ["-b", f"127.0.0.1:{port}", "--error-logfile", "log/error.log", "plain:app"]
    (place.app_folder / "log").mkdir()
    if how == "file":
        place.add("conf.py", "daemon = True\n")
        args += ["-c", "conf.py"]
    else:
        args += ["-D"]
    done = run(place, *args)
    assert done == Done(0, "", "")
    with running(place) as daemon:
        assert ask(url).text == "one"
        fields = Path(f"/proc/{daemon.pid}/stat").read_text().rpartition(")")[2].split()
        parent, session, terminal = int(fields[1]), int(fields[3]), int(fields[4])
        assert parent != os.getpid()
        assert terminal == 0
        # A process that is not a session leader can't get a terminal (credentials(7)).
        assert session != daemon.pid
        for pid in family(daemon.pid):
            assert standard(pid) == NULL, title(pid)
        log = place.app_folder / "log/error.log"
        until(lambda: '"event": "serving"' in log.read_text(), "the start in the log")


def test_log_that_gets_lost(place: Place, port: int) -> None:
    """Without a file for the log one line says that the log ends; informational lines are not shown."""
    done = run(place, "-D", "-b", f"127.0.0.1:{port}", "plain:app")
    assert (done.code, done.out) == (0, "")
    assert LOST in done.error
    with running(place):
        assert ask(f"http://127.0.0.1:{port}").text == "one"


@pytest.mark.parametrize("how", ["flag", *thorough("file")])
def test_failure(place: Place, how: str) -> None:
    """A start that fails ends with the error and exit code of the foreground, and leaves nothing behind."""
    place.add("broken.py", "raise RuntimeError('no luck')\n")
    place.add("conf.py", "daemon = True\n" if how == "file" else "")
    args = ["-c", "conf.py", "-b", "127.0.0.1:0", *(["-D"] if how == "flag" else [])]
    done = run(place, *args, "broken:app")
    assert done.code == 3
    assert done.err.splitlines()[-1] == "ostler: error: can't load 'broken:app': RuntimeError: no luck"
    assert "Traceback" in done.err
    with socket.create_server(("127.0.0.1", 0)) as taken:
        done = run(place, *args[:3], f"127.0.0.1:{taken.getsockname()[1]}", *args[4:], "plain:app")
    assert done.code == 1
    assert "the address is in use" in done.err.splitlines()[-1]
    assert not (place.app_folder / "app.pid").exists()
    assert place.leftovers() == []


def test_second_start(place: Place, port: int) -> None:
    """A pid file of a live daemon ends the second start with one line; that of a dead one is taken over."""
    (place.app_folder / "app.pid").write_text("4194303\n")
    args = ["-D", "-b", f"127.0.0.1:{port}", "--error-logfile", "error.log", "plain:app"]
    assert run(place, *args).code == 0
    with running(place) as daemon:
        done = run(place, *args)
        path = place.app_folder / "app.pid"
        problem = f"pidfile: {path} belongs to process {daemon.pid}, which is alive; is this a second start?"
        assert (done.code, done.err.splitlines()[-1]) == (1, f"ostler: error: {problem}")
    done = place.run(
        "-D", "-b", "127.0.0.1:0", "-p", "no/app.pid", "--error-logfile", "error.log", "plain:app"
    )
    assert done.error.endswith(
        "can't write " + str(place.app_folder / "no/app.pid") + ": No such file or directory"
    )


@pytest.mark.thorough
@pytest.mark.parametrize("signum", [signal.SIGINT, signal.SIGKILL])
def test_launcher_ends_first(place: Place, signum: int) -> None:
    """The command waits while the app loads; when it is interrupted, the daemon ends with it."""
    place.add("waiting.py", WAITING)
    os.mkfifo(place.app_folder / "gate")
    daemon = place.start("-D", "waiting:app", serving=False)
    until((place.app_folder / "loading").exists, "the app being loaded")
    assert daemon.process.poll() is None
    assert len(place.leftovers()) >= 2
    daemon.process.send_signal(signum)
    daemon.process.wait()
    until(lambda: not place.leftovers(), "the daemon's end")


def test_killed_while_it_starts(place: Place) -> None:
    """A daemon that ends before it reports that it has started is an error as well."""
    place.add("waiting.py", WAITING)
    os.mkfifo(place.app_folder / "gate")
    launcher = place.start("-D", "-p", "app.pid", "--preload", "waiting:app", serving=False)
    until((place.app_folder / "loading").exists, "the app being loaded")
    daemon = Process(int((place.app_folder / "app.pid").read_text()))
    daemon.send(signal.SIGKILL)
    assert launcher.wait() == 1
    assert "ostler: error: the daemon was killed while it started" in launcher.log.read_text()
    daemon.close()
    until(lambda: not place.leftovers(), "the fork server's end")


def test_waits_for_the_app(place: Place, port: int) -> None:
    """When the command has ended, the app is being served."""
    place.add("waiting.py", WAITING)
    os.mkfifo(place.app_folder / "gate")
    launcher = place.start(
        *("-D", "-p", "app.pid", "--error-logfile", "error.log", "waiting:app"),
        bind=f"127.0.0.1:{port}",
        serving=False,
    )
    until((place.app_folder / "loading").exists, "the app being loaded")
    assert (place.app_folder / "app.pid").exists()
    assert launcher.process.poll() is None
    (place.app_folder / "gate").write_text("go")
    assert launcher.wait() == 0
    with running(place):
        assert ask(f"http://127.0.0.1:{port}").text == "one"


def test_outputs_kept(place: Place, port: int) -> None:
    """With -R the standard streams are kept, and the app's output comes line by line."""
    place.add("printing.py", "from plain import app\nprint('printed by the app')\n")
    launcher = place.start(
        *("-D", "-R", "-p", "app.pid", "printing:app"), bind=f"127.0.0.1:{port}", serving=False
    )
    assert launcher.wait() == 0
    with running(place) as daemon:
        for pid in family(daemon.pid):
            assert standard(pid) == ["/dev/null", str(launcher.out), str(launcher.log)]
        until(lambda: "printed by the app" in launcher.out.read_text(), "what the app printed")
        assert launcher.events("serving")
        assert not launcher.events("configuration")


@pytest.mark.thorough
def test_stays_where_it_is_supervised(place: Place) -> None:
    """Under a service manager that waits for the first process it stays in the foreground, and logs that."""
    path = place.folder / "notify"
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as notify:
        notify.bind(str(path))
        daemon = place.start("-D", "plain:app", NOTIFY_SOCKET=str(path))
    (event,) = daemon.events("configuration")
    assert event["problem"].startswith("daemon: stays in the foreground, because the service manager")
    assert daemon.get("/").text == "one"
    assert daemon.stop() == 0


def test_life_without_a_terminal(place: Place, port: int) -> None:
    """WINCH drains, a reload and an upgrade in place work, and the pid stays the same."""
    url = f"http://127.0.0.1:{port}"
    log = place.app_folder / "error.log"
    args = ["-b", f"127.0.0.1:{port}", "--error-logfile", str(log), "plain:app"]
    place.add("conf.py", "daemon = True\n")
    assert run(place, "-c", "conf.py", *args).code == 0
    with running(place) as daemon:
        for signum, said in ((signal.SIGHUP, '"reload_done"'), (signal.SIGUSR2, '"upgraded"')):
            daemon.send(signum)
            until(lambda said=said: said in log.read_text(), said)  # type: ignore[misc]
            assert ask(url).text == "one"
        until(lambda: all(standard(pid) == NULL for pid in family(daemon.pid)), "no terminal after it either")
        daemon.send(signal.SIGWINCH)
        until(lambda: '"event": "pause"' in log.read_text(), "a pause")


def test_on_a_terminal(place: Place, port: int) -> None:
    """Started on a terminal it prints a line; the terminal can be closed, because no process has it open."""
    ours, theirs = pty.openpty()
    name = os.ttyname(theirs)
    process = subprocess.Popen(
        [*OSTLER, "-D", "-b", f"127.0.0.1:{port}", "-p", "app.pid", "--error-logfile", "e.log", "plain:app"],
        cwd=place.app_folder,
        env=place.environ,
        stdin=theirs,
        stdout=theirs,
        stderr=theirs,
        start_new_session=True,
    )
    os.close(theirs)
    try:
        assert process.wait(15) == 0
        with running(place) as daemon:
            assert os.read(ours, 4096).decode().startswith("ostler: serving in the background")
            for pid in family(daemon.pid):
                assert name not in descriptors(pid), title(pid)
    finally:
        os.close(ours)
