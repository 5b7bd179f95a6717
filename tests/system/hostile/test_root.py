"""Root evaluates and imports nothing that the app's user can write.

The app's folder belongs to the app's user. Each planted module writes a file with the uid that ran it.
"""

import os
import py_compile
import shutil
import signal
import sysconfig
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.kit.accounts import NOBODY, second_account, shown
from tests.kit.certificates import Authority
from tests.kit.daemon import OSTLER, Daemon, Place, fork_server
from tests.kit.http_client import ask
from tests.kit.processes import descriptors
from tests.kit.tiers import thorough
from tests.system.conftest import furnished

pytestmark = [
    pytest.mark.system,
    pytest.mark.skipif(not second_account(), reason="needs root, and the right to mount"),
]

APP = """\
import os

def app(environ, start_response):
    start_response("200 OK", [("Content-Type", "text/plain")])
    return [str(os.getuid()).encode()]
"""

TELLER = """\
import os

def app(environ, start_response):
    start_response("200 OK", [])
    found = os.getuid(), os.environ.get("MINE"), os.environ.get("ROOTS")
    return [" ".join(map(str, found)).encode()]
"""

# Writes the file, then imports the module whose name it has taken.
PLANTED = """\
import os, sys
open(f"{proof}/{name}-{{os.getuid()}}-{{os.geteuid()}}", "a").close()
if __name__ not in ("__config__", "__main__"):
    here = os.path.dirname(os.path.abspath(__file__))
    sys.path[:] = [entry for entry in sys.path if entry and os.path.abspath(entry) != here]
    sys.path_importer_cache.clear()
    del sys.modules[__name__]
    import importlib
    try:
        sys.modules[__name__] = importlib.import_module(__name__)
    except ModuleNotFoundError:
        sys.modules[__name__] = type(sys)(__name__)
    sys.path.insert(0, here)
"""

# Modules that the supervisor or a fork server imports, early or late, and those that Python itself looks for.
MODULES = (
    *(
        "ssl",
        "json",
        "typing",
        "tempfile",
        "random",
        "logging",
        "socket",
        "tomllib",
        "configparser",
        "pwd",
        "grp",
    ),
    *("aiohttp", "psutil", "click", "msgspec", "structlog", "setproctitle", "ostler"),
    *("sitecustomize", "usercustomize"),
)

UPGRADED_WITHIN = 60.0
"""Seconds: the new program is loaded three times, which takes a busy machine more than the usual patience."""
UID = NOBODY.pw_uid
ROOTS = "0-0"


class Field:
    """The app's folder, and the files that the app's user plants there."""

    def __init__(self, place: Place) -> None:
        self.place = place
        self.folder = place.app_folder
        self.proof = place.folder / "proof"
        self.proof.mkdir()
        self.proof.chmod(0o1777)

    def start(self, *args: str, **more: object) -> Daemon:
        words = ("-u", "nobody", *args) if "-u" not in args else args
        return self.place.start("who:app", *words, argv=[*shown(), *OSTLER], **more)  # type: ignore[arg-type]

    def ctl(self, daemon: Daemon, *words: str) -> None:
        """As root, in another folder:
        `python -m`, which tests use, imports `supervisor` from its working folder.
        """
        done = self.place.run("ctl", *words, cwd=self.place.folder, OSTLER_SOCKET=str(daemon.socket))
        assert done.code == 0, done

    def code(self, name: str) -> str:
        return PLANTED.format(proof=self.proof, name=name)

    def plant(self, path: Path, source: str) -> Path:
        """As the app's user would: the file belongs to that user."""
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(source)
        for made in (path, path.parent):
            if made.is_relative_to(self.folder):
                os.chown(made, UID, NOBODY.pw_gid)
        return path

    def plant_all(self) -> None:
        for name in MODULES:
            self.plant(self.folder / f"{name}.py", self.code(name))
        self.plant(self.folder / "gunicorn.conf.py", self.code("gunicorn.conf"))
        self.plant(self.folder / "ostler.conf.py", self.code("ostler.conf"))
        hook = "def ssl_context(config, factory): ...\n"
        self.plant(self.folder / "hooking.py", self.code("hooking") + hook)
        self.plant(self.folder / "ostler.toml", 'ssl_context = "hooking.ssl_context"\n')

    def ran(self) -> set[str]:
        return {path.name for path in self.proof.iterdir()}

    def assert_no_root(self) -> None:
        assert [name for name in self.ran() if name.endswith(ROOTS)] == []


