"""A worker that becomes the fork server of its generation, from the supervisor's side."""

import os
import random
import re
import signal
import socket
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any, Protocol

import pytest

from ostler.ipc import messages
from tests.unit.workers.keeper import Keeper, Peer

APP = """\
import atexit, os, pathlib, random, signal, socket, sys, threading, time

cache = {}
kept = []
loaded_by = os.getpid()
here = pathlib.Path(__file__).parent
print("loaded")

def say_goodbye():
    with open(here / "goodbyes", "a") as file:
        file.write(f"{os.getpid()}\\n")

atexit.register(say_goodbye)

def app(environ, start_response):
    path = environ["PATH_INFO"]
    answer = "ok"
    if path == "/learn":
        cache["who"] = os.getpid()
    elif path == "/who":
        answer = f"{os.getpid()} {loaded_by} {cache.get('who')}"
    elif path == "/random":
        answer = str(random.random())
    elif path == "/threads":
        answer = " ".join(sorted(t.name for t in threading.enumerate()))
    elif path == "/thread":
        threading.Thread(target=time.sleep, args=(1000,), daemon=True, name="flusher").start()
    elif path == "/connect":
        kept.append(socket.create_connection(("127.0.0.1", int(environ["QUERY_STRING"]))))
    elif path == "/alarm":
        signal.signal(signal.SIGALRM, lambda *_: os._exit(9))
        signal.setitimer(signal.ITIMER_REAL, 0.2)
        signal.signal(signal.SIGCHLD, signal.SIG_IGN)
    elif path == "/print":
        sys.stdout.write("one ")
    elif path == "/nap":
        while not (here / "wake").exists():
            time.sleep(0.01)
    elif path == "/sleep":
        time.sleep(1000)
    elif path == "/fork":
        pid = os.fork()
        if pid == 0:
            raise SystemExit(3)
        answer = str(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]))
    start_response("200 OK", [("Content-Length", str(len(answer)))])
    return [answer.encode()]
"""


class Keep(Protocol):
    def __call__(self, source: str = APP, **settings: Any) -> Keeper: ...


@pytest.fixture
def keep(tmp_path: Path) -> Iterator[Keep]:
    """`keep(source, **settings)`: a keeper whose app is in app.py."""
    with ExitStack() as stack:

        def start(source: str = APP, **settings: Any) -> Keeper:
            (tmp_path / "app.py").write_text(source)
            return stack.enter_context(Keeper(tmp_path, wsgi_app="app:app", **settings))

        yield start


def audit(worker: Peer, force: bool = False) -> messages.ZygoteAudited:
    worker.send_message(messages.AuditZygote(force))
    return worker.receive(messages.ZygoteAudited)


@pytest.mark.parametrize("preload", [False, True], ids=["each loads", "preload"])
@pytest.mark.parametrize("threads", [1, 4])
def test_three_in_a_row(keep: Keep, threads: int, preload: bool) -> None:
    """A zygote's worker can become a zygote itself, and so on; each has the caches of the first."""
    keeper = keep(threads=threads, preload_app=preload)
    worker = keeper.spawn(keeper.server())
    keeper.get("/learn")
    first = worker.pid
    for slot in (2, 3, 4):
        assert audit(worker) == messages.ZygoteAudited([], [])
        zygote = keeper.make_zygote(worker)
        worker = keeper.spawn(zygote, slot)
        who, loaded_by, learnt = map(int, keeper.get("/who")[1].split())
        assert (who, learnt) == (worker.pid, first)
        assert (loaded_by == first) is not preload
        assert worker.title == f"ostler: worker {slot} gen 7 [shop]"
        assert zygote.title == "ostler: fork server gen 7 [shop]"


@pytest.mark.parametrize("threads", [1, 4])
def test_nothing_of_the_worker_is_left(keep: Keep, threads: int) -> None:
    """A zygote has one thread, no part of the scoreboard mapped, and only the descriptors that it needs."""
    keeper = keep(threads=threads, errorlog=str(keep_file()), accesslog=str(keep_file()))
    server = keeper.server()
    zygote = keeper.make_zygote(keeper.spawn(server))
    assert len(zygote.thread_ids) == 1
    assert "ostler-scoreboard" not in zygote.proc("maps")

    def kinds(peer: Peer) -> list[str]:
        return sorted(re.sub(r"\d+", "N", link) for link in peer.descriptors())

    assert kinds(zygote) == kinds(server)


def keep_file() -> Path:
    return Path("log")


def test_workers_count_for_themselves(keep: Keep) -> None:
    """A zygote's worker writes to its own cell only, and its quota starts again."""
    keeper = keep(max_requests=3)
    old = keeper.spawn(keeper.server())
    keeper.get()
    keeper.get()
    new = keeper.spawn(keeper.make_zygote(old), 2)
    keeper.get()
    keeper.get()
    assert (keeper.answered(old), keeper.answered(new)) == (2, 2)
    keeper.get()
    assert new.receive(messages.RecycleDue) == messages.RecycleDue(3)


