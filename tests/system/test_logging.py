"""Logging and metrics as gunicorn users configure them, with the real daemon."""

import json
import re
import signal
import socket
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.kit.daemon import Daemon, Place, fork_server
from tests.kit.processes import freeze
from tests.kit.tiers import thorough
from tests.kit.waiting import until

pytestmark = pytest.mark.system

# A typical configuration file, with classes of its own.
CONFIG = """
import json, logging
class Json(logging.Formatter):
    def format(self, record):
        args = record.args if isinstance(record.args, dict) else {}
        fields = {"text": record.getMessage(), "level": record.levelname, "process": record.process}
        return json.dumps(fields | {"path": args.get("U"), "status": args.get("s"), "trace": record.exc_text})
class NoHealthChecks(logging.Filter):
    def filter(self, record):
        return record.args["U"] != "/health"
debug = True
x_forwarded_for_header = "X-FORWARDED-FOR"
capture_output = True
errorlog = "output.log"
logconfig_dict = {
    "version": 1,
    "disable_existing_loggers": False,
    "loggers": {
        "gunicorn.error": {"level": "DEBUG", "handlers": ["error_file"], "propagate": 0},
        "gunicorn.access": {"level": "DEBUG", "handlers": ["access_file"], "propagate": 0},
    },
    "filters": {"no_health_checks": {"()": NoHealthChecks}},
    "handlers": {
        "error_file": {
            "class": "logging.handlers.RotatingFileHandler", "maxBytes": 1 << 20, "backupCount": 5,
            "formatter": "json", "filename": "error.log",
        },
        "access_file": {
            "class": "logging.handlers.RotatingFileHandler", "maxBytes": 1 << 20, "backupCount": 5,
            "formatter": "json", "filename": "access.log", "filters": ["no_health_checks"],
        },
    },
    "formatters": {"json": {"()": Json}},
}
"""

TALKS = """
import os, subprocess, sys
def app(environ, start_response):
    path = environ["PATH_INFO"]
    if path == "/print":
        print("printed")
        os.write(2, b"raw\\n")
        subprocess.run(["echo", "child"], check=True)
    if path == "/errors":
        environ["wsgi.errors"].write("written by the app\\n")
    if path == "/fail":
        raise RuntimeError("the app's own mistake")
    start_response("200 OK", [("Content-Length", "2")])
    return [b"hi"]
"""


def serve(place: Place, *args: str, app: str = "talks:app") -> Daemon:
    """Start without waiting for a line in the usual log, because lines go elsewhere."""
    place.add("talks.py", TALKS)
    daemon = place.start(*args, app, serving=False)
    daemon.settled(1)
    return daemon


def url_of(daemon: Daemon) -> None:
    """The daemon's address from its status, for logs that do not contain it."""
    daemon.urls = list(daemon.status().listeners)


def lines(path: Path) -> list[dict[str, object]]:
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


def wait_for(path: Path, text: str) -> str:
    return until(
        lambda: found if path.exists() and text in (found := path.read_text()) else None,
        f"{text} in {path.name}",
    )


@pytest.fixture
def udp() -> Iterator[socket.socket]:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        sock.bind(("127.0.0.1", 0))
        sock.settimeout(0.05)
        yield sock


def collect(udp: socket.socket, enough: Callable[[list[str]], bool]) -> list[str]:
    """Collect lines until there are enough."""
    got: list[str] = []

    def look() -> bool:
        try:
            while True:
                got.append(udp.recv(65536).decode())
        except TimeoutError:
            return enough(got)

    until(look, "datagrams")
    return got


# -- logging's loggers ---------------------------------------------------------------------------------------


def test_the_usual_configuration(place: Place) -> None:
    """Rotating files with formatters and filters of the configuration file, for events of every process and
    for requests. Printed output goes to the errorlog. No line is written twice.
    """
    folder = place.app_folder
    (folder / "gunicorn.py").write_text(CONFIG)
    daemon = serve(place, "-c", "gunicorn.py")
    url_of(daemon)
    for path in ("/", "/health", "/print", "/errors", "/fail", "/%0aforged"):
        daemon.get(path)
    wait_for(folder / "error.log", "request_failed")
    requests = until(
        lambda: found if len(found := lines(folder / "access.log")) == 5 else None, "five requests"
    )
    assert [one["path"] for one in requests] == ["/", "/print", "/errors", "/fail", r"/\x0aforged"]
    assert '"GET /fail HTTP/1.1" 500' in str(requests[3]["text"])
    assert requests[3]["status"] == "500"
    error = (folder / "error.log").read_text()
    assert "written by the app\n" in error
    (failed,) = [json.loads(line) for line in error.splitlines() if "request_failed" in line]
    assert "the app's own mistake" in failed["trace"]
    assert failed["process"] == daemon.pids()[0]
    assert '"configuration problem=' in error  # a warning about the file itself
    printed = (folder / "output.log").read_text().splitlines()
    assert printed == ["printed", "raw", "child"]
    daemon.send(signal.SIGHUP)
    wait_for(folder / "error.log", "reload_done")
    assert daemon.stop() == 0
    assert wait_for(folder / "error.log", '"stop ').count('"serving ') == 1
    found = [json.loads(line) for line in error.splitlines() if "serving " in line]
    assert found[0]["process"] == daemon.pid
    output = (folder / "output.log").read_text()
    for name in ("serving", "reload_done", "worker_exited", "request_failed"):
        assert f'"{name}"' not in output