@pytest.fixture
def field() -> Iterator[Field]:
    with furnished() as place:
        place.open_to_others()
        place.add("who.py", APP)
        os.chown(place.app_folder, UID, NOBODY.pw_gid)
        yield Field(place)


def kill_fork_server(daemon: Daemon) -> None:
    """As the app can, because it has the same user."""
    server = fork_server(daemon)
    server.send(signal.SIGKILL)
    assert server.ended()
    server.close()


def restarted(daemon: Daemon) -> None:
    """Kill the fork server, and let the next one fork: it replaces a worker that was killed."""
    before = len(daemon.events("worker_ready"))
    kill_fork_server(daemon)
    for pid in daemon.pids():
        os.kill(pid, signal.SIGKILL)
    daemon.event("worker_ready", after=before)
    daemon.settled(1)


def test_killed_fork_server(field: Field) -> None:
    """Its successor does not look for a configuration, and imports nothing from the app's folder as root."""
    daemon = field.start()
    field.plant_all()
    restarted(daemon)
    assert daemon.get("/").text == str(UID)
    assert not any(name.startswith(("gunicorn.conf", "ostler.conf", "hooking")) for name in field.ran())
    field.assert_no_root()
    assert daemon.stop() == 0


@pytest.mark.thorough
def test_all_that_the_administrator_does(field: Field) -> None:
    """Reload, refork, log rotation and an upgrade in place: planted files run as the app's user only."""
    daemon = field.start("--preload")
    field.plant_all()
    field.ctl(daemon, "reload")
    assert f"ostler.conf-{UID}-{UID}" in field.ran()
    assert "not of root" in daemon.event("configuration")["problem"]
    daemon.settled(1)
    for signum, name, after in ((signal.SIGUSR1, "logs_reopened", 0), (signal.SIGUSR2, "reload_done", 1)):
        daemon.send(signum)
        daemon.event(name, UPGRADED_WITHIN, after=after)
        daemon.settled(1)
    field.ctl(daemon, "refork")
    restarted(daemon)
    assert daemon.get("/").text == str(UID)
    field.assert_no_root()
    assert daemon.stop() == 0


@pytest.mark.thorough
def test_commands_of_the_administrator(field: Field) -> None:
    """--check-config, --print-config and ctl, run by root in the app's folder, import nothing from there."""
    daemon = field.start("--preload")
    field.plant_all()
    # `python -m`, which tests use, imports these from its working folder; the installed command does not.
    (field.folder / "ostler.py").unlink()
    for name in ("sitecustomize", "usercustomize"):
        (field.folder / f"{name}.py").unlink()
    argv = [*shown(), *OSTLER]
    check = field.place.run("who:app", "-u", "nobody", "--check-config", argv=argv)
    assert check.code == 0, check
    assert field.place.run("who:app", "-u", "nobody", "--print-config", argv=argv).code == 0
    done = field.place.run("ctl", "workers", OSTLER_SOCKET=str(daemon.socket))
    assert done.code == 0, done
    field.assert_no_root()
    assert f"ostler.conf-{UID}-{UID}" in field.ran()
    assert daemon.stop() == 0


@pytest.mark.thorough
def test_module_path_of_the_administrator(field: Field) -> None:
    """PYTHONPATH may contain the app's folder: it counts for the app, and not for root's processes."""
    daemon = field.start(PYTHONPATH=str(field.folder))
    field.plant_all()
    restarted(daemon)
    field.ctl(daemon, "reload")
    daemon.send(signal.SIGUSR2)
    daemon.event("upgraded", UPGRADED_WITHIN)
    daemon.settled(1)
    field.assert_no_root()
    assert f"sitecustomize-{UID}-{UID}" in field.ran()
    assert daemon.stop() == 0


