"""Starting: addresses, names of apps, sources of settings, and what a running daemon looks like."""

import json
import os
import platform
import signal
import socket
import sys
from pathlib import Path

import pytest

from ostler import __version__, native
from tests.kit.daemon import Place
from tests.kit.http_client import ask
from tests.kit.processes import Process, children, title
from tests.kit.tiers import thorough
from tests.kit.waiting import until

pytestmark = pytest.mark.system


# -- addresses -------------------------------------------------------------------------------------------


def test_flask_answers_and_nothing_is_left(place: Place) -> None:
    """A Flask app, three workers, requests are answered, TERM ends all processes with exit code 0."""
    daemon = place.start("-w", "3", "shop:app")
    daemon.settled(3)
    answer = daemon.get("/")
    assert (answer.status, answer.text) == (200, "<h1>the shop</h1>")
    assert answer.headers["content-type"].startswith("text/html")
    assert int(daemon.get("/pid").text) in daemon.pids()
    socket_path = daemon.socket
    assert daemon.stop() == 0
    assert not socket_path.exists()
    assert not socket_path.with_name(socket_path.name + ".lock").exists()
    assert [event["event"] for event in daemon.events()][-1] == "stopped"


@pytest.mark.thorough
def test_several_addresses(place: Place) -> None:
    """TCP over both families and a Unix socket at once; each is reported as bound, and each answers."""
    path = place.folder / "app.sock"
    daemon = place.start("-b", "[::1]:0", "-b", f"unix:{path}", "plain:app")
    assert len(daemon.urls) == 3
    assert daemon.urls[1].startswith("http://[::1]:")
    assert daemon.urls[2] == f"unix:{path}"
    for url in daemon.urls:
        assert ask(url).text == "one"
    seen = json.loads(ask(daemon.urls[1], "/environ").body)
    assert (seen["REMOTE_ADDR"], seen["SERVER_PORT"]) == ("::1", daemon.urls[1].rpartition(":")[2])
    assert daemon.status().listeners == daemon.urls


@pytest.mark.thorough
def test_unix_socket_of_the_dead_is_replaced(place: Place) -> None:
    """A socket file without a listener is no obstacle."""
    path = place.folder / "app.sock"
    with socket.socket(socket.AF_UNIX) as dead:
        dead.bind(str(path))
    daemon = place.start("plain:app", bind=f"unix:{path}")
    assert daemon.get().text == "one"


