"""Server hooks of a real daemon:
which are called, where, when and how often, and the effects of their failures.
"""

import json
import signal
import textwrap
from typing import Any, NamedTuple

import pytest

from ostler.control.routes import EXITS
from tests.kit.daemon import Daemon, Place, fork_server
from tests.kit.http_client import ask
from tests.kit.ports import listening
from tests.kit.processes import Process, descriptors, title
from tests.kit.tiers import thorough, tiers

pytestmark = pytest.mark.system

APP = """\
import itertools, os, time, threading
def app(environ, start_response):
    path = environ["PATH_INFO"]
    if path == "/hang":
        threading.Event().wait()
    if path == "/spin":
        all(itertools.repeat(True))
    if path == "/crash":
        os.abort()
    if path == "/leave":
        os._exit(7)
    start_response("200 OK", [])
    return [environ.get("HTTP_X_ID", "none").encode()]
"""

# Every hook writes its name, its process, and its arguments.
HOOKS = """\
import json, os
from pathlib import Path
NOTES = Path(__file__).with_name("notes")
def note(hook, **more):
    line = json.dumps({"hook": hook, "process": os.getpid(), **more}) + "\\n"
    fd = os.open(NOTES, os.O_WRONLY | os.O_APPEND | os.O_CREAT)
    os.write(fd, line.encode())
    os.close(fd)
def seen(worker):
    return {"pid": worker.pid, "age": worker.age, "alive": worker.alive}
def on_starting(server):
    note("on_starting", address=server.address, workers=server.num_workers, pid=server.pid)
def on_reload(server):
    note("on_reload", pid=server.pid)
def when_ready(server):
    note("when_ready", address=server.address, listeners=len(server.LISTENERS))
def pre_fork(server, worker):
    worker.mark = f"marked {worker.age}"
    note("pre_fork", **seen(worker))
def post_fork(server, worker):
    note("post_fork", mark=worker.mark, ppid=worker.ppid, app=worker.app.callable is not None, **seen(worker))
def post_worker_init(worker):
    note("post_worker_init", app=callable(worker.wsgi), **seen(worker))
def worker_int(worker):
    note("worker_int", **seen(worker))
def worker_abort(worker):
    note("worker_abort", **seen(worker))
def pre_exec(server):
    note("pre_exec", pid=server.pid)
def child_exit(server, worker):
    note("child_exit", code=worker.exitcode, mark=getattr(worker, "mark", None), **seen(worker))
def worker_exit(server, worker):
    note("worker_exit", **seen(worker))
def nworkers_changed(server, new_value, old_value):
    note("nworkers_changed", new=new_value, old=old_value, number=server.num_workers)
def on_exit(server):
    note("on_exit", workers=sorted(server.WORKERS))
"""
# Without the settings that keep an old generation after a reload.
PLAIN = ("--probation", "0", "--canary-time", "0", "--no-timeout-soft", "--timeout-grace", "0.2")


class Notes:
    """The lines that hooks have written."""

    def __init__(self, place: Place) -> None:
        self._path = place.app_folder / "notes"

    def all(self, hook: str = "", **fields: Any) -> list[dict[str, Any]]:
        text = self._path.read_text() if self._path.exists() else ""
        found = [json.loads(line) for line in text.splitlines()]
        return [n for n in found if hook in ("", n["hook"]) and fields.items() <= n.items()]

    def wait(self, daemon: Daemon, hook: str, times: int = 1, **fields: Any) -> list[dict[str, Any]]:
        what = f"{hook} {fields or ''} {times} times"
        return daemon.until(lambda: len(f := self.all(hook, **fields)) >= times and f, what)

    def names(self) -> list[str]:
        return [n["hook"] for n in self.all()]


class Site(NamedTuple):
    daemon: Daemon
    notes: Notes


def start(place: Place, *args: str, conf: str = HOOKS, serving: bool = True, **environ: str) -> Site:
    place.add("site_app.py", APP)
    place.add("gunicorn.conf.py", textwrap.dedent(conf))
    daemon = place.start(*PLAIN, *args, "site_app:app", serving=serving, **environ)
    return Site(daemon, Notes(place))


def test_a_life(place: Place) -> None:
    """All hooks of a start, a scaling and a graceful end: in the right process, in order, each once."""
    daemon, notes = start(place, "-w", "1")
    daemon.settled(1)
    server = fork_server(daemon).pid
    daemon.send(signal.SIGTTIN)
    daemon.settled(2)
    first, second = daemon.pids()
    assert daemon.stop() == 0
    assert [(n["hook"], n.get("age", 0)) for n in notes.all()][:9] == [
        ("nworkers_changed", 0),
        ("on_starting", 0),
        ("when_ready", 0),
        *(("pre_fork", 1), ("post_fork", 1), ("post_worker_init", 1)),
        ("nworkers_changed", 0),
        *(("pre_fork", 2), ("post_fork", 2)),
    ]
    in_server = "on_starting when_ready pre_fork child_exit nworkers_changed on_exit".split()
    assert {n["process"] for n in notes.all() if n["hook"] in in_server} == {server}
    in_worker = "post_fork post_worker_init worker_exit".split()
    assert {n["process"] for n in notes.all() if n["hook"] in in_worker} == {first, second}
    assert notes.all("on_starting") == [
        {
            "hook": "on_starting",
            "process": server,
            "address": [["127.0.0.1", 0]],
            "workers": 1,
            "pid": daemon.pid,
        }
    ]
    assert notes.all("when_ready")[0]["address"] == [["127.0.0.1", daemon.port]]
    assert notes.all("when_ready")[0]["listeners"] == 1
    numbers = [(n["new"], n["old"], n["number"]) for n in notes.all("nworkers_changed")]
    assert numbers == [(1, None, 1), (2, 1, 2)]
    assert [n["pid"] for n in notes.all("pre_fork")] == ["[booting]"] * 2
    assert [(n["pid"], n["mark"], n["ppid"], n["app"]) for n in notes.all("post_fork")] == [
        (first, "marked 1", daemon.pid, False),
        (second, "marked 2", daemon.pid, False),
    ]
    assert all(n["app"] for n in notes.all("post_worker_init"))
    assert sorted((n["pid"], n["alive"]) for n in notes.all("worker_exit")) == sorted(
        [(first, False), (second, False)]
    )
    ends = sorted((n["pid"], n["code"], n["mark"], n["alive"]) for n in notes.all("child_exit"))
    assert ends == sorted([(first, 0, "marked 1", False), (second, 0, "marked 2", False)])
    assert notes.names()[-1] == "on_exit"
    assert notes.all("on_exit") == [{"hook": "on_exit", "process": server, "workers": []}]
    assert not {"on_reload", "worker_int", "worker_abort", "pre_exec"} & set(notes.names())


