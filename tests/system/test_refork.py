"""Reforking: a warmed-up worker becomes the fork server,
and its successors share the memory of what it has cached.
"""

import signal
import socket
from importlib.util import find_spec
from pathlib import Path

import pytest

from ostler.control.client import RefusedError
from ostler.control.routes import REFORK
from ostler.control.views import ReforkBody, WorkerView
from tests.kit.daemon import Daemon, Place, fork_server
from tests.kit.hostile import APP
from tests.kit.load import Load
from tests.kit.processes import Process, children, descriptors, title
from tests.kit.tiers import thorough, tiers

pytestmark = pytest.mark.system

# The first request makes a cache of 32 MiB and imports a module.
LAZY = """\
import os, socket, threading, time

learnt = {}
kept = []

def app(environ, start_response):
    path = environ["PATH_INFO"]
    while path == "/late" and not os.path.exists("go"):
        time.sleep(0.01)
    if path in ("/thread", "/late"):
        threading.Thread(target=time.sleep, args=(1000,), daemon=True, name="flusher").start()
    elif path == "/connect":
        kept.append(socket.create_connection(("127.0.0.1", int(environ["QUERY_STRING"]))))
    elif "by" not in learnt:
        import decimal
        learnt.update(by=os.getpid(), pages=[os.urandom(65536) for _ in range(512)])
    answer = f"{os.getpid()} {learnt.get('by')}".encode()
    start_response("200 OK", [("Content-Length", str(len(answer)))])
    return [answer]
"""
MIB = 1024 * 1024


@pytest.fixture
def lazy(place: Place) -> Place:
    place.add("lazy.py", LAZY)
    return place


def refork(daemon: Daemon, slot: int | None = None) -> None:
    """Ask for a refork; the log has its outcome."""
    daemon.client.call(REFORK, ReforkBody(slot))


def reforked(daemon: Daemon, workers: int, times: int = 1) -> tuple[Process, list[WorkerView]]:
    """Wait until all workers are children of the newest zygote; returns it, and them."""
    zygote = daemon.event("refork_done", after=times - 1)["pid"]
    only_fork_server(daemon, zygote)
    daemon.until(
        lambda: all(worker.pid in born_after(daemon, zygote) for worker in daemon.settled(workers)),
        f"{workers} workers of the zygote",
    )
    return fork_server(daemon), daemon.settled(workers)


def only_fork_server(daemon: Daemon, pid: int) -> None:
    """Wait until this is the only fork server and the one before has ended."""

    def look() -> bool:
        try:
            titles = {child: title(child) for child in children(daemon.pid)}
        except OSError:
            return False  # one has ended meanwhile
        return [child for child in titles if titles[child].startswith("ostler: fork server")] == [pid]

    daemon.until(look, f"{pid} as the only fork server")


def born_after(daemon: Daemon, zygote: int) -> list[int]:
    """Workers that became ready after the zygote."""
    events = daemon.events()
    done = next(n for n, e in enumerate(events) if e["event"] == "refork_done" and e["pid"] == zygote)
    return [event["pid"] for event in events[done:] if event["event"] == "worker_ready"]


def private(pid: int) -> int:
    """Bytes that only this process has (proc(5), smaps_rollup)."""
    lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()[1:]
    sizes = {name: int(rest.split()[0]) * 1024 for name, _, rest in (line.partition(":") for line in lines)}
    return sizes["Private_Clean"] + sizes["Private_Dirty"]


def mapped(pid: int, name: str) -> int:
    """How often a process has mapped a file of that name (proc(5), maps)."""
    return sum(name in line for line in Path(f"/proc/{pid}/maps").read_text().splitlines())


