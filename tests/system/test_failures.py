"""Invalid input at the start: one clear line and the right exit code. Some problems are only a warning."""

import os
import signal
import socket

import pytest

from tests.kit.daemon import Daemon, Place
from tests.kit.processes import children
from tests.kit.tiers import thorough, tiers

pytestmark = pytest.mark.system

LOCAL = ("-b", "127.0.0.1:0")


def test_broken_app(place: Place) -> None:
    """An app that raises at import: traceback, then one line, exit code 3."""
    place.add("broken.py", "import os\n\nraise ValueError('no database')\n")
    done = place.run(*LOCAL, "-w", "3", "broken:app")
    assert done.code == 3
    assert 'broken.py", line 3, in <module>' in done.err
    lines = done.err.splitlines()
    assert lines[-1] == "ostler: error: can't load 'broken:app': ValueError: no database"
    assert lines.count("Traceback (most recent call last):") == 1


@pytest.mark.parametrize("preload", tiers({"lazy": (), "preload": ("--preload",)}.items(), ["lazy"]))
@pytest.mark.parametrize(
    ("spec", "words"),
    [
        ("no_such:app", "no module named 'no_such' in"),
        ("plain:nothing", "plain has no 'nothing'"),
        ("plain:VERSION", "is no callable but str"),
        ("plain:app(", "write MODULE:NAME or MODULE:FACTORY()"),
    ],
)
def test_app_not_found(place: Place, spec: str, words: str, preload: tuple[str, ...]) -> None:
    """A wrong name of the app: one line that names `wsgi_app`, no traceback, exit code 3."""
    done = place.run(*LOCAL, *preload, spec)
    assert done.code == 3
    error = [line for line in done.err.splitlines() if not line.startswith("{")]
    assert len(error) == 1, done.err
    assert error[0].startswith("ostler: error: wsgi_app: ")
    assert words in error[0]


@pytest.mark.parametrize("how", ["os._exit(4)", *thorough("sys.exit(4)", "ctypes.string_at(0)")])
@pytest.mark.parametrize("preload", tiers({"lazy": (), "preload": ("--preload",)}.items(), ["lazy"]))
def test_app_that_ends_the_process(place: Place, how: str, preload: tuple[str, ...]) -> None:
    """An app that exits or crashes while it is loaded ends only its process, and the daemon reports it;
    exit code 3.
    """
    place.add("ends.py", f"import ctypes, os, sys\n{how}\n")
    done = place.run(*LOCAL, *preload, "ends:app")
    assert done.code == 3
    assert done.err.splitlines()[-1].startswith("ostler: error: ")


def test_no_app(place: Place) -> None:
    """No app at all: the line says how to name one, exit code 2."""
    done = place.run(*LOCAL)
    assert done.code == 2
    assert "ostler MODULE:APP" in done.error


def test_port_taken(place: Place) -> None:
    """Names `bind`, the address and what to do; exit code 1."""
    with socket.create_server(("127.0.0.1", 0)) as taken:
        address = f"127.0.0.1:{taken.getsockname()[1]}"
        done = place.run("-b", address, "plain:app")
    assert done.code == 1
    assert done.error.startswith(f"ostler: error: bind: {address}: the address is in use")


def test_unix_socket_taken(place: Place) -> None:
    """A Unix socket with a listener is never unlinked."""
    path = place.folder / "app.sock"
    with socket.socket(socket.AF_UNIX) as taken:
        taken.bind(str(path))
        taken.listen()
        done = place.run("-b", f"unix:{path}", "plain:app")
        assert done.code == 1
        assert done.error.startswith(f"ostler: error: bind: unix:{path}: the address is in use")
        assert path.is_socket()


@pytest.mark.parametrize(
    ("args", "words"),
    [
        (["--no-such-flag"], "--no-such-flag"),
        (["-w", "many"], "workers"),
        (["-w", "0"], "workers"),
        (["-t", "soon"], "timeout"),
        (["-b", "nonsense:port"], "bind"),
        (["--log-level", "loud"], "loglevel"),
        (["-e", "novalue"], "raw_env"),
    ],
)
def test_bad_command_line(place: Place, args: list[str], words: str) -> None:
    """An unknown flag or an invalid value: one line with the setting's name, exit code 2."""
    done = place.run(*args, "plain:app")
    assert done.code == 2
    assert done.error.startswith("ostler: error: ")
    assert words in done.error


