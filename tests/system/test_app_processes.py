"""Processes that user code starts belong to their generation: they end with it, and hold nothing of ours."""

import os
import pty
import signal
import socket
from pathlib import Path

import pytest

from ostler import native
from tests.kit.certificates import Authority
from tests.kit.daemon import Daemon, Place, end_with_parent, fork_server
from tests.kit.ports import listening
from tests.kit.processes import Process, client_ports, descriptors, freeze, title
from tests.kit.tiers import thorough
from tests.kit.waiting import PATIENCE, until

pytestmark = pytest.mark.system

METHODS = ["fork", *thorough("spawn", "forkserver")]

# `begin` starts one process of each kind with the start method of the variable METHOD, and writes their pids;
# `begin_one` starts one more.
STARTING = """\
import multiprocessing, os, subprocess, sys, time
from pathlib import Path

FOLDER = Path(__file__).parent
context = multiprocessing.get_context(os.environ["METHOD"])
kept = []

def sleep(*_):
    time.sleep(1000)

def begin():
    manager = context.Manager()
    names = manager.dict(by=os.getpid())
    process = context.Process(target=sleep, daemon=True)
    process.start()
    pool = context.Pool(1)
    pool.apply_async(sleep)
    program = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(1000)"])
    kept[:] = [names, manager, process, pool, program]
    pids = [manager._process.pid, process.pid, pool._pool[0].pid, program.pid]
    with (FOLDER / "pids").open("a") as file:
        file.write(" ".join(map(str, pids)) + "\\n")

def begin_one():
    process = context.Process(target=sleep, daemon=True)
    process.start()
    kept.append(process)
    return process.pid
"""

APP = """\
import os
import starting
{begin}

def app(environ, start_response):
    if environ["PATH_INFO"] == "/one":
        answer = str(starting.begin_one()).encode()
    else:
        answer = str(starting.kept[0]["by"]).encode()
    start_response("200 OK", [("Content-Length", str(len(answer)))])
    return [answer]
"""

CONF = """\
import starting
def on_starting(server):
    starting.begin()
"""


def newest(place: Place, lines: int) -> list[Process]:
    """Wait until so many processes have started what they start; what the last one has started."""

    def look() -> str | None:
        path = place.app_folder / "pids"
        found = path.read_text().splitlines() if path.exists() else []
        return found[lines - 1] if len(found) >= lines else None

    return [Process(int(pid)) for pid in until(look, f"{lines} lines of pids").split()]


def begin(place: Place, how: str, method: str, *args: str) -> Daemon:
    """A daemon with one worker whose user code starts processes: `hook`, `preload` or `import`."""
    place.add("starting.py", STARTING)
    place.add("shop.py", APP.format(begin="" if how == "hook" else "starting.begin()"))
    more = ["--preload"] if how != "import" else []
    if how == "hook":
        place.add("conf.py", CONF)
        more += ["-c", "conf.py"]
    quick = ("--canary-time", "0", "--probation", "0", "--graceful-timeout", "5")
    daemon = place.start("-w", "1", *quick, *more, *args, "shop:app", METHOD=method)
    daemon.settled(1)
    return daemon


def listens(pid: int, port: int) -> bool:
    return bool(listening(port) & set(descriptors(pid)))


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("how", ["hook", *thorough("preload", "import")])
def test_they_end_with_their_generation(place: Place, how: str, method: str) -> None:
    """After each reload only what the new generation has started is left, and after a stop nothing."""
    daemon = begin(place, how, method)
    port = daemon.port
    before = newest(place, 1)
    assert daemon.get("/").status == 200
    for generation in (2, 3):
        daemon.send(signal.SIGHUP)
        now = newest(place, generation)
        for process in before:
            assert process.ended(), title(process.pid)
        daemon.settled(1)
        assert not any(process.gone for process in now)
        assert daemon.get("/").status == 200
        for process in now:
            daemon.until(lambda process=process: not listens(process.pid, port), "it does not listen")
        before = now
    assert daemon.stop() == 0
    assert all(process.gone for process in before)
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", port))
    left = [path.name for path in place.folder.iterdir() if path.name.startswith("pymp-")]
    assert left == []


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("how", ["preload", *thorough("hook")])
def test_of_a_worker_whose_parent_has_some(place: Place, how: str, method: str) -> None:
    """A worker starts processes by the method that its fork server or a hook has used, and after a refork."""
    daemon = begin(place, how, method)
    first, *_ = newest(place, 1)
    for refork in (False, True):
        if refork:
            assert daemon.ctl("refork").code == 0
        daemon.settled(1)
        found = [Process(int(daemon.get("/one").text)) for _ in range(2)]
        assert not any(process.gone for process in (first, *found))
        if not refork:
            # One that has children of its own can't be forked from.
            worker = Process(daemon.pids()[0])
            worker.send(signal.SIGTERM)
            assert worker.ended()
            daemon.settled(1)
    assert daemon.events("request_failed") == []
    assert daemon.stop() == 0


