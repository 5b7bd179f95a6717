"""Unusual places, files, values and apps: each leads to one line that says what to do, or works."""

import itertools
import os
import resource
import shutil
import signal
from pathlib import Path

import pytest

from ostler.control.routes import CONFIG, RELOAD
from tests.kit.certificates import Authority
from tests.kit.daemon import Daemon, Place
from tests.kit.hostile import APP, CLASSES, USUAL
from tests.kit.http_client import ask
from tests.kit.tiers import thorough, tiers
from tests.kit.waiting import until

pytestmark = [pytest.mark.system, pytest.mark.thorough]

LATIN = os.fsdecode(b"caf\xe9")


def folder_of_bytes(place: Place) -> str:
    """A folder whose name is not UTF-8, with the app in it."""
    folder = f"{place.app_folder}/{LATIN}"
    Path(folder).mkdir()
    Path(folder, "attacked.py").write_text(APP)
    return folder


@pytest.mark.parametrize("kind", tiers(((name, name) for name in CLASSES), USUAL))
def test_bytes_in_the_folders_name(hostile_place: Place, kind: str) -> None:
    """A working folder whose name is not UTF-8 works, and so do such options; the API shows them readably."""
    folder = folder_of_bytes(hostile_place)
    daemon = hostile_place.start(
        *("-n", f"{LATIN}", "-p", f"{LATIN}.pid", "--pythonpath", folder, "-e", f"NAME={LATIN}"),
        *("--access-logfile", f"{LATIN}.log", "--reload", *CLASSES[kind]),
        popen={"cwd": folder},
        PWD=folder,
    )
    assert ask(daemon.url).status == 200
    assert daemon.status().name == "caf\\xe9"
    daemon.client.call(CONFIG)
    assert daemon.ctl("status").code == 0
    assert Path(folder, f"{LATIN}.pid").exists()
    if kind == "threads":
        daemon.client.call(RELOAD)
        daemon.event("reload_done")
        daemon.send(signal.SIGUSR2)
        daemon.event("upgraded")
        daemon.event("reload_done", after=1)
        assert ask(daemon.url).status == 200
    assert daemon.stop() == 0
    assert "Traceback" not in daemon.log.read_text()


def test_removed_folder(hostile_place: Place) -> None:
    """At the start it is one line.
    While the daemon serves, reload and upgrade fail, and the old app continues to serve.
    """
    folder = hostile_place.app_folder / "gone"
    folder.mkdir()
    shutil.copy(hostile_place.app_folder / "attacked.py", folder)
    daemon = hostile_place.start("--reload", "attacked:app", popen={"cwd": folder}, PWD=str(folder))
    first = ask(daemon.url).text
    shutil.rmtree(folder)
    daemon.event("reload_failed")
    daemon.send(signal.SIGUSR2)
    daemon.event("upgrade_failed")
    assert ask(daemon.url).text == first
    assert daemon.events("internal_error") == []
    assert daemon.stop() == 0
    script = 'mkdir gone; cd gone; rmdir ../gone; exec "$@"'
    for words in (("attacked:app",), ("--check-config", "attacked:app"), ("ctl", "status")):
        done = hostile_place.run(*words, argv=["sh", "-c", script, "sh", *daemon.argv[:3]])
        assert done.code == 1
        assert "ostler: error" in done.error or "ctl: error" in done.error


def kinds_of_no_file(place: Place) -> list[str]:
    """A FIFO, an endless device, a folder, random bytes, an empty file, a missing file."""
    os.mkfifo(place.app_folder / "fifo")
    (place.app_folder / "folder").mkdir()
    (place.app_folder / "bytes").write_bytes(bytes(range(256)))
    (place.app_folder / "empty").touch()
    return ["fifo", "/dev/zero", "folder", "bytes", "empty", "missing"]


