"""Command lines and configuration files of gunicorn users, run unchanged except for the command's name.

All of them use port 8000, which only one test at a time could have. Where a command line names it, port 0 is
written in its place; where it does not, GUNICORN_CMD_ARGS sets it, and the line stays unchanged.
"""

import json
import math
import re
import shlex
import shutil
import signal
import subprocess
from pathlib import Path

import pytest

from tests.kit.daemon import Daemon, Place
from tests.kit.http_client import ask
from tests.kit.load import Load
from tests.kit.processes import Process
from tests.kit.tiers import thorough
from tests.kit.waiting import until

pytestmark = pytest.mark.system

ORDER = json.dumps({"customer": "a", "items": [{"name": "b", "count": 3}] * 10}).encode()
JSON = {"Content-Type": "application/json"}
# Requests of each kind in a test: a few for each of 100 connections.
MANY = 300

# GET / and POST /orders, which takes and gives JSON.
APP = """
import json
import os
import threading

def app(environ, start_response):
    if environ["REQUEST_METHOD"] == "POST":
        order = json.loads(environ["wsgi.input"].read(int(environ["CONTENT_LENGTH"])))
        count = sum(item["count"] for item in order["items"])
        body, kind = json.dumps({"count": count}).encode(), "application/json"
    elif environ["PATH_INFO"] == "/pid":
        body, kind = str(os.getpid()).encode(), "text/plain"
    elif environ["PATH_INFO"] == "/threads":
        body, kind = str(threading.active_count()).encode(), "text/plain"
    else:
        body, kind = b"hello", "text/plain"
    start_response("200 OK", [("Content-Type", kind), ("Content-Length", str(len(body)))])
    return [body]

application = app

def create_app():
    return app
"""
FLASK = """
from flask import Flask, request

app = Flask(__name__)

@app.get("/")
def index():
    return "hello"

@app.post("/orders")
def orders():
    return {"count": sum(item["count"] for item in request.get_json()["items"])}
"""
ASGI = """
async def app(scope, receive, send):
    if scope["type"] == "lifespan":
        while True:
            message = await receive()
            await send({"type": message["type"] + ".complete"})
            if message["type"] == "lifespan.shutdown":
                return
    await send({"type": "http.response.start", "status": 200, "headers": [(b"content-length", b"5")]})
    await send({"type": "http.response.body", "body": b"hello"})
"""

FILE_A = """
workers = 2
timeout = 60
bind = '0.0.0.0:9501'
worker_class = 'gevent'
worker_connections = 1000
max_requests = 50000
max_requests_jitter = 2
"""
FILE_B = """
import multiprocessing

preload_app = True
workers = multiprocessing.cpu_count() * 2 + 1
threads = multiprocessing.cpu_count() * 2
backlog = 2048
worker_class = "WORKER_CLASS"
worker_connections = 1200
proc_name = 'gunicorn.pid'
pidfile = 'app_run.log'
loglevel = 'debug'
logfile = 'debug.log'
accesslog = 'access.log'
access_log_format = '%(h)s %(t)s %(U)s %(q)s'
"""
FILE_C = """
import gevent.monkey
gevent.monkey.patch_all()

import multiprocessing
import os

if not os.path.exists('log'):
    os.mkdir('log')

debug = True
loglevel = 'debug'
bind = '0.0.0.0:5000'
pidfile = 'log/gunicorn.pid'
capture_output = True
daemon = True
reload = True
workers = multiprocessing.cpu_count()
worker_class = 'gevent'
x_forwarded_for_header = 'X-FORWARDED-FOR'
logconfig_dict = {
    'version': 1,
    'disable_existing_loggers': False,
    'loggers': {
        'gunicorn.error': {
            'level': 'INFO',
            'handlers': ['error_file'],
            'propagate': False,
            'qualname': 'gunicorn.error',
        },
        'gunicorn.access': {
            'level': 'INFO',
            'handlers': ['access_file'],
            'propagate': False,
            'qualname': 'gunicorn.access',
        },
    },
    'handlers': {
        'error_file': {
            'class': 'logging.handlers.RotatingFileHandler',
            'maxBytes': 1024 * 1024 * 100,
            'backupCount': 5,
            'formatter': 'generic',
            'filename': 'log/error.log',
        },
        'access_file': {
            'class': 'logging.handlers.RotatingFileHandler',
            'maxBytes': 1024 * 1024 * 100,
            'backupCount': 5,
            'formatter': 'access',
            'filename': 'log/access.log',
        },
    },
    'formatters': {
        'generic': {
            'format': '%(asctime)s [%(process)d] [%(levelname)s] %(message)s',
            'datefmt': '[%Y-%m-%d %H:%M:%S %z]',
            'class': 'logging.Formatter',
        },
        'access': {
            'format': '%(asctime)s %(message)s',
            'class': 'logging.Formatter',
        },
    },
}
"""