# Each path starts something in the worker, or asks the manager that came with the app.
BUSY = """\
import ctypes, multiprocessing, os, signal, subprocess, sys, time
from pathlib import Path

manager = multiprocessing.Manager() if os.environ.get("MANAGER") else None
names = manager.dict(name="x") if manager else {}
FOLDER = Path(__file__).parent

def note(pid):
    draft = FOLDER / ".started"
    draft.write_text(str(pid))
    draft.rename(FOLDER / "started")

def stubborn():
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    note(os.getpid())
    time.sleep(1000)

def app(environ, start_response):
    path = environ["PATH_INFO"]
    answer = str(os.getpid())
    if path == "/stubborn":
        multiprocessing.Process(target=stubborn, daemon=True).start()
    elif path == "/process":
        process = multiprocessing.Process(target=time.sleep, args=(1000,), daemon=True)
        process.start()
        note(process.pid)
    elif path == "/ignoring":
        code = "import busy, signal; busy.stubborn()"
        subprocess.Popen([sys.executable, "-c", code], cwd=FOLDER)
    elif path == "/program":
        note(subprocess.Popen(["sleep", "1000"]).pid)
    elif path == "/daemon":
        note(subprocess.Popen(["sleep", "1000"], start_new_session=True).pid)
    elif path == "/c":
        pid = ctypes.PyDLL(None).fork()
        if pid == 0:
            time.sleep(1000)
        note(pid)
    elif path == "/wait":
        while not (FOLDER / "go").exists():
            time.sleep(0.01)
        answer = names["name"]
    elif path == "/name":
        answer = names["name"]
    elif path == "/manager":
        answer = str(manager._process.pid)
    start_response("200 OK", [("Content-Length", str(len(answer)))])
    return [answer.encode()]
"""
QUICK = ("--canary-time", "0", "--probation", "0")


def busy(place: Place, *args: str, **environ: str) -> Daemon:
    place.add("busy.py", BUSY)
    return place.start(*QUICK, *args, "busy:app", **environ)


def started(place: Place) -> Process:
    """Wait until the app has started a process."""
    file = place.app_folder / "started"
    until(file.exists, "the app's process has started")
    process = Process(int(file.read_text()))
    file.unlink()
    return process


def start(place: Place, daemon: Daemon, path: str) -> Process:
    """Have the app start a process, and wait for it."""
    assert daemon.get(path).status == 200
    return started(place)


def test_of_a_killed_worker(place: Place) -> None:
    """What a killed worker has started ends at once; it could not do that itself."""
    daemon = busy(place, "-w", "1")
    process = start(place, daemon, "/program")
    Process(daemon.pids()[0]).send(signal.SIGKILL)
    assert process.ended()
    daemon.settled(1)
    daemon.event("app_processes_asked_to_end", pids=str(process.pid))


@pytest.mark.thorough
def test_a_job_outlives_its_worker(place: Place) -> None:
    """What a worker that ends by itself leaves behind may be a job: it ends with the generation."""
    daemon = busy(place, "-w", "1")
    process = start(place, daemon, "/program")
    worker = Process(daemon.pids()[0])
    worker.send(signal.SIGTERM)
    assert worker.ended()
    daemon.settled(1)
    assert not process.gone
    assert daemon.ctl("reload").code == 0
    assert process.ended()


@pytest.mark.thorough
def test_a_dead_fork_server(place: Place) -> None:
    """The manager of a fork server that died lives as long as a worker that may use it."""
    daemon = busy(place, "-w", "1", "--preload", MANAGER="1")
    manager = Process(int(daemon.get("/manager").text))
    server = fork_server(daemon)
    server.send(signal.SIGKILL)
    assert server.ended()
    daemon.until(lambda: fork_server(daemon).pid != server.pid, "another fork server")
    assert daemon.get("/name").text == "x"
    old = daemon.pids()[0]
    os.kill(old, signal.SIGTERM)
    daemon.until(lambda: daemon.pids() != [old], "another worker")
    assert manager.ended()
    daemon.settled(1)
    assert daemon.get("/name").text == "x"
    assert int(daemon.get("/manager").text) != manager.pid
    assert daemon.stop() == 0