def test_workers_draw_different_numbers(keep: Keep) -> None:
    """Python's random numbers differ between two workers of one zygote."""
    keeper = keep()
    zygote = keeper.make_zygote(keeper.spawn(keeper.server()))
    drawn = set()
    for slot in (2, 3):
        worker = keeper.spawn(zygote, slot)
        drawn.add(keeper.get("/random"))
        worker.send_message(messages.Drain())
        worker.wait_until_ended()
    assert len(drawn) == 2
    assert random.random()  # and Ostler's own random numbers are independent of theirs


def test_forks_of_children_are_their_own(keep: Keep) -> None:
    """Processes that the app of a zygote's worker forks do not run the worker's loop."""
    keeper = keep()
    keeper.spawn(keeper.make_zygote(keeper.spawn(keeper.server())), 2)
    assert keeper.get("/fork") == ("200 OK", b"3")
    assert keeper.get() == ("200 OK", b"ok")


def test_log_lines_name_the_child(keep: Keep) -> None:
    """Log lines of a zygote's worker have its own slot and pid."""
    keeper = keep(
        APP
        + "\nserve = app\ndef app(e, s):\n    return 1 / 0 if e['PATH_INFO'] == '/raise' else serve(e, s)\n"
    )
    worker = keeper.spawn(keeper.make_zygote(keeper.spawn(keeper.server())), 5)
    assert keeper.get("/raise")[0].startswith("500")
    log = keeper.wait_for_log("request_failed")
    assert re.search(rf'"slot":\s*5.*"pid":\s*{worker.pid}|slot=5.*pid={worker.pid}', log), log


def test_unwritten_output_is_not_repeated(keep: Keep) -> None:
    """Buffered output of the app appears once, not once for each child."""
    keeper = keep()
    worker = keeper.spawn(keeper.server())
    keeper.get("/print")
    zygote = keeper.make_zygote(worker)
    for slot in (2, 3):
        child = keeper.spawn(zygote, slot)
        child.send_message(messages.Drain())
        child.wait_until_ended()
    zygote.close_channel()
    zygote.wait_until_ended()
    assert keeper.output.read_text().count("one ") == 1


def test_stack_dumps_reach_the_childs_own_pipe(keep: Keep) -> None:
    """The worker's own pipe is closed when it becomes a zygote with children."""
    keeper = keep()
    worker = keeper.spawn(keeper.server())
    child = keeper.spawn(keeper.make_zygote(worker), 2)
    assert os.read(worker.stacks, 100) == b""
    child.send_signal(signal.SIGRTMIN + 5)
    assert os.read(child.stacks, 100)
    worker.send_signal(signal.SIGRTMIN + 5)  # too late for the worker; the zygote must survive it
    keeper.spawn(worker, 3)


def test_signals_to_the_group_do_not_end_a_zygote(keep: Keep) -> None:
    """Like a fork server it ends only when its channel is closed; then, like a worker, with the app's atexit
    functions."""
    keeper = keep()
    zygote = keeper.make_zygote(keeper.spawn(keeper.server()))
    for signum in (signal.SIGTERM, signal.SIGINT, signal.SIGQUIT, signal.SIGHUP, signal.SIGUSR1):
        zygote.send_signal(signum)
        child = keeper.spawn(zygote, 2)
    zygote.close_channel()
    zygote.wait_until_ended()
    assert (keeper.folder / "goodbyes").exists()
    child.send_message(messages.Drain())
    child.wait_until_ended()
    assert f"{child.pid}\n" in (keeper.folder / "goodbyes").read_text()


def test_timers_and_sigchld_handlers_of_the_app(keep: Keep) -> None:
    """A timer of the app does not fire in the zygote; the app's SIGCHLD handler does not disturb forking."""
    keeper = keep()
    worker = keeper.spawn(keeper.server())
    keeper.get("/alarm")
    zygote = keeper.make_zygote(worker)
    assert not zygote.wait_for_end(0.5)
    keeper.spawn(zygote, 2)


@pytest.mark.parametrize("threads", [1, 4])
def test_an_audit_names_threads_and_connections(keep: Keep, threads: int) -> None:
    """The app's thread and its connection are problems, with names; those of the engine are not."""
    keeper = keep(threads=threads)
    worker = keeper.spawn(keeper.server())
    with socket.create_server(("127.0.0.1", 0)) as database:
        port = database.getsockname()[1]
        keeper.get("/thread")
        keeper.get(f"/connect?{port}")
        problems = [
            "thread 'flusher' runs time.sleep",
            f"connection to 127.0.0.1:{port}: workers would share it and get each other's answers",
        ]
        assert audit(worker) == messages.ZygoteAudited(problems, [])
        assert audit(worker, force=True) == messages.ZygoteAudited([], problems)
        assert keeper.get() == ("200 OK", b"ok")


