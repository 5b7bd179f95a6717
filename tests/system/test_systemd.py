"""systemd: notification and socket activation."""

import os
import shutil
import signal
import socket
import time

import pytest

from tests.kit.daemon import OSTLER, Place
from tests.kit.http_client import ask
from tests.kit.waiting import PATIENCE, until

pytestmark = pytest.mark.system


def sent(notify: socket.socket, wanted: str) -> list[str]:
    """The lines of the next message to the service manager that has this line. Others have only the state."""
    while wanted not in (lines := notify.recv(4096).decode().split("\n")):
        assert all(line.startswith("STATUS=") for line in lines), lines
    return lines


@pytest.mark.parametrize("abstract", [False, True])
def test_notification(place: Place, abstract: bool) -> None:
    """READY=1 when the first worker serves, RELOADING=1 and READY=1 around a reload, STOPPING=1 at the end
    with the time that it may take; STATUS= all the time. No child gets the socket's name.
    """
    name = f"ostler-test-{place.folder.name}" if abstract else str(place.folder / "notify")
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as notify:
        notify.bind(f"\0{name}" if abstract else name)
        notify.settimeout(PATIENCE)
        place.add(
            "look.py", "import os, plain\nassert 'NOTIFY_SOCKET' not in os.environ\nfrom plain import app\n"
        )
        daemon = place.start("look:app", NOTIFY_SOCKET=f"@{name}" if abstract else name)

        ready = sent(notify, "READY=1")
        assert f"MAINPID={daemon.pid}" in ready
        assert any(line.startswith("STATUS=") for line in ready)
        assert ask(daemon.url).text == "one"
        before = time.monotonic_ns() // 1000
        daemon.send(signal.SIGHUP)
        reloading = sent(notify, "RELOADING=1")
        (at,) = (int(line[15:]) for line in reloading if line.startswith("MONOTONIC_USEC="))
        assert at >= before
        assert any(line.startswith("STATUS=Reloading to generation 2") for line in reloading)
        assert "STATUS=Healthy: the only worker is ready." in sent(notify, "READY=1")
        daemon.send(signal.SIGTERM)
        stopping = sent(notify, "STOPPING=1")
        (seconds,) = (int(line[20:]) / 1e6 for line in stopping if line.startswith("EXTEND_TIMEOUT_USEC="))
        assert seconds > 2 * 30  # graceful_timeout, of the workers and then of what the app has started
        assert daemon.wait() == 0


def test_notification_of_a_failed_reload(place: Place) -> None:
    """RELOADING=1 is followed by READY=1 also if the new code can't be loaded: the old generation serves."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as notify:
        path = str(place.folder / "notify")
        notify.bind(path)
        notify.settimeout(PATIENCE)
        place.add("look.py", "from plain import app\n")
        daemon = place.start("look:app", NOTIFY_SOCKET=path)
        sent(notify, "READY=1")
        place.add("look.py", "raise RuntimeError\n")
        daemon.send(signal.SIGHUP)
        sent(notify, "RELOADING=1")
        sent(notify, "READY=1")
        assert ask(daemon.url).text == "one"
        assert daemon.status().generation == 1
        daemon.send(signal.SIGTERM)
        sent(notify, "STOPPING=1")
        assert daemon.wait() == 0


def test_not_ready_before_the_first_worker(place: Place) -> None:
    """With an app that can't be loaded READY=1 is never sent."""
    place.add("broken.py", "raise RuntimeError\n")
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as notify:
        path = str(place.folder / "notify")
        notify.bind(path)
        notify.setblocking(False)
        assert place.run("-b", "127.0.0.1:0", "broken:app", NOTIFY_SOCKET=path).code == 3
        said = []
        try:
            while True:
                said.append(notify.recv(4096))
        except BlockingIOError:
            pass
    assert not any(b"READY=1" in message for message in said)


def test_runtime_directory(place: Place) -> None:
    """The control socket is in the unit's RUNTIME_DIRECTORY=, and ctl finds it there."""
    folder = place.folder / "unit"
    folder.mkdir()
    place.start("plain:app", RUNTIME_DIRECTORY=str(folder))
    socket_path = until(lambda: next(folder.glob("*.sock"), None), "the control socket")
    assert place.run("ctl", "--socket", str(socket_path), "status").code == 0


@pytest.mark.skipif(
    not shutil.which("systemd-socket-activate"), reason="systemd-socket-activate is not installed"
)
def test_socket_activation(place: Place) -> None:
    """The first connection starts the daemon on systemd's listener and is answered;
    a reload keeps the listener.
    """
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    activate = ["systemd-socket-activate", "-l", f"127.0.0.1:{port}"]
    for name, value in place.environ.items():
        activate.append(f"--setenv={name}={value}")
    daemon = place.start("-w", "2", "plain:app", argv=[*activate, *OSTLER], bind=None, serving=False)
    daemon.until(lambda: "Listening on" in daemon.log.read_text(), "systemd listens")
    daemon.urls = [f"http://127.0.0.1:{port}"]
    assert daemon.get().text == "one"
    daemon.settled(2)
    assert daemon.status().listeners == [f"http://127.0.0.1:{port}"]
    assert daemon.ctl("reload").code == 0
    assert daemon.get().text == "one"
    assert daemon.stop() == 0


def test_listen_fds_of_another_process(place: Place) -> None:
    """LISTEN_FDS for another process are ignored, and not passed on."""
    place.add("look.py", "import os\nassert 'LISTEN_FDS' not in os.environ\nfrom plain import app\n")
    daemon = place.start("look:app", LISTEN_FDS="1", LISTEN_PID=str(os.getpid()))
    assert daemon.get().text == "one"