def test_quick_end(place: Place) -> None:
    """INT: worker_int in every worker, then worker_exit, child_exit, and on_exit at the end."""
    daemon, notes = start(place, "-w", "2")
    pids = {worker.pid for worker in daemon.settled(2)}
    assert daemon.stop(signal.SIGINT) == 0
    for hook in ("worker_int", "worker_exit", "child_exit"):
        assert {n["pid"] for n in notes.all(hook)} == pids, hook
        assert len(notes.all(hook)) == 2, hook
    assert notes.names()[-1] == "on_exit"
    assert len(notes.all("on_exit")) == 1


def test_signals_to_a_worker(place: Place) -> None:
    """INT and QUIT call worker_int, TERM does not; each ends with worker_exit and child_exit."""
    daemon, notes = start(place, "-w", "1")
    for signum in (signal.SIGINT, signal.SIGQUIT, signal.SIGTERM):
        (worker,) = daemon.settled(1)
        assert worker.pid
        Process(worker.pid).send(signum)
        (ended,) = notes.wait(daemon, "child_exit", pid=worker.pid)
        assert ended["code"] == 0
        assert len(notes.all("worker_int", pid=worker.pid)) == (signum != signal.SIGTERM)
        assert len(notes.all("worker_exit", pid=worker.pid)) == 1
        daemon.until(lambda gone=worker.pid: daemon.pids() != [gone], "another worker")


@pytest.mark.parametrize(("path", "code"), [("/crash", -signal.SIGABRT), ("/leave", 7)])
def test_child_exit_of_a_crash(place: Place, path: str, code: int) -> None:
    """Workers that crash are reported as well, with the kernel's exit status."""
    daemon, notes = start(place, "-w", "1")
    (worker,) = daemon.settled(1)
    daemon.connect().asked(path).ended_by_server()
    (ended,) = notes.wait(daemon, "child_exit", pid=worker.pid)
    assert ended["code"] == code
    assert notes.all("worker_exit", pid=worker.pid) == []


@pytest.mark.parametrize("threads", ["2", *thorough("1")])
def test_worker_abort(place: Place, threads: str) -> None:
    """A worker over its deadline: worker_abort is called;
    its stacks and the cause are the same as without the hook.
    """
    daemon, notes = start(place, "-w", "1", "-t", "1", "--threads", threads)
    (worker,) = daemon.settled(1)
    daemon.connect().asked("/hang").ended_by_server()
    (ended,) = notes.wait(daemon, "child_exit", pid=worker.pid)
    assert ended["code"] == -signal.SIGABRT
    (aborted,) = notes.all("worker_abort")
    assert (aborted["process"], aborted["alive"]) == (worker.pid, False)
    assert [n["hook"] for n in notes.all(process=worker.pid)][-2:] == ["worker_abort", "worker_exit"]
    (view,) = daemon.client.call(EXITS, limit=10)
    assert (view.cause, view.status, view.last_requests[0]) == ("deadline", "signal 6 (ABRT)", "GET /hang")
    assert "in app" in (view.stack or "")
    assert "in app" in daemon.event("worker_aborted", pid=worker.pid)["stack"]


@pytest.mark.thorough
def test_abort_of_a_worker_that_hangs_in_c(place: Place) -> None:
    """No Python code can run, so worker_abort is not called; the stacks are still logged."""
    daemon, notes = start(place, "-w", "1", "-t", "1")
    daemon.settled(1)
    daemon.connect().asked("/spin").ended_by_server()
    view = daemon.until(lambda: daemon.client.call(EXITS, limit=10), "the end is known")[0]
    assert (view.cause, view.status) == ("deadline", "signal 9 (KILL)")
    assert "in app" in (view.stack or "")
    assert notes.all("worker_abort") == []
    daemon.settled(1)