def test_replaced_configuration(field: Field) -> None:
    """A file of root in a folder of the app's user is not trusted: the folder's owner can replace it."""
    conf = field.place.add("gunicorn.conf.py", "workers = 1\n")
    daemon = field.start()
    assert "can write" in daemon.event("configuration")["problem"]
    conf.rename(conf.with_suffix(".old"))
    field.plant(conf, field.code("replaced"))
    restarted(daemon)
    field.ctl(daemon, "reload")
    assert field.ran() == {f"replaced-{UID}-{UID}"}
    assert daemon.stop() == 0


def test_swapped_link(field: Field) -> None:
    """A link that led to a safe file at the start, and to a file of the app afterwards."""
    safe = field.place.folder / "safe.conf.py"
    safe.write_text("workers = 1\n")
    link = field.folder / "conf.py"
    link.symlink_to(safe)
    daemon = field.start("-c", "conf.py")
    mine = field.plant(field.folder / "mine.py", field.code("swapped"))
    link.unlink()
    link.symlink_to(mine)
    restarted(daemon)
    field.ctl(daemon, "reload")
    assert field.ran() == {f"swapped-{UID}-{UID}"}
    assert daemon.stop() == 0


@pytest.mark.thorough
def test_configuration_of_roots_imports_nothing_of_others(field: Field) -> None:
    """A safe file that imports a module from the app's folder fails with one line that gives the reason."""
    field.plant(field.folder / "common.py", field.code("common"))
    safe = field.place.folder / "safe.conf.py"
    safe.write_text("import common\n")
    done = field.place.run(
        *("who:app", "-b", "127.0.0.1:0", "-u", "nobody", "-c", str(safe)), argv=[*shown(), *OSTLER]
    )
    assert done.code == 1
    assert "No module named 'common' that root may import: 'nobody' can write" in done.error
    assert field.ran() == set()


@pytest.mark.thorough
def test_planted_bytecode(field: Field) -> None:
    """Bytecode in a folder that others can write is not read, though the source beside it is root's."""
    folder = field.place.folder / "safe"
    folder.mkdir()
    source = folder / "common.py"
    source.write_text(field.code("bytecode"))
    compiled = Path(py_compile.compile(str(source), doraise=True))
    stamp = source.stat()
    source.write_text("#".ljust(stamp.st_size))
    os.utime(source, ns=(stamp.st_atime_ns, stamp.st_mtime_ns))
    for path in (compiled, compiled.parent):
        os.chown(path, UID, NOBODY.pw_gid)
    (folder / "conf.py").write_text(f"import sys; sys.path.insert(0, {str(folder)!r})\nimport common\n")
    daemon = field.start("-c", str(folder / "conf.py"))
    assert field.ran() == set()
    assert daemon.stop() == 0


@pytest.mark.thorough
def test_settings_of_others_have_no_rights_of_roots(field: Field) -> None:
    """Paths that such a file names are opened as the app's user; its control settings have no effect."""
    target = field.place.folder / "roots.pid"
    field.plant(field.folder / "gunicorn.conf.py", f"pidfile = {str(target)!r}\n")
    done = field.place.run("who:app", "-b", "127.0.0.1:0", "-u", "nobody", argv=[*shown(), *OSTLER])
    assert (done.code, target.exists()) == (1, False)
    assert f"pidfile (gunicorn.conf.py line 1): can't write {target}: Permission denied" in done.err
    for text in (f"errorlog = {str(target)!r}\n", f"bind = 'unix:{target}'\n"):
        field.plant(field.folder / "gunicorn.conf.py", text)
        done = field.place.run("who:app", "-u", "nobody", argv=[*shown(), *OSTLER])
        assert (done.code, target.exists()) == (1, False), done
    mine = field.folder / "own.pid"
    text = f"pidfile = {str(mine)!r}\ncontrol_socket = {str(field.folder / 'own.sock')!r}\nuser = 'nobody'\n"
    field.plant(field.folder / "gunicorn.conf.py", text)
    daemon = field.start()
    assert mine.stat().st_uid == UID
    assert not (field.folder / "own.sock").exists()
    assert any("control_socket" in event["problem"] for event in daemon.events("configuration"))
    assert daemon.stop() == 0
    assert not mine.exists()


