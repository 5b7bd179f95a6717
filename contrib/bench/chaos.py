#!/usr/bin/env python3
"""A soak test: random operations and failures that overlap, under load, with an account of each request.

One daemon serves `unruly.py` to a steady load on keep-alive connections (tests/kit/load.py). Meanwhile
operations are drawn at random with a seed: what an operator does (reload, scale, recycle, rotate logs), what
breaks (kill -9, SIGSTOP, bad releases, a deleted control socket), what apps do (hang, crash, leak) and
what clients do (garbage, slow requests, silence). They overlap: few wait for the end of the one before.

A request may be lost only on a connection that a process held which was killed, stopped, crashed or blocked
at that time. It is known exactly which process held which connection: a process that is
killed from outside is stopped first and looked at; one that crashes by itself writes it to a file first.
Everything else that is lost is unexplained, and a defect.

Exit status: 0 if nothing is unexplained, what the server counted fits what the client has seen, no zombie, no
process and no descriptor is left over, and the supervisor's memory has not run away.
"""

import argparse
import contextlib
import json
import math
import os
import random
import select
import signal
import socket
import struct
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path

import servers

sys.path.insert(0, str(servers.ROOT))
from ostler.control.client import Client, RefusedError, UnreachableError
from ostler.control.routes import RECYCLE, REFORK, RELOAD, SCALE, UPGRADE
from ostler.control.views import ReforkBody, ReloadBody, Scale
from tests.kit.answers import AnswerParser, MalformedAnswerError
from tests.kit.daemon import Daemon, Place, fork_server
from tests.kit.load import Load
from tests.kit.processes import (
    Process,
    children,
    client_ports,
    descriptors,
    freeze,
    kill_holding,
    title,
    zombies,
)
from tests.kit.report import Report, percentile

WORKERS = 4
RATE, CONNECTIONS, CLOSE_EVERY = 300.0, 24, 11
QUIET = 5.0  # seconds without any operation, for comparison
LONG_WAIT = 1.0
NEWS_WITHIN = 2.0  # seconds after a process's end within which its clients see it
TIMEOUT = 2.0  # the daemon's; an overloaded machine must not make quick requests overdue
SETTLE_WITHIN = 60.0
# More than caches and the history of events take.
MEMORY_GROWTH = 24 * 1024 * 1024

CONFIGURATION = """\
wsgi_app = "{module}:app"
workers = {workers}
"""
RELEASE = "import unruly\n\napp = unruly.make({version!r}, crash_after={crash_after})\n"

FLAGS = (
    *("--timeout", f"{TIMEOUT:g}", "--timeout-grace", "0.5", "--graceful-timeout", "5"),
    *("--max-requests", "500", "--max-requests-jitter", "300", "--max-memory", "50M"),
    *("--canary-time", "0.1", "--probation", "3", "--keep-alive", "75", "--header-timeout", "3"),
)  # fmt: skip

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


@dataclass(frozen=True)
class Hurt:
    """A process that was killed, stopped or crashed, and the connections that it held then.
    Times are on the monotonic clock.
    """

    kind: str
    pid: int
    since: float
    until: float
    """Its end, or when it went on; infinite while it is unknown."""
    ports: frozenset[int]

    def explains(self, port: int, at: float) -> bool:
        return port in self.ports and self.since <= at <= self.until + NEWS_WITHIN


@dataclass
class Aside:
    """A client beside the load, with one connection, for one operation."""

    kind: str
    sock: socket.socket
    allowed: frozenset[int]
    """The statuses it may be answered with; 0: the connection's end without an answer."""
    deadline: float
    drip: bytes = b""
    """Still to be sent, a byte at a time."""
    sip: int = 65536
    """How much it reads at a time."""
    parser: AnswerParser = field(default_factory=AnswerParser)
    port: int = 0

    def fileno(self) -> int:
        return self.sock.fileno()