def test_bad_web_concurrency(place: Place) -> None:
    """An invalid value from the environment: the line names the variable, exit code 2 as for a flag."""
    done = place.run(*LOCAL, "plain:app", WEB_CONCURRENCY="lots")
    assert done.code == 2
    assert "workers (environment WEB_CONCURRENCY): expected a whole number" in done.error


@pytest.mark.parametrize(
    ("source", "code", "words"),
    [
        ("workers = 'many'\n", 2, "workers (conf.py line 1): expected a whole number"),
        ("timeout = -1\n", 2, "timeout (conf.py line 1): "),
        (
            "worker_class = 'gevnt'\n",
            2,
            "worker_class (conf.py line 1): there is no 'gevnt'; did you mean",
        ),
        ("access_log_format = '%(h)'\n", 2, "access_log_format (conf.py line 1): can't read '%(h)'"),
        ("wsgi_app = './plain.py:app'\n", 2, "wsgi_app (conf.py line 1): expected MODULE:NAME"),
        ("keyfile = 'key.pem'\n", 2, "keyfile (conf.py line 1): needs certfile as well"),
        ("chdir = '/no/such/folder'\n", 1, "chdir (conf.py line 1): can't enter"),
        ("x = 1\nimport no_such_module\n", 1, "config: conf.py line 2: ModuleNotFoundError"),
        ("import sys\nsys.exit(0)\n", 1, "config: conf.py line 2: SystemExit"),
        ("workers = (\n", 1, "config: conf.py line 1: "),
    ],
)
@pytest.mark.parametrize("check", tiers({"start": (), "check": ("--check-config",)}.items(), ["start"]))
def test_bad_configuration_file(
    place: Place, source: str, code: int, words: str, check: tuple[str, ...]
) -> None:
    """A mistake in the file: one line with file, line and setting. A bad value has exit code 2, as the same
    value of a flag has; a file that can't be used has 1.
    """
    place.add("conf.py", source)
    app = () if "wsgi_app" in source else ("plain:app",)
    done = place.run(*LOCAL, *check, "-c", "conf.py", *app)
    assert done.code == code, done.err
    assert words in done.error


def test_configuration_file_missing(place: Place) -> None:
    """-c with a path that does not exist."""
    done = place.run("-c", "nowhere.py", "plain:app")
    assert (done.code, done.error) == (
        1,
        "ostler: error: config: can't read 'nowhere.py': No such file or directory",
    )


def test_chdir_missing(place: Place) -> None:
    """--chdir to a folder that does not exist."""
    done = place.run(*LOCAL, "--chdir", "/nowhere", "plain:app")
    assert done.code == 1
    assert "chdir (command line): can't enter '/nowhere'" in done.error


def test_error_log_folder_missing(place: Place) -> None:
    """A log file that can't be opened: the setting, the path, the reason."""
    done = place.run(*LOCAL, "--error-logfile", "/nowhere/ostler.log", "plain:app")
    assert done.code == 1
    words = "can't open '/nowhere/ostler.log': No such file or directory"
    assert done.error == f"ostler: error: errorlog (command line): {words}"


def test_access_log_folder_missing(place: Place) -> None:
    """The same for the access log: a clear error instead of workers that crash again and again."""
    done = place.run(*LOCAL, "--access-logfile", "/nowhere/access.log", "plain:app")
    assert done.code == 1
    words = "can't open '/nowhere/access.log': No such file or directory"
    assert done.error == f"ostler: error: accesslog (command line): {words}"


def test_pidfile_of_a_live_process(place: Place) -> None:
    """A second start with the same -p: one line, exit code 1, and the first one's file stays unchanged."""
    path = place.folder / "daemon.pid"
    first = place.start("-p", str(path), "plain:app")
    done = place.run(*LOCAL, "-p", str(path), "plain:app")
    assert done.code == 1
    assert done.error.startswith(f"ostler: error: pidfile: {path} belongs to process {first.pid}")
    assert path.read_text() == f"{first.pid}\n"
    assert first.get().status == 200


def test_pidfile_folder_missing(place: Place) -> None:
    """-p into a folder that does not exist."""
    done = place.run(*LOCAL, "-p", "/nowhere/daemon.pid", "plain:app")
    assert (done.code, done.error) == (
        1,
        "ostler: error: pidfile: can't write /nowhere/daemon.pid: No such file or directory",
    )