def test_a_mistake_in_it(place: Place) -> None:
    """At the start one line with setting and place; at a reload the old generation keeps its logs."""
    folder = place.app_folder
    bad = CONFIG.replace("logging.handlers.RotatingFileHandler", "logging.handlers.NoSuchHandler")
    (folder / "gunicorn.py").write_text(bad)
    place.add("talks.py", TALKS)
    done = place.run("-b", "127.0.0.1:0", "-c", "gunicorn.py", "talks:app")
    assert done.code == 1
    assert re.search(
        r"^ostler: error: logconfig_dict \(gunicorn.py line \d+\): .*NoSuchHandler.*$", done.err, re.MULTILINE
    )
    assert "Traceback" not in done.err
    (folder / "gunicorn.py").write_text(CONFIG)
    daemon = serve(place, "-c", "gunicorn.py")
    url_of(daemon)
    (folder / "gunicorn.py").write_text(bad)
    failed = daemon.ctl("reload")
    assert failed.code != 0
    assert "logconfig_dict" in failed.out + failed.err
    daemon.get("/after")
    assert "/after" in wait_for(folder / "access.log", "/after")


@pytest.mark.thorough
def test_a_new_fork_server_has_the_same_loggers(place: Place) -> None:
    """Lines of its workers go through the file's classes as before."""
    folder = place.app_folder
    (folder / "gunicorn.py").write_text(CONFIG)
    daemon = serve(place, "-c", "gunicorn.py")
    url_of(daemon)
    old = fork_server(daemon)
    old.send(signal.SIGKILL)
    assert old.ended()
    assert fork_server(daemon).pid != old.pid
    assert daemon.ctl("recycle", "1").code == 0
    daemon.get("/fail")
    assert '"path": "/fail"' in wait_for(folder / "access.log", "/fail")
    assert '"trace": "    Traceback' in wait_for(folder / "error.log", "request_failed")
    daemon.ctl("scale", "2")
    wait_for(folder / "error.log", "worker_ready slot=2")


@pytest.mark.thorough
def test_an_upgrade_in_place(place: Place) -> None:
    """The first lines of the new program go to the loggers of the fork server that it has taken over."""
    folder = place.app_folder
    (folder / "gunicorn.py").write_text(CONFIG)
    daemon = serve(place, "-c", "gunicorn.py")
    daemon.send(signal.SIGUSR2)
    wait_for(folder / "error.log", "upgraded version=")


def test_only_checked(place: Place) -> None:
    """A check removes the logs that it has created, and does not change existing ones."""
    folder = place.app_folder
    place.add("talks.py", TALKS)
    (folder / "gunicorn.py").write_text(CONFIG)
    (folder / "access.log").write_text("before\n")
    before = {path.name for path in folder.iterdir()}
    assert place.run("-c", "gunicorn.py", "--check-config", "talks:app").code == 0
    assert {path.name for path in folder.iterdir()} - {"__pycache__"} == before
    assert (folder / "access.log").read_text() == "before\n"


@pytest.mark.thorough
def test_a_fork_server_that_hangs(place: Place) -> None:
    """The supervisor's lines are then in its own log, each once."""
    folder = place.app_folder
    (folder / "gunicorn.py").write_text(CONFIG)
    daemon = serve(place, "-c", "gunicorn.py")
    held = fork_server(daemon)
    freeze(held)
    daemon.send(signal.SIGUSR1)
    wait_for(folder / "output.log", "logs_reopened")
    held.send(signal.SIGCONT)
    daemon.send(signal.SIGUSR1)
    wait_for(folder / "error.log", "logs_reopened")
    assert daemon.stop() == 0
    both = (folder / "error.log").read_text() + (folder / "output.log").read_text()
    assert both.count("logs_reopened") == 2