def test_env_files(field: Field) -> None:
    """Variables of a file that others can write are not set while root's rights are there; root's file may be
    one that only root can read, and one of others may not lead to it.
    """
    mine = field.plant(field.folder / "mine.env", "MINE=1\nOPENSSL_CONF=/nowhere\n")
    roots = field.place.folder / "roots.env"
    roots.write_text("ROOTS=1\n")
    roots.chmod(0o600)
    conf = field.place.folder / "conf.py"
    conf.write_text(
        "import os\nfound = sorted({'MINE', 'ROOTS', 'OPENSSL_CONF'} & set(os.environ))\n"
        f"open('{field.proof}/' + '-'.join(['conf', *found]), 'a').close()\n"
    )
    field.place.add("who.py", TELLER)
    daemon = field.start("-c", str(conf), "--env-file", f"{mine},{roots}")
    assert field.ran() == {"conf-ROOTS"}
    assert ask(daemon.url).body == f"{UID} 1 1".encode()
    mine.unlink()
    mine.symlink_to(roots)
    done = field.place.run("ctl", "reload", cwd=field.place.folder, OSTLER_SOCKET=str(daemon.socket))
    assert done.code == 1
    assert "mine.env: Permission denied" in done.out + done.err
    assert daemon.stop() == 0


def test_env_file_of_an_app_of_roots(field: Field) -> None:
    """If the app runs as root, variables that others can choose are a warning."""
    mine = field.plant(field.folder / "mine.env", "MINE=1\n")
    field.place.add("who.py", TELLER)
    words = ("-b", "127.0.0.1:0", "--check-config", "--env-file")
    problem = "env_file (command line): the app runs as root, though 'nobody' can write "
    assert problem in field.place.run(*words, str(mine), "who:app").err
    # A file of root's is none.
    roots = field.place.folder / "roots.env"
    roots.write_text("ROOTS=1\n")
    assert "env_file" not in field.place.run(*words, str(roots), "who:app").err


def test_token_that_others_can_choose(field: Field) -> None:
    """Root's control port is not opened with a token from the app's folder: the app would have all scopes."""
    token = field.folder / "token"
    token.write_text("chosen\n")
    token.chmod(0o600)
    words = ("--control-bind", "127.0.0.1:0", "--control-token-file")
    daemon = field.start(*words, str(token))
    problem = daemon.event("control_unavailable")["problem"]
    assert "'nobody' can write" in problem
    assert "choose the token" in problem
    assert daemon.get("/").text == str(UID)
    assert daemon.stop() == 0
    safe = field.place.folder / "token"
    token.rename(safe)
    daemon = field.start(*words, str(safe))
    assert daemon.event("control")["url"].startswith("http://127.0.0.1:")
    assert daemon.stop() == 0


@pytest.mark.thorough
def test_folder_of_others_in_the_installation(field: Field) -> None:
    """From the environment's site-packages, too, root imports nothing that others can write."""
    folder = Path(sysconfig.get_paths()["purelib"]) / f"ostler_test_{os.getpid()}"
    folder.mkdir()
    try:
        module = folder / "__init__.py"
        module.write_text(field.code("plugin"))
        for path in (folder, module):
            os.chown(path, UID, NOBODY.pw_gid)
        safe = field.place.folder / "safe.conf.py"
        safe.write_text(f"import {folder.name}\n")
        done = field.place.run(
            *("who:app", "-b", "127.0.0.1:0", "-u", "nobody", "-c", str(safe)), argv=[*shown(), *OSTLER]
        )
        assert done.code == 1
        assert "that root may import: 'nobody' can write" in done.error
        assert field.ran() == set()
    finally:
        shutil.rmtree(folder)


