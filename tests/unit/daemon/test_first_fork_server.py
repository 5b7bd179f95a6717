"""The process of the first fork server, which is started before the supervisor is imported."""

import os
import signal
import socket
import time
from pathlib import Path

import pytest

from ostler.daemon.environment.environments import running
from ostler.daemon.environment.finding import Environment
from ostler.daemon.first_fork_server import start_first
from ostler.daemon.process.fork_server_process import ForkServerProcess
from ostler.daemon.successor import STATE
from ostler.ipc.channel import pair
from tests.kit.standins import ShellHarness
from tests.kit.waiting import until


def test_it_ends_if_nothing_uses_it(monkeypatch: pytest.MonkeyPatch) -> None:
    """It is no report's sender for the service manager, and waits only as long as its channel is open."""
    monkeypatch.setenv("NOTIFY_SOCKET", "/run/systemd/notify")
    monkeypatch.setenv("OF_THE_APP", "yes")
    process = start_first({}, None)
    assert process is not None
    environ = Path(f"/proc/{process.pid}/environ")  # empty for a moment
    variables = until(environ.read_bytes, "its variables").split(b"\0")
    process.use().close()
    until(lambda: os.waitpid(process.pid, os.WNOHANG)[0] == process.pid, "its end")
    assert b"OF_THE_APP=yes" in variables
    assert not any(variable.startswith(b"NOTIFY_SOCKET=") for variable in variables)


@pytest.mark.parametrize(
    ("command_line", "variables"),
    [
        pytest.param({"daemon": True}, {}, id="its parent would be the launcher"),
        pytest.param({}, {"LISTEN_FDS": "1"}, id="it would inherit sockets"),
        pytest.param({}, {STATE: f"{os.getpid()}:3"}, id="after an upgrade in place"),
    ],
)
def test_it_is_not_started(
    monkeypatch: pytest.MonkeyPatch, command_line: dict[str, bool], variables: dict[str, str]
) -> None:
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    assert start_first(command_line, None) is None


def started(harness: ShellHarness, environment: Environment) -> tuple[ForkServerProcess, socket.socket]:
    """A process that waits, as the first one of the harness, and the other end of its channel."""
    ours, theirs = pair()
    pid = os.posix_spawn("/bin/sleep", ["sleep", "60"], {})
    process = ForkServerProcess(environment, pid, ours)
    harness.shell.fork_servers._first = process
    return process, theirs


def exists(process: ForkServerProcess) -> bool:
    return Path(f"/proc/{process.pid}").exists()


def test_a_start_that_fails_ends_it() -> None:
    """Nothing is left when the command ends. One that is used is its owner's."""
    process = start_first({}, None)
    assert process is not None
    process.end_if_unused()
    assert not exists(process)
    other = start_first({}, None)
    assert other is not None
    sock = other.use()
    other.end_if_unused()
    assert os.waitpid(other.pid, os.WNOHANG) == (0, 0)
    sock.close()
    until(lambda: os.waitpid(other.pid, os.WNOHANG)[0] == other.pid, "its end")


async def test_it_is_used_once() -> None:
    """It becomes generation 1's fork server and gets its configuration; the next one is another process."""
    with ShellHarness() as harness:
        first, theirs = started(harness, running())
        with theirs:
            harness.start()
            assert harness.shell.children.fork_servers[1].pid == first.pid
            assert b"Configure" in theirs.recv(65536)
            assert harness.stand_ins == []
            os.kill(first.pid, signal.SIGKILL)
            deadline = time.monotonic() + 10
            while not harness.finished:  # it has ended before it reported a configuration
                assert time.monotonic() < deadline
                harness.shell.reaper.reap()
                await harness.turn()


async def test_one_of_another_environment_is_given_up() -> None:
    """The command may lead to another release by now."""
    with ShellHarness() as harness:
        first, theirs = started(harness, Environment("/elsewhere/bin/python", "/elsewhere", "/elsewhere/lib"))
        with theirs:
            harness.start()
            assert theirs.recv(1) == b""
            assert harness.shell.children.fork_servers[1].pid == harness.stand_ins[0].pid
            assert not exists(first)