@pytest.mark.parametrize("preload", [False, *thorough(True)])
def test_the_recipe_of_apps(place: Place, preload: bool) -> None:
    """Handlers and level of `gunicorn.error` for the app's logger:
    its lines have slot and pid of the worker.
    """
    place.add(
        "recipe.py",
        "import logging\n"
        "log = logging.getLogger('app')\n"
        "error = logging.getLogger('gunicorn.error')\n"
        "log.handlers, log.level = error.handlers, error.level\n"
        "log.warning('at import')\n"
        "def app(environ, start_response):\n"
        "    log.info('asked for %s', environ['PATH_INFO'])\n"
        "    log.debug('not seen')\n"
        "    start_response('200 OK', [('Content-Length', '0')])\n"
        "    return [b'']\n",
    )
    daemon = place.start(*(["--preload"] if preload else []), "recipe:app")
    daemon.get("/a%0Ab")
    asked = daemon.event("asked for /a\nb")
    assert (asked["slot"], asked["pid"], asked["logger"]) == (1, daemon.pids()[0], "app")
    assert ("slot" in daemon.event("at import")) is not preload
    assert "not seen" not in daemon.log.read_text()


def test_configured_by_the_app(place: Place) -> None:
    """An app that gives `gunicorn.error` handlers of its own, as Django's settings may, gets the events."""
    place.add(
        "own.py",
        "import logging.config\n"
        "logging.config.dictConfig({'version': 1, 'disable_existing_loggers': True,\n"
        "    'formatters': {'f': {'format': 'OWN %(levelname)s %(message)s'}},\n"
        "    'handlers': {'h': {'class': 'logging.FileHandler', 'filename': 'own.log', 'formatter': 'f'}},\n"
        "    'loggers': {'gunicorn.error': {'handlers': ['h']}}})\n"
        "def app(environ, start_response):\n"
        "    raise RuntimeError('mistake')\n",
    )
    daemon = place.start("--access-logfile", "-", "own:app")
    daemon.get("/x")
    text = wait_for(place.app_folder / "own.log", "RuntimeError: mistake")
    assert text.startswith("OWN ERROR request_failed ")
    assert not daemon.events("request_failed")
    assert '"GET /x HTTP/1.1" 500' in until(lambda: daemon.out.read_text(), "the access log")


def test_a_file_for_logging(place: Place) -> None:
    """--log-config, with standard output as the handler."""
    (place.app_folder / "log.ini").write_text(
        "[loggers]\nkeys=root,error\n[handlers]\nkeys=h\n[formatters]\nkeys=f\n[logger_root]\nhandlers=\n"
        "[logger_error]\nqualname=gunicorn.error\nhandlers=h\nlevel=INFO\npropagate=0\n"
        "[handler_h]\nclass=StreamHandler\nargs=(sys.stdout,)\nformatter=f\n"
        "[formatter_f]\nformat=INI %(levelname)s %(message)s\n"
    )
    daemon = serve(place, "--log-config", "log.ini")
    wait_for(daemon.out, "INI INFO serving listeners=")
    assert daemon.stop() == 0
    assert daemon.log.read_text().count('"event"') <= 1  # the last field is the line's own


# -- rotation ------------------------------------------------------------------------------------------------


def test_rotation(place: Place) -> None:
    """The files are moved and USR1 is sent: access log, captured output and the files of loggers are new,
    also for workers that are forked afterwards. A file that is emptied in place continues from its beginning.
    """
    folder = place.app_folder
    (folder / "gunicorn.py").write_text(CONFIG.replace('["access_file"]', "[]") + 'accesslog = "plain.log"\n')
    daemon = serve(place, "-c", "gunicorn.py")
    url_of(daemon)
    daemon.get("/print")
    wait_for(folder / "output.log", "child")
    wait_for(folder / "plain.log", "/print")
    names = ("output.log", "plain.log", "error.log")
    for name in names:
        (folder / name).rename(folder / f"{name}.1")
    daemon.send(signal.SIGUSR1)
    wait_for(folder / "error.log", "logs_reopened")
    until(lambda: all((folder / name).exists() for name in names), "new files")
    assert daemon.ctl("scale", "2").code == 0
    assert daemon.ctl("recycle", "1").code == 0
    before = {name: (folder / f"{name}.1").read_text() for name in names}
    daemon.get("/print")
    daemon.get("/fail")
    wait_for(folder / "output.log", "printed\nraw\nchild\n")
    wait_for(folder / "plain.log", "/fail")
    wait_for(folder / "error.log", "request_failed")
    assert {name: (folder / f"{name}.1").read_text() for name in names} == before
    for name in names:
        (folder / name).write_bytes(b"")
    daemon.get("/print")
    daemon.get("/fail")
    assert wait_for(folder / "output.log", "child").startswith("printed\n")
    assert wait_for(folder / "plain.log", "/fail").startswith("127.0.0.1 ")
    assert wait_for(folder / "error.log", "request_failed").startswith("{")