def test_what_appears_after_the_audit_is_found(keep: Keep) -> None:
    """A drained worker is audited again; with a problem it ends as a worker, and logs it."""
    keeper = keep()
    worker = keeper.spawn(keeper.server())
    assert audit(worker).problems == []
    keeper.get("/thread")
    worker.send_message(messages.Drain(hand_over=True, zygote=True))
    worker.wait_until_ended()
    assert worker.receive(messages.ZygoteAudited).problems == ["thread 'flusher' runs time.sleep"]
    assert worker.channel.receive() is None
    log = keeper.wait_for_log("template_refused")
    assert "thread 'flusher' runs time.sleep" in log
    assert (keeper.folder / "goodbyes").read_text() == f"{worker.pid}\n"


def test_force_overrides_problems(keep: Keep) -> None:
    """A forced zygote is made although a thread is lost; its children do not have the thread."""
    keeper = keep()
    worker = keeper.spawn(keeper.server())
    keeper.get("/thread")
    audit(worker, force=True)
    keeper.spawn(keeper.make_zygote(worker), 2)
    assert keeper.get("/threads") == ("200 OK", b"MainThread")


def test_no_zygote_with_a_request_that_does_not_end(keep: Keep) -> None:
    """With a request still in a thread at graceful_timeout it ends as a worker, even if it was forced."""
    keeper = keep(threads=4, graceful_timeout=0.2)
    worker = keeper.spawn(keeper.server())
    audit(worker, force=True)
    with socket.create_connection(keeper.address) as stuck:
        stuck.sendall(b"GET /sleep HTTP/1.1\r\nHost: x\r\n\r\n")
        keeper.wait_for_request(worker)
        worker.send_message(messages.Drain(hand_over=True, zygote=True))
        worker.wait_until_ended()
    assert "requests are running in ostler-" in keeper.wait_for_log("template_refused")


def test_a_later_drain_message_takes_precedence(keep: Keep) -> None:
    """A worker that drains to become a zygote ends if it is then asked to end."""
    keeper = keep(graceful_timeout=10)
    worker = keeper.spawn(keeper.server())
    worker.send_message(messages.Drain(hand_over=True, zygote=True))
    worker.send_message(messages.Drain())
    worker.wait_until_ended()
    assert (keeper.folder / "goodbyes").read_text() == f"{worker.pid}\n"


def test_sigterm_while_it_drains_to_be_a_zygote(keep: Keep) -> None:
    """A worker that drains to become a zygote ends at SIGTERM."""
    keeper = keep()
    worker = keeper.spawn(keeper.server())
    with socket.create_connection(keeper.address) as client:
        client.sendall(b"GET /nap HTTP/1.1\r\nHost: x\r\n\r\n")
        keeper.wait_for_request(worker)
        worker.send_message(messages.Drain(hand_over=True, zygote=True))
        worker.send_signal(signal.SIGTERM)
        (keeper.folder / "wake").touch()
        assert client.recv(100).startswith(b"HTTP/1.1 200")
        worker.wait_until_ended()
    assert worker.receive(messages.Signalled).signum == signal.SIGTERM
    assert worker.channel.receive() is None


def test_sigterm_while_it_loads(keep: Keep) -> None:
    """A worker that does not serve yet ends at once, however long its app takes to load."""
    keeper = keep(
        "import pathlib, time\npathlib.Path(__file__).with_name('loading').touch()\ntime.sleep(1000)"
    )
    worker = keeper.boot(keeper.server())
    keeper.until((keeper.folder / "loading").exists, "it loads")
    worker.send_signal(signal.SIGTERM)
    worker.wait_until_ended()
    assert worker.receive(messages.Signalled).signum == signal.SIGTERM
    assert worker.channel.receive() is None


def test_sigterm_during_the_audit(keep: Keep) -> None:
    """It also ends the worker at the last moment: here it arrives when the audit calls a library."""
    keeper = keep(
        APP
        + "from types import SimpleNamespace\n"
        + "end = lambda: os.kill(os.getpid(), signal.SIGTERM)\n"
        + "sys.modules['torch'] = SimpleNamespace(cuda=SimpleNamespace(is_initialized=end))\n"
    )
    worker = keeper.spawn(keeper.server())
    worker.send_message(messages.Drain(hand_over=True, zygote=True))
    worker.wait_until_ended()
    assert worker.receive(messages.Signalled).signum == signal.SIGTERM
    assert worker.channel.receive() is None


def test_a_zygote_that_is_asked_to_drain_ends(keep: Keep) -> None:
    """The request may cross `ZygoteReady` on the way: it takes effect nevertheless."""
    keeper = keep()
    zygote = keeper.make_zygote(keeper.spawn(keeper.server()))
    zygote.send_message(messages.ReopenLogs())
    zygote.send_message(messages.Drain())
    zygote.wait_until_ended()
    assert (keeper.folder / "goodbyes").read_text() == f"{zygote.pid}\n"
