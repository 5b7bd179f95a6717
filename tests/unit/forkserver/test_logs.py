"""Logs of fork servers and of the processes they fork:
which lines go where, and which descriptors stay open.
"""

import os
import socket
import time
from pathlib import Path
from typing import Any

import pytest

from ostler.ipc import messages
from ostler.ipc.channel import pair
from ostler.scoreboard import memory
from tests.kit.daemon import descriptors, until
from tests.unit.workers.keeper import Keeper, Peer

APP = """\
def app(environ, start_response):
    if environ["PATH_INFO"] == "/fail":
        raise RuntimeError("mistake")
    start_response("200 OK", [("Content-Length", "2")])
    return [b"hi"]
"""
LOGGERS = """\
logconfig_dict = {
    "formatters": {"f": {"format": "%(process)d %(levelname)s %(message)s"}},
    "handlers": {"h": {"class": "logging.FileHandler", "filename": "mine.log", "formatter": "f"}},
    "loggers": {"gunicorn.error": {"handlers": ["h"], "propagate": False, "level": "INFO"}},
}
"""


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "app.py").write_text(APP)
    return tmp_path


def configured(keeper: Keeper) -> Peer:
    peer = keeper.start()
    keeper.configure(peer)
    peer.receive(messages.Configured)
    keeper.ask_to_load(peer)
    return peer


def line(name: str, number: int, until: float | None = None) -> messages.LogLine:
    fields: dict[str, Any] = {"slot": 1, "pid": 5}
    until = time.monotonic() + 20 if until is None else until
    return messages.LogLine("warning", name, fields, 4711, number, until)


def test_which_fork_servers_get_the_supervisors_lines(folder: Path) -> None:
    """Only a fork server whose `gunicorn.error` has other handlers;
    it confirms the lines that they have logged.
    """
    with Keeper(folder, wsgi_app="app:app") as keeper:
        assert not configured(keeper).receive(messages.AppLoaded).loggers
        (folder / "gunicorn.conf.py").write_text(LOGGERS)
        server = keeper.start()
        keeper.configure(server)
        assert server.receive(messages.Configured).loggers
        server.send_message(line("loading", 7))  # before the app is loaded
        assert server.receive(messages.LogTaken).number == 7
        (folder / "mine.log").write_text("")
        keeper.ask_to_load(server)
        assert server.receive(messages.AppLoaded).loggers
        server.send_message(line("late", 1, until=0.0))
        server.send_message(line("worker_exited", 2))
        assert server.receive(messages.LogTaken).number == 2
        assert (folder / "mine.log").read_text() == "4711 WARNING worker_exited slot=1 pid=5\n"


def test_a_zygote_gets_the_supervisors_lines(folder: Path) -> None:
    """A worker that became a fork server logs the supervisor's lines; its workers log as before."""
    (folder / "gunicorn.conf.py").write_text(LOGGERS)
    with Keeper(folder, wsgi_app="app:app") as keeper:
        server = configured(keeper)
        server.receive(messages.AppLoaded)
        worker = keeper.spawn(server)
        worker.send_message(messages.Drain(hand_over=True, zygote=True))
        assert worker.receive(messages.ZygoteReady).loggers
        worker.send_message(line("forwarded", 9))
        assert worker.receive(messages.LogTaken).number == 9
        young = keeper.spawn(worker)
        assert keeper.get("/fail")[0].startswith("500")
        text = (folder / "mine.log").read_text()
        assert "4711 WARNING forwarded" in text
        assert f"{young.pid} ERROR request_failed" in text


def test_files_are_reopened(folder: Path) -> None:
    """A fork server also reopens its logs, so that workers that it forks later inherit handlers with new
    files.
    """
    (folder / "gunicorn.conf.py").write_text(LOGGERS)
    with Keeper(folder, wsgi_app="app:app") as keeper:
        server = configured(keeper)
        server.receive(messages.AppLoaded)
        (folder / "mine.log").rename(folder / "old.log")
        server.send_message(messages.ReopenLogs())
        keeper.spawn(server)
        keeper.get("/fail")
        assert "request_failed" in (folder / "mine.log").read_text()
        assert (folder / "old.log").read_text() == ""


def test_asked_to_reopen_before_it_boots(folder: Path) -> None:
    """USR1 between fork and boot does not end the worker; the log that was moved is closed."""
    with Keeper(folder, wsgi_app="app:app", errorlog="error.log") as keeper:
        server = keeper.server()
        ours, theirs = pair()
        reading, writing = os.pipe()
        cell = memory.create(2)
        with theirs:
            server.send_message(messages.Spawn(1, 1, True), [theirs.fileno(), writing, cell])
        os.close(writing)
        os.close(cell)
        worker = Peer(ours, messages.FromWorker)
        try:
            pid = server.receive(messages.Forked).pid
            worker.attach(pid)
            until(lambda: str(folder / "error.log") in descriptors(pid), "its log")
            (folder / "error.log").rename(folder / "old.log")
            worker.send_message(messages.ReopenLogs())
            worker.send_message(messages.Boot())
            worker.receive(messages.Ready)
            assert keeper.get() == ("200 OK", b"hi")
            assert str(folder / "old.log") not in descriptors(pid)
            assert str(folder / "error.log") in descriptors(pid)
        finally:
            worker.close()
            os.close(reading)


def test_nothing_is_inherited(folder: Path) -> None:
    """A worker has only its own log and syslog connection, not its fork server's; so has a zygote."""
    with socket.create_server(("127.0.0.1", 0)) as syslog:
        settings = {
            "errorlog": "error.log",
            "syslog": True,
            "syslog_addr": f"tcp://127.0.0.1:{syslog.getsockname()[1]}",
            "statsd_host": "127.0.0.1:9",
        }
        with Keeper(folder, wsgi_app="app:app", **settings) as keeper:
            server = keeper.server()
            worker = keeper.spawn(server)
            second = keeper.spawn(keeper.make_zygote(worker), slot=2)
            for peer in (server, worker, second):
                opened = peer.descriptors()
                assert sum(name.endswith("/error.log") for name in opened) == 1
            # A zygote has none of the descriptors that serve; all others must be the same.
            sockets = [
                sum(name.startswith("socket:") for name in peer.descriptors()) for peer in (server, worker)
            ]
            assert sockets[0] == sockets[1]
