"""Reloads: without a failed request, with new code, and with a canary that protects the old generation."""

import os
import signal
import threading

import pytest

from ostler.control.routes import RECYCLE, RELOAD
from ostler.control.views import ReloadBody
from tests.kit.daemon import Daemon, Place, fork_server
from tests.kit.load import Load
from tests.kit.processes import Process, children, descriptors
from tests.kit.tiers import thorough, tiers
from tests.system.test_deadlines import successor_first
from tests.system.test_signals import page

pytestmark = pytest.mark.system


@pytest.mark.parametrize("kind", ["gthread", *thorough("sync")])
@pytest.mark.parametrize("preload", tiers({"lazy": [], "preload": ["--preload"]}.items(), ["lazy"]))
def test_reload_under_load(place: Place, preload: list[str], kind: str) -> None:
    """Steady keep-alive load, and an app that takes long to import:
    no failure, first old code, then only new code.
    """
    source = "import time\ntime.sleep(0.3)\n"
    place.add("page.py", source + page("old"))
    threads = ["--threads", "3"] if kind == "gthread" else []
    daemon = place.start("-w", "2", *threads, *preload, "page:app")
    daemon.settled(2)
    with Load(daemon.address, rate=400, connections=16) as load:
        load.wait_for(200)
        place.add("page.py", source + page("new"))
        done = daemon.ctl("reload")
        assert done.code == 0, done.err
        load.wait_for(load.ended + 200)
        report = load.finish()
    assert (report.failed, report.unasked) == (0, 0), report.summary()
    bodies = [record.body for record in sorted(report.records, key=lambda record: record.sent)]
    assert bodies[0] == b"old"
    assert set(bodies[-100:]) == {b"new"}
    assert {worker.generation for worker in daemon.settled(2)} == {2}
    assert daemon.status().totals.deaths == 0
    successor_first(daemon.events())


@pytest.mark.thorough
def test_reloads_in_a_row_under_load(place: Place) -> None:
    """One reload after the other, some while the one before runs: the last one wins, no request fails."""
    place.add("page.py", page("0"))
    daemon = place.start("-w", "2", "--canary-time", "0.1", "page:app")
    with Load(daemon.address, rate=300, connections=8) as load:
        load.wait_for(100)
        for number in range(1, 6):
            place.add("page.py", page(str(number)))
            daemon.send(signal.SIGHUP)
            daemon.event("reload", generation=number + 1)
        daemon.event("reload_done", generation=6)
        load.wait_for(load.ended + 100)
        report = load.finish()
    assert (report.failed, report.unasked) == (0, 0), report.summary()
    assert report.records[-1].body == b"5"
    daemon.until(lambda: len(children(daemon.pid)) == 3, "no fork server of a generation before is left")


BROKEN = {
    "syntax": ("def app(:\n", "SyntaxError"),
    "import": ("import no_such_module\n", "ModuleNotFoundError"),
    "raise": ("raise RuntimeError('half an app')\n", "RuntimeError: half an app"),
    "exit": ("import sys\nsys.exit(0)\n", "SystemExit"),
    "gone": ("x = 1\n", "has no 'app'"),
    "os_exit": ("import os\nos._exit(0)\n", "exit code 0"),
    "segfault": ("import ctypes\nctypes.string_at(0)\n", "signal 11"),
}


@pytest.mark.parametrize("preload", tiers({"lazy": [], "preload": ["--preload"]}.items(), ["lazy"]))
def test_broken_code(place: Place, preload: list[str]) -> None:
    """Whatever the new code does at import, `ctl reload` exits with 1 and the reason,
    and the old code serves.
    """
    place.add("page.py", page("old"))
    daemon = place.start("-w", "2", *preload, "page:app")
    before = [worker.pid for worker in daemon.settled(2)]
    for kind, (source, words) in BROKEN.items():
        place.add("page.py", source)
        done = daemon.ctl("reload")
        assert done.code == 1, kind
        last = done.err.splitlines()[-1]
        assert last.startswith("ostler ctl: error: the reload failed, the old generation serves on: "), kind
        assert words in last, kind
        if kind in ("syntax", "import", "raise", "exit"):
            # For a file that it can't parse Python shows no traceback, only the line.
            assert "Traceback (most recent call last):" in done.err or kind == "syntax"
            assert f'{place.app_folder}/page.py", line ' in done.err, kind
            assert "/ostler/" not in done.err, kind
        assert daemon.get().text == "old", kind
        assert [worker.pid for worker in daemon.settled(2)] == before, kind
        assert daemon.status().state == "ready", kind
    place.add("page.py", page("mended"))
    assert daemon.ctl("reload").code == 0
    assert daemon.get().text == "mended"


@pytest.mark.thorough
def test_crash_at_import_leaves_its_stack(place: Place) -> None:
    """A segfault in the new code: the log has the stack, which shows where."""
    place.add("page.py", page("old"))
    daemon = place.start("page:app")
    place.add("page.py", "import ctypes\ndef blow_up():\n    ctypes.string_at(0)\nblow_up()\n")
    assert daemon.ctl("reload").code == 1
    assert "in blow_up" in daemon.event("worker_crashed")["stack"]


