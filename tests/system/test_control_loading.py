"""When the control server is loaded, and its listeners before any client has come."""

import signal
import socket
from pathlib import Path

import pytest

from tests.kit.daemon import Daemon, Place

pytestmark = pytest.mark.system


def has_loaded_server(daemon: Daemon) -> bool:
    """Whether aiohttp's own extension modules are in the supervisor's memory."""
    return "/aiohttp/" in Path(f"/proc/{daemon.pid}/maps").read_text()


def socket_path(place: Place) -> Path:
    """Found without a connection, which would be a client."""
    (path,) = place.runtime.glob("ostler/*.sock")
    return path


def test_before_it_serves(place: Place) -> None:
    """All of it is loaded when the daemon is reported to serve: its files may be others afterwards."""
    daemon = place.start("plain:app")
    assert has_loaded_server(daemon)
    assert daemon.ctl("status").code == 0


def test_not_if_nothing_is_served(place: Place) -> None:
    """Without listeners the supervisor does without it."""
    daemon = place.start("--no-control-socket", "plain:app")
    assert daemon.get().status == 200
    assert not has_loaded_server(daemon)
    assert daemon.stop() == 0


@pytest.mark.parametrize(
    ("event", "field", "words"),
    [
        pytest.param("control", "url", ("--control-bind", "127.0.0.1:0"), id="tcp"),
        pytest.param("agent_check", "address", ("--agent-check", "127.0.0.1:0"), id="agent check"),
    ],
)
def test_other_listeners_need_it(place: Place, event: str, field: str, words: tuple[str, ...]) -> None:
    """What else listens is served, also without the control socket."""
    daemon = place.start("--no-control-socket", *words, "plain:app")
    host, _, port = daemon.event(event)[field].removeprefix("http://").rpartition(":")
    assert has_loaded_server(daemon)
    socket.create_connection((host, int(port)), 10).close()


def test_a_removed_socket_is_made_again(place: Place) -> None:
    """Also before any client has come."""
    daemon = place.start("plain:app")
    socket_path(place).unlink()
    daemon.event("control_socket_restored")
    assert daemon.ctl("status").code == 0


def test_an_upgrade_before_any_client(place: Place) -> None:
    """The new program goes on with the socket that nothing has used yet."""
    daemon = place.start("plain:app")
    daemon.send(signal.SIGUSR2)
    daemon.event("upgraded")
    daemon.event("reload_done")
    assert daemon.ctl("status").code == 0


def test_a_stop_before_any_client(place: Place) -> None:
    daemon = place.start("plain:app")
    path = socket_path(place)
    assert daemon.stop() == 0
    assert not path.exists()