@pytest.mark.parametrize(
    "flag", ["--config", "--certfile", *thorough("--log-config", "--log-config-json", "--paste")]
)
def test_settings_with_paths_of_other_kinds(hostile_place: Place, flag: str) -> None:
    """One line for each, soon: the daemon never waits for a FIFO."""
    names = kinds_of_no_file(hostile_place)
    for name in names:
        done = hostile_place.run("--check-config", f"{flag}={name}", "attacked:app", within=60)
        if done.code == 0:
            assert (flag, name) == ("--config", "empty")
        elif (flag, name) == ("--paste", "empty"):
            assert done.code == 3  # PasteDeploy finds no app in it and reports that with a traceback
        else:
            assert done.code == 1
            assert done.error.startswith("ostler: error: "), done.error


@pytest.mark.parametrize("name", ["fifo", "/dev/zero", *thorough("folder", "bytes", "empty", "missing")])
def test_invalid_token_file(hostile_place: Place, name: str) -> None:
    """The app is served without TCP control, and SIGTERM ends the daemon."""
    kinds_of_no_file(hostile_place)
    daemon = hostile_place.start(
        "--control-bind", "127.0.0.1:0", "--control-token-file", name, "attacked:app"
    )
    assert "control_token_file" in daemon.event("control_unavailable")["problem"]
    assert daemon.status().ready == 1
    assert daemon.stop() == 0


def test_token_file_for_all(hostile_place: Place) -> None:
    """If others may read the token, there is a warning."""
    (hostile_place.app_folder / "token").write_text("a-token\n")
    (hostile_place.app_folder / "token").chmod(0o644)
    daemon = hostile_place.start(
        "--control-bind", "127.0.0.1:0", "--control-token-file", "token", "attacked:app"
    )
    assert "chmod 600" in daemon.event("configuration")["problem"]
    assert daemon.stop() == 0


@pytest.mark.parametrize("token", ["line\nend", "\udcff", *thorough("two words", "caf\u00e9", "\x1b[2J")])
def test_token_of_ctl(hostile_place: Place, token: str) -> None:
    """An OSTLER_TOKEN that can't be sent in a header is an error."""
    done = hostile_place.run("ctl", "--url", "http://127.0.0.1:1", "status", OSTLER_TOKEN=token)
    assert done.code == 1
    assert "OSTLER_TOKEN" in done.error


STRANGE = [
    *(
        ["--user", "99999999999"],
        ["--user", "-1"],
        ["--group", "4294967295"],
        ["--user", os.fsdecode(b"\xff")],
    ),
    *(["--workers", "9" * 5000], ["--timeout", "1e400"], ["--timeout", "1e300"], ["--timeout", "nan"]),
    *(["--backlog", "-1"], ["--threads", str(2**70)], ["--max-memory", "9" * 5000]),
    *(["--bind", "127.0.0.1:99999"], ["--bind", f"unix:/{'x' * 200}"], ["--bind", os.fsdecode(b"\xff:1")]),
    *(["--chdir", "attacked.py"], ["--chdir", os.fsdecode(b"\xff")], ["--env", "NOTHING"]),
    *(["--worker-class", os.fsdecode(b"\xff")], ["--statsd-host", os.fsdecode(b"\xff:99999")]),
]


@pytest.mark.parametrize(
    "words", [*STRANGE[::4], *thorough(*((words,) for words in STRANGE if words not in STRANGE[::4]))]
)
def test_strange_values(hostile_place: Place, words: list[str]) -> None:
    """One line names the setting."""
    done = hostile_place.run("--check-config", *words, "attacked:app")
    assert done.code in (1, 2)
    assert len(done.error) < 1000


@pytest.mark.parametrize("variable", ["GUNICORN_CMD_ARGS", "OSTLER_CMD_ARGS"])
def test_strange_variables(hostile_place: Place, variable: str) -> None:
    """Unclosed quotes, bytes that are not an option: one line.
    A PYTHONHOME for the app does not harm the daemon.
    """
    for text in ("--name 'x", os.fsdecode(b"--\xff"), "--no-such=1"):
        done = hostile_place.run("--check-config", "attacked:app", **{variable: text})
        assert done.code == 2
        assert variable in done.error
    done = hostile_place.run("--check-config", "attacked:app", **{variable: "-e PYTHONHOME=/nowhere"})
    assert (done.code, done.err) == (0, "")