@pytest.mark.parametrize(
    ("source", "words"),
    [
        ("workers = 'many'\n", "workers (conf.py line 1): expected a whole number"),
        *thorough(("workers = (\n", "config: conf.py line 1: ")),
        *thorough(("import sys\nsys.exit(1)\n", "config: conf.py line 2: SystemExit")),
        ("import os\nos._exit(1)\n", "exit code 1"),
        *thorough(("chdir = '/nowhere'\n", ": can't enter '/nowhere'")),
        ("accesslog = '/nowhere/access.log'\n", "accesslog (conf.py line 1): can't open '/nowhere/"),
        ("bind = ['127.0.0.1:0', '192.0.2.1:80']\n", ": 192.0.2.1:80: this machine has no such address"),
        (None, "config: can't read 'conf.py'"),
    ],
)
def test_broken_configuration(place: Place, source: str | None, words: str) -> None:
    """A configuration that became invalid: one line, exit code 1, the old generation continues to serve."""
    place.add("conf.py", "workers = 1\nbind = '127.0.0.1:0'\n")
    daemon = place.start("-c", "conf.py", "plain:app", bind=None)
    before = daemon.pids()
    if source is None:
        (place.app_folder / "conf.py").unlink()
    else:
        place.add("conf.py", source)
    done = daemon.ctl("reload")
    assert done.code == 1
    assert words in done.error
    assert daemon.get().text == "one"
    assert daemon.pids() == before
    assert daemon.status().listeners == [daemon.url]


def test_hanging_canary(place: Place) -> None:
    """New code that hangs at import is given up at boot_timeout; the old generation continues to serve."""
    place.add("page.py", page("old"))
    daemon = place.start("--boot-timeout", "2", "page:app")
    place.add("page.py", "import time\ntime.sleep(1000)\n")
    done = daemon.ctl("reload")
    assert done.code == 1
    assert "boot_timeout" in done.error
    assert daemon.get().text == "old"
    daemon.until(lambda: len(children(daemon.pid)) == 2, "nothing of the new generation is left")


def test_slow_request_over_a_reload(place: Place) -> None:
    """A request that was in the app before the reload is answered by the old worker, which then ends."""
    daemon = place.start("--probation", "0", "plain:app")
    old = Process(daemon.pids()[0])
    slow = daemon.connect().asked("/gate/slow")
    daemon.in_app("/gate/slow")
    assert daemon.ctl("reload", "--no-wait").code == 0
    daemon.event("worker_ready", generation=2)
    assert daemon.get().text == "one"
    (place.app_folder / "slow.open").touch()
    assert slow.answer().text == "slow passed"
    slow.close()
    assert old.ended()
    daemon.event("reload_done")


def test_release_by_link(place: Place) -> None:
    """Started in a folder that is a link to the newest release: a reload follows the link, as in gunicorn."""
    for number in ("1", "2"):
        place.add(f"releases/{number}/page.py", page(f"release {number}"))
    current = place.app_folder / "current"
    current.symlink_to("releases/1")
    daemon = place.start("page:app", popen={"cwd": current}, PWD=str(current))
    assert daemon.get().text == "release 1"
    newer = place.app_folder / "newer"
    newer.symlink_to("releases/2")
    newer.replace(current)
    assert daemon.ctl("reload").code == 0
    assert daemon.get().text == "release 2"


def test_clients_that_wait_for_a_reload(place: Place) -> None:
    """Two clients that wait for one reload both get its outcome;
    a client that waits for an older one gets that.
    """
    place.add(
        "page.py",
        "import pathlib, time\nwhile pathlib.Path('hold').exists():\n    time.sleep(0.01)\n" + page("x"),
    )
    daemon = place.start("page:app")
    (place.app_folder / "hold").touch()
    outcomes: dict[str, tuple[int, str]] = {}

    def ask(name: str) -> None:
        done = daemon.ctl("reload")
        outcomes[name] = (done.code, done.err)

    first = threading.Thread(target=ask, args=("first",))
    first.start()
    daemon.event("reload", generation=2)
    second = threading.Thread(target=ask, args=("second",))
    second.start()
    daemon.event("reload", generation=3)
    (place.app_folder / "hold").unlink()
    for thread in (first, second):
        thread.join(20)
    assert outcomes["first"][0] == 1
    assert "superseded" in outcomes["first"][1]
    assert outcomes["second"] == (0, "")