@pytest.mark.parametrize("preload", tiers({"lazy": [], "preload": ["--preload"]}.items(), ["lazy"]))
@pytest.mark.parametrize("threads", ["4", *thorough("1")])
def test_refork_under_load(lazy: Place, threads: str, preload: list[str]) -> None:
    """Three in a row under steady load: each time a worker becomes the zygote, and no request fails."""
    daemon = lazy.start("-w", "3", "--threads", threads, *preload, "--warmup-request", "/", "lazy:app")
    first = fork_server(daemon)
    daemon.settled(3)
    with Load(daemon.address, rate=300, connections=12) as load:
        load.wait_for(100)
        for times in (1, 2, 3):
            before = daemon.pids()
            refork(daemon)
            zygote, workers = reforked(daemon, 3, times)
            assert zygote.pid in before
            assert title(zygote.pid) == "ostler: fork server gen 1 [lazy:app]"
            assert not {worker.pid for worker in workers} & set(before)
            load.wait_for(load.ended + 100)
        report = load.finish()
    assert first.ended()
    assert (report.failed, report.unasked) == (0, 0), report.summary()
    assert daemon.status().totals.deaths == 0
    # All have the cache of the first zygote's worker, two generations of zygotes ago.
    teachers = {record.body.split()[1] for record in report.records[-50:]}
    assert len(teachers) == 1
    assert teachers <= {str(event["pid"]).encode() for event in daemon.events("refork_done")[:1]}


def test_successors_share_memory(lazy: Place) -> None:
    """32 MiB that each worker had separately exist once."""
    daemon = lazy.start("-w", "3", "--warmup-request", "/", "lazy:app")
    before = [private(worker.pid or 0) for worker in daemon.settled(3)]
    assert min(before) > 32 * MIB
    assert daemon.ctl("refork").code == 0
    _, workers = reforked(daemon, 3)
    assert max(private(worker.pid or 0) for worker in workers) < min(before) - 24 * MIB


def test_an_audit_refuses_with_names(lazy: Place) -> None:
    """A thread and a connection of the app are reported, no worker is replaced; `force` overrides it."""
    daemon = lazy.start("-w", "1", "lazy:app")
    before = daemon.pids()
    with socket.create_server(("127.0.0.1", 0)) as database:
        port = database.getsockname()[1]
        daemon.get("/thread")
        daemon.get(f"/connect?{port}")
        refused = daemon.ctl("refork")
        problem = daemon.event("refork_refused")["problem"]
        assert refused.code == 1
        assert (
            refused.error
            == f"ostler ctl: error: the refork was refused: {problem} (--force does it all the same)"
        )
        assert problem == (
            "thread 'flusher' runs time.sleep; "
            f"connection to 127.0.0.1:{port}: workers would share it and get each other's answers"
        )
        assert daemon.pids() == before
        assert daemon.ctl("refork", "--force").code == 0
        zygote, _ = reforked(daemon, 1)
        assert daemon.event("refork_warning")["problem"] == problem
        assert zygote.pid == before[0]


@pytest.mark.thorough
def test_what_is_found_when_it_is_drained(lazy: Place) -> None:
    """A request makes a thread after the first audit: the worker ends like any other, and logs the reason."""
    daemon = lazy.start("-w", "2", "--threads", "2", "lazy:app")
    daemon.settled(2)
    late = daemon.connect().asked("/late")
    daemon.in_app("/late")
    refork(daemon, next(worker.slot for worker in daemon.workers() if worker.in_flight))
    daemon.until(lambda: {"draining"} & {worker.state for worker in daemon.workers()}, "it is drained")
    (lazy.app_folder / "go").touch()
    assert late.answer().status == 200
    assert daemon.event("refork_refused")["problem"] == "thread 'flusher' runs time.sleep"
    assert daemon.event("template_refused")["problems"] == "thread 'flusher' runs time.sleep"
    daemon.settled(2)
    assert daemon.status().totals.deaths == 0