@pytest.mark.thorough
def test_pid_file_in_a_folder_that_is_a_link(field: Field) -> None:
    """Where the app's user decides which folder is meant, root's pid file is written as that user."""
    daemon = field.start("--pid", "app.pid")
    mine = field.folder / "app.pid"
    assert (mine.read_text(), mine.stat().st_uid) == (f"{daemon.pid}\n", 0)
    assert daemon.stop() == 0
    assert not mine.exists()
    services = field.place.folder / "services"
    services.mkdir()
    target = services / "app.pid"
    target.write_text("0\n")
    (field.folder / "run").symlink_to(services)
    done = field.place.run(
        *("who:app", "-b", "127.0.0.1:0", "-u", "nobody", "--pid", "run/app.pid"), argv=[*shown(), *OSTLER]
    )
    assert (done.code, target.read_text()) == (1, "0\n"), done
    assert "pidfile: can't write" in done.err
    (field.folder / "run").unlink()
    (field.folder / "run").mkdir()
    os.chown(field.folder / "run", UID, NOBODY.pw_gid)
    daemon = field.start("--pid", "run/app.pid")
    assert (field.folder / "run" / "app.pid").stat().st_uid == UID
    assert daemon.stop() == 0
    assert list((field.folder / "run").iterdir()) == []


FORGER = """\
import gc
from msgspec.structs import replace
from ostler.forkserver.preparation import Preparation
from ostler.ipc import messages

(preparation,) = [found for found in gc.get_objects() if isinstance(found, Preparation)]
said = []
for found in gc.get_objects():
    if type(found).__name__ == "Loaded":
        said.append(found)
for loaded in said[:1]:
    forged = replace(loaded, settings=replace(loaded.settings, pidfile={path!r}, user="root"))
    if hasattr(messages, "Decided"):
        preparation._channel.send(messages.Decided(None, forged))
    preparation._channel.send(messages.Configured(forged, ["forged"]))
from ostler.workers.thread_engine import Engine as Worker
"""


def test_forged_settings(field: Field) -> None:
    """A worker class of the app runs before all settings are reported; it can't change them."""
    target = field.place.folder / "forged.pid"
    field.plant(field.folder / "forging.py", FORGER.format(path=str(target)))
    done = field.place.run(
        *("who:app", "-u", "nobody", "-b", "127.0.0.1:0", "-k", "forging.Worker"), argv=[*shown(), *OSTLER]
    )
    assert done.code == 3, done
    assert "it sent Decided" in done.err
    assert not target.exists()


PLANTER = """\
import os

def app(environ, start_response):
    start_response("200 OK", [("Content-Type", "text/plain")])
    with open("gunicorn.conf.py", "w") as file:
        file.write({code!r})
    return [str(os.getgid()).encode()]
"""


@pytest.mark.thorough
def test_number_without_account(field: Field) -> None:
    """The process is not left in root's group, which may be able to write files that root trusts."""
    os.chown(field.folder, 0, 0)
    field.place.add("gunicorn.conf.py", "workers = 1\n").chmod(0o664)
    field.place.add("who.py", PLANTER.format(code=field.code("gunicorn.conf")))
    daemon = field.start("-u", "54321")
    daemon.get("/")
    assert daemon.event("configuration")["problem"].startswith("user: 54321 has no account")
    field.ctl(daemon, "reload")
    field.assert_no_root()
    assert daemon.stop() == 0


@pytest.mark.thorough
def test_owner_without_user(field: Field) -> None:
    """Root gives no user: a file that one other account can write is evaluated as that account,
    and so is the app.
    """
    field.plant(field.folder / "gunicorn.conf.py", field.code("own"))
    daemon = field.place.start("who:app", argv=[*shown(), *OSTLER])
    assert daemon.get("/").text == str(UID)
    assert field.ran() == {f"own-{UID}-{UID}"}
    assert "--user says otherwise" in daemon.event("configuration")["problem"]
    assert daemon.stop() == 0