@pytest.mark.thorough
def test_descriptors_do_not_grow(place: Place) -> None:
    """Four reloads and ten recycled workers leave no zombie and no descriptor behind."""
    daemon = place.start("-w", "2", "--probation", "0", "--canary-time", "0", "plain:app")
    daemon.settled(2)
    # By now everything is open that is opened only once, including the connection of this client.
    daemon.client.call(RELOAD, ReloadBody(wait=True))
    daemon.until(lambda: len(children(daemon.pid)) == 3, "no child but a fork server and two workers")
    before = kinds(daemon)
    memory = descriptors_of_fork_server(daemon)
    for _ in range(4):
        assert daemon.client.call(RELOAD, ReloadBody(wait=True)).phase == "done"
    for number in range(10):
        old = daemon.client.call(RECYCLE, slot=number % 2 + 1)
        daemon.until(lambda old=old: old.pid not in daemon.pids(), "replaced")
    daemon.settled(2)
    daemon.until(lambda: len(children(daemon.pid)) == 3, "no child but a fork server and two workers")
    daemon.until(
        # A descriptor of a child that had just ended may have been counted before.
        lambda: all(count <= before.get(kind, 0) for kind, count in kinds(daemon).items()),
        f"the descriptors of before: {before}",
    )
    assert descriptors_of_fork_server(daemon) <= memory
    assert daemon.status().totals.spawned == 2 + 5 * 2 + 10
    assert daemon.status().totals.deaths == 0


def kinds(daemon: Daemon) -> dict[str, int]:
    """How many descriptors of each kind the supervisor has, without connections of ctl."""
    found: dict[str, int] = {}
    for target in descriptors(daemon.pid):
        kind = target.partition(":")[0] if ":[" in target else target
        found[kind] = found.get(kind, 0) + 1
    return found


def descriptors_of_fork_server(daemon: Daemon) -> int:
    return len(descriptors(fork_server(daemon).pid))


@pytest.mark.thorough
def test_roll_back_restores_the_supervisors_settings(place: Place) -> None:
    """After a roll-back within probation the log level is that of the generation that serves again."""
    place.add("plain.py", page("1"))
    place.add("conf.py", "workers = 1\nprobation = 60\nrollback_crashes = 1\n")
    daemon = place.start("-c", "conf.py", "--canary-time", "0", "plain:app")
    daemon.settled(1)
    place.add("conf.py", "workers = 1\nprobation = 60\nrollback_crashes = 1\nloglevel = 'error'\n")
    assert daemon.client.call(RELOAD, ReloadBody(wait=True)).phase == "done"
    daemon.send(signal.SIGUSR1)
    # A signal that counts as a crash, because programs usually cause it themselves, and that no handler
    # catches.
    os.kill(daemon.pids()[0], signal.SIGSYS)
    daemon.event("reload_rolled_back")
    assert daemon.events("logs_reopened") == []
    daemon.settled(1)
    daemon.send(signal.SIGUSR1)
    daemon.event("logs_reopened")


@pytest.mark.thorough
@pytest.mark.parametrize("second", [signal.SIGHUP, signal.SIGTERM], ids=["reload", "stop"])
def test_signals_during_the_first_configuration(place: Place, second: signal.Signals) -> None:
    """Two reloads, or a reload and a stop, while the first configuration is evaluated, are not an error."""
    place.add("plain.py", page("1"))
    wait = "while not os.path.exists('go'):\n    time.sleep(0.01)\n"
    place.add("conf.py", f"import os\nimport time\nopen(f'begun-{{os.getpid()}}', 'w').close()\n{wait}")
    daemon = place.start("-c", "conf.py", "--canary-time", "0", "plain:app", serving=False)

    def begun(number: int) -> None:
        found = lambda: len(list(place.app_folder.glob("begun-*"))) >= number  # noqa: E731
        daemon.until(found, f"{number} configurations are evaluated")

    begun(1)
    daemon.send(signal.SIGHUP)
    begun(2)
    daemon.send(second)
    if second is signal.SIGTERM:
        assert daemon.wait() == 0
    else:
        begun(3)
        (place.app_folder / "go").touch()
        daemon.event("serving")
        daemon.settled(1)
        assert daemon.get().status == 200
    assert daemon.events("internal_error") == []


@pytest.mark.thorough
def test_reload_that_overtakes_the_first_configuration(place: Place) -> None:
    """A reload's configuration is known before the first one, whose app fails: the daemon starts once."""
    wait = "while not os.path.exists('go'):\n    time.sleep(0.01)\n"
    place.add("conf.py", f"import os\nimport time\nopen('begun', 'w').close()\n{wait}")
    place.add("plain.py", "raise LookupError('not today')\n")
    daemon = place.start("-c", "conf.py", "-p", "own.pid", "plain:app", serving=False)
    daemon.until(lambda: (place.app_folder / "begun").exists(), "the first configuration is evaluated")
    place.add("conf.py", "")
    daemon.send(signal.SIGHUP)
    daemon.event("reload_failed")
    place.add("plain.py", page("1"))
    (place.app_folder / "go").touch()
    daemon.event("serving")
    daemon.settled(1)
    assert daemon.get().status == 200
    assert daemon.events("control_unavailable") == daemon.events("internal_error") == []