@pytest.fixture
def apps(place: Place) -> Place:
    for name in ("server.py", "run.py", "myapp.py", "app.py", "config/wsgi.py"):
        place.add(name, APP)
    place.add("flask_server.py", FLASK)
    place.add("main.py", APP)
    return place


def typed(place: Place, line: str, **environ: str) -> Daemon:
    """The arguments that a shell makes of a command line; see the module."""
    program, *args = shlex.split(re.sub(r":8000\b", ":0", line))
    assert program == "ostler"
    if not re.search(r"(^|\s)(-b|--bind)\b|(^|\s)-c\b", line):
        environ["GUNICORN_CMD_ARGS"] = "--bind 127.0.0.1:0"
    return place.start(*args, bind=None, **environ)


def needs(line: str) -> None:
    """Skip where a worker class's package is not installed."""
    for package, module in (("gevent", "gevent"), ("meinheld", "meinheld.server"), ("uvicorn", "uvicorn")):
        if package in line:
            pytest.importorskip(module, reason=f"{package} is not installed", exc_type=ImportError)
    if "flask" in line:
        pytest.importorskip("flask", reason="Flask is not installed")


def is_good_under_load(daemon: Daemon, post: bool = True) -> None:
    """Many requests on 100 connections, GET and POST, are all answered; no worker ends."""
    loads = [Load(daemon.address, rate=math.inf, connections=100, requests=MANY)]
    if post:
        loads.append(
            Load(
                daemon.address,
                path="/orders",
                headers=JSON,
                body=ORDER,
                rate=math.inf,
                connections=10,
                requests=MANY,
            )
        )
    for load in loads:
        load.run()
        report = load.report()
        assert report.failed == 0, report.summary()
    assert daemon.get().text == "hello"
    if post:
        answer = daemon.get("/orders", method="POST", body=ORDER, headers=JSON)
        assert json.loads(answer.body) == {"count": 30}
    assert daemon.status().totals.deaths == 0


MEINHELD = (
    'ostler --workers=9 --worker-class="meinheld.gmeinheld.MeinheldWorker" server:app --bind 127.0.0.1:8000'
)
LINES = {
    "ostler --workers=9 server:app --bind 127.0.0.1:8000": (9, "sync", 1),
    "ostler --workers=5 --threads=2 run:app": (5, "gthread", 2),
    "ostler --workers=3 --threads=3 run:app": (3, "gthread", 3),
    "ostler --worker-class=gevent --worker-connections=1000 --workers=3 run:app": (3, "gevent", 1),
    "ostler -w 8 --bind 0.0.0.0:8000 -k 'gevent' flask_server:app": (8, "gevent", 1),
    MEINHELD: (9, "meinheld", 1),
    "ostler -k gevent -w 4 myapp:app": (4, "gevent", 1),
    "ostler --timeout 120 myapp:app": (1, "sync", 1),
    "ostler --keep-alive 5 myapp:app": (1, "sync", 1),
}


USUAL = [
    "ostler --workers=9 server:app --bind 127.0.0.1:8000",
    "ostler --workers=3 --threads=3 run:app",
    "ostler -w 8 --bind 0.0.0.0:8000 -k 'gevent' flask_server:app",
    MEINHELD,
]


@pytest.mark.parametrize(
    ("line", "wanted"),
    [
        pytest.param(*row, id=row[0], marks=() if row[0] in USUAL else pytest.mark.thorough)
        for row in LINES.items()
    ],
)
def test_command_lines(apps: Place, line: str, wanted: tuple[int, str, int]) -> None:
    """There are as many workers of the class as the line says, and all requests under load are answered."""
    needs(line)
    daemon = typed(apps, line)
    workers, kind, threads = wanted
    daemon.settled(workers)
    status = daemon.status()
    assert (status.worker_class, status.threads) == (kind, threads)
    is_good_under_load(daemon)
    assert daemon.stop() == 0