def test_refusals(field: Field) -> None:
    """Several accounts can write the file, or it names another account than its writer: one line each."""
    conf = field.plant(field.folder / "gunicorn.conf.py", field.code("several"))
    argv = [*shown(), *OSTLER]
    conf.chmod(0o666)
    done = field.place.run("who:app", argv=argv)
    assert (done.code, "root does not evaluate gunicorn.conf.py" in done.error) == (1, True), done
    conf.chmod(0o644)
    field.plant(conf, "user = 'daemon'\n")
    done = field.place.run("who:app", argv=argv)
    assert done.code == 1
    assert "user (gunicorn.conf.py line 1): can't become 'daemon'" in done.err
    assert field.ran() == set()
    for line in (done.err, done.out):
        assert "Traceback" not in line


@pytest.mark.thorough
def test_user_root_on_the_command_line(field: Field) -> None:
    """--user root says that all of it may run as root; there is a warning."""
    field.plant(field.folder / "gunicorn.conf.py", "workers = 1\n")
    daemon = field.start("-u", "root")
    assert daemon.get("/").text == "0"
    (warned,) = (event["problem"] for event in daemon.events("configuration"))
    why = f"though 'nobody' can write {field.folder}"
    assert warned == f"config: gunicorn.conf.py is evaluated with root's rights, as user says, {why}"
    assert daemon.stop() == 0


@pytest.mark.thorough
def test_safe_file_is_as_before(field: Field) -> None:
    """A file of root in folders of root is evaluated as root, and all its settings have their effect."""
    os.chown(field.folder, 0, 0)
    field.place.add("helper.py", "USER = 'nobody'\n")
    text = f"from helper import USER as user\npidfile = {str(field.place.folder / 'x.pid')!r}\n"
    field.place.add("gunicorn.conf.py", text + field.code("safe"))
    daemon = field.place.start("who:app", argv=[*shown(), *OSTLER])
    assert daemon.get("/").text == str(UID)
    assert field.ran() == {"safe-0-0"}
    assert daemon.events("configuration") == []
    assert daemon.stop() == 0


INI = """\
[app:main]
paste.app_factory = pasted:factory
[server:main]
use = egg:ostler#main
control_socket = {control}
"""


@pytest.mark.thorough
@pytest.mark.parametrize("kind", ["toml", *thorough("module", "paste", "named by root's file")])
def test_other_forms(field: Field, kind: str) -> None:
    """TOML with hooks, `python:MODULE` and a PasteDeploy file of the app's user, named by root."""
    control = field.folder / "own.sock"
    hook = f"{field.code('hooking').partition('if __name__')[0]}def begin(server): ...\n"
    field.plant(field.folder / "hooking.py", hook)
    field.plant(field.folder / "pasted.py", "from who import app\ndef factory(conf): return app\n")
    field.plant(field.folder / "site.ini", INI.format(control=control))
    field.plant(field.folder / "x.toml", f'on_starting = "hooking.begin"\ncontrol_socket = "{control}"\n')
    safe = field.place.folder / "safe.conf.py"
    safe.write_text("paste = 'site.ini'\non_starting = 'hooking.begin'\nuser = 'nobody'\n")
    hooking = f"hooking-{UID}-{UID}"
    words, ran = {
        "toml": (("who:app", "-u", "nobody", "-c", "x.toml"), {hooking}),
        "module": (("who:app", "-u", "nobody", "-c", "python:hooking"), {hooking}),
        "paste": (("--paste", "site.ini", "-u", "nobody"), set()),
        "named by root's file": (("-c", str(safe)), {hooking}),
    }[kind]
    daemon = field.place.start(*words, argv=[*shown(), *OSTLER])
    assert daemon.get("/").text == str(UID)
    assert field.ran() == ran
    assert not control.exists()
    assert any("can write" in event["problem"] for event in daemon.events("configuration"))
    assert daemon.stop() == 0


