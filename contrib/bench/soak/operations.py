"""What happens to the fleet: what an operator does, what breaks, what apps do and what clients do."""

import contextlib
import random
import signal
import socket
import time
from collections.abc import Callable, Iterator, Sequence

from ostler.control.client import Client, RefusedError, UnreachableError
from ostler.control.routes import RECYCLE, REFORK, RELOAD, SCALE, UPGRADE
from ostler.control.views import ReforkBody, ReloadBody, Scale
from soak.account import Account
from soak.harmed import HarmedProcesses
from soak.releases import WORKERS, Releases
from soak.side_clients import SideClients
from tests.kit.daemon import Daemon, Place, fork_server
from tests.kit.processes import children, title

SETTLE_WITHIN = 60.0

GARBAGE = [
    b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + bytes(range(200)),  # a TLS ClientHello, more or less
    b"GET / HTTP/9.9\r\n\r\n",
    b"GET\r\n\r\n",
    b"GET / HTTP/1.1\r\nHost: a\r\nHost: b\r\n\r\n",
    b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: x\r\n\r\n",
    b"POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n",
    b"GET /" + b"a" * 20_000 + b" HTTP/1.1\r\nHost: a\r\n\r\n",
    b"\0" * 5000,
]
REFUSALS = frozenset({400, 408, 413, 414, 431, 501, 505})