def test_timeout_and_keep_alive(apps: Place) -> None:
    """The time-out and keep-alive of the two lines above have their effect."""
    assert "timeout = 120.0 " in shown(apps, "ostler --timeout 120 myapp:app")
    assert "keepalive = 5.0 " in shown(apps, "ostler --keep-alive 5 myapp:app")


def shown(place: Place, line: str) -> str:
    """The settings in force, with single spaces."""
    done = place.run("--print-config", *shlex.split(line)[1:])
    assert done.code == 0, done.err
    return re.sub(r" +", " ", done.out)


# -- configuration files ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "line", ["ostler -c gunicorn.py run:app", *thorough("ostler -c gunicorn_config.py flask_server:app")]
)
def test_file_a(apps: Place, line: str) -> None:
    """Numbers, a worker class, an address on all interfaces."""
    needs(f"gevent {line}")
    apps.add(shlex.split(line)[2], FILE_A.replace("9501", "0"))
    daemon = typed(apps, line)
    daemon.settled(2)
    assert daemon.url.startswith("http://0.0.0.0:")
    assert daemon.status().worker_class == "gevent"
    is_good_under_load(daemon)
    assert daemon.stop() == 0


@pytest.mark.thorough
@pytest.mark.parametrize("kind", ["gevent", *thorough("egg:meinheld#gunicorn_worker")])
def test_file_b(apps: Place, kind: str) -> None:
    """Preload, computed numbers, misleading file names, an obsolete name; none of it prevents the start."""
    needs(kind)
    apps.add("gunicorn.py", FILE_B.replace("WORKER_CLASS", kind))
    daemon = apps.start("-c", "gunicorn.py", "run:app", serving=False)
    address = daemon.event("serving")["listeners"]
    assert str(address).startswith("http://127.0.0.1:")
    daemon.settled(daemon.status().wanted)
    assert (apps.app_folder / "app_run.log").read_text().strip() == str(daemon.pid)
    warned = [event for event in daemon.events("configuration") if "logfile" in str(event)]
    assert warned, "logfile is no setting any more, and the log says so"
    is_good_under_load(daemon)
    daemon.get("/?a=b")
    log = apps.app_folder / "access.log"
    line = re.compile(r"^127\.0\.0\.1 \[.*\] / a=b$", re.MULTILINE)
    daemon.until(lambda: line.search(log.read_text()), "the access log, in the format of the file")
    assert daemon.stop() == 0
    assert not (apps.app_folder / "app_run.log").exists()


@pytest.mark.thorough
def test_file_c(apps: Place) -> None:
    """Monkey-patching in the file, daemon, reload, obsolete names, loggers of logging, all at once."""
    needs("gevent")
    apps.add("gunicorn.py", FILE_C.replace("5000", "0"))
    done = apps.run("-c", "gunicorn.py", "run:app")
    assert done.code == 0, done.err
    pid = int(until(lambda: read(apps.app_folder / "log" / "gunicorn.pid"), "the pid file"))
    process = Process(pid)
    try:
        error = apps.app_folder / "log" / "error.log"
        serving = re.compile(r" \[INFO\] serving .*http://0\.0\.0\.0:(\d+)")
        found = until(lambda: serving.search(read(error)), "the start in the error log, by its logger")
        port = int(found[1])
        url = f"http://127.0.0.1:{port}"
        assert ask(url).status == 200
        for path, body in (("/", None), ("/orders", ORDER)):
            load = Load(
                ("127.0.0.1", port),
                path=path,
                headers=JSON,
                body=body,
                rate=math.inf,
                connections=100,
                requests=MANY,
            )
            load.run()
            assert load.report().failed == 0, load.report().summary()
        access = apps.app_folder / "log" / "access.log"
        until(lambda: "POST /orders" in read(access), "the access log, by its logger")
        apps.add("run.py", APP.replace('b"hello"', 'b"changed"'))
        until(lambda: ask(url).text == "changed", "the app is loaded again when it changes")
    finally:
        process.send(signal.SIGTERM)
        assert process.ended()
    until(lambda: not apps.leftovers(), "nothing is left")


def read(path: Path) -> str:
    return path.read_text() if path.exists() else ""


