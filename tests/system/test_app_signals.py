"""Signals and forks of the app: its SIGTERM handler, SIGCHLD, atexit, and forks within a request."""

import signal
from importlib.util import find_spec

import pytest

from tests.kit.daemon import Daemon, Place, fork_server
from tests.kit.processes import Process
from tests.kit.tiers import thorough
from tests.kit.waiting import until

pytestmark = pytest.mark.system

WSGI = """\
import atexit, os, signal, sys, time
from pathlib import Path
{more}

def note(word):
    with open("notes", "a") as file:
        file.write(f"{{word}} {{os.getpid()}}\\n")

def app(environ, start_response):
    path = environ["PATH_INFO"]
    answer = str(os.getpid())
    if path == "/wait":
        while not Path("go").exists():
            time.sleep(0.01)
    elif path == "/fork":
        pid = os.fork()
        if pid:
            answer = str(pid)
    start_response("200 OK", [("Content-Length", str(len(answer)))])
    return [answer.encode()]
"""
ASGI = """\
import atexit, asyncio, os, signal, sys, time
from pathlib import Path
{more}

def note(word):
    with open("notes", "a") as file:
        file.write(f"{{word}} {{os.getpid()}}\\n")

async def app(scope, receive, send):
    assert scope["type"] == "http"
    path = scope["path"]
    answer = str(os.getpid())
    if path == "/wait":
        while not Path("go").exists():
            await asyncio.sleep(0.01)
    elif path == "/fork":
        pid = os.fork()
        if pid:
            answer = str(pid)
    await send({{"type": "http.response.start", "status": 200,
        "headers": [(b"content-length", str(len(answer)).encode())]}})
    await send({{"type": "http.response.body", "body": answer.encode()}})
"""
CLASSES = ["gthread", "asgi", *thorough("sync", "gevent", "eventlet", "meinheld")]
AT_EXIT = "atexit.register(lambda: note('exit'))"
HANDLER = """
def on_term(signum, frame):
    note("term")
    sys.exit(0)
signal.signal(signal.SIGTERM, on_term)
"""


def begin(place: Place, kind: str, *args: str, more: str = "") -> Daemon:
    if kind in ("gevent", "eventlet", "meinheld") and find_spec(kind) is None:
        pytest.skip(f"{kind} is not installed")
    place.add("signals_app.py", (ASGI if kind == "asgi" else WSGI).format(more=more))
    extra = ("--threads", "2") if kind == "gthread" else ()
    quick = ("--canary-time", "0", "--probation", "0")
    daemon = place.start("-w", "1", "-k", kind, *extra, *quick, *args, "signals_app:app")
    daemon.settled(1)
    return daemon


def notes(place: Place) -> list[str]:
    path = place.app_folder / "notes"
    return path.read_text().splitlines() if path.exists() else []


@pytest.mark.parametrize("preload", [(), *thorough((("--preload",),))])
@pytest.mark.parametrize("kind", CLASSES)
def test_the_apps_sigterm_handler(place: Place, kind: str, preload: tuple[str, ...]) -> None:
    """It is called when its worker begins to drain, at a reload and at a stop; requests are answered."""
    daemon = begin(place, kind, *preload, more=HANDLER)
    (first,) = daemon.pids()
    slow = daemon.connect().asked("/wait")
    daemon.in_app("/wait")
    assert daemon.ctl("reload", "--no-wait").code == 0
    daemon.until(lambda: daemon.get("/").text != str(first), "the new generation")
    (place.app_folder / "go").touch()
    assert slow.answer().text == str(first)
    daemon.until(lambda: f"term {first}" in notes(place), "the handler was called")
    daemon.close_connections()
    daemon.settled(1)
    (second,) = daemon.pids()
    assert daemon.stop() == 0
    assert notes(place) == [f"term {first}", f"term {second}"]
    assert {event["status"] for event in daemon.events("worker_exited")} == {"exit code 0"}