def test_a_manager_is_there_until_the_last_request(place: Place) -> None:
    """A worker that drains after a reload still has what its fork server has started."""
    daemon = busy(place, "-w", "1", "--preload", "--graceful-timeout", "50", MANAGER="1")
    manager = Process(int(daemon.get("/manager").text))
    slow = daemon.connect().asked("/wait")
    daemon.in_app("/wait")
    assert daemon.ctl("reload", "--no-wait").code == 0
    daemon.until(lambda: daemon.get("/manager").text != str(manager.pid), "the new generation")
    (place.app_folder / "go").touch()
    assert slow.answer().text == "x"
    assert manager.ended()
    assert daemon.stop() == 0


@pytest.mark.parametrize("when", ["reload", *thorough("stop")])
def test_one_that_ignores_sigterm(place: Place, when: str) -> None:
    """It is killed after graceful_timeout."""
    daemon = busy(place, "-w", "1", "--graceful-timeout", "1")
    process = start(place, daemon, "/stubborn")
    if when == "reload":
        assert daemon.ctl("reload").code == 0
    else:
        daemon.send(signal.SIGTERM)
    assert process.ended()
    daemon.event("app_processes_killed", pids=str(process.pid))
    if when == "stop":
        assert daemon.wait() == 0
        assert place.leftovers() == []


def test_a_quick_stop(place: Place) -> None:
    """INT does not wait for graceful_timeout."""
    daemon = busy(place, "-w", "1", "--graceful-timeout", "500")
    process = start(place, daemon, "/stubborn")
    assert daemon.stop(signal.SIGINT) == 0
    assert process.gone


@pytest.mark.thorough
def test_a_second_term(place: Place) -> None:
    """It makes the stop quick, also if the daemon only waits for what the app has started."""
    daemon = busy(place, "-w", "1", "--graceful-timeout", "500")
    process = start(place, daemon, "/ignoring")
    daemon.send(signal.SIGTERM)
    daemon.event("app_processes_asked_to_end", pids=str(process.pid))
    assert daemon.stop() == 0
    assert process.gone


def test_a_killed_supervisor(place: Place) -> None:
    """Fork server and workers end by themselves, and end what they have started."""
    daemon = busy(place, "-w", "1", "--preload", MANAGER="1")
    manager = Process(int(daemon.get("/manager").text))
    program = start(place, daemon, "/program")
    daemon.kill()
    assert program.ended()
    assert manager.ended()


LATE = """\
import subprocess, sys, time
program = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(1000)"])
with open("pid", "w") as file:
    file.write(f"{program.pid}\\n")
%s
def app(environ, start_response):
    start_response("200 OK", [("Content-Length", "0")])
    return [b""]
"""


@pytest.mark.parametrize("when", ["loading", "serving"])
def test_a_killed_supervisor_and_a_program_of_the_fork_server(place: Place, when: str) -> None:
    """The fork server ends what the app has started in it, also while it loads the app."""
    place.add("late.py", LATE % ("time.sleep(1000)" if when == "loading" else ""))
    daemon = place.start("-w", "1", "--preload", "late:app", serving=when == "serving")
    path = place.app_folder / "pid"
    daemon.until(lambda: path.exists() and path.read_text().endswith("\n"), "the program's pid")
    program = Process(int(path.read_text()))
    daemon.kill()
    assert program.ended()


@pytest.mark.thorough
def test_a_detached_process_is_left_alone(place: Place) -> None:
    """A process with a session of its own was detached on purpose."""
    daemon = busy(place, "-w", "1")
    process = start(place, daemon, "/daemon")
    port = daemon.port
    daemon.send(signal.SIGTERM)
    assert daemon.wait() == 0
    assert not process.gone
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", port))
    process.send(signal.SIGKILL)
    assert process.ended()


def test_a_fork_in_c(place: Place) -> None:
    """A process that C code has forked, without Python's at-fork functions, is ended as well."""
    daemon = busy(place, "-w", "1", "--graceful-timeout", "1")
    process = start(place, daemon, "/c")
    port = daemon.port
    assert daemon.stop() == 0
    assert process.ended()
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", port))
        sock.listen()


