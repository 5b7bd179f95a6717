"""The real shell with stand-ins for its children: the test holds their ends of the channels.

Each stand-in is a process that sleeps, so that it can be signalled and reaped; the test sends its messages.
`play` lets all of them behave like real children.
"""

import asyncio
import os
import signal
import socket
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any, Self

import msgspec

from ostler.daemon.environment.finding import Environment
from ostler.daemon.listening.listeners import Listeners
from ostler.daemon.process.fork_server_process import ForkServerProcess
from ostler.daemon.reporting.journal import Journal
from ostler.daemon.reporting.ledger import Ledger
from ostler.daemon.shell import Callbacks, Shell
from ostler.daemon.start_request import StartRequest
from ostler.fleet import actions, events
from ostler.ipc import channel, messages
from ostler.scoreboard.reader import Scoreboard
from ostler.settings.load import Loaded, load

_TURNS = 4


class _Log:
    """Discards all log events."""

    def __getattr__(self, _level: str) -> Callable[..., None]:
        return lambda *_args, **_fields: None


@dataclass
class StandIn:
    """pid: of its process; sent: whether it has sent something that a real child would not send."""

    pid: int
    sock: socket.socket
    fork_server: bool
    worker_id: int = 0
    stacks: int = -1
    sent: bool = False
    dead: bool = False
    received: list[Any] = field(default_factory=list)

    def send(self, data: bytes, descriptors: list[int] | None = None) -> None:
        """Send raw bytes without waiting; what can't be sent is lost."""
        with suppress(OSError):
            if descriptors:
                socket.send_fds(self.sock, [data], descriptors, socket.MSG_DONTWAIT)
            else:
                self.sock.send(data, socket.MSG_DONTWAIT)

    def send_message(self, message: msgspec.Struct) -> None:
        self.send(msgspec.msgpack.encode(message))

    def receive(self) -> tuple[bytes, list[int]]:
        """The next message, undecoded, and its descriptors; raises BlockingIOError."""
        data, descriptors, _, _ = socket.recv_fds(self.sock, 1 << 18, 253)
        for fd in descriptors:
            os.set_inheritable(fd, False)
        return data, descriptors

    def kill(self) -> None:
        with suppress(ProcessLookupError):
            os.kill(self.pid, signal.SIGKILL)

    def die(self) -> None:
        """Kill it and wait until it can be reaped."""
        self.kill()
        os.waitid(os.P_PID, self.pid, os.WEXITED | os.WNOWAIT)

    def close(self) -> None:
        self.dead = True
        self.sock.close()
        if self.stacks >= 0:
            os.close(self.stacks)
            self.stacks = -1


def _sleeper() -> int:
    return os.posix_spawn("/bin/sleep", ["sleep", "60"], {})