@pytest.mark.parametrize("kind", thorough("sync", "gthread", "asgi", "gevent", "eventlet", "meinheld"))
def test_a_handler_that_raises_keyboardinterrupt(place: Place, kind: str) -> None:
    """At a stop, too, the request that runs is answered, in its own thread or in another one."""
    daemon = begin(place, kind, more=HANDLER.replace("sys.exit(0)", "raise KeyboardInterrupt"))
    slow = daemon.connect().asked("/wait")
    daemon.in_app("/wait")
    daemon.send(signal.SIGTERM)
    if kind not in ("sync", "meinheld"):  # there the message is read when the request has ended
        daemon.until(lambda: notes(place), "the handler was called")
    (place.app_folder / "go").touch()
    assert slow.answer().status == 200
    daemon.close_connections()
    assert daemon.wait() == 0
    assert daemon.event("worker_exited")["status"] == "exit code 0"


@pytest.mark.parametrize("where", ["conf", *thorough("preload", "import")])
def test_sigchld_is_ignored(place: Place, where: str) -> None:
    """User code that ignores SIGCHLD stops neither the start nor a reload, and ends are seen."""
    ignore = "\nimport signal\nsignal.signal(signal.SIGCHLD, signal.SIG_IGN)\n"
    place.add("conf.py", ignore if where == "conf" else "")
    preload = ("--preload",) if where == "preload" else ()
    daemon = begin(place, "sync", *preload, "-c", "conf.py", more=ignore if where != "conf" else "")
    victim = Process(daemon.pids()[0])
    victim.send(signal.SIGKILL)
    assert daemon.event("worker_died")["status"] == "signal 9"
    daemon.settled(1)
    assert daemon.ctl("reload").code == 0
    assert daemon.get("/").status == 200
    assert daemon.stop() == 0


@pytest.mark.parametrize("kind", CLASSES)
def test_a_request_that_forks(place: Place, kind: str) -> None:
    """The view returns in both processes: the client gets one answer, and the child ends."""
    daemon = begin(place, kind)
    (worker,) = daemon.pids()
    for _ in range(3):
        child = int(daemon.get("/fork").text)
        assert child != worker
        daemon.until(lambda child=child: is_gone(child), "the child has ended")
    for _ in range(10):
        assert daemon.get("/").text == str(worker)
    daemon.counted(requests=13)
    assert daemon.stop() == 0


def is_gone(pid: int) -> bool:
    try:
        process = Process(pid)
    except ProcessLookupError:
        return True
    return process.ended(1)


@pytest.mark.parametrize("preload", [(), *thorough((("--preload",),))])
@pytest.mark.parametrize("kind", CLASSES)
def test_atexit(place: Place, kind: str, preload: tuple[str, ...]) -> None:
    """A worker runs the app's atexit functions once at its end, at a reload and at a stop; a fork server that
    only preloaded the app does not.
    """
    daemon = begin(place, kind, *preload, more=AT_EXIT)
    (first,) = daemon.pids()
    assert daemon.ctl("reload").code == 0
    (second,) = [worker.pid for worker in daemon.settled(1)]
    assert first != second
    assert daemon.stop() == 0
    assert notes(place) == [f"exit {first}", f"exit {second}"]


@pytest.mark.parametrize("probation", ["0", *thorough("600")])
@pytest.mark.parametrize("kind", thorough("sync", "gthread", "asgi", "gevent", "eventlet", "meinheld"))
def test_atexit_of_a_zygote(place: Place, kind: str, probation: str) -> None:
    """A worker that becomes the fork server runs its atexit functions, too, when that ends: at a reload, or
    after it was the spare until the stop.
    """
    daemon = begin(place, kind, "--probation", probation, more=AT_EXIT)
    (first,) = daemon.pids()
    assert daemon.ctl("refork").code == 0
    daemon.until(lambda: daemon.pids() != [first], "another worker")
    assert fork_server(daemon).pid == first
    assert daemon.ctl("reload").code == 0
    if probation == "0":
        until(lambda: f"exit {first}" in notes(place), "its atexit functions were called")
    else:
        assert f"exit {first}" not in notes(place)
    assert daemon.stop() == 0
    workers = [event["pid"] for event in daemon.events("worker_ready")]
    assert sorted(notes(place)) == sorted(f"exit {pid}" for pid in workers)
