"""Third-party worker classes: they are found and checked, and have the same features as built-in ones."""

import os
import signal
from pathlib import Path

import pytest

from ostler.errors import ExitCode
from tests.kit.daemon import Place
from tests.kit.load import Load
from tests.kit.tiers import thorough

pytestmark = pytest.mark.system

REFERENCE = ("-k", "reference.ReferenceWorker")


def distribution(folder: Path, name: str, value: str) -> None:
    """What an installed distribution with an entry point looks like (packaging.python.org, entry points)."""
    info = folder / "ostler_reference-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: ostler-reference\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text(f"[ostler.workers]\n{name} = {value}\n")


@pytest.mark.thorough
def test_by_an_entry_point(place: Place) -> None:
    """The name from an installed distribution is enough; status and log show it."""
    distribution(place.app_folder, "reference", "reference:ReferenceWorker")
    daemon = place.start("-k", "reference", "plain:app")
    assert daemon.get().text == "one"
    assert daemon.status().worker_class == "reference"
    assert daemon.event("serving")["worker_class"] == "reference"


def test_by_its_path(place: Place) -> None:
    """A class in the app's own code needs no entry point; it is found beside the app."""
    daemon = place.start(*REFERENCE, "--chdir", str(place.app_folder), "plain:app")
    assert daemon.get().text == "one"
    assert daemon.status().worker_class == "reference.ReferenceWorker"


def test_as_a_class_in_a_file(place: Place) -> None:
    """A configuration file may contain the class itself."""
    place.add("conf.py", "from reference import ReferenceWorker\nworker_class = ReferenceWorker\n")
    assert place.start("-c", "conf.py", "plain:app").get().text == "one"


def test_it_is_counted_logged_and_shown(place: Place) -> None:
    """The API shows what the class writes to the scoreboard; its access log is Ostler's."""
    form = "%(m)s %(U)s %(s)s %(B)s"
    daemon = place.start(*REFERENCE, "--access-logfile", "a.log", "--access-logformat", form, "plain:app")
    daemon.get()
    assert daemon.get("/fail").status == 500
    connection = daemon.connect().asked("/gate/shown")
    assert daemon.in_app("/gate/shown").method == "GET"
    (place.app_folder / "shown.open").touch()
    connection.answer()
    daemon.until(lambda: daemon.status().totals.requests == 3, "three requests")
    assert daemon.status().totals.errors == 1
    log = place.app_folder / "a.log"
    wanted = ["GET / 200 3", "GET /gate/shown 200 12"]
    daemon.until(lambda: log.read_text().splitlines() == wanted, "the access log")


@pytest.mark.thorough
def test_recycling_and_reload(place: Place) -> None:
    """Its workers are replaced at max_requests and at a reload; no request is lost."""
    daemon = place.start(*REFERENCE, "-w", "2", "--max-requests", "50", "plain:app")
    with Load(daemon.address, rate=100, connections=4, close_every=1) as load:
        daemon.event("worker_exited", after=2, cause="recycle")
        daemon.send(signal.SIGHUP)
        daemon.event("reload_done")
    report = load.report()
    assert report.failed == 0, report.summary()


def test_term(place: Place) -> None:
    """A request in the app is finished first."""
    daemon = place.start(*REFERENCE, "plain:app")
    connection = daemon.connect().asked("/gate/term")
    daemon.in_app("/gate/term")
    daemon.send(signal.SIGTERM)
    daemon.event("stop")
    (place.app_folder / "term.open").touch()
    assert connection.answer().text == "term passed"
    assert daemon.wait() == 0


def test_a_hanging_request(place: Place) -> None:
    """If the class can't end a request itself, the worker is replaced; the stack is logged."""
    daemon = place.start(*REFERENCE, "-t", "0.5", "--timeout-grace", "0.3", "plain:app")
    daemon.connect().asked("/gate/never")
    assert "wait_at_gate" in daemon.event("request_overdue", path="/gate/never")["stack"]
    daemon.event("worker_ready", after=1)
    assert daemon.get().text == "one"


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("gevnt", "did you mean gevent?"),
        *thorough(("referense", "did you mean reference?")),
        ("nonsense", "there are: sync, gthread"),
        ("tornado", "Tornado"),
        *thorough(("egg:gunicorn#tornado", "Tornado")),
        ("aiohttp.GunicornWebWorker", "aiohttp.web.run_app"),
        *thorough(("aiohttp.worker.GunicornUVLoopWebWorker", "aiohttp.web.run_app")),
        ("sanic.worker.GunicornWorker", "use asgi"),
        *thorough(("gunicorn.workers.base_async.AsyncWorker", "base class")),
        ("plain.Holder", "no subclass of ostler.workers.base.BaseWorker"),
        ("no.such.Thing", "can't import no.such.Thing"),
        ("broken", "can't import plain:NoSuch"),
    ],
)
def test_what_can_not_be_used(place: Place, name: str, words: str) -> None:
    """One line says why and what to do, before anything is started."""
    distribution(place.app_folder, "reference", "reference:ReferenceWorker")
    entries = place.app_folder / "ostler_reference-1.0.dist-info" / "entry_points.txt"
    entries.write_text(entries.read_text() + "broken = plain:NoSuch\n")
    done = place.run("--check-config", "-k", name, "plain:app")
    assert done.code in (ExitCode.FAILED, ExitCode.USAGE)
    assert words in done.error
    assert "worker_class" in done.error


@pytest.mark.parametrize(
    "name", ["gevent", "asgi", *thorough("gthread", "eventlet", "reference.ReferenceWorker")]
)
def test_hooks_that_a_class_does_not_call(place: Place, name: str) -> None:
    """Request hooks cause a warning only with a class that never calls them."""
    place.add("conf.py", "def pre_request(worker, req): ...\ndef post_request(worker, req): ...\n")
    done = place.run("--check-config", "-c", "conf.py", "-k", name, "plain:app")
    warned = f"pre_request, post_request: without effect in {name} workers" in done.out + done.err
    assert warned == (name in ("asgi", "reference.ReferenceWorker"))


@pytest.mark.thorough
def test_threads_of_a_class_by_its_path(place: Place) -> None:
    """A class that serves in threads has as many request slots as threads, whatever its name."""
    daemon = place.start(*REFERENCE, "--threads", "3", "plain:app")
    assert daemon.status().threads == 3
    assert daemon.get().text == "one"


@pytest.mark.parametrize(
    ("name", "package", "words"),
    [
        ("gevent", "gevent", "pip install 'ostler[gevent]'"),
        ("eventlet", "eventlet", "pip install 'ostler[eventlet]'"),
        ("asgi", "uvicorn", "pip install 'ostler[asgi]'"),
        ("meinheld", "meinheld", "pip install --no-deps"),
    ],
)
def test_a_missing_package(place: Place, name: str, package: str, words: str) -> None:
    """--check-config says what to install."""
    place.add(f"{package}.py", f"raise ModuleNotFoundError('there is none', name={package!r})\n")
    done = place.run(
        "--check-config",
        "-k",
        name,
        "plain:app",
        PYTHONPATH=f"{place.app_folder}{os.pathsep}{os.environ.get('PYTHONPATH', '')}",
    )
    assert done.code == 1
    assert words in done.error