@pytest.mark.thorough
def test_a_refork(place: Place) -> None:
    """Workers of a zygote use what the first fork server has started."""
    daemon = busy(place, "-w", "2", "--preload", MANAGER="1")
    manager = Process(int(daemon.get("/manager").text))
    server = fork_server(daemon)
    before = set(daemon.pids())
    assert daemon.ctl("refork").code == 0
    daemon.until(lambda: not before & set(daemon.pids()), "other workers")
    daemon.settled(2)
    assert not server.gone
    assert daemon.get("/name").text == "x"
    assert daemon.ctl("reload").code == 0
    assert manager.ended()
    assert server.ended()
    assert daemon.stop() == 0


@pytest.mark.thorough
def test_an_upgrade(place: Place) -> None:
    """Nothing of the old generation is left after an upgrade in place."""
    daemon = busy(place, "-w", "1", "--preload", MANAGER="1")
    manager = Process(int(daemon.get("/manager").text))
    program = start(place, daemon, "/program")
    assert daemon.ctl("upgrade").code == 0
    assert manager.ended()
    assert program.ended()
    daemon.settled(1)
    assert daemon.get("/name").text == "x"
    assert daemon.stop() == 0


def nice_of(pid: int) -> int:
    return os.getpriority(os.PRIO_PROCESS, pid)


@pytest.mark.parametrize("how", ["hook", *thorough("preload", "import")])
def test_their_priority(place: Place, how: str) -> None:
    """A fork server and a booting worker have a lower priority, but not what they start by `fork`, and not
    what hooks start."""
    daemon = begin(place, how, "fork")
    found = newest(place, 1)
    forked = found if how == "hook" else found[:3]
    assert {nice_of(process.pid) for process in forked} == {nice_of(daemon.pid)}
    assert daemon.stop() == 0


NICE = """\
import subprocess
from pathlib import Path

def note(name):
    nice = subprocess.check_output(["nice"], text=True)
    with (Path(__file__).parent / "nice").open("a") as file:
        file.write(f"{name} {nice}")

def on_starting(server): note("on_starting")
def when_ready(server): note("when_ready")
def pre_fork(server, worker): note("pre_fork")
def post_fork(server, worker): note("post_fork")
def post_worker_init(worker): note("post_worker_init")
def nworkers_changed(server, new, old): note("nworkers_changed")
def child_exit(server, worker): note("child_exit")
"""


def test_priority_of_programs_that_hooks_start(place: Place) -> None:
    place.add("shop.py", "def app(environ, start_response):\n    return []\n")
    place.add("conf.py", NICE)
    daemon = place.start("-c", "conf.py", "-w", "1", "shop:app")
    hooks = "nworkers_changed on_starting when_ready pre_fork post_fork post_worker_init child_exit"
    assert daemon.ctl("scale", "2").code == daemon.ctl("scale", "1").code == 0

    def look() -> list[str]:
        return (place.app_folder / "nice").read_text().splitlines()

    until(lambda: {line.split()[0] for line in look()} == set(hooks.split()), "all hooks were called")
    assert {line.split()[1] for line in look()} == {str(nice_of(daemon.pid))}
    assert daemon.stop() == 0


# `/fork` forks, `/swallows` also does not end any more, `/websocket` takes its connection before it forks.
HOLDING = """\
import os, time
from pathlib import Path

FOLDER = Path(__file__).parent

def fork():
    pid = os.fork()
    while pid == 0:
        time.sleep(1000)
    draft = FOLDER / ".started"
    draft.write_text(str(pid))
    draft.rename(FOLDER / "started")

def swallow():
    while True:
        try:
            time.sleep(0.01)
        except BaseException:
            (FOLDER / "swallowed").touch()

def app(environ, start_response):
    path = environ["PATH_INFO"]
    if path == "/websocket":
        sock = environ["gunicorn.socket"]
        sock.sendall(b"HTTP/1.1 101 Switching Protocols\\r\\nUpgrade: websocket\\r\\n\\r\\n")
        sock.fileno()
        fork()
        while sock.recv(1000):
            pass
        return []
    if path != "/":
        fork()
    if path == "/swallows":
        swallow()
    start_response("200 OK", [("Content-Length", "0")])
    return []

async def asgi(scope, receive, send):
    if scope["type"] == "lifespan":
        return
    path = scope["path"]
    if scope["type"] == "websocket":
        await send({"type": "websocket.accept"})
    if path != "/":
        fork()
    if path == "/swallows":
        swallow()
    while scope["type"] == "websocket" and (await receive())["type"] != "websocket.disconnect":
        pass
    if scope["type"] == "http":
        await send({"type": "http.response.start", "status": 200, "headers": [(b"content-length", b"0")]})
        await send({"type": "http.response.body"})
"""
OFFER = {
    "Connection": "Upgrade",
    "Upgrade": "websocket",
    "Sec-WebSocket-Key": "dGhlIHNhbXBsZSBub25jZQ==",
    "Sec-WebSocket-Version": "13",
}
HOLDERS = pytest.mark.parametrize(
    "kind", ["gthread", "asgi", *thorough("sync", "gevent", "eventlet", "meinheld")]
)


