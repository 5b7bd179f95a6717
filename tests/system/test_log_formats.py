"""What the logs look like: the line before the app is loaded, gunicorn's lines, JSON, logging's handlers."""

import json
import os
import re
import signal
import sys
from pathlib import Path

import pytest

from tests.kit.daemon import Daemon, Place, fork_server
from tests.kit.http_client import ask
from tests.kit.processes import freeze
from tests.kit.tiers import thorough
from tests.kit.waiting import until

pytestmark = pytest.mark.system

LINE = re.compile(r"^\[\d{4}-\d\d-\d\d \d\d:\d\d:\d\d [+-]\d{4}\] \[(\d+)\] \[([A-Z]+)\] (.*)$")

# It waits until the file `go` is there.
SLOW = """
import pathlib, time
while not pathlib.Path("go").exists():
    time.sleep(0.01)
from plain import app
"""
ASGI = """
async def app(scope, receive, send):
    if scope["type"] == "http":
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": b"one"})
"""


# -- before the app is loaded --------------------------------------------------------------------------------


@pytest.mark.parametrize("preload", [[], *thorough(["--preload"])])
def test_a_slow_import(place: Place, preload: list[str]) -> None:
    """The log names the app and the addresses before the import ends, once; a reload has no such line."""
    place.add("slow.py", SLOW)
    daemon = place.start("-w", "2", *preload, "slow:app", serving=False)
    event = daemon.event("loading")
    assert daemon.events("serving") == []
    assert (event["app"], event["worker_class"], event["pid"]) == ("slow:app", "sync", daemon.pid)
    (place.app_folder / "go").touch()
    assert daemon.event("serving")["listeners"] == event["listeners"] == daemon.url
    assert daemon.ctl("reload").code == 0
    assert len(daemon.events("loading")) == 1


# -- gunicorn's lines ----------------------------------------------------------------------------------------


def texts(path: Path) -> list[tuple[str, str]]:
    """Level and text of each line, with pids and the address left out."""
    found = []
    for line in path.read_text().splitlines():
        match = LINE.match(line)
        if match:
            text = re.sub(r"127\.0\.0\.1:\d+", "ADDRESS", match[3])
            found.append((match[2], re.sub(r"\d{2,}", "N", text)))
    return found


def has(path: Path, text: str, times: int = 1) -> None:
    until(lambda: path.read_text().count(text) >= times, f"{times} times {text!r} in {path.name}")


def test_gunicorn_s_lines(place: Place) -> None:
    """Start, more workers, reload, log rotation and end have gunicorn's lines, in its order and from its
    processes; all others have the same form.
    """
    daemon = place.start("-w", "2", "--log-format", "gunicorn", "plain:app", serving=False)
    has(daemon.log, "Booting worker with pid: ", 2)
    daemon.settled(2)
    for signum, text in (
        (signal.SIGTTIN, "Handling signal: ttin"),
        (signal.SIGUSR1, "Handling signal: usr1"),
        (signal.SIGHUP, "Hang up: Master"),
    ):
        daemon.send(signum)
        has(daemon.log, text)
    has(daemon.log, "reload_done")
    workers = daemon.pids()
    assert len(workers) == 3
    assert daemon.stop() == 0
    lines = daemon.log.read_text().splitlines()
    assert [line for line in lines if not LINE.match(line)] == []
    found = [(int(match[1]), match[3]) for line in lines if (match := LINE.match(line))]
    assert re.fullmatch(r"Starting gunicorn \(ostler [\d.]+\)", found[0][1])
    assert re.fullmatch(rf"Listening at: http://127\.0\.0\.1:\d+ \({daemon.pid}\)", found[1][1])
    assert found[2][1] == "Using worker: sync"
    assert {pid for pid, _ in found[:3]} == {daemon.pid}
    booted = [pid for pid, text in found if text == f"Booting worker with pid: {pid}"]
    exited = [pid for pid, text in found if text == f"Worker exiting (pid: {pid})"]
    assert sorted(booted) == sorted(exited)
    assert set(workers) < set(booted)
    assert found[-1] == (daemon.pid, "Shutting down: Master")
    assert found.index((daemon.pid, "Handling signal: term")) > found.index((daemon.pid, "Hang up: Master"))


