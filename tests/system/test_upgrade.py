"""Upgrades in place: the supervisor executes the program that is on the disk, and no request is lost."""

import os
import shutil
import signal
import socket
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

import ostler
from ostler.control.routes import RELOAD, SCALE
from ostler.control.views import ReloadBody, Scale
from tests.kit.daemon import Daemon, Place
from tests.kit.http_client import ask
from tests.kit.load import Load
from tests.kit.processes import Process, children, descriptors, title, zombies
from tests.kit.tiers import thorough, tiers
from tests.kit.waiting import until

pytestmark = pytest.mark.system

APP = """\
import os
import time


def app(environ, start_response):
    if environ["PATH_INFO"] == "/slow":
        time.sleep(1.5)
    body = b"%d" % os.getpid()
    start_response("200 OK", [("Content-Length", str(len(body)))])
    return [body]
"""


# Runs some lines before `python -m ostler` continues as usual.
CHANGED = """\
import os
import signal
import sys
{}
from ostler.cli.main import main
main()
"""


def start(place: Place, *args: str, lines: str = "", **options: Any) -> Daemon:
    """Start two workers; `lines`: code that each program of the daemon runs first."""
    place.add("up.py", APP)
    if lines:
        options["argv"] = (sys.executable, "-c", CHANGED.format(lines))
    daemon = place.start("-w", "2", "--canary-time", "0", *args, "up:app", **options)
    daemon.settled(2)
    return daemon


def upgrade(daemon: Daemon, times: int = 1) -> None:
    """Upgrade and wait until the new program has replaced all workers."""
    for number in range(times):
        daemon.send(signal.SIGUSR2)
        daemon.event("upgraded", after=number)
        daemon.event("reload_done", after=number)


def test_nothing_is_lost(place: Place) -> None:
    """Twice in a row under load: same pid, no failed request, totals and history stay, workers are new."""
    daemon = start(place)
    before, workers = daemon.status(), daemon.pids()
    client = Load(daemon.address, rate=300, connections=8)
    with client:
        client.wait_for(100)
        upgrade(daemon, times=2)
        client.wait_for(client.ended + 100)
        report = client.finish()
    assert report.failed == report.stale == 0, report.summary()
    daemon.until(lambda: daemon.status().totals.requests >= len(report), "all are counted")
    after = daemon.status()
    assert after.pid == before.pid == daemon.pid
    assert after.generation == 3
    assert after.started_at == before.started_at
    assert after.totals.spawned == before.totals.spawned + 4
    assert after.totals.deaths == 0
    assert not set(daemon.pids()) & set(workers)
    assert zombies(daemon.pid) == []


@pytest.mark.thorough
def test_descriptors_do_not_grow(place: Place) -> None:
    """Each program has as many descriptors as the one before, and so have its children."""
    daemon = start(place, "--probation", "0", "-p", "up.pid")
    upgrade(daemon)

    def held() -> tuple[int, int]:
        server = next(pid for pid in children(daemon.pid) if title(pid).startswith("ostler: fork server"))
        return len(descriptors(daemon.pid)), len(descriptors(server))

    daemon.until(lambda: len(children(daemon.pid)) == 3, "a fork server and two workers")
    before = held()
    for number in range(1, 3):
        daemon.send(signal.SIGUSR2)
        daemon.event("reload_done", after=number)
    daemon.until(lambda: len(children(daemon.pid)) == 3, "a fork server and two workers")

    # At most, because a connection of `ctl` that was just being closed may have been counted before.
    # Descriptors that an upgrade leaves open would be more than that after two upgrades.
    def as_before() -> bool:
        return all(now <= then for now, then in zip(held(), before, strict=True))

    daemon.until(as_before, f"{before} descriptors, as before")
    assert (place.app_folder / "up.pid").read_text() == f"{daemon.pid}\n"


@pytest.mark.thorough
def test_request_in_flight(place: Place) -> None:
    """A request that is in the app when the program is replaced gets its answer."""
    daemon = start(place)
    connection = daemon.connect().asked("/slow")
    daemon.in_app("/slow")
    daemon.send(signal.SIGUSR2)
    daemon.event("upgraded")
    assert connection.answer().status == 200