def holding(place: Place, kind: str, *args: str) -> Daemon:
    """A daemon with one worker of a class, with HOLDING as its app."""
    if kind in ("gevent", "eventlet", "meinheld"):
        pytest.importorskip(kind)
    place.add("holding.py", HOLDING)
    app = "holding:asgi" if kind == "asgi" else "holding:app"
    return place.start(*QUICK, "-w", "1", "-k", kind, *args, app)


def private(pid: int) -> set[str]:
    """The sockets and pipes of a worker, without its standard streams."""
    standard = {str(Path(f"/proc/{pid}/fd/{number}").readlink()) for number in range(3)}
    return {name for name in descriptors(pid) if name.startswith(("socket:", "pipe:"))} - standard


def let_go(process: Process, worker: int) -> None:
    """Wait until a process that a worker's app has forked shares no socket and no pipe with it; then stop it,
    so that it does not end when it is asked to."""
    assert len(private(worker)) >= 5, "its channel, its stacks, the hand-off, a listener and a connection"
    until(
        lambda: not private(worker) & set(descriptors(process.pid)), "the process has let go of its worker's"
    )
    freeze(process)


def end(process: Process) -> None:
    process.send(signal.SIGCONT)
    assert process.ended()


@HOLDERS
def test_connections_of_a_killed_worker(place: Place, kind: str) -> None:
    """They are closed at once, also if a process lives on that the app has forked meanwhile. That has none of
    its worker's sockets and pipes."""
    daemon = holding(place, kind)
    idle, last = daemon.connect().asked("/"), daemon.connect()
    assert idle.answer().status == 200
    if kind == "meinheld":  # it has no websockets
        assert last.asked("/fork").answer().status == 200
    else:
        assert last.asked("/websocket", headers=OFFER).answer().status == 101
    process, worker = started(place), daemon.pids()[0]
    let_go(process, worker)
    Process(worker).send(signal.SIGKILL)
    for connection in (idle, last):
        connection.ended_by_server()
    assert not process.gone
    end(process)


@pytest.mark.parametrize("kind", ["asgi", *thorough("gthread")])
def test_handshakes_of_a_killed_worker(place: Place, kind: str) -> None:
    """A connection that has not come to its TLS handshake is closed, too."""
    certificate = Authority(place.folder).issue("localhost")
    tls = ("--certfile", str(certificate.cert), "--keyfile", str(certificate.key))
    daemon = holding(place, kind, *tls)
    worker = daemon.pids()[0]
    with socket.create_connection(daemon.address, PATIENCE) as silent:
        port = silent.getsockname()[1]
        daemon.until(lambda: port in client_ports(worker, daemon.port), "it is accepted")
        assert daemon.get("/fork").status == 200
        process = started(place)
        let_go(process, worker)
        Process(worker).send(signal.SIGKILL)
        assert ends(silent)
    assert not process.gone
    end(process)


@pytest.mark.parametrize("kind", [*thorough("gthread", "asgi", "sync", "gevent", "eventlet", "meinheld")])
def test_the_end_of_a_worker_whose_child_lives_on(place: Place, kind: str) -> None:
    """It drains as fast as one that has none."""
    daemon = holding(place, kind, "--graceful-timeout", "500")
    assert daemon.get("/fork").status == 200
    process, worker = started(place), Process(daemon.pids()[0])
    worker.send(signal.SIGTERM)
    assert worker.ended()
    daemon.settled(1)
    assert not process.gone
    assert daemon.stop(signal.SIGINT) == 0


@HOLDERS
def test_connections_of_a_worker_killed_at_a_deadline(place: Place, kind: str) -> None:
    """The same if the daemon kills it, because its app does not end a request that is overdue."""
    daemon = holding(place, kind, "-t", "1", "--timeout-grace", "1")
    idle = daemon.connect().asked("/")
    assert idle.answer().status == 200
    worker = daemon.pids()[0]
    last = daemon.connect().asked("/swallows")
    process = started(place)
    let_go(process, worker)
    for connection in (idle, last):
        connection.ended_by_server()
    assert daemon.event("worker_exited", pid=worker)["cause"] == "deadline"
    assert (place.app_folder / "swallowed").exists()
    assert not process.gone
    end(process)