@dataclass
class Account:
    """What happened during the run: processes that were harmed, and counts of operations."""

    operations: Counter[str] = field(default_factory=Counter)
    refused: Counter[str] = field(default_factory=Counter)
    """Operations that the daemon declined, e.g. as another was under way."""
    hurts: list[Hurt] = field(default_factory=list)
    asides: Counter[tuple[str, str]] = field(default_factory=Counter)
    answered_aside: int = 0
    lost_aside: int = 0
    unexplained: list[str] = field(default_factory=list)
    planned: list[tuple[float, float]] = field(default_factory=list)
    """When planned operations were under way."""
    reloads: Counter[str] = field(default_factory=Counter)

    def explanation(self, port: int, at: float) -> str | None:
        """What happened to the process that held the connection; None if nothing did."""
        return next((hurt.kind for hurt in self.hurts if hurt.explains(port, at)), None)


class Chaos:
    """The operations; each `do_...` is one."""

    def __init__(
        self, place: Place, daemon: Daemon, dice: random.Random, without: Sequence[str] = ()
    ) -> None:
        self.place = place
        self._without = without
        self.daemon = daemon
        self.dice = dice
        # A long time-out: the answer to a reload comes at its end.
        self.client = Client.unix(daemon.socket, SETTLE_WITHIN)
        self.account = Account()
        self.notes = place.folder / "notes"
        self._asides: list[Aside] = []
        # Stopped processes, and when each is to be continued.
        self._stopped: list[tuple[Process, Hurt, float]] = []
        self._noted: set[Path] = set()
        self._version = 1
        self._rotated = 0

    # -- what an operator does -----------------------------------------------------------------------------

    @contextlib.contextmanager
    def _planned(self) -> Iterator[None]:
        began = time.monotonic()
        yield
        self.account.planned.append((began, time.monotonic()))

    def _release(self, crash_after: int = 0) -> None:
        """Put a new version of the app and of the configuration in place."""
        self._version += 1
        release(self.place, self._version, crash_after)

    def _reload(self, wait: bool) -> None:
        view = self.client.call(RELOAD, ReloadBody(wait=wait))
        self.account.reloads[view.phase if wait else "not awaited"] += 1

    def do_reload(self) -> None:
        self._release()
        with self._planned():
            self._reload(wait=True)

    def do_reload_and_go_on(self) -> None:
        self._release()
        if self.dice.random() < 0.5:
            self._reload(wait=False)
        else:
            self.daemon.send(signal.SIGHUP)

    def do_reload_broken_code(self) -> None:
        self._version += 1
        what = self.dice.choice(
            ["def app(:\n", "import no_such_module\n", "raise SystemExit(0)\n", "x = 1\n"]
        )
        self.place.add(f"release_{self._version}.py", what)
        configure(self.place, self._version)
        with self._planned():
            self._reload(wait=True)
        self._release()

    def do_reload_broken_configuration(self) -> None:
        self.place.add(
            "conf.py", self.dice.choice(["workers = 'many'\n", "workers = (\n", "import nothing\n"])
        )
        with self._planned():
            self._reload(wait=True)
        self._release()

    def do_reload_bad_release(self) -> None:
        """The new code boots, and then crashes again and again.
        It is rolled back, or replaced by the next reload.
        """
        self._release(crash_after=40)
        self._reload(wait=True)
        self._release()

    def do_scale(self) -> None:
        with self._planned():
            self.client.call(SCALE, Scale(workers=self.dice.randint(1, 8)))
            self._pass_time(0.3)

    def do_recycle(self) -> None:
        with self._planned():
            slots = [worker.slot for worker in self.daemon.workers() if worker.state == "ready"]
            if slots:
                self.client.call(RECYCLE, slot=self.dice.choice(slots))
            self._pass_time(0.2)

    def do_refork(self) -> None:
        with self._planned():
            self.client.call(REFORK, ReforkBody())
            self._pass_time(0.3)

    def do_upgrade(self) -> None:
        """The upgrade is not awaited:
        the next operations meet a supervisor that checks the new program, or the new program.
        """
        with self._planned():
            if self.dice.random() < 0.5:
                self.client.call(UPGRADE)
            else:
                self.daemon.send(signal.SIGUSR2)
            self._pass_time(0.3)

    def do_rotate_logs(self) -> None:
        self._rotated += 1
        access = self.place.folder / "access.log"
        access.rename(access.with_name(f"access.{self._rotated}.log"))
        self.daemon.send(signal.SIGUSR1)
        self.daemon.until(access.exists, "the access log after USR1")

    def do_ttin_ttou(self) -> None:
        for _ in range(20):
            self.daemon.send(self.dice.choice([signal.SIGTTIN, signal.SIGTTOU]))
            self._pass_time(0.005)

    # -- what breaks ---------------------------------------------------------------------------------------

    def _workers(self) -> list[int]:
        """All workers, including those that drain or stop."""
        pids = children(self.daemon.pid)
        self.dice.shuffle(pids)
        found = []
        for pid in sorted(pids):
            with contextlib.suppress(OSError):
                if title(pid).startswith("ostler: worker"):
                    found.append(pid)
        return found

    def do_kill_worker(self) -> None:
        pid = self.dice.choice(self._workers() or [0])
        if pid and (killed := kill_holding(pid, self.daemon.port)):
            self.account.hurts.append(Hurt("killed", pid, killed.at, killed.at, killed.ports))

    def do_kill_several_workers(self) -> None:
        for _ in range(self.dice.randint(2, 4)):
            self.do_kill_worker()

    def do_kill_fork_server(self) -> None:
        with contextlib.suppress(ValueError, ProcessLookupError):  # there is none just now, or there are two
            fork_server(self.daemon).send(signal.SIGKILL)

    def do_stop_worker(self) -> None:
        """SIGSTOP. It is continued after a while, unless the supervisor replaces it before."""
        for pid in self._workers()[:1]:
            with contextlib.suppress(ProcessLookupError, FileNotFoundError):
                process = Process(pid)
                freeze(process)
                since, ports = time.monotonic(), frozenset(client_ports(pid, self.daemon.port))
                hurt = Hurt("stopped", pid, since, math.inf, ports)
                self.account.hurts.append(hurt)
                self._stopped.append((process, hurt, since + self.dice.uniform(0.1, 4)))

    def do_delete_control_socket(self) -> None:
        """Connected clients stay connected; other clients find a new socket a moment later."""
        path = self.daemon.socket
        path.unlink(missing_ok=True)
        self.daemon.until(path.exists, "the control socket again")

    # -- what apps do --------------------------------------------------------------------------------------

    def _ask(self, kind: str, path: str, allowed: set[int], **more: int) -> None:
        self._aside(kind, f"GET {path} HTTP/1.1\r\nHost: a\r\n\r\n".encode(), frozenset(allowed), **more)

    def do_hang(self) -> None:
        self._ask("hang", "/hang", {0, 504})

    def do_block(self) -> None:
        self._ask("block", "/block", {0})

    def do_crash(self) -> None:
        self._ask("crash", f"/crash/{self.dice.choice(['abort', 'segfault', 'bus'])}", {0})

    def do_leak(self) -> None:
        for _ in range(6):
            self._ask("leak", "/leak", {200})

    # -- what clients do -----------------------------------------------------------------------------------

    def _aside(
        self, kind: str, data: bytes, allowed: frozenset[int], *, drip: bool = False, sip: int = 65536
    ) -> Aside:
        sock = socket.socket()
        if sip < 65536:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 8192)
        sock.settimeout(SETTLE_WITHIN)
        sock.connect(self.daemon.address)
        aside = Aside(kind, sock, allowed, time.monotonic() + 30, sip=sip, port=sock.getsockname()[1])
        if drip:
            aside.drip = data
        else:
            with contextlib.suppress(ConnectionError):  # it may have been refused before all of it was sent
                sock.sendall(data)
        sock.setblocking(False)
        self._asides.append(aside)
        return aside

    def do_garbage(self) -> None:
        noise = b"\0" + self.dice.randbytes(self.dice.randint(1, 3000))
        for data in (self.dice.choice(GARBAGE), noise):
            self._aside("garbage", data, REFUSALS | {0})

    def do_slow_request(self) -> None:
        # A worker that drains waits graceful_timeout for it, and no longer.
        for _ in range(3):
            data = b"GET / HTTP/1.1\r\nHost: a\r\nX: " + b"y" * self.dice.randint(5, 60) + b"\r\n\r\n"
            self._aside("slow request", data, frozenset({0, 200, 408}), drip=True)

    def do_slow_reader(self) -> None:
        for _ in range(3):
            self._ask("slow reader", "/big", {0, 200}, sip=self.dice.choice([20_000, 60_000]))

    def do_half_open(self) -> None:
        half = b"GET / HTTP/1.1\r\nHo"
        self._aside("half a request", half, REFUSALS | {0})
        with contextlib.suppress(OSError):
            self._aside("half closed", half, REFUSALS | {0}).sock.shutdown(socket.SHUT_WR)
        gone = self._aside("vanished", half, frozenset({0}))
        self._asides.remove(gone)
        self.account.asides["vanished", "reset by us"] += 1
        gone.sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        gone.sock.close()

    # -- meanwhile -----------------------------------------------------------------------------------------

    def _pass_time(self, seconds: float) -> None:
        """Wait, and handle stopped processes, clients beside the load, and notes meanwhile."""
        end = time.monotonic() + seconds
        while True:
            self._read_notes()
            self._look_after_stopped()
            self._look_after_asides(max(0.0, min(0.02, end - time.monotonic())))
            if time.monotonic() >= end:
                return

    def _read_notes(self) -> None:
        """Read what crashing and blocking processes have written to the folder of notes."""
        for path in set(self.notes.glob("*.json")) - self._noted:
            text = path.read_text()
            if not text.endswith("}"):
                continue  # it is being written
            self._noted.add(path)
            note = json.loads(text)
            pid, blocks = note["pid"], note["kind"] == "block"
            hurt = Hurt(note["kind"], pid, note["at"], note["at"], frozenset(note["ports"]))
            with contextlib.suppress(ProcessLookupError):
                if blocks:
                    process = Process(pid)
                    hurt = replace(hurt, until=math.inf)
                    self._stopped.append((process, hurt, math.inf))
            self.account.hurts.append(hurt)

    def _look_after_stopped(self, *, now: bool = False) -> None:
        for entry in list(self._stopped):
            process, hurt, resume = entry
            at = time.monotonic()
            if process.gone:
                ended = at
            elif at >= resume or (now and resume < math.inf):
                with contextlib.suppress(ProcessLookupError):
                    process.send(signal.SIGCONT)
                ended = at
            else:
                continue
            self._stopped.remove(entry)
            hurts = self.account.hurts
            hurts[hurts.index(hurt)] = replace(hurt, until=ended)

    def _look_after_asides(self, patience: float) -> None:
        if not self._asides:
            time.sleep(patience)
            return
        readable, _, _ = select.select(self._asides, [], [], patience)
        now = time.monotonic()
        for aside in list(self._asides):
            if aside in readable:
                self._read(aside, now)
            elif now > aside.deadline:
                self._close(aside, "no answer in time", 0, now, fine=False)
            elif aside.drip:
                with contextlib.suppress(OSError):  # the end of the file is read as well
                    sent = aside.sock.send(aside.drip[:1])
                    aside.drip = aside.drip[sent:]

    def _read(self, aside: Aside, now: float) -> None:
        try:
            data = aside.sock.recv(aside.sip)
            answer = aside.parser.feed(data) if data else aside.parser.end()
        except BlockingIOError:
            return
        except ConnectionError:
            data, answer = b"", None
        except MalformedAnswerError as error:
            self._close(aside, f"not HTTP: {error}", 0, now, fine=False)
            return
        if answer is not None:
            self._close(
                aside, f"status {answer.status}", answer.status, now, fine=answer.status in aside.allowed
            )
        elif not data:
            self._close(aside, "closed", 0, now, fine=0 in aside.allowed)

    def _close(self, aside: Aside, how: str, status: int, now: float, *, fine: bool) -> None:
        self._asides.remove(aside)
        aside.sock.close()
        account = self.account
        if status:
            account.answered_aside += 1
        else:
            account.lost_aside += 1
        if not fine:
            self._read_notes()
            why = account.explanation(aside.port, now)
            if why is None:
                account.unexplained.append(f"{aside.kind}: {how}, port {aside.port}, at {now:.3f}")
            else:
                how += f" ({why})"
        account.asides[aside.kind, how] += 1

    # -- the run -------------------------------------------------------------------------------------------

    def operations(self) -> dict[str, tuple[Callable[[], None], int]]:
        """All operations by name, with how often each is drawn in proportion to the others."""
        usual = {
            name.removeprefix("do_").replace("_", " "): getattr(self, name)
            for name in dir(self)
            if name.startswith("do_") and not any(word in name for word in self._without)
        }
        seldom = {"block", "stop worker", "reload bad release", "kill several workers"}
        return {name: (call, 1 if name in seldom else 2) for name, call in usual.items()}

    def run(self, seconds: float) -> None:
        """Draw operations until the time is over, then wait until all of them have ended."""
        drawn = self.operations()
        names = list(drawn)
        weights = [weight for _, weight in drawn.values()]
        end = time.monotonic() + seconds
        # Each operation once before any comes twice, so that a run of a minute has all of them.
        first = self.dice.sample(names, len(names))
        while time.monotonic() < end:
            name = first.pop() if first else self.dice.choices(names, weights)[0]
            self.account.operations[name] += 1
            try:
                drawn[name][0]()
            except RefusedError as error:
                self.account.refused[f"{name}: {error}"] += 1
            except UnreachableError:
                # The new program of an upgrade is starting. If the daemon had ended, the check below would
                # notice.
                assert self.daemon.process.poll() is None, "the daemon has ended"
                self.account.refused[f"{name}: no answer"] += 1
            self._pass_time(self.dice.choice([0.0, 0.05, 0.2, 0.5]))
        self._finish()

    def _finish(self) -> None:
        self._look_after_stopped(now=True)
        deadline = time.monotonic() + SETTLE_WITHIN
        while self._asides and time.monotonic() < deadline:
            self._pass_time(0.1)
        # An upgrade may still be under way: ask until there is an answer, and until its own reload is over.
        self.daemon.until(self._at_rest, "an answer to a last reload", SETTLE_WITHIN)
        self.client.call(SCALE, Scale(workers=WORKERS))
        self.daemon.settled(WORKERS, within=SETTLE_WITHIN)
        self.client.close()

    def _at_rest(self) -> bool:
        self._pass_time(0.5)
        try:
            return self.client.call(RELOAD, ReloadBody(wait=True)).phase == "done"
        except UnreachableError:
            return False