EVIL = """\
import sys, types
class Meta(type):
    @property
    def __name__(cls): raise RuntimeError("name")
class Evil(Exception, metaclass=Meta):
    def __str__(self): raise RuntimeError("str")
    __repr__ = __str__
    @property
    def __cause__(self): raise RuntimeError("cause")
    @property
    def __notes__(self): raise RuntimeError("notes")
class Base(BaseException): pass
class Module(types.ModuleType):
    @property
    def __dict__(self): raise RuntimeError("dict")
    @property
    def __spec__(self): raise RuntimeError("spec")
class Lazy:
    @property
    def __class__(self): raise RuntimeError("class")
    def __getattr__(self, name): raise RuntimeError(name)

def modules():
    sys.modules["secrets"] = Lazy()
    sys.modules["lazy"] = Lazy()
    sys.modules["evil_module"] = Module("evil_module")
    sys.modules[5] = types.ModuleType("five")
    for number, path in enumerate(("a\\0b", "/a\\0b", 7, "\\ud800", "x" * 100000, "")):
        sys.modules[f"module{number}"] = module = types.ModuleType(f"module{number}")
        module.__file__ = path

def circle():
    one, other = ValueError("one"), ValueError("other")
    one.__cause__, other.__cause__ = other, one
    return one

def syntax():
    error = SyntaxError("text")
    error.filename, error.lineno, error.text = 5, "z", 7
    return error

def no_file():
    def fail(): raise ValueError("here")
    exec(fail.__code__.replace(co_filename="a\\0b"))

KINDS = {
    "evil": lambda: Evil("x"),
    "base": lambda: Base("\\ud800"),
    "surrogates": lambda: ValueError("\\ud800 \\udcff \\0"),
    "huge": lambda: ValueError("x" * 20_000_000),
    "group": lambda: ExceptionGroup("group", [ValueError("\\ud800"), Evil("y")]),
    "circle": circle,
    "syntax": syntax,
    "exit": lambda: SystemExit(Evil("z")),
    "no_file": no_file,
}

def fail(kind):
    raise KINDS[kind]()
"""
KINDS = ("evil", "base", "surrogates", "huge", "group", "circle", "syntax", "exit", "no_file")


def no_fault_of_ours(daemon: Daemon) -> None:
    text = daemon.log.read_text(errors="replace")
    assert "internal_error" not in text
    assert "/ostler/" not in "\n".join(line for line in text.splitlines() if not line.startswith("{"))


@pytest.mark.parametrize("kind", tiers(((name, name) for name in CLASSES), USUAL))
def test_exceptions_in_requests(hostile_place: Place, kind: str) -> None:
    """Any exception of an app is a 500 and one event, and the worker continues to serve."""
    hostile_place.add("evil.py", EVIL)
    hostile_place.add("attack.py", "import evil\ndef request(path):\n    path[1:] and evil.fail(path[1:])\n")
    daemon = hostile_place.start(*CLASSES[kind])
    first = ask(daemon.url).text
    for number, name in enumerate(KINDS):
        assert ask(daemon.url, f"/{name}").status == 500
        event = daemon.event("request_failed", after=number)
        assert event["path"] == f"/{name}"
        assert len(event["traceback"]) < 200_000
    assert ask(daemon.url).text == first
    assert daemon.stop() == 0
    no_fault_of_ours(daemon)