@pytest.mark.thorough
def test_one_file_for_both(place: Place) -> None:
    """errorlog and accesslog may be the same file, also during a reload and a rotation."""
    folder = place.app_folder
    both = folder / "both.log"
    args = ("--error-logfile", "both.log", "--access-logfile", "both.log", "--access-logformat", "%(U)s")
    daemon = serve(place, "--capture-output", *args)
    url_of(daemon)
    for number in range(6):
        if number == 2:
            daemon.send(signal.SIGHUP)
            both.rename(folder / "both.log.1")
            daemon.send(signal.SIGUSR1)
        daemon.get(f"/n{number}")
        daemon.get("/print")
    wait_for(both, "reload_done")
    daemon.get("/fail")
    wait_for(both, "/fail\n")
    assert daemon.stop() == 0
    text = (folder / "both.log.1").read_text() + both.read_text()
    for line in text.splitlines():
        assert line[0] == "{" or re.fullmatch(r"/n\d|/print|/fail|printed|raw|child", line), line
    assert all(text.count(f"/n{number}\n") == 1 for number in range(6))
    assert text.count("printed\n") == text.count("child\n") == 6


# -- syslog and statsd ---------------------------------------------------------------------------------------


def test_syslog(place: Place, udp: socket.socket) -> None:
    """Lines of supervisor and workers and the access log go there in addition to their usual places;
    none can be forged.
    """
    address = f"udp://127.0.0.1:{udp.getsockname()[1]}"
    place.add("talks.py", TALKS)
    more = ("--log-syslog-to", address, "--log-syslog-facility", "local0")
    daemon = place.start("--log-syslog", *more, "talks:app")
    daemon.get("/fail", headers={"User-Agent": 'a"\tb'})
    got = collect(udp, lambda got: any(".access: " in line for line in got))
    pid = daemon.pids()[0]
    assert any(
        line.startswith(f"<134>gunicorn.talks.app.error: [{daemon.pid}] serving listeners=") for line in got
    )
    (failed,) = [line for line in got if "request_failed" in line]
    assert failed.startswith(f"<131>gunicorn.talks.app.error: [{pid}] request_failed slot=1 ")
    assert failed.endswith("RuntimeError: the app's own mistake\0")
    (access,) = [line for line in got if ".access: " in line]
    assert access.startswith(f"<134>gunicorn.talks.app.access: [{pid}] 127.0.0.1 - - [")
    assert access.endswith('"GET /fail HTTP/1.1" 500 22 "-" "a\\"\\x09b"\0')
    assert daemon.event("request_failed")
    assert daemon.out.read_text() == ""
    assert daemon.stop() == 0
    assert collect(udp, lambda got: any(" stopped uptime=" in line for line in got))


@pytest.mark.thorough
def test_syslog_without_the_access_log(place: Place, udp: socket.socket) -> None:
    """--disable-redirect-access-to-syslog, and a prefix of the user."""
    address = f"udp://127.0.0.1:{udp.getsockname()[1]}"
    more = ("--log-syslog-prefix", "shop", "--disable-redirect-access-to-syslog")
    place.add("talks.py", TALKS)
    daemon = place.start("--log-syslog", "--log-syslog-to", address, *more, "talks:app")
    daemon.get("/quiet")
    daemon.get("/fail")
    got = collect(udp, lambda got: any("request_failed" in line for line in got))
    assert all(line.startswith("<1") and ">gunicorn.shop.error: [" in line for line in got)


def test_a_syslog_that_is_not_there(place: Place) -> None:
    """One warning in each process, and all requests are answered."""
    place.add("talks.py", TALKS)
    daemon = place.start("--log-syslog", "--log-syslog-to", "unix:///nowhere/log", "talks:app")
    for _ in range(20):
        assert daemon.get("/").status == 200
    pid = daemon.pids()[0]
    daemon.event("syslog_unreachable", pid=pid)
    assert len([event for event in daemon.events("syslog_unreachable") if event.get("pid") == pid]) == 1