# -- other people's tools --------------------------------------------------------------------------------


@pytest.mark.thorough
@pytest.mark.parametrize(
    "line",
    [
        "ostler --workers=9 server:app --bind 127.0.0.1:8000",
        "ostler -w 8 --bind 0.0.0.0:8000 -k 'gevent' flask_server:app",
        MEINHELD,
    ],
)
@pytest.mark.parametrize("tool", ["ab", "wrk"])
def test_load_by(apps: Place, tool: str, line: str) -> None:
    """`ab -c 10 -n 1000 -p post.txt -T application/json` and `wrk -c100 -t12` find nothing wrong."""
    if shutil.which(tool) is None:
        pytest.skip(f"{tool} is not installed")
    needs(line)
    daemon = typed(apps, line)
    post = apps.add("post.txt", ORDER.decode())
    url = f"http://127.0.0.1:{daemon.port}/"
    commands = {
        "ab": ["ab", "-c", "10", "-n", "1000", "-p", str(post), "-T", "application/json", f"{url}orders"],
        "wrk": ["wrk", "-c100", "-t12", "-d2", url],
    }
    done = subprocess.run(commands[tool], capture_output=True, text=True, check=False, timeout=60)
    assert done.returncode == 0, done.stdout + done.stderr
    if tool == "ab":
        assert re.search(r"Complete requests: +1000\b", done.stdout), done.stdout
        assert re.search(r"Failed requests: +0\b", done.stdout), done.stdout
    else:
        assert re.search(r"\d+ requests in", done.stdout), done.stdout
        assert "Socket errors" not in done.stdout, done.stdout
    assert "Non-2xx" not in done.stdout, done.stdout
    assert daemon.status().totals.deaths == 0


# -- where command lines stand ---------------------------------------------------------------------------


@pytest.mark.thorough
def test_procfile(apps: Place) -> None:
    """`web: gunicorn app:app --log-file -`: the platform sets the port, and the log goes to stderr."""
    daemon = apps.start(*shlex.split("app:app --log-file -"), bind=None, PORT="0")
    assert daemon.url.startswith("http://0.0.0.0:")
    assert daemon.get().text == "hello"


def test_dockerfile_of_cloud_run(apps: Place) -> None:
    """`--bind 0.0.0.0:$PORT --workers 1 --threads 8 --timeout 0`: eight threads, and no time-out."""
    daemon = typed(apps, "ostler --bind 0.0.0.0:0 --workers 1 --threads 8 --timeout 0 main:app")
    status = daemon.status()
    assert (status.wanted, status.threads) == (1, 8)
    daemon.until(lambda: int(daemon.get("/threads").text) >= 8, "all threads run")


@pytest.mark.thorough
def test_unit_of_django(apps: Place) -> None:
    """A dotted module; logs on standard streams, which capture_output does not change, as in gunicorn."""
    apps.add("config/__init__.py", "")
    apps.add("config/wsgi.py", APP + "\nprint('printed by the app')\n")
    daemon = typed(
        apps,
        "ostler config.wsgi -b 0.0.0.0:8000 --access-logfile - --error-logfile - --capture-output",
    )
    assert daemon.get("/pid").status == 200
    daemon.until(lambda: '"GET /pid HTTP/1.1" 200' in daemon.out.read_text(), "the access log on stdout")
    assert "printed by the app" in daemon.out.read_text()
    assert "printed by the app" not in daemon.log.read_text()


def test_factory(apps: Place) -> None:
    """`'app:create_app()'`: the app is what the call returns."""
    assert typed(apps, "ostler 'app:create_app()'").get().text == "hello"


def test_uvicorn_worker(apps: Place) -> None:
    """`-k uvicorn.workers.UvicornWorker main:app`: an ASGI app."""
    needs("uvicorn")
    apps.add("main.py", ASGI)
    daemon = typed(apps, "ostler -k uvicorn.workers.UvicornWorker main:app")
    assert daemon.status().worker_class == "asgi"
    is_good_under_load(daemon, post=False)


def test_web_concurrency(apps: Place) -> None:
    """Platforms set the number of workers in the environment; the command line has precedence."""
    typed(apps, "ostler app:app", WEB_CONCURRENCY="2").settled(2)
    typed(apps, "ostler -w 3 app:app", WEB_CONCURRENCY="2").settled(3)