@pytest.mark.thorough
@pytest.mark.parametrize(
    "hook",
    [
        "def worker_abort(worker): raise TimeoutError('too late')",
        "import time\ndef worker_abort(worker): time.sleep(1000)",
        *thorough("import os\ndef worker_abort(worker): os.abort()"),
        *thorough("import sys\ndef worker_abort(worker): sys.exit(1)"),
    ],
)
def test_worker_abort_cannot_save_the_worker(place: Place, hook: str) -> None:
    """Whatever the hook does, the worker ends soon, with the same cause."""
    daemon, _ = start(place, "-w", "1", "-t", "1", conf=hook)
    (worker,) = daemon.settled(1)
    assert worker.pid
    process = Process(worker.pid)
    daemon.connect().asked("/hang").ended_by_server()
    assert process.ended()
    view = daemon.until(lambda: daemon.client.call(EXITS, limit=10), "the end is known")[0]
    assert view.cause == "deadline"
    assert view.signal in (signal.SIGABRT, signal.SIGKILL)
    daemon.settled(1)


def test_reload(place: Place) -> None:
    """The new fork server calls the hooks of a start, then on_reload; ends of old workers are reported."""
    daemon, notes = start(place, "-w", "2")
    old = {worker.pid for worker in daemon.settled(2)}
    before = fork_server(daemon).pid
    assert daemon.ctl("reload").code == 0
    new = {worker.pid for worker in daemon.settled(2)}
    notes.wait(daemon, "child_exit", times=2)
    assert {n["pid"] for n in notes.all("child_exit")} == old
    (reloaded,) = notes.all("on_reload")
    assert (reloaded["process"] != before, reloaded["pid"]) == (True, daemon.pid)
    assert daemon.stop() == 0
    assert {n["pid"] for n in notes.all("child_exit")} == old | new
    assert len(notes.all("child_exit")) == 4
    for hook in ("on_starting", "when_ready"):
        assert [n["process"] for n in notes.all(hook)] == [before, reloaded["process"]], hook
    assert [(n["new"], n["old"]) for n in notes.all("nworkers_changed")] == [(2, None), (2, 2)]
    assert [n["process"] for n in notes.all("on_exit")] == [reloaded["process"]]


@pytest.mark.thorough
def test_another_number_after_a_reload(place: Place) -> None:
    """A configuration with more workers: nworkers_changed in the new fork server, with both numbers."""
    daemon, notes = start(place, conf=f"workers = 1\n{HOOKS}")
    daemon.settled(1)
    place.add("gunicorn.conf.py", f"workers = 3\n{HOOKS}")
    daemon.send(signal.SIGHUP)
    daemon.settled(3)
    notes.wait(daemon, "nworkers_changed", new=3, old=1, number=3)
    assert len(notes.all("nworkers_changed")) == 2


def test_a_fork_server_that_died(place: Place) -> None:
    """Its successor begins as the first one did, forks and reports ends."""
    daemon, notes = start(place, "-w", "1")
    (worker,) = daemon.settled(1)
    assert worker.pid
    daemon.ctl("scale", "2")
    daemon.settled(2)
    fork_server(daemon).send(signal.SIGKILL)
    Process(worker.pid).send(signal.SIGKILL)
    (ended,) = notes.wait(daemon, "child_exit", pid=worker.pid)
    daemon.settled(2)
    assert (ended["code"], ended["mark"]) == (-signal.SIGKILL, None)  # the successor did not fork this one
    assert ended["process"] == fork_server(daemon).pid
    assert len(notes.all("pre_fork")) == 3
    assert daemon.stop() == 0
    for hook, times in (("on_starting", 2), ("when_ready", 2), ("on_exit", 1), ("on_reload", 0)):
        assert len(notes.all(hook)) == times, hook
    assert [(n["new"], n["old"]) for n in notes.all("nworkers_changed")] == 2 * [(1, None), (2, 1)]
    assert len(notes.all("child_exit")) == 3


def test_refork(place: Place) -> None:
    """A worker that becomes the fork server counts as ended, and calls the hooks of a fork server."""
    daemon, notes = start(place, "-w", "2")
    (zygote, other) = daemon.settled(2)
    assert daemon.ctl("refork", "--slot", "1").code == 0
    daemon.until(lambda: fork_server(daemon).pid == zygote.pid, "the zygote is the fork server")
    daemon.settled(2)
    notes.wait(daemon, "child_exit", pid=other.pid)
    assert len(notes.all("child_exit", pid=zygote.pid)) == 1
    assert len(notes.all("worker_exit", pid=zygote.pid)) == 1
    forked = notes.all("pre_fork", process=zygote.pid)
    assert len(forked) == 2
    ages = {n["age"]: n["mark"] for n in notes.all("post_fork")}
    assert all(ages[n["age"]] == f"marked {n['age']}" for n in forked)
    assert daemon.stop() == 0
    assert notes.names()[-1] == "on_exit"
    assert notes.all("on_exit")[0]["process"] == zygote.pid
    ended = [n["pid"] for n in notes.all("child_exit")]
    assert len(ended) == len(set(ended)) == len(notes.all("pre_fork"))


@pytest.mark.thorough
def test_a_rollback(place: Place) -> None:
    """The end of each worker of the rejected generation is reported once,
    by its fork server or the restored one.
    """
    place.add("site_app.py", APP)
    place.add("gunicorn.conf.py", HOOKS)
    daemon = place.start(
        *("--probation", "60", "--rollback-crashes", "1", "--canary-time", "0", "-w", "2"), "site_app:app"
    )
    notes = Notes(place)
    daemon.settled(2)
    assert daemon.ctl("reload").code == 0
    daemon.settled(2)
    daemon.connect().asked("/leave").ended_by_server()
    daemon.event("reload_rolled_back")
    daemon.settled(2)
    assert daemon.stop() == 0
    pids = [n["pid"] for n in notes.all("child_exit")]
    assert len(pids) == len(set(pids))
    assert set(pids) == {n["pid"] for n in notes.all("post_fork")}
    assert notes.names()[-1] == "on_exit"
    assert len(notes.all("on_exit")) == 1