class ShellHarness:
    """A context manager; use it in a running loop.

    Attributes:
        stand_ins: of all children that there were; errors: what asyncio's handler for exceptions was given.
    """

    def __init__(self, **settings: Any) -> None:
        given = {"wsgi_app": "a:b", "bind": ["127.0.0.1:0"], "workers": 2, **settings}
        self.loaded: Loaded = load(given, {}, None, lambda: 1)
        self.stand_ins: list[StandIn] = []
        self.errors: list[dict[str, Any]] = []
        self.finished: list[actions.Finish] = []
        self.ended_reloads: list[int] = []
        self.rolled_back: list[int] = []
        self.watched: list[Any] = []
        self.taken: list[int] = []
        loop = asyncio.get_running_loop()
        loop.set_exception_handler(lambda _loop, context: self.errors.append(context))
        self.ledger = Ledger()
        self.listeners, self.scoreboard = Listeners([]), Scoreboard()
        self.journal = Journal(_Log())  # type: ignore[arg-type]
        nothing = lambda *_args: None  # noqa: E731
        self.shell = Shell(
            StartRequest(),
            self.listeners,
            self.scoreboard,
            self.journal,
            self.ledger,
            Callbacks(
                on_configured=nothing,
                on_listening=nothing,
                on_files=lambda *reported: self.watched.append(reported),
                on_log_taken=self.taken.append,
                when_lines_taken=lambda callback: callback(),
                before_last_line=lambda: None,
                serving=nothing,
                stopping=nothing,
                reload_ended=self.ended_reloads.append,
                finish=self.finished.append,
                check_upgrade=nothing,
                upgrade=nothing,
                rolled_back=lambda: self.rolled_back.append(self.shell.state.current),
                on_event=nothing,
            ),
        )

    def __enter__(self) -> Self:
        self._start = ForkServerProcess.start
        ForkServerProcess.start = self._start_fork_server  # type: ignore[method-assign, assignment]
        return self

    def __exit__(self, *_: object) -> None:
        ForkServerProcess.start = self._start  # type: ignore[method-assign]
        self.shell.close()
        for one in self.stand_ins:
            if not one.dead:
                one.kill()
                with suppress(ChildProcessError):
                    os.waitpid(one.pid, 0)
                one.close()
        for handle in self.shell.children:
            handle.close()
        for sock in self.shell.handoff:
            sock.close()
        self.listeners.close_all()
        self.scoreboard.close()

    def _start_fork_server(self, environment: Environment, _: object) -> ForkServerProcess:
        ours, theirs = channel.pair()
        theirs.setblocking(False)
        pid = _sleeper()
        self.stand_ins.append(StandIn(pid, theirs, True))
        return ForkServerProcess(environment, pid, ours)

    def start(self) -> Self:
        self.shell.submit(events.StartAsked())
        return self

    # -- time passes ------------------------------------------------------------------------------------

    async def turn(self) -> None:
        """Let the loop handle what is pending, and reap."""
        for _ in range(_TURNS):
            await asyncio.sleep(0)
        # A killed process ends soon, not at once.
        for one in self.stand_ins:
            if not one.dead and _has_ended(one.pid):
                self.shell.reaper.reap()
                one.dead = True
        for one in self.stand_ins:
            if one.dead and one.sock.fileno() >= 0:
                one.close()

    async def killed(self, one: StandIn) -> None:
        """Wait for the end of a stand-in that was killed."""
        for _ in range(10_000):
            await self.turn()
            if one.dead:
                return
            await asyncio.sleep(0.0005)
        raise AssertionError("it lives")

    async def play(self, rounds: int = 12) -> Self:
        """Let all stand-ins do what they are asked for, as real children would."""
        for _ in range(rounds):
            for one in list(self.stand_ins):
                if not one.dead:
                    self._go_on(one)
            await self.turn()
        return self

    def _go_on(self, one: StandIn) -> None:
        while True:
            try:
                data, descriptors = one.receive()
            except BlockingIOError:
                return
            except OSError:
                data, descriptors = b"", []
            if not data:
                one.kill()  # the channel was closed, so a child ends
                return
            union = messages.ToForkServer if one.fork_server else messages.ToWorker
            self._answer(one, msgspec.msgpack.decode(data, type=union), descriptors)

    def _answer(self, one: StandIn, message: Any, descriptors: list[int]) -> None:
        one.received.append(message)
        match message:
            case messages.Configure():
                one.send_message(messages.Decided(None, self.loaded))
                one.send_message(messages.Configured(self.loaded, []))
            case messages.Load():
                one.send_message(messages.AppLoaded())
            case messages.Spawn():
                pid = _sleeper()
                sock = socket.socket(fileno=descriptors[0])
                sock.setblocking(False)
                self.stand_ins.append(StandIn(pid, sock, False, message.worker_id, descriptors[1]))
                os.close(descriptors[2])
                one.send_message(messages.Forked(message.worker_id, pid))
                return
            case messages.HookDue():
                one.send_message(messages.HookBegun())
                one.send_message(messages.HookDone(message.name))
            case messages.Boot():
                one.send_message(messages.Ready([]))
            case messages.Drain():
                one.kill()
            case messages.AuditZygote():
                one.send_message(messages.ZygoteAudited([], []))
        for fd in descriptors:
            os.close(fd)

    # -- state ------------------------------------------------------------------------------------------

    @property
    def fork_server(self) -> StandIn:
        return next(one for one in reversed(self.stand_ins) if one.fork_server and not one.dead)

    @property
    def workers(self) -> list[StandIn]:
        return [one for one in self.stand_ins if not one.fork_server and not one.dead]

    def events(self, name: str) -> list[dict[str, Any]]:
        return [event.fields for event in self.journal.recent if event.name == name]

    async def stopped(self) -> None:
        """Stop the daemon and wait for its end."""
        self.shell.submit(events.StopAsked("a test", "quick"))
        for _ in range(2000):
            await self.play(1)
            if self.finished:
                return
            await asyncio.sleep(0.002)
        raise AssertionError(f"it does not stop: {self.shell.state.workers} {self.shell.state.generations}")


def _has_ended(pid: int) -> bool:
    try:
        return os.waitid(os.P_PID, pid, os.WEXITED | os.WNOHANG | os.WNOWAIT) is not None
    except ChildProcessError:
        return True