def test_the_same_lines_as_gunicorn(place: Place) -> None:
    """Every line of a real gunicorn for a start and an end is in ours, in the same order."""
    pytest.importorskip("gunicorn")
    logs = []
    for argv, flags in (
        ([sys.executable, "-m", "gunicorn"], ["--no-control-socket"]),
        ([sys.executable, "-m", "ostler"], ["--log-format", "gunicorn"]),
    ):
        daemon = place.start("-w", "1", *flags, "plain:app", argv=argv, serving=False)
        has(daemon.log, "Booting worker with pid: ")
        address = re.search(r"http://127\.0\.0\.1:\d+", daemon.log.read_text())
        assert address is not None
        assert until(lambda url=address[0]: ask(url).text, "an answer") == "one"
        assert daemon.stop() == 0
        logs.append([(level, re.sub(r"gunicorn .*", "gunicorn", text)) for level, text in texts(daemon.log)])
    theirs, ours = logs
    assert ("INFO", "Worker exiting (pid: N)") in theirs
    assert [line for line in ours if line in theirs] == theirs


def test_killed_and_overdue(place: Place) -> None:
    """A killed worker and a request over its time have the lines that monitoring looks for."""
    daemon = place.start("--log-format", "gunicorn", "-t", "1", "plain:app", serving=False)
    (worker,) = daemon.settled(1)
    url_of(daemon)
    daemon.connect().asked("/gate/never")
    has(daemon.log, f"[CRITICAL] WORKER TIMEOUT (pid:{worker.pid})")
    daemon.close_connections()
    (killed,) = daemon.settled(1)
    os.kill(killed.pid or 0, signal.SIGKILL)
    has(daemon.log, f"[ERROR] Worker (pid:{killed.pid}) was sent SIGKILL! Perhaps out of memory?")


def url_of(daemon: Daemon) -> None:
    """The daemon's address from its status, for logs that have no event for it."""
    daemon.urls = list(daemon.status().listeners)


# -- the access log as JSON ----------------------------------------------------------------------------------


@pytest.mark.parametrize("flag", ["--access-logformat", *thorough("--access-log-format")])
@pytest.mark.parametrize("kind", ["sync", "gevent", "asgi", *thorough("gthread", "eventlet")])
def test_json_access_log(place: Place, kind: str, flag: str) -> None:
    """One object per line in each worker class; what a client sends can't forge one."""
    place.add("hello.py", ASGI)
    app = "hello:app" if kind == "asgi" else "plain:app"
    daemon = place.start("-k", kind, "--access-logfile", "-", flag, "json", app)
    agent = 'x"}\\ {"event": "forged"}'
    assert daemon.get("/a%20b?q=1", headers={"User-Agent": agent, "Referer": "caf\xe9"}).text == "one"
    first = json.loads(until(lambda: daemon.out.read_text().splitlines(), "a line")[0])
    assert (first["method"], first["path"], first["query"]) == ("GET", "/a%20b", "q=1")
    assert (first["status"], first["bytes_sent"], first["event"]) == (200, 3, "access")
    assert (first["remote_addr"], first["user_agent"]) == ("127.0.0.1", agent)
    assert first["referer"] == "caf\\xe9"
    assert 0 <= first["duration"] < 60


# -- logging's handlers --------------------------------------------------------------------------------------