def configure(place: Place, version: int) -> None:
    place.add("conf.py", CONFIGURATION.format(module=f"release_{version}", workers=WORKERS))


def release(place: Place, version: int, crash_after: int = 0) -> None:
    place.add(f"release_{version}.py", RELEASE.format(version=f"v{version}", crash_after=crash_after))
    configure(place, version)


def resident(pid: int) -> int:
    """Bytes (proc_pid_status(5))."""
    status = Path(f"/proc/{pid}/status").read_text()
    return int(status.partition("VmRSS:")[2].split()[0]) * 1024


def kinds(pid: int) -> Counter[str]:
    """The process's descriptors, counted by kind."""
    return Counter(target.partition(":")[0] if ":[" in target else target for target in descriptors(pid))


@dataclass
class Result:
    """The result of a run; everything in `problems` is a defect."""

    report: Report
    account: Account
    explained: Counter[str]
    quiet_p99: float
    planned_p99: float
    served: int
    deaths: int
    memory: tuple[int, int]
    problems: list[str]

    def text(self) -> str:
        account, report = self.account, self.report
        lines = ["operations:"]
        lines += [f"  {count:>5}  {name}" for name, count in sorted(account.operations.items())]
        lines += [f"  {count:>5}  declined: {why}" for why, count in account.refused.items()]
        lines += [f"  {count:>5}  reload {phase}" for phase, count in account.reloads.items()]
        lines.append("clients beside the load:")
        lines += [f"  {count:>5}  {kind}: {how}" for (kind, how), count in sorted(account.asides.items())]
        lines.append(f"load: {report.summary()}")
        lines += [f"  {count:>5}  lost, explained: {why}" for why, count in self.explained.items()]
        late = percentile(sorted(report.lags), 0.99)
        waited = [record for record in report.records if record.ended - record.sent > LONG_WAIT]
        harmed = sum(account.explanation(record.port, record.ended) is not None for record in waited)
        lines += [
            f"p99 ms: quiet {self.quiet_p99 * 1000:.1f}, in planned operations {self.planned_p99 * 1000:.1f}",
            f"the client's own delay, p99: {late * 1000:.1f} ms",
            f"waited more than {LONG_WAIT:g} s: {len(waited)} requests, {harmed} of them at a harmed process",
            f"requests counted by the server: {self.served}; deaths: {self.deaths}",
            f"the supervisor's memory: {self.memory[0] / 1e6:.1f} MB, then {self.memory[1] / 1e6:.1f} MB",
        ]
        lines += [f"UNEXPLAINED: {problem}" for problem in self.problems]
        lines.append(f"unexplained: {len(self.problems)}")
        return "\n".join(lines)


