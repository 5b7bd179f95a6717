"""What hooks build at a start is there in each fork server: after reloads, deaths, reforks and upgrades."""

import errno
import json
import signal
import socket
from pathlib import Path

import pytest

from tests.kit.daemon import Daemon, Place, fork_server
from tests.kit.http_client import ask
from tests.kit.processes import Process, title
from tests.kit.tiers import thorough

pytestmark = pytest.mark.system

CONF = """\
import logging, os

class NoHealthChecks(logging.Filter):
    def filter(self, record):
        return "/healthz" not in record.getMessage()

def on_starting(server):
    server.names = ["on_starting"]
    os.environ["SHOP_STARTED"] = "yes"
    logging.getLogger("gunicorn.access").addFilter(NoHealthChecks())

def nworkers_changed(server, new, old):
    server.number = new

def when_ready(server):
    server.names.append("when_ready")

def pre_fork(server, worker):
    worker.names = [*server.names, server.number]

def post_fork(server, worker):
    os.environ["SHOP_NAMES"] = " ".join(map(str, worker.names))
"""
APP = """\
import json, os
def app(environ, start_response):
    body = json.dumps([os.environ.get("SHOP_STARTED"), os.environ.get("SHOP_NAMES")]).encode()
    start_response("200 OK", [("Content-Length", str(len(body)))])
    return [body]
"""
QUICK = ("--canary-time", "0", "--probation", "0")


@pytest.mark.parametrize("how", ["reload", *thorough("restart", "refork", "upgrade")])
def test_state_is_there(place: Place, how: str) -> None:
    """Attributes of server, variables, filters of the access log; twice, and the log has no complaint."""
    place.add("conf.py", CONF)
    place.add("shop.py", APP)
    log = ("--access-logfile", "access.log")
    daemon = place.start("-w", "2", "-c", "conf.py", *QUICK, *log, "shop:app")
    for number in range(3):
        if number:
            change(daemon, how)
        daemon.settled(2)
        for _ in range(4):
            assert json.loads(daemon.get("/order").text) == ["yes", "on_starting when_ready 2"]
        assert daemon.get("/healthz").status == 200
    assert [event for event in daemon.events() if event["event"].startswith("hook")] == []
    assert daemon.stop() == 0
    lines = (place.app_folder / "access.log").read_text().splitlines()
    assert len(lines) == 12
    assert not any("/healthz" in line for line in lines)


def change(daemon: Daemon, how: str) -> None:
    """Have all workers replaced by those of another fork server."""
    before = {worker.pid for worker in daemon.settled(2)}
    if how == "restart":
        server = fork_server(daemon)
        server.send(signal.SIGKILL)
        assert server.ended()
        daemon.until(lambda: fork_server(daemon).pid != server.pid, "another fork server")
        for pid in before:
            assert pid is not None
            Process(pid).send(signal.SIGTERM)
    else:
        assert daemon.ctl(how).code == 0
    daemon.until(lambda: not before & set(daemon.pids()), "other workers")


METRICS = """\
import http.server, os, threading
from pathlib import Path

PORT = Path(__file__).with_name("port")

class Handler(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        self.send_response(200)
        self.end_headers()
        self.wfile.write(str(os.getpid()).encode())
    def log_message(self, *args): pass

def when_ready(server):
    port = {port}
    try:
        beside = http.server.HTTPServer(("127.0.0.1", port), Handler)
    except OSError:
        {failure}
    PORT.write_text(str(beside.server_port))
    threading.Thread(target=beside.serve_forever, daemon=True).start()
"""
FIXED = "int(PORT.read_text()) if PORT.exists() else 0"


def served_by(place: Place) -> str:
    port = Path(place.app_folder / "port").read_text()
    return ask(f"http://127.0.0.1:{port}").text


def refuses(port: int) -> bool:
    with socket.socket() as sock:
        return sock.connect_ex(("127.0.0.1", port)) == errno.ECONNREFUSED


@pytest.mark.thorough
@pytest.mark.parametrize("failure", ["raise", *thorough("return")])
def test_a_port_that_is_taken(place: Place, failure: str) -> None:
    """Whether the hook says so or not: what the first fork server has started goes on."""
    place.add("conf.py", METRICS.format(port=FIXED, failure=failure))
    place.add("shop.py", APP)
    daemon = place.start("-w", "1", "-c", "conf.py", *QUICK, "shop:app")
    daemon.settled(1)
    first = served_by(place)
    for _ in range(2):
        assert daemon.ctl("reload").code == 0
        daemon.until(lambda: title(int(first)).startswith("ostler: hooks"), "it only runs what hooks started")
        assert served_by(place) == first
    failed = daemon.events("hook_failed")
    assert [event["level"] for event in failed] == (["warning"] * 2 if failure == "raise" else [])
    assert daemon.stop() == 0


@pytest.mark.thorough
def test_work_of_each_generation(place: Place) -> None:
    """If the new fork server has started the same, the old one ends with its generation."""
    place.add("conf.py", METRICS.format(port="0", failure="raise"))
    place.add("shop.py", APP)
    daemon = place.start("-w", "1", "-c", "conf.py", *QUICK, "shop:app")
    daemon.settled(1)
    for _ in range(2):
        before = Process(int(served_by(place)))
        assert daemon.ctl("reload").code == 0
        assert before.ended()
        assert served_by(place) == str(fork_server(daemon).pid)
    assert daemon.stop() == 0


def test_a_candidate_that_fails(place: Place) -> None:
    """What it has started ends with it; what the old generation has started goes on."""
    place.add("conf.py", METRICS.format(port="0", failure="raise"))
    place.add("shop.py", APP)
    daemon = place.start("-w", "1", "-c", "conf.py", *QUICK, "shop:app")
    daemon.settled(1)
    first = served_by(place)
    port = (place.app_folder / "port").read_text()
    place.add("shop.py", "raise ValueError('not today')")
    assert daemon.ctl("reload").code != 0
    second = int((place.app_folder / "port").read_text())
    assert second != int(port)
    daemon.until(lambda: refuses(second), "the candidate has ended")
    assert ask(f"http://127.0.0.1:{port}").text == first
    assert daemon.stop() == 0
