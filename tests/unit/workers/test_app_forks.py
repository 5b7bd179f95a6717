"""Processes that the app forks have the signal dispositions of an ordinary Python program."""

import itertools
import json
import signal
from collections.abc import Callable, Iterable
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

from ostler.workers import app_forks
from tests.unit.workers.keeper import WORKERS, Keeper, settings_of

APP = """\
import json, multiprocessing, os, signal, subprocess, sys, time

context = multiprocessing.get_context("fork")

def state(pid):
    with open(f"/proc/{pid}/status") as file:
        fields = dict(line.rstrip().split(":", 1) for line in file)
    return {name: int(fields[name], 16) for name in ("SigBlk", "SigIgn", "SigCgt")}

def module_of(handler):
    return getattr(handler, "__module__", None) or ""

def report(path):
    python = {signum: signal.getsignal(signum) for signum in signal.valid_signals()}
    ours = [int(signum) for signum, handler in python.items() if "ostler." in module_of(handler)]
    with open(path, "w") as file:
        json.dump([state(os.getpid()), ours], file)
    if "eventlet" in sys.modules:
        # The ordinary end of a child would change the epoll of the hub, which parent and child share.
        os._exit(0)

def hang():
    while True:
        time.sleep(1)

def own(signum, frame):
    os._exit(7)

def ended(how):
    child = context.Process(target=hang)
    child.start()
    how(child)
    child.join(10)
    code = child.exitcode
    if code is None:
        child.kill()
    return code

def terminated_at_once():
    return [ended(lambda child: child.terminate()) for _ in range(20)]

def interrupt(child):
    # Repeated: KeyboardInterrupt is lost if it is raised while Python's own at-fork functions run.
    for _ in range(100):
        os.kill(child.pid, signal.SIGINT)
        child.join(0.1)
        if child.exitcode is not None:
            break

def by_each_signal():
    names = "TERM QUIT HUP USR1 USR2".split()
    found = {name: ended(lambda child: os.kill(child.pid, signal.Signals["SIG" + name])) for name in names}
    return found | {"INT": ended(interrupt)}

def seen_in_child():
    child = context.Process(target=report, args=("seen.json",))
    child.start()
    child.join(10)
    with open("seen.json") as file:
        return json.load(file)

def seen_in_program():
    program = "import time; print(1, flush=True); time.sleep(60)"
    child = subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE)
    child.stdout.readline()
    found = state(child.pid)
    child.terminate()
    code = child.wait(10)
    child.stdout.close()
    return [found, code]

signal.signal(signal.SIGVTALRM, own)

def with_own_handler():
    return ended(lambda child: os.kill(child.pid, signal.SIGVTALRM))

def handlers():
    return state(os.getpid())["SigCgt"]

at_import = terminated_at_once() if "FORK_AT_IMPORT" in os.environ else None

def imported():
    return at_import

def wsgi(environ, start_response):
    body = json.dumps(globals()[environ["PATH_INFO"][1:]]()).encode()
    start_response("200 OK", [("Content-Length", str(len(body)))])
    return [body]

async def asgi(scope, receive, send):
    if scope["type"] != "http":
        raise RuntimeError("no lifespan here")
    body = json.dumps(globals()[scope["path"][1:]]()).encode()
    headers = [(b"content-length", str(len(body)).encode())]
    await send({"type": "http.response.start", "status": 200, "headers": headers})
    await send({"type": "http.response.body", "body": body})
"""


def bits(mask: int) -> set[int]:
    """Numbers of signals in a mask of /proc/PID/status, without those that glibc itself uses (32 and 33)."""
    return {number for number in (*range(1, 32), *range(34, 65)) if mask >> (number - 1) & 1}