def judge(report: Report, chaos: Chaos) -> tuple[Counter[str], list[str]]:
    """The lost requests by cause; those without a cause are unexplained."""
    explained: Counter[str] = Counter()
    problems = list(chaos.account.unexplained)
    for record in report.lost:
        why = [chaos.account.explanation(port, at) for port, at in record.losses]
        if None in why:
            losses = ", ".join(f"port {port} at {at:.3f}" for port, at in record.losses)
            problems.append(
                f"{record.outcome.value} {record.detail}: {losses}; last with {record.worker}, "
                f"sent at {record.sent:.3f}"
            )
        else:
            explained[str(why[-1])] += 1
    return explained, problems


def within(report: Report, windows: list[tuple[float, float]]) -> Report:
    return Report([record for start, end in windows for record in report.due_within(start, end).records])


def soak(
    place: Place,
    seconds: float,
    dice: random.Random,
    *,
    without: Sequence[str] = (),
    flags: Sequence[str] = (),
) -> Result:
    """One whole run.

    Args:
        without: words in the names of operations that are left out.
        flags: more of the daemon's.
    """
    (place.folder / "notes").mkdir()
    release(place, 1)
    daemon = place.start(
        *("-c", "conf.py", "--access-logfile", str(place.folder / "access.log"), *FLAGS, *flags),
        PYTHONPATH=os.pathsep.join([str(servers.HERE), str(servers.ROOT)]),
        UNRULY_NOTES=str(place.folder / "notes"),
    )
    daemon.settled(WORKERS)
    chaos = Chaos(place, daemon, dice, without)
    # By now everything is open that is opened only once, including the connection of this client.
    daemon.client.call(RELOAD, ReloadBody(wait=True))
    daemon.settled(WORKERS)
    before, memory = kinds(daemon.pid), resident(daemon.pid)
    aside_before = daemon.status().totals.requests
    with Load(
        daemon.address, rate=RATE, connections=CONNECTIONS, close_every=CLOSE_EVERY, timeout=20
    ) as load:
        load.wait_for(int(RATE), within=10)
        quiet = time.monotonic()
        load.wait_for(int(RATE * (1 + QUIET)), within=QUIET + 10)
        quiet_end = time.monotonic()
        chaos.run(seconds - QUIET)
        report = load.finish()
    explained, problems = judge(report, chaos)
    account = chaos.account
    served = daemon.status().totals.requests - aside_before
    answered = sum(record.status > 0 for record in report.records) + account.answered_aside
    # A process that ends may have sent an answer that it had not counted yet. Of a lost request no process
    # knows whether it was not answered, or its answer was lost.
    least = answered - len(account.hurts)
    most = answered + sum(len(record.losses) for record in report.lost) + account.lost_aside
    if not least <= served <= most:
        problems.append(f"the server counted {served} requests, the clients {least} to {most}")
    problems += left_over(daemon, before)
    grown = resident(daemon.pid)
    if grown - memory > MEMORY_GROWTH:
        problems.append(f"the supervisor grew from {memory / 1e6:.1f} to {grown / 1e6:.1f} MB")
    if report.unasked:
        problems.append(f"bytes without a request, {report.unasked} times")
    deaths = daemon.status().totals.deaths
    if code := daemon.stop(within=30):
        problems.append(f"the daemon ended with {code}")
    return Result(
        report,
        account,
        explained,
        within(report, [(quiet, quiet_end)]).latency(0.99),
        within(report, account.planned).latency(0.99),
        served,
        deaths,
        (memory, grown),
        problems,
    )


