"""Configuration files in gunicorn's format: which settings are used, and how errors are reported."""

import inspect
import logging.config
import pickle
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from ostler.errors import ConfigFileError
from ostler.settings.configfile import HOOKS, ConfigFile, evaluate, find, imported_hooks, literal

Write = Callable[[str], ConfigFile]


@pytest.fixture
def evaluated(tmp_path: Path) -> Write:
    """Write a file and evaluate it."""

    def write(source: str) -> ConfigFile:
        (tmp_path / "app.conf.py").write_text(source)
        return evaluate("app.conf.py", tmp_path)

    return write


def test_values_and_lines(evaluated: Write) -> None:
    """Settings are found with the line of their assignment; other names are ignored."""
    file = evaluated("import os\n_cpus = 2\n\nworkers = _cpus * 2\ntimeout: int = 5\nhelper = 1\n")
    assert file.values == {"workers": 4, "timeout": 5}
    assert file.origin("workers") == "app.conf.py line 4"
    assert file.origin("timeout") == "app.conf.py line 5"


def test_last_assignment_counts(evaluated: Write) -> None:
    """The line is that of the value in force."""
    file = evaluated("workers = 1\nworkers = 2\n")
    assert file.values["workers"] == 2
    assert file.origin("workers") == "app.conf.py line 2"


def test_value_without_a_line(evaluated: Write) -> None:
    """For a setting that is assigned indirectly at least the file is known."""
    file = evaluated("globals().update(workers=3)\n")
    assert file.values == {"workers": 3}
    assert file.origin("workers") == "app.conf.py"


def test_file_is_python(evaluated: Write) -> None:
    """`__file__` is set, and `__name__` is not `__main__`."""
    file = evaluated("import os.path\nproc_name = os.path.basename(__file__) + ' ' + __name__\n")
    assert file.values["proc_name"] == "app.conf.py __config__"