@pytest.mark.thorough
def test_descriptor_from_outside(place: Place) -> None:
    """fd://N serves on a listening socket of the parent process, which it can give to the next daemon."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
        fd = listener.fileno()
        for _ in range(2):
            daemon = place.start("plain:app", bind=f"fd://{fd}", popen={"pass_fds": [fd]})
            assert daemon.url == f"http://127.0.0.1:{port}"
            assert daemon.get().text == "one"
            assert daemon.stop() == 0


# -- ways to name the app ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("spec", "body"),
    [
        ("plain:make()", "made"),
        ("plain:make('hi there')", "hi there"),
        ("plain:make(greeting='with a keyword')", "with a keyword"),
        ("plain:Holder.Inner.app", "one"),
        ("shop:create_app(title='flask made')", "flask made"),
    ],
)
def test_app_spec(place: Place, spec: str, body: str) -> None:
    """Factories with literal arguments and attributes of attributes, as gunicorn reads them."""
    daemon = place.start(spec)
    assert daemon.get().text == body


# -- where settings come from ------------------------------------------------------------------------------


def test_configuration_file(place: Place) -> None:
    """A gunicorn-style file sets app, addresses and numbers; the command line has precedence;
    ctl shows both.
    """
    place.add(
        "conf.py",
        "import multiprocessing\n"
        "bind = ['127.0.0.1:0']\n"
        "workers = 2\n"
        "threads = 3\n"
        "timeout = 17\n"
        "wsgi_app = 'plain:app'\n"
        "raw_env = ['FROM_OSTLER=it is']\n",
    )
    daemon = place.start("-c", "conf.py", "--timeout", "18", bind=None)
    status = daemon.status()
    assert (status.wanted, status.threads, status.worker_class, status.timeout) == (2, 3, "gthread", 18.0)
    assert daemon.get("/raw-env").text == "it is"
    settings = {row["name"]: row for row in json.loads(daemon.ctl("config", "--json").out)["settings"]}
    assert settings["workers"]["origin"] == "conf.py line 3"
    assert settings["timeout"]["origin"] == "command line"
    assert settings["backlog"]["origin"] == "default"


def test_gunicorn_conf_py_is_found(place: Place) -> None:
    """Without -c a gunicorn.conf.py in the working folder is used."""
    place.add("gunicorn.conf.py", "workers = 2\nbind = '127.0.0.1:0'\n")
    daemon = place.start("plain:app", bind=None)
    assert daemon.status().wanted == 2


@pytest.mark.parametrize(("args", "wanted"), [([], 3), (["-w", "2"], 2)])
def test_web_concurrency(place: Place, args: list[str], wanted: int) -> None:
    """WEB_CONCURRENCY is only the default of -w."""
    daemon = place.start(*args, "plain:app", WEB_CONCURRENCY="3")
    daemon.settled(wanted, wanted=wanted)


@pytest.mark.thorough
def test_workers_auto_honours_affinity(place: Place) -> None:
    """`--workers auto` is twice the CPUs that this process may use plus one, not the CPUs of the machine."""
    cpu = min(os.sched_getaffinity(0))
    daemon = place.start(
        "-w", "auto", "plain:app", popen={"preexec_fn": lambda: os.sched_setaffinity(0, {cpu})}
    )
    daemon.settled(3, wanted=3)


def test_chdir_and_pythonpath(place: Place) -> None:
    """--chdir takes effect before the app is imported; --pythonpath adds folders to the path."""
    place.add("deep/inside.py", "from helper import app\n")
    place.add("lib/helper.py", "from plain import app\n")
    daemon = place.start(
        "--chdir", "deep", "--pythonpath", f"{place.app_folder}/lib,{place.app_folder}", "inside:app"
    )  # fmt: skip
    assert daemon.get().text == "one"


def test_relative_paths_with_chdir(place: Place) -> None:
    """As in gunicorn they are relative to the folder of --chdir, except -c,
    which is relative to the initial folder.
    """
    deep = place.app_folder / "deep"
    place.add("deep/inside.py", "from plain import app\n")
    place.add("conf.py", "chdir = 'deep'\npythonpath = '..'\n")
    files = ["-p", "d.pid", "--error-logfile", "error.log", "--access-logfile", "access.log"]
    daemon = place.start("-c", "conf.py", *files, "-b", "unix:app.sock", "inside:app", serving=False)
    until(lambda: (deep / "error.log").exists() and "serving" in (deep / "error.log").read_text(), "serving")
    assert (deep / "d.pid").read_text() == f"{daemon.pid}\n"
    assert ask(f"unix:{deep}/app.sock", "/fail").status == 500
    assert ask(f"unix:{deep}/app.sock").text == "one"
    for name, words in (("error.log", "request_failed"), ("access.log", "GET / HTTP/1.1")):
        until(lambda name=name, words=words: words in (deep / name).read_text(), f"{words} in {name}")
    assert {path.name for path in place.app_folder.iterdir() if path.suffix in (".log", ".pid")} == set()
    assert daemon.ctl("reload").code == 0
    assert ask(f"unix:{deep}/app.sock").text == "one"


# -- what needs no running daemon --------------------------------------------------------------------------


def test_version(place: Place) -> None:
    """One line on stdout."""
    python = f"Python {platform.python_version()}"
    with_it = "with" if native.module is not None else "without"
    assert place.run("--version") == (0, f"ostler {__version__} ({python}, {with_it} the C extension)\n", "")
    without = place.run("--version", OSTLER_NATIVE="0").out
    assert without == f"ostler {__version__} ({python}, without the C extension)\n"


def test_check_config(place: Place) -> None:
    """A valid app passes silently; nothing is bound, so a taken address does not matter."""
    with socket.create_server(("127.0.0.1", 0)) as taken:
        address = f"127.0.0.1:{taken.getsockname()[1]}"
        assert place.run("--check-config", "-b", address, "shop:app") == (0, "", "")


@pytest.mark.thorough
@pytest.mark.parametrize("preload", [[], *thorough(["--preload"])])
def test_boot_retries(place: Place, preload: list[str]) -> None:
    """With --boot-retries a start waits for what the app needs, which comes a little later."""
    place.add("needy.py", "from pathlib import Path\nPath('database').read_text()\nfrom plain import app\n")
    daemon = place.start("--boot-retries", "9", *preload, "needy:app", serving=False)
    daemon.event("fork_server_failed" if preload else "worker_boot_failed")
    place.add("database", "up")
    assert daemon.get().text == "one"


def test_strict_check(place: Place) -> None:
    """With --strict a warning fails the check, with exit code 2; without warnings it passes."""
    assert place.run("--check-config", "--strict", "plain:app") == (0, "", "")
    unused = ("--threads", "2", "-k", "gevent", "plain:app")
    assert place.run("--check-config", *unused).code == 0
    done = place.run("--check-config", "--strict", *unused)
    assert done.code == 2
    assert done.err.count("threads") == 1
    assert done.err.endswith("ostler: error: --strict: there is no error, but 1 warning (see above)\n")
    done = place.run("--strict", "plain:app")
    assert (done.code, "--strict is for --check-config" in done.err) == (2, True)


def test_check_config_broken_app(place: Place) -> None:
    """An app that raises: its traceback from its own first frame on, one line, exit code 3."""
    place.add("broken.py", "def helper():\n    raise RuntimeError('not today')\nhelper()\n")
    done = place.run("--check-config", "broken:app")
    assert (done.code, done.out) == (3, "")
    assert done.err.startswith("Traceback (most recent call last):\n")
    assert 'broken.py", line 2, in helper' in done.err
    assert "importlib" not in done.err
    assert "/ostler/" not in done.err
    assert done.err.splitlines()[-1] == "ostler: error: can't load 'broken:app': RuntimeError: not today"


def test_check_config_broken_file(place: Place) -> None:
    """A configuration file that does not parse: file, line and mistake in one line, exit code 1."""
    place.add("conf.py", "workers = 2\nbind = = 3\n")
    done = place.run("--check-config", "-c", "conf.py", "plain:app")
    assert done.code == 1
    assert done.error.startswith("ostler: error: config: conf.py line 2: ")


def test_print_config(place: Place) -> None:
    """Every setting with value and origin; the app is not loaded for it."""
    place.add("conf.py", "workers = 7\n")
    done = place.run("--print-config", "-c", "conf.py", "-t", "5", "no_such_module:app")
    assert (done.code, done.err) == (0, "")
    lines = {line.split()[0]: line for line in done.out.splitlines()}
    assert lines["workers"].split() == ["workers", "=", "7", "#", "conf.py", "line", "1"]
    assert lines["timeout"].split()[2:] == ["5.0", "#", "command", "line"]
    assert lines["graceful_timeout"].split()[2:] == ["30.0", "#", "default"]


# -- what a running daemon looks like ----------------------------------------------------------------------


def test_pidfile(place: Place) -> None:
    """-p writes the supervisor's pid, a TTIN sent to it adds a worker, and the file is removed at the end."""
    path = place.folder / "daemon.pid"
    daemon = place.start("-p", str(path), "plain:app")
    assert path.read_text() == f"{daemon.pid}\n"
    os.kill(int(path.read_text()), signal.SIGTTIN)
    daemon.settled(2)
    daemon.stop()
    assert not path.exists()