# -- what goes on with a warning -----------------------------------------------------------------------------


def serves_with_warning(daemon: Daemon, *words: str) -> None:
    problem = daemon.event("control_unavailable", level="warning")["problem"]
    for word in words:
        assert word in problem
    assert "Traceback" not in daemon.log.read_text()
    assert daemon.get().text == "one"


@pytest.mark.thorough
def test_control_socket_folder_missing(place: Place) -> None:
    """No folder for the control socket: a warning that names it; the app is served."""
    daemon = place.start("--control-socket", "/nowhere/x.sock", "plain:app")
    serves_with_warning(daemon, "control_socket: the folder /nowhere does not exist")


@pytest.mark.thorough
def test_control_socket_path_too_long(place: Place) -> None:
    """A path that is too long for a Unix socket."""
    daemon = place.start("--control-socket", f"/tmp/{'x' * 200}.sock", "plain:app")
    serves_with_warning(daemon, "longer than the 107 bytes")


@pytest.mark.thorough
def test_runtime_directory_unsafe(place: Place) -> None:
    """A runtime folder that others can write is not used: the next one is, where `ctl` also looks."""
    folder = place.runtime / "ostler"
    folder.mkdir()
    folder.chmod(0o777)
    daemon = place.start("--name", place.folder.name, "plain:app")
    assert daemon.get().text == "one"
    daemon.until(
        lambda: place.run("ctl", "--name", place.folder.name, "status", hide_system=False).code == 0,
        "ctl finds the daemon",
    )
    assert list(folder.iterdir()) == []
    assert daemon.stop() == 0


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_runtime_directory_not_writable(place: Place) -> None:
    """A runtime folder without write permission."""
    place.runtime.chmod(0o500)
    serves_with_warning(place.start("plain:app"), "no permission")


def test_read_only_disk(place: Place) -> None:
    """A control socket on a file system that can't be written."""
    daemon = place.start("--control-socket", "/sys/ostler.sock", "plain:app")
    serves_with_warning(daemon, "control_socket: ", "/sys")


def test_control_socket_of_a_live_instance(place: Place) -> None:
    """A named socket that another instance uses stays with it; the second instance serves without one."""
    path = str(place.folder / "control.sock")
    first = place.start("--control-socket", path, "plain:app")
    until_ready = place.run("ctl", "--socket", path, "scale", "2")
    assert until_ready.code == 0
    second = place.start("--control-socket", path, "plain:app")
    serves_with_warning(second, "in use by another instance", f"pid {first.pid}")
    assert place.run("ctl", "--socket", path, "status").code == 0


def test_control_port_taken(place: Place) -> None:
    """If the port for the API is taken, only the TCP listener is missing."""
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        daemon = place.start("--control-bind", f"127.0.0.1:{port}", "plain:app")
        serves_with_warning(daemon, "control_bind: ", str(port), "in use")
        assert daemon.ctl("status").code == 0


def test_control_bind_only_on_loopback(place: Place) -> None:
    """The API is never served to the network, whatever address is given."""
    daemon = place.start("--control-bind", "0.0.0.0:0", "plain:app")
    serves_with_warning(daemon, "control_bind: ")


def test_stop_while_the_app_loads(place: Place) -> None:
    """TERM and INT end a daemon whose app never finishes loading, at once and without leftovers."""
    place.add("hangs.py", "import time\nopen('loading', 'w').close()\ntime.sleep(1000)\n")
    for preload in ([], ["--preload"]):
        for signum in (signal.SIGTERM, signal.SIGINT):
            daemon = place.start(*preload, "hangs:app", serving=False)
            daemon.until((place.app_folder / "loading").exists, "the app is loading")
            assert daemon.stop(signum, within=25) == 0
            (place.app_folder / "loading").unlink()


@pytest.mark.thorough
def test_stop_while_the_interpreter_starts(place: Place) -> None:
    """TERM at any of the first moments ends it without a traceback."""
    for _ in range(3):
        daemon = place.start("plain:app", serving=False)
        daemon.until(lambda pid=daemon.pid: children(pid), "the fork server")
        assert daemon.stop() == 0
        assert "Traceback" not in daemon.log.read_text()