@pytest.mark.thorough
@pytest.mark.parametrize("named", ["key", *thorough("log", "variable")])
def test_paste_file_of_others_named_by_roots_file(field: Field, named: str) -> None:
    """Its contents have no effect as long as the fork server has root's rights."""
    pair = Authority(field.place.folder).issue("localhost")
    Path(pair.key).chmod(0o600)
    target = field.place.folder / "roots.log"
    said = {
        "key": f"certfile = {pair.cert}\nkeyfile = {pair.key}\n",
        "log": f"errorlog = {target}\n",
        "variable": "raw_env = OSTLER_TEST=obeyed\n",
    }
    field.plant(field.folder / "pasted.py", "from who import app\ndef factory(conf): return app\n")
    field.plant(field.folder / "site.ini", INI.format(control="") + said[named])
    safe = field.place.folder / "safe.conf.py"
    hook = (
        "import os\n"
        f"certfile, keyfile = {pair.cert!r}, {pair.key!r}\n"
        "def ssl_context(config, factory):\n"
        f"    open(f'{field.proof}/{{os.environ.get(\"OSTLER_TEST\")}}-{{os.geteuid()}}', 'w').close()\n"
        "    return factory()\n"
    )
    safe.write_text("paste = 'site.ini'\nuser = 'nobody'\n" + (hook if named == "variable" else ""))
    words = ("-c", str(safe), "-b", "127.0.0.1:0")
    if named == "variable":
        daemon = field.place.start(*words, argv=[*shown(), *OSTLER])
        assert daemon.stop() == 0
        assert field.ran() == {"None-0"}
        return
    done = field.place.run(*words, argv=[*shown(), *OSTLER])
    assert done.code == 1, done
    assert "Permission denied" in done.err
    assert not target.exists()


FORGED_LOG = """\
from msgspec.structs import replace
from ostler.ipc import channel, messages

def send(self, message, *more, send=channel.Channel.send):
    if isinstance(message, messages.Configured):
        settings = replace(message.loaded.settings, accesslog={path!r})
        message = replace(message, loaded=replace(message.loaded, settings=settings))
    return send(self, message, *more)

channel.Channel.send = send
"""


@pytest.mark.thorough
def test_log_that_a_reload_names(field: Field) -> None:
    """At a rotation root creates no log whose name comes from the app's own configuration,
    which was forged here.
    """
    target = field.place.folder / "roots.log"
    daemon = field.start()
    field.plant(field.folder / "gunicorn.conf.py", FORGED_LOG.format(path=str(target)))
    field.ctl(daemon, "reload")
    daemon.send(signal.SIGUSR1)
    daemon.event("logs_reopened")
    assert daemon.get("/").text == str(UID)
    assert not target.exists()
    assert daemon.stop() == 0


@pytest.mark.thorough
def test_roots_key_and_a_configuration_of_others(field: Field) -> None:
    """The command line names a key that only root can read: it is used as usual."""
    pair = Authority(field.place.folder).issue("localhost")
    Path(pair.key).chmod(0o600)
    field.plant(field.folder / "gunicorn.conf.py", field.code("conf"))
    daemon = field.start("--certfile", pair.cert, "--keyfile", pair.key)
    assert daemon.get("/").text == str(UID)
    restarted(daemon)
    field.ctl(daemon, "reload")
    assert daemon.get("/").text == str(UID)
    assert field.ran() == {f"conf-{UID}-{UID}"}
    held = [link for pid in [*daemon.pids(), fork_server(daemon).pid] for link in descriptors(pid)]
    assert not [link for link in held if "certificate" in link]
    assert daemon.stop() == 0


@pytest.mark.thorough
def test_key_behind_a_link(field: Field) -> None:
    """A link in the app's folder does not make root read its private key for the app."""
    certificate = Authority(field.place.folder).issue("localhost")
    Path(certificate.key).chmod(0o600)
    (field.folder / "key.pem").symlink_to(certificate.key)
    (field.folder / "cert.pem").symlink_to(certificate.cert)
    done = field.place.run(
        *("who:app", "-b", "127.0.0.1:0", "-u", "nobody", "--certfile", "cert.pem", "--keyfile", "key.pem"),
        argv=[*shown(), *OSTLER],
    )
    assert done.code == 1
    assert "keyfile" in done.err
    assert "Permission denied" in done.err