@pytest.mark.parametrize(
    ("name", "preload"),
    [
        *(("evil", True), ("surrogates", False)),
        *thorough(*[("evil", False), ("surrogates", True)]),
        *thorough(*itertools.product(("base", "group", "no_file"), (True, False))),
    ],
)
def test_exceptions_while_booting(hostile_place: Place, name: str, preload: bool) -> None:
    """The same while the app is loaded: exit code 3, and the last line gives the reason."""
    hostile_place.add("evil.py", EVIL)
    hostile_place.add("attack.py", f"import evil\nevil.fail({name!r})\n")
    daemon = hostile_place.start(*["--preload"] * preload, "attacked:app", serving=False)
    assert daemon.wait(60) == 3
    assert daemon.log.read_text(errors="replace").splitlines()[-1].startswith("ostler: error: can't load")
    no_fault_of_ours(daemon)


@pytest.mark.parametrize("preload", [True, *thorough(False)])
def test_hostile_modules(hostile_place: Place, preload: bool) -> None:
    """`sys.modules` and `__file__` have arbitrary values while files are watched: it serves, and reloads."""
    hostile_place.add("evil.py", EVIL)
    hostile_place.add("attack.py", "import evil\nevil.modules()\n")
    daemon = hostile_place.start("--reload", *["--preload"] * preload, "attacked:app")
    assert ask(daemon.url).status == 200
    hostile_place.add("attack.py", 'import evil\nevil.modules()\nevil.fail("evil")\n')
    event = daemon.event("app_broken")
    assert "can't load" in event["reason"]
    until(lambda: ask(daemon.url).status == 500, "the error page", 30)
    hostile_place.add("attack.py", "import evil\n")
    until(lambda: ask(daemon.url).status == 200, "the app", 60)
    assert daemon.stop() == 0
    no_fault_of_ours(daemon)


HOSTILE_FILES = [
    'import evil\nevil.fail("evil")\n',
    "raise KeyboardInterrupt\n",
    "workers = 10 ** 5000\n",
    "import evil\nworkers = evil.Lazy()\n",
    *thorough('import evil\nevil.fail("base")\n'),
    *thorough("bind = 'unix:a\0b'\n", "chdir = 'a\0b'\n", "raw_env = ['A=\0']\n", "user = 'a\0b'\n"),
    *thorough("timeout = 10 ** 5000\n", "import evil\npost_fork = evil.Lazy()\n"),
    *thorough(f"x = {'(' * 300}1{')' * 300}\n", "proc_name = b'x'\n"),
]


@pytest.mark.parametrize("source", HOSTILE_FILES)
def test_hostile_configuration_file(hostile_place: Place, source: str) -> None:
    """Exceptions and values of a configuration file are reported in one line."""
    hostile_place.add("evil.py", EVIL)
    hostile_place.add("gunicorn.conf.py", source)
    done = hostile_place.run("--check-config", "attacked:app")
    assert done.code in (1, 2), done  # a file that raises, or a wrong value
    assert done.error.startswith("ostler: error: "), source


@pytest.mark.thorough
def test_keys_that_are_not_files(hostile_place: Place) -> None:
    """Keys and authorities that are not files, beside a valid certificate."""
    names = kinds_of_no_file(hostile_place)
    cert = Authority(hostile_place.folder).issue("localhost")[0]
    for flag in ("--keyfile", "--ca-certs"):
        for name in names:
            done = hostile_place.run("--check-config", "--certfile", str(cert), flag, name, "attacked:app")
            assert done.code == 1
            assert done.error.startswith("ostler: error: "), done.error


def test_bodies_beyond_the_file_size_limit(hostile_place: Place) -> None:
    """RLIMIT_FSIZE for the temporary file of a body:
    the request is refused, the worker continues to serve.
    """
    daemon = hostile_place.start("--buffer-request", "1K", "attacked:app")
    worker = int(ask(daemon.url).text)
    resource.prlimit(worker, resource.RLIMIT_FSIZE, (4096, 4096))
    answer = ask(daemon.url, "/", "POST", body=b"x" * 100_000)
    assert answer.status >= 500
    assert int(ask(daemon.url).text) == worker
    assert daemon.stop() == 0