def test_upgrade(place: Place) -> None:
    """pre_exec before the program is replaced, then the hooks of a start in a new generation;
    none of the end.
    """
    daemon, notes = start(place, "-w", "1")
    (worker,) = daemon.settled(1)
    daemon.send(signal.SIGUSR2)
    daemon.event("upgraded")
    notes.wait(daemon, "child_exit", pid=worker.pid)
    daemon.settled(1)
    names = notes.names()
    assert names.count("pre_exec") == 1
    assert names.index("pre_exec") < names.index("on_starting", names.index("pre_exec"))
    assert (names.count("on_starting"), names.count("when_ready"), names.count("on_reload")) == (2, 2, 0)
    assert "on_exit" not in names
    assert daemon.stop() == 0
    assert notes.names()[-1] == "on_exit"
    assert len(notes.all("child_exit")) == 2


@pytest.mark.thorough
def test_pre_exec_that_hangs(place: Place) -> None:
    """An upgrade continues, whatever the hook does."""
    daemon, _ = start(place, "-w", "1", conf="import time\ndef pre_exec(server): time.sleep(1000)\n")
    daemon.settled(1)
    daemon.send(signal.SIGUSR2)
    daemon.event("hook_failed", hook="pre_exec")
    daemon.event("upgraded")
    daemon.settled(1)


def test_check_config(place: Place) -> None:
    """A check calls none of the hooks."""
    place.add("site_app.py", APP)
    place.add("gunicorn.conf.py", HOOKS)
    assert place.run("--check-config", "site_app:app").code == 0
    assert Notes(place).all() == []


# -- hooks that fail -------------------------------------------------------------------------------------


FAILING = ("pre_fork", "child_exit", "nworkers_changed", "on_exit", "worker_exit", "worker_int")


@pytest.mark.parametrize(
    "error", ["ValueError('bad hook')", *thorough("SystemExit(4)", "KeyboardInterrupt()")]
)
def test_hooks_that_raise(place: Place, error: str) -> None:
    """Each is logged with its line, and everything else works as without them."""
    conf = "".join(f"def {hook}(*args):\n    raise {error}\n" for hook in FAILING)
    daemon, _ = start(place, "-w", "1", conf=conf)
    (worker,) = daemon.settled(1)
    assert daemon.ctl("scale", "2").code == 0
    daemon.settled(2)
    assert worker.pid
    Process(worker.pid).send(signal.SIGQUIT)
    daemon.until(lambda: worker.pid not in daemon.pids(), "it has a successor")
    daemon.settled(2)
    assert daemon.stop() == 0
    for number, hook in enumerate(FAILING):
        lines = daemon.events("hook_failed", hook=hook)
        assert lines, hook
        assert all(line["level"] == "error" for line in lines)
        assert f"gunicorn.conf.py line {2 * number + 2})" in lines[0]["problem"]
        assert "raise" in lines[0]["traceback"]


@pytest.mark.parametrize("hook", ["on_starting", "when_ready"])
@pytest.mark.parametrize("error", ["ValueError('not today')", *thorough("SystemExit(1)")])
def test_the_start_is_refused(place: Place, hook: str, error: str) -> None:
    """An exception of these hooks ends the start, as in gunicorn, with a traceback and without on_exit."""
    conf = f"{HOOKS}\ndef {hook}(server):\n    raise {error}\n"
    daemon, notes = start(place, conf=conf, serving=False)
    assert daemon.wait() in (1, 3)
    text = daemon.log.read_text()
    assert f"ostler: error: {hook}: {error.partition('(')[0]}" in text
    assert "Traceback" in text
    assert "on_exit" not in notes.names()


@pytest.mark.parametrize("hook", ["post_fork", "post_worker_init"])
@pytest.mark.parametrize("error", ["ValueError('not today')", *thorough("SystemExit(1)")])
def test_no_worker_boots(place: Place, hook: str, error: str) -> None:
    """A start whose workers' hooks raise fails as if the app could not load, with all hooks of the end."""
    conf = f"{HOOKS}\ndef {hook}(*args):\n    raise {error}\n"
    daemon, notes = start(place, "-w", "1", conf=conf, serving=False)
    assert daemon.wait() == 3
    text = daemon.log.read_text()
    assert f"ostler: error: {hook}: {error.partition('(')[0]}" in text
    assert notes.names()[-3:] == ["worker_exit", "child_exit", "on_exit"]


@pytest.mark.parametrize("hook", ["on_reload", *thorough("post_fork", "post_worker_init")])
def test_a_reload_is_refused(place: Place, hook: str) -> None:
    """The old generation continues to serve, and the command prints the traceback."""
    daemon, notes = start(place, "-w", "1")
    before = daemon.settled(1)
    place.add("gunicorn.conf.py", f"{HOOKS}\ndef {hook}(*args):\n    raise ValueError('not today')\n")
    done = daemon.ctl("reload")
    assert done.code != 0
    assert "not today" in done.out + done.err
    assert [worker.pid for worker in daemon.settled(1)] == [worker.pid for worker in before]
    assert daemon.get().status == 200
    assert len(notes.all("when_ready")) == (1 if hook == "on_reload" else 2)