def left_over(daemon: Daemon, before: Counter[str]) -> list[str]:
    """Processes and descriptors that exist and should not."""
    problems = []
    try:
        daemon.until(
            lambda: len(children(daemon.pid)) == WORKERS + 1,
            "only a fork server and the workers",
            SETTLE_WITHIN,
        )
    except AssertionError:
        problems.append(f"processes: {[title(pid) for pid in children(daemon.pid)]}")
    if dead := zombies(daemon.pid):
        problems.append(f"zombies: {dead}")
    try:
        daemon.until(lambda: kinds(daemon.pid) <= before, "the descriptors of before")
    except AssertionError:
        problems.append(f"descriptors: before {dict(before)}, now {dict(kinds(daemon.pid))}")
    return problems


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--minutes", type=float, default=1.0, help="default: %(default)s")
    parser.add_argument("--seed", type=int, help="of a run to repeat; by default a new one, which is printed")
    parser.add_argument(
        "--without",
        action="append",
        default=[],
        metavar="WORD",
        help="leave out operations with this in their name",
    )
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the account, too")
    parser.add_argument("flags", nargs="*", metavar="FLAG", help="more flags of the daemon, after --")
    options = parser.parse_args()
    if options.seed is None:
        options.seed = random.SystemRandom().randrange(1_000_000)
    return options


def main() -> int:
    options = parse_arguments()
    servers.end_on_sigterm()
    print(f"chaos for {options.minutes:g} minutes, --seed {options.seed}", flush=True)
    with Place() as place:
        dice = random.Random(options.seed)
        result = soak(place, options.minutes * 60, dice, without=options.without, flags=options.flags)
        print(result.text())
        place.keep = bool(result.problems)
        if place.keep:
            print(f"the logs are in {place.folder}")
    if options.json:
        account = {
            "seed": options.seed,
            "operations": result.account.operations,
            "explained": result.explained,
            "problems": result.problems,
            "hurts": [asdict(hurt) | {"ports": sorted(hurt.ports)} for hurt in result.account.hurts],
        }
        options.json.write_text(json.dumps(account, indent=2) + "\n")
    return 1 if result.problems else 0


if __name__ == "__main__":
    try:
        sys.exit(main())
    except (AssertionError, UnreachableError) as problem:
        print(f"chaos.py: {problem}", file=sys.stderr)
        sys.exit(1)