CONFIG = """
import logging
logconfig_dict = {
    "version": 1,
    "disable_existing_loggers": False,
    "formatters": {"f": {"format": "<%(process)d %(levelname)s %(message)s>"}},
    "handlers": {
        "out": {"class": "logging.StreamHandler", "formatter": "f", "stream": "ext://sys.stdout"},
        "late": {
            "class": "logging.handlers.MemoryHandler", "capacity": 1000, "flushLevel": 100, "target": "out",
        },
    },
    "root": {"level": "INFO", "handlers": ["out"]},
    "loggers": {
        "gunicorn.error": {"level": "INFO", "handlers": ["out"], "propagate": False},
        "buffered": {"level": "INFO", "handlers": ["late"], "propagate": False},
    },
}
def on_starting(server):
    server.log.info("starting\\n  'verbatim' %s", "100%")
    logging.getLogger("buffered").info("buffered at the start")
def pre_fork(server, worker):
    print("<printed before a fork>")
    logging.getLogger("buffered").info("buffered before a fork")
def worker_exit(server, worker):
    worker.log.info("worker says\\nbye")
    logging.getLogger("buffered").info("buffered in a worker")
def on_exit(server):
    server.log.info("on exit")
    logging.getLogger("buffered").info("buffered on exit")
"""
TALKS = """
import logging
logging.getLogger("app").warning("imported")
def app(environ, start_response):
    logging.getLogger("gunicorn.error").error("first\\n second %s", environ["PATH_INFO"])
    start_response("200 OK", [])
    return [b"one"]
async def asgi(scope, receive, send):
    if scope["type"] == "http":
        logging.getLogger("gunicorn.error").error("first\\n second %s", scope["path"])
        await send({"type": "http.response.start", "status": 200})
        await send({"type": "http.response.body", "body": b"one"})
"""


@pytest.mark.parametrize("log_format", ["auto", *thorough("gunicorn")])
@pytest.mark.parametrize("kind", ["sync", "gevent", "asgi", *thorough("gthread", "eventlet")])
def test_every_message_arrives_once(place: Place, kind: str, log_format: str) -> None:
    """Through logconfig_dict every message of app, hooks and daemon arrives verbatim and once: the first and
    the last line of the daemon, those of several lines, those that a handler has buffered when its process
    ends or is forked. Nothing is on standard error.
    """
    place.add("conf.py", CONFIG)
    place.add("talks.py", TALKS)
    app = "talks:asgi" if kind == "asgi" else "talks:app"
    flags = ["-w", "2", "-k", kind, "--log-format", log_format]
    daemon = place.start(*flags, "-c", "conf.py", app, serving=False)
    daemon.settled(2)
    url_of(daemon)
    assert daemon.get("/here").text == "one"
    assert daemon.stop() == 0
    out = daemon.out.read_text()
    messages = re.findall(r"<(?:\d+ ([A-Z]+) )?(.*?)>\n", out, re.DOTALL)
    assert "".join(match[0] for match in re.finditer(r"<.*?>\n", out, re.DOTALL)) == out
    counts = {
        ("INFO", "starting\n  'verbatim' 100%"): 1,
        ("INFO", "buffered at the start"): 1,
        ("", "printed before a fork"): 2,
        ("INFO", "buffered before a fork"): 2,
        ("WARNING", "imported"): 2,
        ("ERROR", "first\n second /here"): 1,
        ("INFO", "worker says\nbye"): 2,
        ("INFO", "buffered in a worker"): 2,
        ("INFO", "on exit"): 1,
        ("INFO", "buffered on exit"): 1,
    }
    assert {message: messages.count(message) for message in counts} == counts
    own = [text for level, text in messages if (level, text) not in counts and level != "WARNING"]
    if log_format == "gunicorn":
        assert own[0].startswith("Starting gunicorn ")
        assert own[-1] == "Shutting down: Master"
    else:
        assert own[0].startswith(f"loading app={app} ")
        assert own[-1].startswith("stopped uptime=")
        assert [text.split()[0] for text in own].count("stopped") == 1
    assert len(own) == len(set(own))
    assert daemon.log.read_text() == ""


def test_a_fork_server_that_is_slow_at_the_end(place: Place) -> None:
    """It is stopped while the daemon ends, and goes on later: no line is logged twice, none is lost."""
    place.add("conf.py", CONFIG)
    place.add("talks.py", TALKS)
    daemon = place.start("-c", "conf.py", "talks:app", serving=False)
    daemon.settled(1)
    server = fork_server(daemon)
    freeze(server)
    daemon.send(signal.SIGUSR1)
    has(daemon.log, "logs_reopened")
    server.send(signal.SIGCONT)
    assert daemon.stop() == 0
    both = daemon.out.read_text() + daemon.log.read_text()
    assert both.count("logs_reopened") == 1
    assert both.count("stopped uptime=") + both.count('"stopped"') == 1
