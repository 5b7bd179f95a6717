"""HAProxy's agent check (--agent-check), with plain sockets and with a real HAProxy."""

import csv
import shutil
import signal
import socket
import subprocess
from types import TracebackType
from typing import Self

import pytest

from tests.kit.daemon import Daemon, Place, end_with_parent
from tests.kit.ports import free_port
from tests.kit.waiting import PATIENCE, until

pytestmark = pytest.mark.system

AGENT = ("--agent-check", "127.0.0.1:0")


def port(daemon: Daemon) -> int:
    return int(str(daemon.event("agent_check")["address"]).rpartition(":")[2])


def answer(daemon: Daemon) -> str:
    """All that one connection gets."""
    with socket.create_connection(("127.0.0.1", port(daemon)), PATIENCE) as client, client.makefile() as file:
        return file.read()


def test_drain_and_resume(place: Place) -> None:
    """`ctl drain` is answered with drain, and `ctl resume` with the words that revert it."""
    daemon = place.start(*AGENT, "plain:app")
    assert answer(daemon) == "ready up\n"
    assert daemon.ctl("drain").code == 0
    assert answer(daemon) == "drain\n"
    assert daemon.ctl("resume").code == 0
    assert answer(daemon) == "ready up\n"
    assert daemon.ctl("pause").code == 0
    assert answer(daemon) == "down #no worker is ready\n"


def test_shutdown_delay(place: Place) -> None:
    """After SIGTERM drain is answered during the delay and the stop, until the daemon ends."""
    daemon = place.start(*AGENT, "--shutdown-delay", "600", "plain:app")
    slow = daemon.connect()
    daemon.send(signal.SIGTERM)
    daemon.event("stop")
    assert answer(daemon) == "drain\n"
    slow.asked("/gate/slow")
    daemon.in_app("/gate/slow")
    daemon.send(signal.SIGTERM)
    daemon.until(lambda: daemon.status().state == "stopping", "the end of the delay")
    assert answer(daemon) == "drain\n"
    (place.app_folder / "slow.open").touch()
    assert slow.answer().text == "slow passed"
    assert daemon.wait() == 0
    with pytest.raises(ConnectionRefusedError):
        answer(daemon)


def test_while_the_app_loads(place: Place) -> None:
    """It is answered before the first worker is ready."""
    place.add(
        "waits.py", "import os, time\nwhile not os.path.exists('go'): time.sleep(.01)\nfrom plain import app"
    )
    daemon = place.start(*AGENT, "waits:app", serving=False)
    assert answer(daemon) == "down #no worker is ready\n"
    (place.app_folder / "go").touch()
    daemon.event("serving")
    assert answer(daemon) == "ready up\n"


def test_port_taken(place: Place) -> None:
    """If the port is taken, there is one warning; the daemon and its control socket serve."""
    with socket.create_server(("127.0.0.1", 0)) as taken:
        address = f"127.0.0.1:{taken.getsockname()[1]}"
        daemon = place.start("--agent-check", address, "plain:app")
        (warning,) = daemon.events("control_unavailable")
        assert warning["problem"].startswith(f"agent_check: {address}: the port is in use")
        assert daemon.get().text == "one"
        assert daemon.ctl("status").code == 0


@pytest.mark.thorough
def test_upgrade_and_reload(place: Place) -> None:
    """The listener stays over an upgrade in place; another address needs a restart."""
    place.add("conf.py", f"agent_check = '127.0.0.1:{free_port()}'\n")
    daemon = place.start("-c", "conf.py", "--canary-time", "0", "plain:app")
    assert daemon.ctl("drain").code == 0
    daemon.send(signal.SIGUSR2)
    daemon.event("upgraded")
    assert answer(daemon) == "drain\n"
    assert daemon.ctl("resume").code == 0
    daemon.event("reload_done")
    place.add("conf.py", f"agent_check = '127.0.0.1:{free_port()}'\n")
    assert "takes effect only after a restart" in daemon.ctl("reload").out
    assert answer(daemon) == "ready up\n"
    assert len(daemon.events("agent_check")) == 1


# -- with HAProxy --------------------------------------------------------------------------------------------

# Debian installs it in a folder that is only on root's PATH.
PROGRAM = shutil.which("haproxy", path="/usr/sbin:/usr/local/sbin:/usr/bin:/usr/local/bin")

_CONFIGURATION = """
global
    stats socket {socket} mode 600 level admin
    nbthread 1
defaults
    mode http
    timeout connect 10s
    timeout client 60s
    timeout server 60s
backend app
    server one 127.0.0.1:{app} check inter 100ms agent-check agent-port {agent} agent-inter 100ms
"""


class HAProxy:
    """A HAProxy with one server; a context manager.

    Args:
        place: whose folder it uses.
        app, agent: the server's ports.
    """

    def __init__(self, place: Place, app: int, agent: int) -> None:
        self._socket = str(place.folder / "haproxy")
        configuration = place.folder / "haproxy.cfg"
        configuration.write_text(_CONFIGURATION.format(socket=self._socket, app=app, agent=agent))
        self._log = place.folder / "haproxy.log"
        self._environ = place.environ
        self._argv = [str(PROGRAM), "-db", "-f", str(configuration)]

    def __enter__(self) -> Self:
        with self._log.open("wb") as log:
            self._process = subprocess.Popen(
                self._argv,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                env=self._environ,
                preexec_fn=end_with_parent,
            )
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._process.terminate()
        try:
            self._process.wait(PATIENCE)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
            raise AssertionError("SIGTERM did not end HAProxy") from None

    def server(self) -> dict[str, str]:
        """The server's line of `show stat` (HAProxy's management guide, section 9.1)."""
        with socket.socket(socket.AF_UNIX) as client:
            client.settimeout(PATIENCE)
            client.connect(self._socket)
            client.sendall(b"show stat\n")
            with client.makefile() as file:
                lines = file.read().removeprefix("# ").strip().splitlines()
        return next(line for line in csv.DictReader(lines) if line["svname"] == "one")

    def until(self, status: str) -> dict[str, str]:
        """Wait until the server's status begins with `status`; return its line."""
        seen = "unknown"

        def look() -> dict[str, str] | None:
            nonlocal seen
            assert self._process.poll() is None, self._log.read_text()
            try:
                found = self.server()
            except (FileNotFoundError, ConnectionRefusedError):
                return None  # it does not listen yet
            seen = f"{found['status']}, the agent's answer: {found['last_agt']}"
            return found if found["status"].startswith(status) else None

        try:
            return until(look, f"HAProxy's status {status}")
        except AssertionError as error:
            raise AssertionError(f"{error}; it is {seen}") from None


@pytest.mark.skipif(PROGRAM is None, reason="needs haproxy")
def test_haproxy(place: Place) -> None:
    """HAProxy takes the server out at `ctl drain` and `ctl pause`, and back at `ctl resume`."""
    daemon = place.start(*AGENT, "--shutdown-delay", "600", "plain:app")
    with HAProxy(place, daemon.port, port(daemon)) as haproxy:
        haproxy.until("UP")
        assert daemon.ctl("drain").code == 0
        haproxy.until("DRAIN")
        assert daemon.ctl("resume").code == 0
        haproxy.until("UP")
        assert daemon.ctl("pause").code == 0
        assert "no worker is ready" in haproxy.until("DOWN")["last_agt"]
        assert daemon.ctl("resume").code == 0
        haproxy.until("UP")
        daemon.send(signal.SIGTERM)
        haproxy.until("DRAIN")
        daemon.send(signal.SIGTERM)
        assert daemon.wait() == 0