def test_new_code_is_served(place: Place) -> None:
    """After the program, workers and app are replaced as in a reload."""
    daemon = start(place)
    place.add("up.py", APP.replace('b"%d" % os.getpid()', 'b"new"'))
    upgrade(daemon)
    assert daemon.get().text == "new"


@pytest.mark.thorough
def test_broken_app(place: Place) -> None:
    """The program is tried first: its failure is reported, and nothing has changed."""
    daemon = start(place)
    workers = daemon.pids()
    place.add("up.py", "import nowhere_to_be_found\n")
    daemon.send(signal.SIGUSR2)
    assert "nowhere_to_be_found" in daemon.event("upgrade_failed", level="error")["problem"]
    assert daemon.pids() == workers
    assert daemon.get().status == 200
    place.add("up.py", APP)
    daemon.send(signal.SIGUSR2)
    daemon.event("upgraded")


@pytest.mark.thorough
def test_half_installed(place: Place) -> None:
    """The trial loads all modules that would serve: one that can't be imported is reported, no change."""
    package = place.folder / "new" / "ostler"
    shutil.copytree(Path(ostler.__file__).parent, package, ignore=shutil.ignore_patterns("__pycache__"))
    place.add("up.py", APP)
    path = os.pathsep.join([str(package.parent), *filter(None, sys.path)])
    argv = (sys.executable, "-P", "-m", "ostler")
    daemon = place.start("up:app", argv=argv, PYTHONPATH=path)
    daemon.settled(1)
    module = package / "daemon" / "control_plane.py"
    module.write_text("import nowhere_to_be_found\n")
    daemon.send(signal.SIGUSR2)
    assert "nowhere_to_be_found" in daemon.event("upgrade_failed", level="error")["problem"]
    assert daemon.get().status == 200


def test_program_is_gone(place: Place) -> None:
    """An interpreter that can't be executed any more is one line; the old program continues."""
    python = place.folder / "python"
    python.symlink_to(sys.executable)
    place.add("up.py", APP)
    path = os.pathsep.join(path for path in sys.path if path)
    daemon = place.start("up:app", argv=(str(python), "-m", "ostler"), PYTHONPATH=path)
    daemon.settled(1)
    python.unlink()
    daemon.send(signal.SIGUSR2)
    assert "No such file" in daemon.event("upgrade_failed")["problem"]
    assert daemon.get().status == 200


@pytest.mark.thorough
def test_scale_and_wishes_go_on(place: Place) -> None:
    """A number set by hand survives, and the new program handles signals and the API as the old one did."""
    daemon = start(place)
    daemon.client.call(SCALE, Scale(workers=3))
    daemon.settled(3)
    upgrade(daemon)
    assert daemon.status().wanted == 3
    daemon.send(signal.SIGTTIN)
    daemon.settled(4)
    assert daemon.client.call(RELOAD, ReloadBody(wait=True)).phase == "done"
    assert daemon.stop() == 0


@pytest.mark.thorough
def test_worker_dies_meanwhile(place: Place) -> None:
    """The new program reaps a worker that ended while it was being executed, and replaces it."""
    daemon = start(place)
    victim = daemon.pids()[0]
    daemon.send(signal.SIGUSR2)
    os.kill(victim, signal.SIGKILL)
    daemon.event("upgraded")
    daemon.event("reload_done")
    daemon.settled(2)
    assert victim not in daemon.pids()
    assert zombies(daemon.pid) == []


@pytest.mark.thorough
def test_signal_just_before(place: Place) -> None:
    """The new program handles a signal that the old one has received but not handled."""
    daemon = start(
        place,
        lines="""
from ostler.daemon.main import Daemon
soon = Daemon._upgrade_soon
def signalled(daemon):
    os.kill(os.getpid(), signal.SIGTERM)
    soon(daemon)
Daemon._upgrade_soon = signalled
""",
    )
    daemon.send(signal.SIGUSR2)
    assert daemon.wait() == 0
    assert daemon.events("upgraded") == []
    assert "stops" in daemon.events("upgrade_failed")[0]["problem"]