@pytest.mark.parametrize("hook", ["on_reload", "post_fork", "when_ready"])
def test_what_a_preloaded_app_has_opened(place: Place, hook: str) -> None:
    """Its thread and its connection are one warning, without what when_ready has closed; what that has opened
    is not the app's. No warning if a hook may open them again in workers.
    """
    body = [
        "import eager, threading, time",
        "eager.connection.close()",
        "threading.Thread(target=time.sleep, args=(1000,), daemon=True, name='mine').start()",
    ]
    lines = body if hook == "when_ready" else ["pass"]
    place.add("conf.py", f"def {hook}(server, *more):\n" + "".join(f"    {line}\n" for line in lines))
    with socket.create_server(("127.0.0.1", 0)) as database:
        port = database.getsockname()[1]
        opening = f"connection = socket.create_connection(('127.0.0.1', {port}))\n"
        thread = "threading.Thread(target=time.sleep, args=(1000,), daemon=True, name='flusher').start()\n"
        place.add("eager.py", "import socket, threading, time\nfrom plain import app\n" + opening + thread)
        daemon = place.start("-w", "2", "-c", "conf.py", "--preload", "eager:app")
        daemon.settled(2)
    (shared,) = daemon.events("preload_shared")
    assert shared["level"] == ("info" if hook == "post_fork" else "warning")
    thread = "thread 'flusher' runs time.sleep: workers will not have it"
    connection = f"connection to 127.0.0.1:{port}: workers would share it and get each other's answers"
    assert shared["problem"].split("; ") == [thread, connection][: 1 if hook == "when_ready" else 2]


@pytest.mark.parametrize("closes", [True, False], ids=["closes", "does not"])
def test_what_worker_exit_closes(lazy: Place, closes: bool) -> None:
    """With a hook worker_exit the second audit decides; what it finds is reported, and it begins no third."""
    what = "kept.pop().close()" if closes else "kept"
    lazy.add("conf.py", f"def worker_exit(server, worker):\n    import lazy\n    lazy.{what}\n")
    daemon = lazy.start("-w", "1", "-c", "conf.py", "--refork-after", "3", "lazy:app")
    with socket.create_server(("127.0.0.1", 0)) as database:
        port = database.getsockname()[1]
        for target in (f"/connect?{port}", "/", "/"):
            daemon.get(target)
        problem = f"connection to 127.0.0.1:{port}: workers would share it and get each other's answers"
        assert daemon.event("refork_warning")["problem"] == f"{problem}; worker_exit has to end it"
        if closes:
            reforked(daemon, 1)
            assert not daemon.events("template_refused")
        else:
            assert daemon.event("refork_refused")["problem"] == problem
            before = daemon.settled(1)
            for _ in range(10):
                daemon.get()
            daemon.counted(requests=13)
            assert [worker.pid for worker in daemon.settled(1)] == [worker.pid for worker in before]
            assert len(daemon.events("refork")) == 1
    assert daemon.status().totals.deaths == 0


def test_it_begins_by_itself(lazy: Place) -> None:
    """After `refork_after` requests the worker that has served most becomes the zygote, once."""
    daemon = lazy.start("-w", "2", "--refork-after", "20", "lazy:app")
    daemon.settled(2)
    for _ in range(60):
        daemon.get()
    zygote, _ = reforked(daemon, 2)
    for _ in range(60):
        daemon.get()
    assert len(daemon.events("refork_done")) == 1
    assert fork_server(daemon).pid == zygote.pid


def test_a_zygote_may_die(lazy: Place) -> None:
    """SIGKILL for the zygote: a new fork server loads the app again, and workers continue to serve."""
    daemon = lazy.start("-w", "2", "lazy:app")
    daemon.settled(2)
    refork(daemon)
    zygote, workers = reforked(daemon, 2)
    zygote.send(signal.SIGKILL)
    assert zygote.ended()
    daemon.until(lambda: len(children(daemon.pid)) == 3, "another fork server")
    assert daemon.pids() == [worker.pid for worker in workers]
    assert daemon.ctl("scale", "3").code == 0
    daemon.settled(3)
    assert daemon.ctl("reload").code == 0
    assert {worker.generation for worker in daemon.settled(3)} == {2}


@pytest.mark.thorough
def test_a_zygote_ends_with_its_generation(lazy: Place) -> None:
    """A reload brings a fork server of its own; the zygote ends, and the stop leaves nothing."""
    daemon = lazy.start("-w", "2", "--probation", "0", "lazy:app")
    daemon.settled(2)
    refork(daemon)
    zygote, _ = reforked(daemon, 2)
    assert daemon.ctl("reload").code == 0
    assert zygote.ended()
    refork(daemon)
    reforked(daemon, 2, times=2)
    assert daemon.stop() == 0