@pytest.mark.thorough
@pytest.mark.parametrize("hook", ["pre_fork", "child_exit", *thorough("nworkers_changed")])
def test_a_hook_hangs_in_the_fork_server(place: Place, hook: str) -> None:
    """It is interrupted, and the log has its line; workers are still replaced."""
    conf = f"import time\ndef {hook}(*args):\n    if len(args) < 3 or args[2]: time.sleep(1000)\n"
    daemon, _ = start(place, "-w", "1", conf=conf)
    (worker,) = daemon.settled(1)
    assert daemon.ctl("scale", "2").code == 0
    assert worker.pid
    Process(worker.pid).send(signal.SIGKILL)
    line = daemon.event("hook_failed", hook=hook)
    assert "HookTimeout" in line["problem"]
    assert "line 3)" in line["problem"]
    daemon.settled(2)
    assert daemon.stop() == 0


@pytest.mark.thorough
def test_on_exit_hangs(place: Place) -> None:
    """The daemon ends without it, within the time that it has announced."""
    daemon, _ = start(place, "-w", "1", conf="import time\ndef on_exit(server): time.sleep(1000)\n")
    daemon.settled(1)
    assert daemon.stop(within=25) == 0
    assert "HookTimeout" in daemon.events("hook_failed", hook="on_exit")[0]["problem"]


@pytest.mark.thorough
def test_a_hook_hangs_in_c(place: Place) -> None:
    """If no signal can interrupt it, its fork server is killed and replaced; no worker is lost."""
    conf = """\
    import itertools
    from pathlib import Path
    HANGS = Path(__file__).with_name("hangs")
    def child_exit(server, worker):
        if HANGS.exists():
            HANGS.unlink()
            all(itertools.repeat(True))
    """
    daemon, _ = start(place, "-w", "2", conf=conf)
    stays, goes = daemon.settled(2)
    place.add("hangs", "")
    assert goes.pid
    Process(goes.pid).send(signal.SIGKILL)
    daemon.event("fork_server_failed")
    assert stays.pid in [worker.pid for worker in daemon.settled(2)]


@pytest.mark.thorough
def test_a_fork_server_that_its_hook_kills(place: Place) -> None:
    """os._exit in child_exit: the fleet starts another fork server,
    which does not call the hook for the same worker.
    """
    conf = """\
    import os
    from pathlib import Path
    def child_exit(server, worker):
        with Path(__file__).with_name("ended").open("a") as file:
            file.write(f"{worker.pid}\\n")
        if worker.exitcode == -9:
            os._exit(1)
    """
    daemon, _ = start(place, "-w", "2", conf=conf)
    pids = [worker.pid for worker in daemon.settled(2)]
    assert pids[0]
    Process(pids[0]).send(signal.SIGKILL)
    daemon.event("fork_server_failed")
    daemon.until(lambda: pids[0] not in daemon.pids(), "a successor")
    daemon.settled(2)
    assert daemon.stop() == 0
    ended = (place.app_folder / "ended").read_text().split()
    assert ended.count(str(pids[0])) == 1
    assert len(ended) == 3


# -- what people do in hooks -----------------------------------------------------------------------------


def test_logs(place: Place) -> None:
    """server.log and worker.log write to the error log, with level and text, and in workers slot and pid."""
    conf = """\
    def on_starting(server): server.log.info("starting %s", server.proc_name)
    def pre_fork(server, worker): server.log.warning("pid %s\\nforged", worker.pid)
    def post_fork(server, worker): server.log.info("spawned (pid: %s)", worker.pid)
    def post_worker_init(worker):
        try:
            1 / 0
        except ZeroDivisionError:
            worker.log.exception("unexpected")
        worker.log.debug("not at this level")
        print("printed")
    def when_ready(server): print("also printed")
    """
    daemon, _ = start(place, "-w", "1", "-n", "shop", conf=conf)
    (worker,) = daemon.settled(1)
    daemon.event("hook", after=3)
    lines = daemon.events("hook")
    assert [(line["level"], line["message"]) for line in lines] == [
        ("info", "starting shop"),
        ("warning", "pid [booting]\nforged"),
        ("info", f"spawned (pid: {worker.pid})"),
        ("error", "unexpected"),
    ]
    assert ("slot" in lines[0], lines[0]["generation"]) == (False, 1)
    assert (lines[2]["slot"], lines[2]["pid"]) == (1, worker.pid)
    assert "ZeroDivisionError" in lines[3]["traceback"]
    daemon.until(lambda: daemon.out.read_text().splitlines() == ["also printed", "printed"], "both on stdout")


def test_hooks_by_name(place: Place) -> None:
    """A text names a function in another module."""
    place.add("my_hooks.py", HOOKS)
    daemon, notes = start(place, "-w", "1", conf="when_ready = 'my_hooks.when_ready'\n")
    assert notes.names() == ["when_ready"]
    assert daemon.stop() == 0


def test_request_ids(place: Place) -> None:
    """A field that pre_request adds reaches the app, and post_request gets the answer."""
    conf = f"""{HOOKS}
def pre_request(worker, req):
    req.headers.append(("X-Id", f"{{req.method}} {{req.path}}"))
def post_request(worker, req, environ, resp):
    note("post_request", status=resp.status, path=environ["PATH_INFO"], nr=worker.nr)
"""
    daemon, notes = start(place, "-w", "1", conf=conf)
    assert daemon.get("/here").text == "GET /here"
    assert daemon.get("/there").text == "GET /there"
    notes.wait(daemon, "post_request", times=2)
    assert [(n["status"], n["path"], n["nr"]) for n in notes.all("post_request")] == [
        ("200 OK", "/here", 1),
        ("200 OK", "/there", 2),
    ]