@pytest.mark.thorough
def test_signal_during(place: Place) -> None:
    """The new program handles a signal that arrives after the old one's last check for signals."""
    daemon = start(
        place,
        lines="""
from ostler.daemon import upgrade_state
replace = upgrade_state.replace_program
def signalled(*args):
    os.kill(os.getpid(), signal.SIGTERM)
    replace(*args)
upgrade_state.replace_program = signalled
""",
    )
    daemon.send(signal.SIGUSR2)
    assert daemon.wait() == 0
    assert daemon.events("upgraded") != []
    assert daemon.events("stop", by="signal TERM") != []


@pytest.mark.thorough
def test_stop_during_the_check(place: Place) -> None:
    """The child that tries the program, and its children, end with the daemon,
    however long the app would load.
    """
    daemon = start(place)
    place.add("up.py", f"import time\nopen('loading', 'w').close()\ntime.sleep(60)\n{APP}")
    daemon.send(signal.SIGUSR2)
    daemon.until((place.app_folder / "loading").exists, "the check loads the app")
    daemon.send(signal.SIGTERM)
    assert daemon.wait() == 0
    until(lambda: place.leftovers() == [], "all processes have ended")
    assert daemon.events("upgrade_check_failed") == []


@pytest.mark.thorough
def test_asked_twice(place: Place) -> None:
    """A second request during an upgrade is refused; `ctl` does not treat that as the end of its own."""
    daemon = start(place)
    wait = "while not os.path.exists('go'):\n    open('loading', 'w').close()\n    time.sleep(0.01)\n"
    place.add("up.py", f"import os\nimport time\n{wait}{APP}")
    with ThreadPoolExecutor(1) as pool:
        asked = pool.submit(daemon.ctl, "upgrade")
        daemon.until((place.app_folder / "loading").exists, "the check loads the app")
        daemon.send(signal.SIGUSR2)
        assert "another upgrade" in daemon.event("upgrade_failed", by="signal USR2")["problem"]
        (place.app_folder / "go").touch()
        assert asked.result().code == 0, asked.result().err


@pytest.mark.thorough
def test_what_only_the_daemon_needs(place: Place) -> None:
    """The check also finds a broken library that neither configuration nor app needs."""
    libraries = place.folder / "libraries"
    libraries.mkdir()
    path = os.pathsep.join([str(libraries), *(path for path in sys.path if path)])
    daemon = start(place, PYTHONPATH=path)
    (libraries / "aiohttp.py").write_text("raise ImportError('half installed')\n")
    daemon.send(signal.SIGUSR2)
    assert "half installed" in daemon.event("upgrade_failed")["problem"]
    assert daemon.get().status == 200


@pytest.mark.thorough
def test_old_log_is_gone(place: Place) -> None:
    """The new program takes over even if files that the old configuration names do not exist any more."""
    place.add("up.py", APP)
    (place.app_folder / "old").mkdir()
    place.add("conf.py", "workers = 2\nerrorlog = 'old/log'\n")
    daemon = place.start("--canary-time", "0", "-c", "conf.py", "up:app", serving=False)
    log = place.app_folder / "old" / "log"
    daemon.until(lambda: log.exists() and '"serving"' in log.read_text(), "it serves")
    shutil.rmtree(log.parent)
    place.add("conf.py", "workers = 2\n")
    daemon.send(signal.SIGUSR2)
    daemon.event("reload_done")
    assert "old/log" in daemon.event("configuration")["problem"]
    daemon.settled(2)


@pytest.mark.thorough
def test_token_can_not_be_written(place: Place) -> None:
    """The dashboard's listener continues even if the token's file can't be written again."""
    daemon = start(place, "--control-bind", "127.0.0.1:0")
    url = daemon.event("control")["url"]
    (token,) = place.runtime.glob("ostler/*.token")
    token.unlink()
    token.mkdir()
    upgrade(daemon)
    assert ask(url, "/healthz").status == 200
    assert str(token) in daemon.event("control_unavailable")["problem"]


