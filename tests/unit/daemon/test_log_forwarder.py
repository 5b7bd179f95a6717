"""The supervisor's lines on their way to loggers: no line is lost, and none is logged twice."""

import os
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from ostler.daemon.children.records import ForkServerRecord
from ostler.daemon.listening.listeners import Listeners
from ostler.daemon.log_forwarder import LogForwarder
from ostler.fleet.state import State
from ostler.ipc import messages
from ostler.logs.logfile import LogFile
from ostler.settings.table import Settings
from tests.unit.daemon.fakes import fake_ports


class Channel:
    """Accepts messages, unless it is broken."""

    def __init__(self) -> None:
        self.sent: list[Any] = []
        self.broken: OSError | None = None

    def fileno(self) -> int:
        return 5

    def send(self, message: Any) -> None:
        if self.broken is not None:
            raise self.broken
        self.sent.append(message)


class Rig:
    """A forwarder with a fork server, a clock, a loop's timer and the supervisor's own log."""

    def __init__(self, folder: Path) -> None:
        self.now = 50.0
        self.path = folder / "own.log"
        self.channel = Channel()
        record = ForkServerRecord(generation=2, spawned_at=0.0, pid=1, wants_log_lines=True)
        self.server = SimpleNamespace(channel=self.channel, record=record)
        self.timers: list[tuple[float, Any]] = []
        ports = fake_ports(
            state=State(current=2),
            fork_servers={2: self.server},
            loop=SimpleNamespace(call_later=lambda *timer: self.timers.append(timer)),
        )
        self.forwarder = LogForwarder(ports, Listeners([]), lambda: self.now)
        self.file = LogFile(str(self.path), 2)
        self.forwarder.settle(Settings(), self.file)

    def take(self, line: str, **fields: Any) -> bool:
        return self.forwarder.take("info", "happened", fields, line)

    @property
    def own(self) -> list[str]:
        return self.path.read_text().splitlines()


@pytest.fixture
def rig(tmp_path: Path) -> Rig:
    return Rig(tmp_path)


def test_without_loggers(rig: Rig) -> None:
    """Nothing is sent, and the supervisor writes the line."""
    rig.server.record.wants_log_lines = False
    assert not rig.take("line")
    assert rig.channel.sent == []


def test_taken(rig: Rig) -> None:
    """Lines that the loggers have logged are not written again, also not at the end;
    only fields that can be sent are sent.
    """
    assert rig.take("line", n=1, path=Path("/x"), none=None)
    (sent,) = rig.channel.sent
    fields = {"n": 1, "path": "/x", "none": None}
    assert sent == messages.LogLine("info", "happened", fields, os.getpid(), 1, rig.now + 1.0)
    rig.forwarder.taken(1)
    rig.now += 10
    rig.forwarder.write_overdue()
    rig.forwarder.close()
    assert rig.own == []


def test_one_that_hangs(rig: Rig) -> None:
    """Lines that it has not logged in time, and later ones, are written here until it logs again."""
    assert rig.take("first")
    rig.forwarder.write_overdue()
    assert rig.own == []
    rig.now += 1.6
    assert not rig.take("second")
    rig.forwarder.write_overdue()
    assert rig.own == ["first"]
    assert rig.take("third")
    rig.forwarder.taken(2)
    rig.forwarder.close()
    assert rig.own == ["first"]


def test_while_the_app_loads(rig: Rig) -> None:
    """Before the daemon serves no chore asks for what is overdue: a timer does."""
    assert rig.take("line")
    ((delay, write_overdue),) = rig.timers
    rig.now += delay
    write_overdue()
    assert rig.own == ["line"]


@pytest.mark.parametrize("error", [BrokenPipeError(), BlockingIOError()])
def test_one_that_is_gone_or_full(rig: Rig, error: OSError) -> None:
    """Lines that can't be sent are written by the supervisor; those under way follow in time."""
    assert rig.take("sent")
    rig.channel.broken = error
    assert not rig.take("not sent")
    rig.now += 2
    rig.forwarder.write_overdue()
    assert rig.own == ["sent"]


def test_before_it_is_asked_to_end(rig: Rig) -> None:
    """It gets as long for the lines that were sent as it may still log them, so that none is logged twice."""
    gone: list[int] = []
    rig.forwarder.when_taken(lambda: gone.append(0))
    assert gone == [0]
    rig.take("last")
    rig.forwarder.when_taken(lambda: gone.append(1))
    assert gone == [0]
    rig.forwarder.taken(1)
    assert gone == [0, 1]
    rig.take("later")
    rig.forwarder.when_taken(lambda: gone.append(2))
    delay, late = rig.timers[-1]
    (first,) = (sent.until for sent in rig.channel.sent[:1])
    assert first - rig.now < delay <= 2.0
    late()
    assert gone == [0, 1, 2]
    rig.forwarder.close()
    assert rig.own == ["later"]


def test_an_upgrade_in_place(rig: Rig) -> None:
    """The next program does not know what was sent, so the lines are written before it runs."""
    rig.take("sent")
    rig.forwarder.write_all()
    assert rig.own == ["sent"]


def test_a_reload_asks_no_name_server(rig: Rig, monkeypatch: pytest.MonkeyPatch) -> None:
    """The statsd server is resolved again only if the settings have changed, because that may take long."""
    asked: list[str | None] = []
    monkeypatch.setattr(
        "ostler.daemon.log_forwarder.statsd_of", lambda settings: asked.append(settings.statsd_host)
    )
    for host in ("127.0.0.1:1", "127.0.0.1:1", "127.0.0.1:2", None, None):
        rig.forwarder.follow(Settings(statsd_host=host))
    assert asked == ["127.0.0.1:1", "127.0.0.1:2", None]
