"""Files and classes that import gunicorn, where gunicorn is not installed."""

import pytest

from tests.kit.daemon import Daemon, Place

pytestmark = pytest.mark.system

# Hides gunicorn itself, which the tests' environment may have.
HIDING = """\
import sys
from importlib.machinery import PathFinder
class Hides:
    def find_spec(self, name, path=None, target=None):
        if name == "gunicorn":
            return PathFinder.find_spec(name, [place for place in sys.path if "stand_ins" in place])
sys.meta_path.insert(0, Hides())
"""

CONF = """\
from __future__ import annotations
import dataclasses, logging, pickle, sys
from pathlib import Path
import gunicorn
from gunicorn.arbiter import Arbiter
from gunicorn.workers.base import Worker
from gunicorn.workers.gthread import ThreadWorker

@dataclasses.dataclass
class Note:
    pid: int
    text: dataclasses.InitVar[str] = ""

class NoHealthChecks(logging.Filter):
    def filter(self, record):
        return "/gate" not in record.getMessage()

this = sys.modules[__name__]
worker_class = ThreadWorker
threads = 2
accesslog = "-"
logconfig_dict = {
    "filters": {"health": {"()": __name__ + ".NoHealthChecks"}},
    "formatters": {"own": {"format": "own %(message)s"}},
    "handlers": {"file": {
        "class": "logging.FileHandler", "filename": "access", "formatter": "own", "filters": ["health"],
    }},
    "loggers": {"gunicorn.access": {"handlers": ["file"], "level": "INFO", "propagate": False}},
}
def when_ready(server: Arbiter) -> None:
    assert isinstance(server, Arbiter)
def post_worker_init(worker: Worker) -> None:
    kept = pickle.loads(pickle.dumps([Note(worker.pid), this.when_ready]))
    Path("kept").write_text(f"{kept[0].pid} {kept[1] is this.when_ready}")
"""


def start(place: Place, *args: str, serving: bool = True) -> Daemon:
    place.add("hide/sitecustomize.py", HIDING)
    return place.start(*args, serving=serving, PYTHONPATH=str(place.app_folder / "hide"))


def test_a_configuration_file(place: Place) -> None:
    """Its imports of gunicorn are Ostler's; it is a module, for itself, dataclasses, pickle and logging."""
    place.add("gunicorn.conf.py", CONF)
    daemon = start(place, "plain:app")
    (pid,) = daemon.pids()
    assert daemon.event("serving")["worker_class"] == "gthread"
    assert (place.app_folder / "kept").read_text() == f"{pid} True"
    (place.app_folder / "health.open").touch()
    for path in ("/gate/health", "/pid"):
        assert daemon.get(path).status == 200
    access = place.app_folder / "access"
    daemon.until(lambda: "/pid" in access.read_text(), "the line")
    assert "/gate" not in access.read_text()
    assert daemon.ctl("reload").code == 0


def test_an_app_that_needs_gunicorn(place: Place) -> None:
    """What is not there is said in one line, with what to install."""
    place.add("needy.py", "from gunicorn.pidfile import Pidfile\nfrom plain import app\n")
    daemon = start(place, "needy:app", serving=False)
    assert daemon.wait() != 0
    assert "No module named 'gunicorn.pidfile'; install gunicorn beside Ostler" in daemon.log.read_text()


def test_worker_classes_of_a_project(place: Place) -> None:
    """A class made from gunicorn's serves; what of it is not called is said. One made from uvicorn's counts
    with its arguments.
    """
    place.add(
        "own.py",
        """\
from gunicorn.workers.sync import SyncWorker
from gunicorn.workers.base import Worker
class Mine(SyncWorker):
    def init_process(self):
        super().init_process()
class Bare(Worker):
    pass
""",
    )
    daemon = start(place, "-k", "own.Mine", "plain:app")
    assert daemon.get().text == "one"
    assert "Ostler does not call init_process of Mine" in daemon.log.read_text()
    daemon.stop()
    bare = start(place, "-k", "own.Bare", "plain:app", serving=False)
    assert bare.wait() == 1
    assert "own.Bare serves nothing: it has no add_reader, create, drain" in bare.log.read_text()
    place.add(
        "fast.py",
        """\
from uvicorn.workers import UvicornWorker
class Fast(UvicornWorker):
    CONFIG_KWARGS = {"headers": [("x-own", "yes")]}
""",
    )
    place.add("gunicorn.conf.py", "worker_class = 'fast.Fast'\n")
    daemon = start(place, "waiter:app")
    assert daemon.get().headers["x-own"] == "yes"
    assert "only CONFIG_KWARGS counts" not in daemon.log.read_text()