@pytest.mark.parametrize("kind", WORKERS)
def test_children_of_a_worker(kind: str, tmp_path: Path) -> None:
    """A child that the app forks ends at once by the signals for which the worker has handlers."""
    (tmp_path / "app.py").write_text(APP)
    with Keeper(tmp_path, **settings_of(kind)) as keeper:
        worker = keeper.spawn(keeper.server())

        def ask(question: str) -> Any:
            status, body = keeper.get(f"/{question}")
            assert status == "200 OK"
            return json.loads(body)

        before = bits(ask("handlers")) | {signal.SIGCHLD}
        assert ask("terminated_at_once") == [-signal.SIGTERM] * 20
        by_signal = ask("by_each_signal")
        assert by_signal.pop("INT") in (1, -signal.SIGINT)  # Python's own handler: KeyboardInterrupt
        assert by_signal == {
            name: -signal.Signals[f"SIG{name}"] for name in ("TERM", "QUIT", "HUP", "USR1", "USR2")
        }
        state, ours = ask("seen_in_child")
        assert (bits(state["SigBlk"]), ours) == (set(), [])
        caught = bits(state["SigCgt"])
        assert not caught & {signal.SIGTERM, signal.SIGQUIT, signal.SIGHUP, signal.SIGUSR1, signal.SIGIO}
        assert not {number for number in caught if number > signal.SIGRTMIN}
        program, code = ask("seen_in_program")
        assert (bits(program["SigBlk"]), code) == (set(), -signal.SIGTERM)
        # Python ignores these two in every program.
        assert bits(program["SigIgn"]) <= {signal.SIGPIPE, signal.SIGXFSZ}
        assert ask("with_own_handler") == 7
        # The worker itself has the same handlers as before.
        assert bits(ask("handlers")) | {signal.SIGCHLD} == before  # gevent handles it
        assert worker.alive
        worker.send_signal(signal.SIGTERM)
        worker.wait_until_ended()


def test_children_of_the_fork_server(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The same holds for children of an app that is loaded in the fork server."""
    monkeypatch.setenv("FORK_AT_IMPORT", "1")
    (tmp_path / "app.py").write_text(APP)
    with Keeper(tmp_path, wsgi_app="app:wsgi", preload_app=True) as keeper:
        keeper.spawn(keeper.server())
        assert json.loads(keeper.get("/imported")[1]) == [-signal.SIGTERM] * 20


@pytest.mark.parametrize("preload", [False, True])
def test_workers_keep_their_handlers(preload: bool, tmp_path: Path) -> None:
    """Forks by Ostler itself do not reset handlers:
    signals to the process group do not end a booting worker.
    """
    (tmp_path / "app.py").write_text(APP)
    with Keeper(tmp_path, wsgi_app="app:wsgi", preload_app=preload) as keeper:
        zygote = keeper.make_zygote(keeper.spawn(keeper.server()))
        worker = keeper.spawn(zygote, 2)
        for signum in (signal.SIGHUP, signal.SIGWINCH, signal.SIGUSR2):
            worker.send_signal(signum)
            zygote.send_signal(signum)
        assert json.loads(keeper.get("/terminated_at_once")[1]) == [-signal.SIGTERM] * 20
        assert worker.alive
        assert zygote.alive


class Raised(Exception):
    """The exception of a signal handler."""


@pytest.fixture
def raising(monkeypatch: pytest.MonkeyPatch) -> Callable[[int], None]:
    """`raising(n)`: the nth call that changes the signal mask takes effect, then a handler raises in it."""
    real = app_forks._set_mask

    def arm(when: int) -> None:
        calls = itertools.count(1)

        def set_mask(how: int, signals: Iterable[int]) -> set[int]:
            mask = real(how, signals)
            if next(calls) == when:
                raise Raised
            return mask

        monkeypatch.setattr(app_forks, "_set_mask", set_mask)

    return arm


@pytest.mark.parametrize("when", [1, 2, 3])
def test_a_handler_raises_around_a_fork(raising: Callable[[int], None], when: int) -> None:
    """Whichever call it interrupts, after the fork the thread has the same signal mask as before."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, ())
    raising(when)
    try:
        for step in (app_forks._before, app_forks._in_parent):
            with suppress(Raised):
                step()
        assert signal.pthread_sigmask(signal.SIG_BLOCK, ()) == before
        assert not app_forks._masks
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def test_a_mask_that_was_not_restored(monkeypatch: pytest.MonkeyPatch) -> None:
    """If the mask could not be restored after one fork, the next one restores it."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, ())
    try:
        app_forks._before()
        app_forks._before()
        app_forks._in_parent()
        assert signal.pthread_sigmask(signal.SIG_BLOCK, ()) == before
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