def ends(sock: socket.socket) -> bool:
    """Wait until the server has closed a connection."""
    try:
        return sock.recv(1) == b""
    except ConnectionResetError:
        return True


@pytest.mark.thorough
def test_on_a_terminal(place: Place) -> None:
    """There the app can read the terminal, e.g. for a debugger; what it has started ends with the daemon."""
    place.add(
        "reader.py",
        "import subprocess, sys\n"
        "def app(environ, start_response):\n"
        "    program = subprocess.Popen(['sleep', '1000'])\n"
        "    line = sys.stdin.readline().strip()\n"
        "    answer = f'{program.pid} {line}'\n"
        "    start_response('200 OK', [('Content-Length', str(len(answer)))])\n"
        "    return [answer.encode()]\n",
    )
    master, slave = pty.openpty()
    name = os.ttyname(slave)

    def take_terminal() -> None:
        end_with_parent()
        # The first terminal that the leader of a session opens controls it (tty_ioctl(4)).
        os.dup2(os.open(name, os.O_RDWR), 0)

    try:
        daemon = place.start("-w", "1", "reader:app", popen={"preexec_fn": take_terminal})
        daemon.settled(1)
        client = daemon.connect().asked("/")
        daemon.in_app("/")
        os.write(master, b"hello\n")
        pid, line = client.answer().text.split()
        assert line == "hello"
        process = Process(int(pid))
        assert daemon.stop() == 0
        assert process.gone
    finally:
        os.close(master)
        os.close(slave)


# A library whose thread is started again after a fork, as exporters of telemetry do; each start is noted.
THREAD = """\
import os, threading
from pathlib import Path

def work():
    with (Path(__file__).parent / "threads").open("a") as file:
        file.write(f"{os.getpid()}\\n")

def start():
    threading.Thread(target=work, daemon=True).start()

start()
os.register_at_fork(after_in_child=start)

def app(environ, start_response):
    start_response("200 OK", [("Content-Length", "0")])
    return []
"""


@pytest.mark.skipif(native.module is None, reason="there is no C extension")
def test_threads_that_a_fork_starts_again(place: Place) -> None:
    """They run in the fork server and in each worker, and in no process in between."""
    place.add("shop.py", THREAD)
    daemon = place.start("-w", "3", "--preload", "shop:app")
    path = place.app_folder / "threads"
    expected = [fork_server(daemon).pid, *daemon.pids()]

    def look() -> list[int]:
        return list(map(int, path.read_text().split()))

    until(lambda: len(look()) >= len(expected), "a thread in each process")
    assert sorted(look()) == sorted(expected)


# A library whose lock is held over each fork, as logging's are, and whose thread has it most of the time.
LOCKING = """\
import os, sys, threading

lock = threading.Lock()
os.register_at_fork(
    before=lock.acquire, after_in_parent=lock.release, after_in_child=lock.release
)

def work():
    while True:
        with lock:
            sum(range(1000))

threading.Thread(target=work, daemon=True).start()

def app(environ, start_response):
    with lock:
        native = sys.modules.get("ostler._native") is not None
    answer = str(native).encode()
    start_response("200 OK", [("Content-Length", str(len(answer)))])
    return [answer]
"""
WITHOUT_NATIVE = """\
import sys
sys.modules["ostler._native"] = None
"""


@pytest.mark.parametrize("way", ["c", *thorough("python")])
def test_locks_that_are_held_over_forks(place: Place, way: str) -> None:
    """Workers boot although a thread of the fork server has the lock often, and have it free."""
    native_here = way == "c" and native.module is not None
    place.add("shop.py", LOCKING)
    if way == "python":
        place.add("first/sitecustomize.py", WITHOUT_NATIVE)
    more = {"PYTHONPATH": str(place.app_folder / "first")} if way == "python" else {}
    daemon = place.start(*QUICK, "-w", "3", "--preload", "shop:app", **more)
    for _ in range(2):
        daemon.settled(3)
        before = daemon.pids()
        assert daemon.get("/").text == str(native_here)
        for pid in before:
            os.kill(pid, signal.SIGKILL)
        daemon.until(lambda before=before: not set(before) & set(daemon.pids()), "other workers")
    daemon.settled(3)
    assert daemon.get("/").text == str(native_here)
    assert daemon.stop() == 0