def test_stale_pidfile_is_taken_over(place: Place) -> None:
    """A pid file whose process has ended is no obstacle, nor is one without a pid in it."""
    path = place.folder / "daemon.pid"
    for rubbish in ("2147483646\n", "rubbish"):
        path.write_text(rubbish)
        daemon = place.start("-p", str(path), "plain:app")
        assert path.read_text() == f"{daemon.pid}\n"
        daemon.stop()


def test_process_titles(place: Place) -> None:
    """ps shows the roles: supervisor, fork server, workers with slot and generation,
    each with the instance's name.
    """
    daemon = place.start("-w", "2", "-n", "till", "plain:app")
    first, second = daemon.settled(2)
    assert title(daemon.pid) == "ostler: supervisor [till]"
    assert title(first.pid or 0) == "ostler: worker 1 gen 1 [till]"
    assert title(second.pid or 0) == "ostler: worker 2 gen 1 [till]"
    assert "ostler: fork server gen 1 [till]" in map(title, children(daemon.pid))


@pytest.mark.parametrize("preload", [[], *thorough(["--preload"])])
def test_workers_stay_lean(place: Place, preload: list[str]) -> None:
    """A worker of a stdlib app has none of the supervisor's large modules, which would use memory."""
    daemon = place.start(*preload, "plain:app")
    modules = set(json.loads(daemon.get("/modules").body))
    heavy = {"aiohttp", "asyncio", "rich", "psutil", "structlog", "click", "ssl", "logging", "typer"}
    assert modules & heavy <= {"logging"}
    assert not [name for name in modules if name.startswith(("ostler.daemon", "ostler.control"))]


def test_app_sees_the_command_line_and_the_folder(place: Place) -> None:
    """sys.argv is the command line as typed, which some apps read; the folder is importable."""
    place.add(
        "look.py",
        "import sys, os, json\n"
        "def app(environ, start_response):\n"
        "    start_response('200 OK', [])\n"
        "    return [json.dumps([sys.argv[1:], os.getcwd(), sys.path[0]]).encode()]\n",
    )
    daemon = place.start("look:app")
    argv, folder, first = json.loads(daemon.get().body)
    assert argv == ["-b", "127.0.0.1:0", "look:app"]
    assert folder == first == str(place.app_folder)


@pytest.mark.thorough
def test_a_package_of_our_name_in_the_app_folder(place: Place) -> None:
    """A package `ostler/` of the user beside the app hides nothing of ours, when started as `ostler`."""
    place.add("ostler/__init__.py", "raise RuntimeError('the wrong one')\n")
    place.add("ostler/daemon.py", "")
    ostler = Path(sys.executable).with_name("ostler")
    assert ostler.exists(), "install the project into this environment"
    daemon = place.start("-w", "2", "plain:app", argv=[str(ostler)])
    daemon.settled(2)
    assert daemon.get().text == "one"
    done = place.run("ctl", "reload", argv=[str(ostler)], OSTLER_SOCKET=str(daemon.socket))
    assert done.code == 0, done.err


def test_demo(place: Place) -> None:
    """--demo serves with three workers and a dashboard, prints both addresses, and INT ends it cleanly."""
    daemon = place.start("--demo", "--control-bind", "127.0.0.1:0")
    daemon.settled(3)
    out = daemon.until(lambda: text if "Ctrl-C" in (text := daemon.out.read_text()) else None, "the greeting")
    assert daemon.url in out
    assert ask(daemon.url).status == 200
    workers = [Process(pid) for pid in daemon.pids()]
    assert daemon.stop(signal.SIGINT) == 0
    assert all(worker.gone for worker in workers)