def test_statsd(place: Place, udp: socket.socket) -> None:
    """gunicorn's metrics with prefix and tags: requests and lines of workers, gauges of the supervisor."""
    host = f"127.0.0.1:{udp.getsockname()[1]}"
    more = ("--statsd-prefix", "shop", "--dogstatsd-tags", "env:test", "--enable-backlog-metric")
    place.add("talks.py", TALKS)
    daemon = place.start("-w", "2", "--statsd-host", host, *more, "talks:app")
    for _ in range(3):
        daemon.get("/")
    daemon.get("/fail")

    def total(got: list[str], name: str) -> int:
        metrics = "\n".join(got).split("\n")
        found = [
            metric.partition(":")[2] for metric in metrics if metric.startswith(f"shop.gunicorn.{name}:")
        ]
        assert all(re.fullmatch(r"\d+\|c\|@1\.0\|#env:test", one) for one in found)
        return sum(int(one.split("|")[0]) for one in found)

    def complete(got: list[str]) -> bool:
        gauges = "\n".join(got)
        return (total(got, "requests"), total(got, "log.exception")) == (4, 1) and all(
            name in gauges for name in ("workers:2", "backlog:0")
        )

    got = collect(udp, complete)
    assert (total(got, "request.status.200"), total(got, "request.status.500")) == (3, 1)
    assert total(got, "log.exception") == 1
    metrics = "\n".join(got).split("\n")
    durations = [one for one in metrics if one.startswith("shop.gunicorn.request.duration:")]
    assert len(durations) == 4
    assert all(re.fullmatch(r"[a-z.]+:\d+\.\d+\|ms\|#env:test", one) for one in durations)
    assert "shop.gunicorn.workers:2|g|#env:test" in metrics
    assert "shop.gunicorn.backlog:0|h|#env:test" in metrics
    assert daemon.out.read_text() == ""


@pytest.mark.parametrize("kind", ["gthread", "asgi", *thorough("gevent", "eventlet", "meinheld")])
def test_statsd_gets_the_last_request(place: Place, udp: socket.socket, kind: str) -> None:
    """Buffered metrics are sent although no other request comes, in each worker class."""
    if kind == "meinheld":
        pytest.importorskip("meinheld.server", reason="meinheld is not installed", exc_type=ImportError)
    host = f"127.0.0.1:{udp.getsockname()[1]}"
    daemon = place.start("-k", kind, "--statsd-host", host, "waiter:app" if kind == "asgi" else "plain:app")
    for _ in range(3):
        assert daemon.get("/").status == 200
    collect(udp, lambda got: sum(map(int, re.findall(r"status\.200:(\d+)", " ".join(got)))) == 3)


def test_a_statsd_that_is_not_there(place: Place) -> None:
    """The daemon serves as usual."""
    place.add("talks.py", TALKS)
    daemon = place.start("--statsd-host", "unix:///nowhere/statsd", "talks:app")
    for _ in range(20):
        assert daemon.get("/").status == 200
    assert daemon.stop() == 0
    assert {event["level"] for event in daemon.events()} == {"info"}


# -- the rest ------------------------------------------------------------------------------------------------


def test_unknown_atoms(place: Place) -> None:
    """One warning; in the log their value is `-`."""
    daemon = place.start("--access-logfile", "-", "--access-logformat", "%(m)s %(nope)s", "plain:app")
    daemon.get()
    assert until(lambda: daemon.out.read_text(), "a line") == "GET -\n"
    assert "%(nope)s" in daemon.event("configuration")["problem"]


def test_threads_write_whole_lines_to_wsgi_errors(place: Place) -> None:
    """Several threads write to the errorlog at the same time."""
    place.add(
        "errors.py",
        "def app(environ, start_response):\n"
        "    for number in range(50):\n"
        "        print('from', environ['PATH_INFO'], number, file=environ['wsgi.errors'])\n"
        "    start_response('200 OK', [('Content-Length', '0')])\n"
        "    return [b'']\n",
    )
    daemon = serve(place, "--threads", "4", "--error-logfile", "error.log", app="errors:app")
    url_of(daemon)
    for number in range(8):
        daemon.get(f"/{number}")
    text = wait_for(place.app_folder / "error.log", "from /7 49\n")
    found = [line for line in text.splitlines() if line.startswith("from")]
    assert len(found) == 400
    assert all(re.fullmatch(r"from /\d \d+", line) for line in found)


def test_nothing_changes_without_a_file(place: Place) -> None:
    """--capture-output with the errorlog on standard error:
    printed output stays where it was, as in gunicorn.
    """
    place.add("talks.py", TALKS)
    daemon = place.start("--capture-output", "talks:app")
    daemon.get("/print")
    until(lambda: "child\n" in daemon.out.read_text(), "the child's words")
    assert "raw\n" in daemon.log.read_text()