class Operations:
    """Each `do_...` is an operation; `run` draws them.

    Args:
        place: of the daemon; its folder `notes` is where processes write that they are about to crash.
        without: words in the names of operations that are left out.

    Attributes:
        account: what has happened.
    """

    def __init__(
        self,
        place: Place,
        daemon: Daemon,
        releases: Releases,
        dice: random.Random,
        without: Sequence[str] = (),
    ) -> None:
        self.account = Account()
        self._folder = place.folder
        self._daemon = daemon
        self._releases = releases
        self._dice = dice
        self._without = without
        # Patient: an answer to a reload comes at its end.
        self._client = Client.unix(daemon.socket, SETTLE_WITHIN)
        self._harmed = HarmedProcesses(self.account, daemon.port, place.folder / "notes")
        self._side_clients = SideClients(self.account, daemon.address, self._harmed.read_notes)
        self._rotated = 0

    # -- what an operator does -----------------------------------------------------------------------------

    @contextlib.contextmanager
    def _planned(self) -> Iterator[None]:
        began = time.monotonic()
        yield
        self.account.planned.append((began, time.monotonic()))

    def _reload(self, wait: bool) -> None:
        view = self._client.call(RELOAD, ReloadBody(wait=wait))
        self.account.reloads[view.phase if wait else "not awaited"] += 1

    def do_reload(self) -> None:
        self._releases.good()
        with self._planned():
            self._reload(wait=True)

    def do_reload_and_go_on(self) -> None:
        self._releases.good()
        if self._dice.random() < 0.5:
            self._reload(wait=False)
        else:
            self._daemon.send(signal.SIGHUP)

    def do_reload_broken_code(self) -> None:
        code = self._dice.choice(
            ["def app(:\n", "import no_such_module\n", "raise SystemExit(0)\n", "x = 1\n"]
        )
        self._releases.broken_code(code)
        with self._planned():
            self._reload(wait=True)
        self._releases.good()

    def do_reload_broken_configuration(self) -> None:
        text = self._dice.choice(["workers = 'many'\n", "workers = (\n", "import nothing\n"])
        self._releases.broken_configuration(text)
        with self._planned():
            self._reload(wait=True)
        self._releases.good()

    def do_reload_bad_release(self) -> None:
        """Boots well, and then crashes again and again: to be rolled back, or mended by the next reload."""
        self._releases.good(crash_after=40)
        self._reload(wait=True)
        self._releases.good()

    def do_scale(self) -> None:
        with self._planned():
            self._client.call(SCALE, Scale(workers=self._dice.randint(1, 8)))
            self._pass_time(0.3)

    def do_recycle(self) -> None:
        with self._planned():
            slots = [worker.slot for worker in self._daemon.workers() if worker.state == "ready"]
            if slots:
                self._client.call(RECYCLE, slot=self._dice.choice(slots))
            self._pass_time(0.2)

    def do_refork(self) -> None:
        with self._planned():
            self._client.call(REFORK, ReforkBody())
            self._pass_time(0.3)

    def do_upgrade(self) -> None:
        """Not awaited: what follows meets a supervisor that checks, or is, its successor."""
        with self._planned():
            if self._dice.random() < 0.5:
                self._client.call(UPGRADE)
            else:
                self._daemon.send(signal.SIGUSR2)
            self._pass_time(0.3)

    def do_rotate_logs(self) -> None:
        self._rotated += 1
        access = self._folder / "access.log"
        access.rename(access.with_name(f"access.{self._rotated}.log"))
        self._daemon.send(signal.SIGUSR1)
        self._daemon.until(access.exists, "the access log after USR1")

    def do_ttin_ttou(self) -> None:
        for _ in range(20):
            self._daemon.send(self._dice.choice([signal.SIGTTIN, signal.SIGTTOU]))
            self._pass_time(0.005)

    # -- what breaks ---------------------------------------------------------------------------------------

    def _workers(self) -> list[int]:
        """All of them, those on their way out included."""
        pids = sorted(children(self._daemon.pid))
        self._dice.shuffle(pids)
        found = []
        for pid in pids:
            with contextlib.suppress(OSError):
                if title(pid).startswith("ostler: worker"):
                    found.append(pid)
        return found

    def do_kill_worker(self) -> None:
        pid = self._dice.choice(self._workers() or [0])
        if pid:
            self._harmed.kill(pid)

    def do_kill_several_workers(self) -> None:
        for _ in range(self._dice.randint(2, 4)):
            self.do_kill_worker()

    def do_kill_fork_server(self) -> None:
        with contextlib.suppress(ValueError, ProcessLookupError):  # there is none just now, or there are two
            fork_server(self._daemon).send(signal.SIGKILL)

    def do_stop_worker(self) -> None:
        """SIGSTOP; it goes on after a while, unless the supervisor finds it before."""
        for pid in self._workers()[:1]:
            self._harmed.stop(pid, self._dice.uniform(0.1, 4))

    def do_delete_control_socket(self) -> None:
        """Connected clients stay connected; the others find it again in a moment."""
        path = self._daemon.socket
        path.unlink(missing_ok=True)
        self._daemon.until(path.exists, "the control socket again")

    # -- what apps do --------------------------------------------------------------------------------------

    def _ask(self, kind: str, path: str, allowed: set[int], **more: int) -> None:
        request = f"GET {path} HTTP/1.1\r\nHost: a\r\n\r\n".encode()
        self._side_clients.open(kind, request, frozenset(allowed), **more)

    def do_hang(self) -> None:
        self._ask("hang", "/hang", {0, 504})

    def do_block(self) -> None:
        self._ask("block", "/block", {0})

    def do_crash(self) -> None:
        self._ask("crash", f"/crash/{self._dice.choice(['abort', 'segfault', 'bus'])}", {0})

    def do_leak(self) -> None:
        for _ in range(6):
            self._ask("leak", "/leak", {200})

    # -- what clients do -----------------------------------------------------------------------------------

    def do_garbage(self) -> None:
        noise = b"\0" + self._dice.randbytes(self._dice.randint(1, 3000))
        for data in (self._dice.choice(GARBAGE), noise):
            self._side_clients.open("garbage", data, REFUSALS | {0})

    def do_slow_request(self) -> None:
        # A worker that leaves waits graceful_timeout for it, and no longer.
        for _ in range(3):
            data = b"GET / HTTP/1.1\r\nHost: a\r\nX: " + b"y" * self._dice.randint(5, 60) + b"\r\n\r\n"
            self._side_clients.open("slow request", data, frozenset({0, 200, 408}), drip=True)

    def do_slow_reader(self) -> None:
        for _ in range(3):
            self._ask("slow reader", "/big", {0, 200}, sip=self._dice.choice([20_000, 60_000]))

    def do_half_open(self) -> None:
        half = b"GET / HTTP/1.1\r\nHo"
        self._side_clients.open("half a request", half, REFUSALS | {0})
        with contextlib.suppress(OSError):
            self._side_clients.open("half closed", half, REFUSALS | {0}).sock.shutdown(socket.SHUT_WR)
        gone = self._side_clients.open("vanished", half, frozenset({0}))
        self._side_clients.reset(gone)

    # -- the run -------------------------------------------------------------------------------------------

    def _pass_time(self, seconds: float) -> None:
        """Look after what is under way."""
        end = time.monotonic() + seconds
        while True:
            self._harmed.read_notes()
            self._harmed.look_after()
            self._side_clients.look_after(max(0.0, min(0.02, end - time.monotonic())))
            if time.monotonic() >= end:
                return

    def _weighted(self) -> dict[str, tuple[Callable[[], None], int]]:
        """All operations by name, with how often each is drawn in proportion to the others."""
        usual = {
            name.removeprefix("do_").replace("_", " "): getattr(self, name)
            for name in dir(self)
            if name.startswith("do_") and not any(word in name for word in self._without)
        }
        seldom = {"block", "stop worker", "reload bad release", "kill several workers"}
        return {name: (call, 1 if name in seldom else 2) for name, call in usual.items()}

    def run(self, seconds: float) -> None:
        """Draw operations until the time is over, then let everything come to its end."""
        drawn = self._weighted()
        names = list(drawn)
        weights = [weight for _, weight in drawn.values()]
        end = time.monotonic() + seconds
        # Each once before some come twice: a run of a minute has seen them all.
        first = self._dice.sample(names, len(names))
        while time.monotonic() < end:
            name = first.pop() if first else self._dice.choices(names, weights)[0]
            self.account.operations[name] += 1
            try:
                drawn[name][0]()
            except RefusedError as error:
                self.account.refused[f"{name}: {error}"] += 1
            except UnreachableError:
                # The supervisor's successor comes into being; the daemon's end would be noticed below.
                assert self._daemon.process.poll() is None, "the daemon has ended"
                self.account.refused[f"{name}: no answer"] += 1
            self._pass_time(self._dice.choice([0.0, 0.05, 0.2, 0.5]))
        self._finish()

    def _finish(self) -> None:
        self._harmed.look_after(now=True)
        deadline = time.monotonic() + SETTLE_WITHIN
        while self._side_clients and time.monotonic() < deadline:
            self._pass_time(0.1)
        # An upgrade may be under way still: ask until there is an answer, and its own reload is over.
        self._daemon.until(self._at_rest, "an answer to a last reload", SETTLE_WITHIN)
        self._client.call(SCALE, Scale(workers=WORKERS))
        self._daemon.settled(WORKERS, within=SETTLE_WITHIN)
        self._client.close()

    def _at_rest(self) -> bool:
        self._pass_time(0.5)
        try:
            return self._client.call(RELOAD, ReloadBody(wait=True)).phase == "done"
        except UnreachableError:
            return False