def test_hooks(evaluated: Write, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A hook is a function in the file, or a text that names one elsewhere; it is no setting."""
    file = evaluated("def ssl_context(config, factory):\n    return [config, factory]\n")
    assert file.hooks["ssl_context"](1, 2) == [1, 2]
    assert file.values == {}
    (tmp_path / "ostler_test_hooks.py").write_text("def make(config, factory): return 'made'\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    assert (
        imported_hooks(evaluated("ssl_context = 'ostler_test_hooks.make'\n"))["ssl_context"](1, 2) == "made"
    )
    assert evaluated("ssl_context = None\n").hooks == {}
    (tmp_path / "ostler_test_hooking.py").write_text("def ssl_context(config, factory): return 'module'\n")
    assert evaluate("python:ostler_test_hooking", tmp_path).hooks["ssl_context"](1, 2) == "module"


def test_all_of_gunicorns_hooks(evaluated: Write) -> None:
    """Each is known, with the number of arguments with which gunicorn calls it."""
    source = "\n".join(
        f"def {name}({', '.join('abcd'[: arguments[0]])}): return {arguments[0]}"
        for name, arguments in HOOKS.items()
    )
    hooks = evaluated(source).hooks
    assert {name: hook(*range(HOOKS[name][0])) for name, hook in hooks.items()} == {
        name: arguments[0] for name, arguments in HOOKS.items()
    }


@pytest.mark.parametrize("arguments", [2, 3, 4])
def test_post_request_of_fewer_arguments(evaluated: Write, arguments: int) -> None:
    """As in gunicorn it may have no parameters for environ and response; the first arguments are the same."""
    names = ", ".join("abcd"[:arguments])
    hook = evaluated(f"def post_request({names}): return [{names}]\n").hooks["post_request"]
    assert hook(1, 2, 3, 4) == [1, 2, 3, 4][:arguments]


def test_hooks_of_another_shape(evaluated: Write) -> None:
    """A function with too few parameters is refused before anything is started."""
    with pytest.raises(ConfigFileError, match="when_ready: expected a function of 1 arguments"):
        evaluated("def when_ready(): ...\n")
    with pytest.raises(ConfigFileError, match="post_request: expected a function of 4 arguments"):
        evaluated("def post_request(worker): ...\n")


@pytest.mark.parametrize(
    ("value", "problem"),
    [
        ("lambda config: 1", "ssl_context: expected a function of 2 arguments, got <function"),
        ("lambda a, b, c: 1", "ssl_context: expected a function of 2 arguments"),
        ("5", "ssl_context: expected a function of 2 arguments, got 5"),
        ("'nowhere'", "ssl_context: can't import 'nowhere'"),
        ("'no_such_module_.f'", "ssl_context: can't import 'no_such_module_.f': No module named"),
        ("'json.no_such'", "ssl_context: can't import 'json.no_such': module 'json' has no attribute"),
    ],
)
def test_hooks_that_cannot_be_called(evaluated: Write, value: str, problem: str) -> None:
    """A hook that would fail when it is called is refused when it is read."""
    with pytest.raises(ConfigFileError) as caught:
        imported_hooks(evaluated(f"ssl_context = {value}\n"))
    assert str(caught.value).startswith(f"config: app.conf.py: {problem}")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("workers = 1\nworkers = = 2\n", "config: app.conf.py line 2: invalid syntax"),
        ("x = 1\n  y = 2\n", "config: app.conf.py line 2: unexpected indent"),
        ("a = 1\nreturn 5\n", "config: app.conf.py line 2: 'return' outside function"),
        ("\nworkers = undefined\n", "config: app.conf.py line 2: NameError: name 'undefined' is not defined"),
        ("raise ValueError('a\\n  b')\n", "config: app.conf.py line 1: ValueError: a b"),
        ("raise ValueError\n", "config: app.conf.py line 1: ValueError"),
        ("import sys\nsys.exit(3)\n", "config: app.conf.py line 2: SystemExit: 3"),
        ("def f():\n    1 / 0\n\nf()\n", "config: app.conf.py line 2: ZeroDivisionError: division by zero"),
        ("import no_such_module_\n", "config: app.conf.py line 1: ModuleNotFoundError: No module named"),
        ("import json\njson.loads('{')\n", "config: app.conf.py line 2: JSONDecodeError: "),
    ],
)
def test_mistakes(evaluated: Write, source: str, message: str) -> None:
    """Each mistake is one line with the file, the line in it and what is wrong."""
    with pytest.raises(ConfigFileError) as caught:
        evaluated(source)
    assert str(caught.value).startswith(message)
    assert "\n" not in str(caught.value)


def test_nul_in_the_file(tmp_path: Path) -> None:
    """Bytes that are not Python at all are an error like any other."""
    (tmp_path / "app.conf.py").write_bytes(b"workers = 1\0\n")
    with pytest.raises(ConfigFileError, match=r"^config: app\.conf\.py"):
        evaluate("app.conf.py", tmp_path)


def test_unreadable_files(tmp_path: Path) -> None:
    """A file that is not there, or is a folder, is named with the reason."""
    with pytest.raises(ConfigFileError, match=r"^config: can't read 'no\.py': No such file or directory$"):
        evaluate("no.py", tmp_path)
    with pytest.raises(ConfigFileError, match=r"^config: can't read '\.': Is a directory$"):
        evaluate(".", tmp_path)


def test_path_spellings(tmp_path: Path) -> None:
    """A path is relative to the folder; absolute paths and gunicorn's file: work as well."""
    path = tmp_path / "sub" / "c.py"
    path.parent.mkdir()
    path.write_text("workers = 7\n")
    for config in ("sub/c.py", "file:sub/c.py", str(path), f"file:{path}"):
        assert evaluate(config, tmp_path).values == {"workers": 7}


def test_python_module(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """python:MODULE takes the settings from an importable module."""
    (tmp_path / "ostler_test_settings.py").write_text("workers = 5\non_exit = print\nother = 1\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    file = evaluate("python:ostler_test_settings", tmp_path)
    assert file.values == {"workers": 5}
    assert set(file.hooks) == {"on_exit"}
    assert file.origin("workers") == "python:ostler_test_settings line 1"


@pytest.mark.parametrize(
    ("source", "message"),
    [
        (None, "config: python:ostler_test_broken: ModuleNotFoundError: No module named"),
        ("1 / 0\n", "config: python:ostler_test_broken: ZeroDivisionError: division by zero"),
        ("raise SystemExit\n", "config: python:ostler_test_broken: SystemExit"),
    ],
)
def test_broken_module(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, source: str | None, message: str
) -> None:
    """A module that can't be imported is reported in one line."""
    if source is not None:
        (tmp_path / "ostler_test_broken.py").write_text(source)
    monkeypatch.syspath_prepend(str(tmp_path))
    with pytest.raises(ConfigFileError) as caught:
        evaluate("python:ostler_test_broken", tmp_path)
    assert str(caught.value).startswith(message)
    assert "\n" not in str(caught.value)


def test_find(tmp_path: Path) -> None:
    """The requested file, else ours, else gunicorn's, else none."""
    assert find(None, tmp_path) is None
    (tmp_path / "gunicorn.conf.py").touch()
    assert find(None, tmp_path) == "gunicorn.conf.py"
    (tmp_path / "ostler.conf.py").touch()
    assert find(None, tmp_path) == "ostler.conf.py"
    assert find("python:x", tmp_path) == "python:x"


def test_lines_of_functions_and_imports(tmp_path: Path) -> None:
    """For a hook or a setting that is defined or imported the line is found as well."""
    source = "from os import getpid as workers\n\n\ndef ssl_context(config, default):\n    timeout = 1\n"
    (tmp_path / "app.conf.py").write_text(source)
    file = evaluate("app.conf.py", tmp_path)
    assert file.origin("ssl_context") == "app.conf.py line 4"
    assert file.origin("workers") == "app.conf.py line 1"
    assert file.origin("timeout") == "app.conf.py"


# -- the file as a module ----------------------------------------------------------------------------------

MODULE_FILE = """\
from __future__ import annotations
import dataclasses, logging, sys

@dataclasses.dataclass
class Pool:
    size: dataclasses.InitVar[int]
    name: str = "main"
    limit: dataclasses.KW_ONLY = None

class Filter(logging.Filter):
    def filter(self, record):
        record.own = "filtered"
        return True

def double(number):
    return 2 * number

this = sys.modules[__name__]
workers = this.double(2)
logconfig_dict = {"filters": {"own": {"()": __name__ + ".Filter"}}}
proc_name = f"{this.__spec__.name} {this.__file__ == __file__}"
"""


def test_a_file_is_a_module(evaluated: Write, tmp_path: Path) -> None:
    """It finds itself in sys.modules; so do dataclasses with postponed annotations, pickle and logging."""
    file = evaluated(MODULE_FILE)
    assert (file.values["workers"], file.values["proc_name"]) == (4, "__config__ True")
    module = sys.modules["__config__"]
    assert pickle.loads(pickle.dumps(module.double)) is module.double
    assert pickle.loads(pickle.dumps(module.Pool(1, "a"))) == module.Pool(1, "a")
    filters = file.values["logconfig_dict"]["filters"]
    logging.config.dictConfig({"version": 1, "disable_existing_loggers": False, "filters": filters})
    assert inspect.getsource(module.double) == "def double(number):\n    return 2 * number\n"
    assert evaluated("workers = 1\n").values == {"workers": 1}
    assert sys.modules["__config__"] is not module


def test_no_module_is_left_of_a_file_that_fails(evaluated: Write) -> None:
    """As of any module whose import fails."""
    with pytest.raises(ConfigFileError):
        evaluated("raise ValueError('no')\n")
    assert "__config__" not in sys.modules


SPAWN = """\
import multiprocessing, os, sys
from pathlib import Path
from ostler.osapi.imports import offer_stand_ins
from ostler.settings.configfile import FILE_VARIABLE, evaluate
offer_stand_ins()
os.environ[FILE_VARIABLE] = str(Path("app.conf.py").absolute())
evaluate("app.conf.py", Path.cwd())
context = multiprocessing.get_context(sys.argv[1])
with context.Pool(1) as pool:
    print(pool.map(sys.modules["__config__"].double, [1, 2, 3]))
"""


@pytest.mark.parametrize("method", ["spawn", "forkserver", "fork"])
def test_functions_of_a_file_in_other_processes(tmp_path: Path, method: str) -> None:
    """`multiprocessing` finds them in processes that it starts, whichever way."""
    (tmp_path / "app.conf.py").write_text(MODULE_FILE)
    command = [sys.executable, "-c", SPAWN, method]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False, timeout=60)
    assert (done.stdout, done.stderr) == ("[2, 4, 6]\n", "")


# -- without gunicorn --------------------------------------------------------------------------------------

NAMES = """\
import gunicorn
import gunicorn.app.base
from gunicorn import glogging, util
from gunicorn.app.base import BaseApplication
from gunicorn.app.wsgiapp import WSGIApplication
from gunicorn.arbiter import Arbiter
from gunicorn.config import Config
from gunicorn.errors import AppImportError
from gunicorn.glogging import CONFIG_DEFAULTS, Logger
from gunicorn.http.message import Request
from gunicorn.http.wsgi import Response
from gunicorn.workers import SUPPORTED_WORKERS
from gunicorn.workers.base import Worker
from gunicorn.workers.gthread import ThreadWorker
from gunicorn.workers.sync import SyncWorker

gunicorn.SERVER_SOFTWARE = "none of your business"
assert tuple(map(int, gunicorn.__version__.split("."))) >= (20,)
assert util.parse_address("127.0.0.1:80") == ("127.0.0.1", 80)
assert util.parse_address("127.0.0.1") == ("127.0.0.1", 8000)
assert util.parse_address("unix:/run/a.sock") == "/run/a.sock"
assert util.import_app("wsgiref.simple_server:demo_app").__name__ == "demo_app"
try:
    util.import_app("os:none")
except AppImportError as error:
    assert "none" in str(error)
else:
    raise AssertionError

class OwnLogger(Logger):
    def setup(self, cfg):
        super().setup(cfg)
        self.error_log.info("own")

class Standalone(BaseApplication):
    def load_config(self):
        self.cfg.set("workers", 3)
    def load(self):
        return print

alone = Standalone()
assert (alone.cfg.workers, alone.cfg.timeout, alone.wsgi()) == (3, 30, print)
OwnLogger(alone.cfg)
CONFIG_DEFAULTS["root"]["level"] = "DEBUG"
logconfig_dict = CONFIG_DEFAULTS
worker_class = ThreadWorker
def post_fork(server: Arbiter, worker: Worker) -> None:
    pass
def pre_request(worker: Worker, req: Request) -> None:
    pass
"""

WITHOUT = """\
import sys
from pathlib import Path
hidden = sys.argv[1] == "hidden"
if hidden:
    class Hides:  # gunicorn's own package, if it is installed
        def find_spec(self, name, path=None, target=None):
            if name == "gunicorn":
                from importlib.machinery import PathFinder
                return PathFinder.find_spec(name, [place for place in sys.path if "stand_ins" in place])
    sys.meta_path.insert(0, Hides())
from ostler.errors import ConfigFileError
from ostler.osapi.imports import offer_stand_ins
from ostler.settings.configfile import evaluate
from ostler.settings.load import load
offer_stand_ins()
try:
    file = evaluate("app.conf.py", Path.cwd())
except ConfigFileError as error:
    print(error)
else:
    import gunicorn
    print(load({}, {}, file, lambda: 2).settings.worker_class, "stand_ins" in gunicorn.__file__)
"""


def _evaluated_without(folder: Path, source: str, how: str = "hidden") -> str:
    (folder / "app.conf.py").write_text(source)
    command = [sys.executable, "-c", WITHOUT, how]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False, timeout=60)
    assert done.stderr == ""
    return done.stdout


def test_names_of_gunicorn_are_ours_where_it_is_not_installed(tmp_path: Path) -> None:
    """What files import from it is there, and worker classes are found by their names."""
    assert _evaluated_without(tmp_path, NAMES) == "gthread True\n"


def test_gunicorn_itself_comes_first(tmp_path: Path) -> None:
    """Where it is installed, files get its own modules."""
    pytest.importorskip("gunicorn", reason="gunicorn is not installed")
    source = "from gunicorn.workers.sync import SyncWorker as worker_class\n"
    assert _evaluated_without(tmp_path, source, "installed") == "sync False\n"


@pytest.mark.parametrize("source", ["import gunicorn.pidfile\n", "from gunicorn.util import daemonize\n"])
def test_a_name_of_gunicorn_that_is_not_ours(tmp_path: Path, source: str) -> None:
    """One line says what to install."""
    told = _evaluated_without(tmp_path, source)
    assert told.startswith("config: app.conf.py line 1: ")
    assert told.endswith("; install gunicorn beside Ostler, or remove the import\n")


@pytest.mark.parametrize(
    ("source", "value"),
    [
        ("worker_class = 'gevent'\n", "gevent"),
        ("import os\nbind = ':80'\nworker_class = 'gevent'\nraise SystemExit\n", "gevent"),
        ("worker_class = os.environ['X']\n", None),
        ("worker_class = 'sync'\nworker_class = 'gevent'\n", None),
        ("if True:\n    worker_class = 'gevent'\n", None),
        ("worker_class = 'sync'\ndef f():\n    global worker_class\n    worker_class = 'gevent'\n", None),
        ("worker_class = other = 'gevent'\n", None),
        ("worker_class = 5\n", None),
        ("print(worker_class)\nworker_class = 'gevent'\n", "gevent"),
        ("worker_class = (\n", None),
        ("", None),
    ],
)
def test_a_plain_assignment_is_read_without_evaluating(
    tmp_path: Path, source: str, value: str | None
) -> None:
    """Only what can't be otherwise: one assignment of a text, at the top level of the file."""
    (tmp_path / "conf.py").write_text(source)
    assert literal("conf.py", tmp_path, "worker_class") == value
    assert literal("file:conf.py", tmp_path, "worker_class", source.encode()) == value
    for config in ("python:conf", "conf.toml", "no_such_file.py"):
        assert literal(config, tmp_path, "worker_class") is None