@pytest.mark.parametrize("threads", ["2", *thorough("1")])
def test_pre_request_is_within_the_deadline(place: Place, threads: str) -> None:
    """A pre_request that hangs is ended as an app is, and answered with 504; the worker continues."""
    conf = """\
    import time
    def pre_request(worker, req):
        while req.path == "/hang":
            time.sleep(0.01)
    """
    place.add("site_app.py", APP)
    place.add("gunicorn.conf.py", textwrap.dedent(conf))
    daemon = place.start("-w", "1", "-t", "1", "--threads", threads, "site_app:app")
    before = daemon.pids()
    assert daemon.get("/hang").status == 504
    assert daemon.get().status == 200
    assert daemon.pids() == before


def test_a_worker_that_says_it_is_not_alive(place: Place) -> None:
    """`worker.alive = False` asks for a successor, which is ready before the worker leaves."""
    conf = """\
    def post_request(worker, req):
        if req.path == "/last":
            worker.alive = False
    """
    daemon, _ = start(place, "-w", "1", conf=conf)
    (worker,) = daemon.settled(1)
    assert daemon.get("/last").status == 200
    daemon.event("recycle", pid=worker.pid)
    daemon.event("worker_exited", pid=worker.pid, cause="recycle")
    assert [found.pid for found in daemon.settled(1)] != [worker.pid]


@pytest.mark.parametrize("argv", [["--threads", "2"], *thorough(["-w", "1"], ["-k", "gevent"])], ids=str)
def test_requests_that_do_not_count(place: Place, argv: list[str]) -> None:
    """`worker.max_requests` that a hook sets counts, and requests that it takes off `worker.nr` do not."""
    conf = """\
    def post_fork(server, worker):
        worker.max_requests = 4
    def pre_request(worker, req):
        if req.path == "/health":
            worker.nr -= 1
    """
    daemon, _ = start(place, *argv, conf=conf)
    (worker,) = daemon.settled(1)
    for _ in range(3):
        for path in ("/health", "/health", "/"):
            assert daemon.get(path).status == 200
    assert daemon.events("recycle") == []
    assert daemon.get("/").status == 200
    daemon.event("recycle", pid=worker.pid)
    daemon.event("worker_exited", pid=worker.pid, cause="recycle")


@pytest.mark.thorough
@pytest.mark.parametrize("worker_class", ["asgi", "meinheld", "reference.ReferenceWorker"])
def test_another_number_of_requests(place: Place, worker_class: str) -> None:
    """Where hooks do not see requests, `worker.max_requests` and `worker.nr` count as they are at the start,
    and as an app that keeps the object changes them.
    """
    if worker_class == "meinheld":
        pytest.importorskip("meinheld.server", reason="meinheld is not installed", exc_type=ImportError)
    place.add("kept.py", "worker = None\n")
    place.add(
        "counted.py",
        """\
import kept
def app(environ, start_response):
    if environ["PATH_INFO"] == "/health":
        kept.worker.nr -= 1
    start_response("200 OK", [("Content-Length", "0")])
    return []
async def asgi(scope, receive, send):
    if scope["type"] == "lifespan":
        return
    if scope["path"] == "/health":
        kept.worker.nr -= 1
    await send({"type": "http.response.start", "status": 200, "headers": [(b"content-length", b"0")]})
    await send({"type": "http.response.body"})
""",
    )
    place.add(
        "gunicorn.conf.py",
        """\
import kept
def post_worker_init(worker):
    worker.max_requests = 4
    kept.worker = worker
""",
    )
    daemon = place.start("-k", worker_class, "counted:asgi" if worker_class == "asgi" else "counted:app")
    (worker,) = daemon.settled(1)
    for path in ("/health", "/", "/health", "/", "/", "/health"):
        assert daemon.get(path).status == 200
    assert daemon.events("recycle") == []
    assert daemon.get("/").status == 200
    daemon.event("recycle", pid=worker.pid)


def test_what_a_hook_calls_its_worker(place: Place) -> None:
    """A title that post_worker_init sets stays; that of a hook of the fork server is not inherited.
    Listeners are written as their addresses.
    """
    conf = """\
    import setproctitle
    from pathlib import Path
    def when_ready(server):
        setproctitle.setproctitle("a hook of the fork server")
        Path("listeners").write_text(" ".join(map(str, server.LISTENERS)))
    def post_worker_init(worker):
        if worker.age > 1:
            setproctitle.setproctitle(f"shop worker {worker.age}")
    """
    daemon, _ = start(place, "-w", "2", conf=conf)
    first, second = daemon.settled(2)
    assert title(first.pid).startswith("ostler: worker 1 gen 1 [")
    assert title(second.pid) == "shop worker 2"
    assert (place.app_folder / "listeners").read_text() == daemon.url
    assert title(fork_server(daemon).pid).startswith("ostler: fork server gen 1 [")


def test_an_app_that_a_hook_wraps(place: Place) -> None:
    """The app that post_worker_init assigns to worker.wsgi is served; monitoring agents do that."""
    conf = """\
    def post_worker_init(worker):
        inner = worker.wsgi
        def wrapped(environ, start_response):
            environ["HTTP_X_ID"] = "wrapped"
            return inner(environ, start_response)
        worker.wsgi = wrapped
    """
    daemon, _ = start(place, "-w", "1", conf=conf)
    assert daemon.get().text == "wrapped"