@pytest.mark.thorough
def test_a_zygote_ends_without_its_supervisor(lazy: Place) -> None:
    """When the daemon is killed, no process is left."""
    daemon = lazy.start("-w", "2", "lazy:app")
    daemon.settled(2)
    refork(daemon)
    zygote, workers = reforked(daemon, 2)
    ends = [zygote, *(Process(worker.pid or 0) for worker in workers)]
    daemon.kill()
    assert all(process.ended() for process in ends)


@pytest.mark.thorough
def test_descriptors_do_not_grow(lazy: Place) -> None:
    """Ten in a row: the daemon and the workers have no more descriptors open than after the second."""
    daemon = lazy.start("-w", "1", "--threads", "2", "lazy:app")
    daemon.settled(1)
    counts = []
    kinds: tuple[int, ...] = ()
    for times in range(1, 11):
        refork(daemon)
        zygote, workers = reforked(daemon, 1, times)
        kinds = (daemon.pid, zygote.pid, workers[0].pid or 0)
        counts.append([len(descriptors(pid)) for pid in kinds])
    # The descriptors of a process that has just ended are closed a moment later.
    daemon.until(
        lambda: all(len(descriptors(pid)) <= count for pid, count in zip(kinds, counts[1], strict=True)),
        f"no more than {counts[1]}",
    )


@pytest.mark.thorough
@pytest.mark.parametrize(
    "words",
    tiers(
        {
            "sync": ("lazy:app",),
            "threads": ("--threads", "2", "lazy:app"),
            "gevent": ("-k", "gevent", "lazy:app"),
            "eventlet": ("-k", "eventlet", "lazy:app"),
            "meinheld": ("-k", "meinheld", "lazy:app"),
            "asgi": ("-k", "asgi", "attacked:asgi"),
        }.items(),
        ["threads", "asgi"],
    ),
)
def test_scoreboards_are_not_handed_on(lazy: Place, words: tuple[str, ...]) -> None:
    """Three in a row: a zygote has no worker's scoreboard cell in memory, and a worker only its own."""
    for package in ("gevent", "eventlet", "meinheld"):
        # Not imported here: eventlet would warn of each fork of this process.
        if package in words and find_spec(package) is None:
            pytest.skip(f"{package} is not installed")
    lazy.add("attacked.py", APP)
    daemon = lazy.start("-w", "1", *words)
    daemon.settled(1)
    held = []
    for times in (1, 2, 3):
        assert daemon.get().status == 200
        refork(daemon)
        zygote, (worker,) = reforked(daemon, 1, times)
        pids = zygote.pid, worker.pid or 0
        assert [mapped(pid, "ostler-scoreboard") for pid in pids] == [0, 1]
        held.append([len(descriptors(pid)) for pid in pids])
    assert held[0] == held[1] == held[2]
    assert daemon.get().status == 200
    assert not daemon.events("internal_error")
    assert daemon.stop() == 0


def test_no_refork_during_a_reload(lazy: Place) -> None:
    """Both would replace the same workers, so the request is refused."""
    daemon = lazy.start("-w", "1", "--canary-time", "30", "lazy:app")
    daemon.settled(1)
    daemon.send(signal.SIGHUP)
    daemon.event("reload")
    with pytest.raises(RefusedError, match="nothing can be reforked"):
        refork(daemon)


@pytest.mark.thorough
def test_refork_with_reload(place: Place) -> None:
    """The thread that reports which files a worker has loaded does not make the audit fail."""
    daemon = place.start("--reload", "plain:app")
    (worker,) = daemon.settled(1)
    done = daemon.ctl("refork")
    assert done.code == 0, done.err
    assert fork_server(daemon).pid == worker.pid
    daemon.settled(1)
    place.add(
        "plain.py",
        "def app(environ, start_response):\n    start_response('200 OK', [])\n    return [b'new']\n",
    )
    daemon.until(lambda: daemon.get().text == "new", "what was edited is served")