@pytest.mark.thorough
def test_few_descriptors(place: Place) -> None:
    """An upgrade needs hardly more descriptors than the daemon has open."""
    place.add("up.py", APP)

    def limited(descriptors: int) -> Daemon:
        line = f"import resource\nresource.setrlimit(resource.RLIMIT_NOFILE, ({descriptors}, {descriptors}))"
        argv = sys.executable, "-c", CHANGED.format(line)
        daemon = place.start("-w", "12", "--canary-time", "0", "up:app", argv=argv)
        daemon.settled(12)
        return daemon

    daemon = limited(1000)
    held = len(descriptors(daemon.pid))
    assert daemon.stop() == 0
    # A reload has two fork servers and some more workers for a while.
    daemon = limited(held + 24)
    upgrade(daemon)
    daemon.settled(12)


@pytest.mark.parametrize(
    "broken",
    tiers(
        [
            ("reading", "import ostler.daemon.upgrade_state as module; module._format = bytes"),
            ("building", "import ostler.daemon.main as module; module.Observer = None"),
            ("taking over", "import ostler.daemon.own_settings as module; module.PidFile = None"),
        ],
        ["taking over"],
    ),
)
def test_new_program_fails(place: Place, broken: str) -> None:
    """At whatever point it fails, workers continue to serve;
    SIGTERM ends them and it, and no process is left.
    """
    daemon = start(place, "-p", "up.pid", lines=f"if 'OSTLER_UPGRADE' in os.environ:\n    {broken}")
    workers = daemon.pids()
    daemon.send(signal.SIGUSR2)
    daemon.event("upgrade_failed", level="critical")
    assert {int(daemon.get().text) for _ in range(8)} <= set(workers)
    daemon.send(signal.SIGTERM)
    assert daemon.wait() == 1
    until(lambda: place.leftovers() == [], "all processes have ended")


@pytest.mark.thorough
def test_new_program_fails_and_workers_end(place: Place) -> None:
    """Without workers it ends, so that a service manager can start a new one."""
    broken = "import ostler.daemon.upgrade_state as module; module._format = bytes"
    daemon = start(place, lines=f"if 'OSTLER_UPGRADE' in os.environ:\n    {broken}")
    workers = daemon.pids()
    daemon.send(signal.SIGUSR2)
    daemon.event("upgrade_failed", level="critical")
    for pid in workers:
        os.kill(pid, signal.SIGKILL)
    assert daemon.wait() == 1
    # The fork server, whose channel that closes, ends by itself.
    until(lambda: place.leftovers() == [], "all processes have ended")


@pytest.mark.thorough
@pytest.mark.parametrize("value", ["99", *thorough("0", "1:0", "nothing")])
def test_upgrade_variable_of_another_process(place: Place, value: str) -> None:
    """State of an older program is only used if that program ran in this very process."""
    daemon = start(place, OSTLER_UPGRADE=value, OSTLER_UPGRADE_CHECK=value)
    assert daemon.get().status == 200
    done = place.run("--check-config", "up:app", OSTLER_UPGRADE_CHECK=value)
    assert done.code == 0, done.err


def test_what_can_not_be_read(tmp_path: Path) -> None:
    """A program that can't read the state keeps all channels open until SIGTERM, and passes them on."""
    ours, theirs = socket.socketpair()
    (tmp_path / "state").write_text('["another format"]\n')
    code = f"""\
import os, subprocess, sys
from ostler.daemon.upgrade_state import taking_over
child = subprocess.Popen([sys.executable, "-c", "import signal; signal.pause()"])
print(child.pid, flush=True)
state = os.open({str(tmp_path / "state")!r}, os.O_RDONLY)
os.environ["OSTLER_UPGRADE"] = f"{{os.getpid()}}:{{state}}"
sys.exit(taking_over(lambda carried: 99))
"""
    with (
        (tmp_path / "log").open("wb") as log,
        subprocess.Popen(
            [sys.executable, "-c", code],
            stdout=subprocess.PIPE,
            stderr=log,
            pass_fds=[theirs.fileno()],
            text=True,
        ) as keeper,
    ):
        assert keeper.stdout is not None
        child = Process(int(keeper.stdout.readline()))
        theirs.close()
        try:
            until(lambda: "workers serve on" in (tmp_path / "log").read_text(), "said")
            ours.setblocking(False)
            with pytest.raises(BlockingIOError):
                ours.recv(1)
            assert not child.gone
        finally:
            keeper.send_signal(signal.SIGTERM)
        assert keeper.wait(15) == 1
        assert child.ended()
    assert ours.recv(1) == b""
    ours.close()