@pytest.mark.thorough
def test_on_exit_without_a_fork_server(place: Place) -> None:
    """Without a fork server to call it, the log reports it as missed, and the daemon ends."""
    conf = f"{HOOKS}\nimport time\nif NOTES.with_name('stuck').exists(): time.sleep(1000)\n"
    daemon, notes = start(place, "-w", "1", conf=conf)
    daemon.settled(1)
    place.add("stuck", "")
    fork_server(daemon).send(signal.SIGKILL)
    daemon.event("fork_server_failed")
    assert daemon.stop() == 0
    assert notes.all("on_exit") == []
    assert daemon.events("hook_missed", hook="on_exit")


@pytest.mark.parametrize("preload", tiers({"lazy": (), "preload": ("--preload",)}.items(), ["lazy"]))
def test_a_hook_loads_the_app(place: Place, preload: tuple[str, ...]) -> None:
    """server.app.wsgi() in the fork server loads the app there, once, and workers use that one."""
    place.add("site_app.py", f"import os\nPID = os.getpid()\nprint('loaded', flush=True)\n{APP}")
    place.add("gunicorn.conf.py", "def on_starting(server): server.app.wsgi()\n")
    daemon = place.start("-w", "2", *preload, "site_app:app")
    daemon.settled(2)
    daemon.until(lambda: daemon.out.read_text(), "what the app prints")
    assert daemon.stop() == 0
    assert daemon.out.read_text().splitlines() == ["loaded"]


@pytest.mark.thorough
@pytest.mark.parametrize("preload", tiers({"lazy": (), "preload": ("--preload",)}.items(), ["lazy"]))
def test_a_thread_of_post_fork(place: Place, preload: tuple[str, ...]) -> None:
    """The pattern of Sentry's, New Relic's and OpenTelemetry's recipes:
    an exporter with a thread, made after the fork, which the app uses, and which is flushed at the end.
    """
    conf = """\
    import atexit, queue, threading
    from pathlib import Path
    import exporter
    def post_fork(server, worker):
        server.log.info("Worker spawned (pid: %s)", worker.pid)
        exporter.start(Path(__file__).with_name(f"spans.{worker.pid}"))
    """
    place.add(
        "exporter.py",
        textwrap.dedent("""\
        import atexit, queue, threading
        spans = None
        def start(path):
            global spans
            spans = queue.Queue()
            def export():
                with path.open("w", buffering=1) as file:
                    while (span := spans.get()) is not None:
                        file.write(span + "\\n")
            thread = threading.Thread(target=export, name="exporter", daemon=True)
            thread.start()
            def flush():
                spans.put(None)
                thread.join()
            atexit.register(flush)
        """),
    )
    place.add("gunicorn.conf.py", textwrap.dedent(conf))
    place.add(
        "traced.py",
        "import exporter\n"
        "def app(environ, start_response):\n"
        "    exporter.spans.put(environ['PATH_INFO'])\n"
        "    start_response('200 OK', [])\n"
        "    return [b'fine']\n",
    )
    daemon = place.start(*PLAIN, "-w", "2", *preload, "traced:app")
    pids = [worker.pid for worker in daemon.settled(2)]
    for number in range(20):
        assert daemon.get(f"/{number}").status == 200
    assert daemon.stop() == 0
    spans = [line for pid in pids for line in (place.app_folder / f"spans.{pid}").read_text().split()]
    assert sorted(spans) == sorted(f"/{number}" for number in range(20))


PROMETHEUS = """\
import os
from pathlib import Path
from prometheus_client import CollectorRegistry, Counter, Gauge, generate_latest, multiprocess
ASKED = Counter("asked", "Requests")
HERE = Gauge("here", "Workers that live", multiprocess_mode="livesum")
def app(environ, start_response):
    if environ["PATH_INFO"] == "/metrics":
        registry = CollectorRegistry()
        multiprocess.MultiProcessCollector(registry)
        body = generate_latest(registry)
    else:
        ASKED.inc()
        HERE.set(1)
        body = str(os.getpid()).encode()
    start_response("200 OK", [("Content-Length", str(len(body)))])
    return [body]
"""


def test_prometheus_multiprocess(place: Place) -> None:
    """prometheus_client's recipe:
    counters of dead workers stay, live gauges are removed, also after kill -9.
    """
    folder = place.folder / "metrics"
    folder.mkdir()
    place.add("counted.py", PROMETHEUS)
    place.add(
        "gunicorn.conf.py",
        "from prometheus_client import multiprocess\n"
        "def child_exit(server, worker):\n"
        "    multiprocess.mark_process_dead(worker.pid)\n",
    )
    daemon = place.start(*PLAIN, "-w", "2", "counted:app", PROMETHEUS_MULTIPROC_DIR=str(folder))
    daemon.settled(2)
    asked = 0

    def live() -> set[int]:
        return {int(path.stem.rpartition("_")[2]) for path in folder.glob("gauge_livesum_*.db")}

    def reach_all() -> set[int]:
        """Send requests until each worker has answered."""
        nonlocal asked
        pids = {worker.pid for worker in daemon.settled(2)}
        seen: set[int] = set()
        while seen != pids:
            seen.add(int(daemon.get().text))
            asked += 1
        return seen

    def ends(how: str) -> None:
        before = reach_all()
        assert live() == before
        match how:
            case "kill -9":
                for pid in before:
                    Process(pid).send(signal.SIGKILL)
            case "refork":
                assert daemon.ctl("refork", "--force").code == 0
            case _:
                assert daemon.ctl(how).code == 0
        daemon.until(lambda: not before & set(daemon.pids()), f"all are replaced after {how}")
        daemon.until(lambda: not before & live(), f"no live gauge of the dead is left after {how}")
        daemon.settled(2)

    for how in ("kill -9", "reload", "refork", "kill -9"):
        ends(how)
    alive = reach_all()
    metrics = daemon.get("/metrics").text
    assert f"asked_total {asked}.0" in metrics
    assert f"here {len(alive)}.0" in metrics


@pytest.mark.thorough
def test_numbered_workers(place: Place) -> None:
    """A recipe of large sites: pre_fork gives each worker a number that no other live worker has."""
    conf = """\
    import os
    def pre_fork(server, worker):
        taken = {other.number for other in server.WORKERS.values() if other.alive}
        worker.number = next(n for n in range(1, 100) if n not in taken)
    def post_fork(server, worker):
        os.environ["WORKER_NUMBER"] = str(worker.number)
        server.log.info("number %s", worker.number)
    """
    daemon, _ = start(place, "-w", "3", conf=conf)
    workers = daemon.settled(3)
    assert sorted(line["message"] for line in daemon.events("hook")) == ["number 1", "number 2", "number 3"]
    of = {line["pid"]: line["message"] for line in daemon.events("hook")}
    assert workers[1].pid
    Process(workers[1].pid).send(signal.SIGKILL)
    newest = daemon.event("hook", after=3)
    assert newest["message"] == of[workers[1].pid]


LASTING = """\
import http.server, threading
from pathlib import Path
PORT = Path(__file__).with_name("port")
class Handler(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        self.send_response(200)
        self.end_headers()
        self.wfile.write(str(os.getpid()).encode())
    def log_message(self, *args): pass
beside = None
def when_ready(server):
    global beside
    note("when_ready")
    port = int(PORT.read_text()) if PORT.exists() else 0
    beside = http.server.HTTPServer(("127.0.0.1", port), Handler)
    PORT.write_text(str(beside.server_port))
    threading.Thread(target=beside.serve_forever).start()
def on_exit(server):
    note("on_exit", began=beside is not None)
    beside.shutdown()
"""


@pytest.mark.parametrize("how", ["reload", *thorough("refork", "upgrade")])
def test_what_a_start_has_begun_lasts(place: Place, how: str) -> None:
    """A server beside the app that when_ready has started, for metrics for example, runs until on_exit."""
    daemon, notes = start(place, "-w", "1", conf=f"{HOOKS}\n{LASTING}")
    daemon.settled(1)
    server = fork_server(daemon).pid
    url = f"http://127.0.0.1:{(place.app_folder / 'port').read_text()}"
    assert ask(url).text == str(server)
    for _ in range(2):
        pid = daemon.pids()[0]
        assert daemon.ctl(how).code == 0
        daemon.until(lambda pid=pid: pid not in daemon.pids(), "another worker")
        daemon.settled(1)
        daemon.until(lambda: title(server).startswith("ostler: hooks"), "the first fork server has retired")
        assert ask(url).text == str(server)
        assert not listening(daemon.port) & set(descriptors(server))
        if how == "upgrade":
            break  # the next one would end it, and the new one does not have the port
    assert daemon.stop() == 0
    assert [(n["process"], n["began"]) for n in notes.all("on_exit")] == [(server, True)]
    assert notes.names()[-1] == "on_exit"
    assert sorted(n["pid"] for n in notes.all("child_exit")) == sorted(
        n["pid"] for n in notes.all("post_fork")
    )


@pytest.mark.thorough
def test_what_lasts_has_new_logs(place: Place) -> None:
    """USR1 also reaches the retired fork server: what runs in it writes to the new file."""
    daemon, _ = start(
        place, "-w", "1", "--error-logfile", "error.log", conf=f"{HOOKS}\n{LASTING}", serving=False
    )
    daemon.settled(1)
    server = fork_server(daemon).pid
    assert daemon.ctl("reload").code == 0
    daemon.until(lambda: title(server).startswith("ostler: hooks"), "the first fork server has retired")
    log = place.app_folder / "error.log"
    old = log.rename(place.app_folder / "old.log")
    daemon.send(signal.SIGUSR1)
    daemon.until(lambda: str(old) not in descriptors(server), "the old file is let go")
    assert str(log) in descriptors(server)


@pytest.mark.thorough
def test_what_lasts_hangs_in_c_at_the_end(place: Place) -> None:
    """A retired fork server is ended even if no signal can interrupt its on_exit."""
    hangs = "def on_exit(server):\n    import itertools\n    all(itertools.repeat(True))\n"
    daemon, _ = start(place, "-w", "1", conf=f"{HOOKS}\n{LASTING}\n{hangs}")
    daemon.settled(1)
    server = fork_server(daemon)
    assert daemon.ctl("reload").code == 0
    daemon.until(lambda: title(server.pid).startswith("ostler: hooks"), "the first fork server has retired")
    daemon.send(signal.SIGTERM)
    assert daemon.wait() == 0
    assert server.ended()


@pytest.mark.thorough
def test_a_fork_server_without_work_ends_with_its_generation(place: Place) -> None:
    """A fork server ends with its generation if nothing runs that its start has begun."""
    daemon, _ = start(place, "-w", "1")
    daemon.settled(1)
    server = fork_server(daemon)
    assert daemon.ctl("reload").code == 0
    assert server.ended()
    (view,) = [view for view in daemon.client.call(EXITS, limit=10) if view.pid == server.pid]
    assert (view.kind, view.cause) == ("fork server", "rolled")
