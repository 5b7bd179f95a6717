"""The arguments of hooks: their attributes, and the errors for unknown ones."""

import logging
import os
import socket
from pathlib import Path
from typing import Any

import pytest

from ostler.hooks.objects import HookApp, HookLog, HookServer, HookSettings, HookWorker
from ostler.settings import Loaded, load


def loaded(**values: Any) -> Loaded:
    return load({"wsgi_app": "site:app", **values}, {}, None, lambda: 1)


def server(**values: Any) -> HookServer:
    return HookServer(loaded(**values).settings, HookApp(lambda: "the app", "site:app"), HookLog(ignore))


def ignore(level: str, name: str, **fields: Any) -> None: ...


class Lines:
    """Records what a log writes."""

    def __init__(self) -> None:
        self.found: list[tuple[str, Any, Any]] = []

    def __call__(self, level: str, name: str, **fields: Any) -> None:
        assert name == "hook"
        self.found.append((level, fields["message"], fields["traceback"]))


@pytest.mark.parametrize(
    ("args", "text"),
    [
        (("plain 100 %",), "plain 100 %"),
        (("pid %s of %d", "x", 2), "pid x of 2"),
        (("%(name)s", {"name": "there"}), "there"),
        ((ValueError("an object"),), "an object"),
        (("two\nlines",), "two\nlines"),
        (("%d", "no number"), "%d ('no number',)"),
        (("%s %s", "too few"), "%s %s ('too few',)"),
    ],
)
def test_log_arguments(args: tuple[Any, ...], text: str) -> None:
    """Arguments are formatted as in logging; a mistake in them loses and raises nothing."""
    lines = Lines()
    HookLog(lines).info(*args)
    assert lines.found == [("info", text, None)]


def test_log_levels() -> None:
    """Each method has its level, and `log` takes logging's numbers and names."""
    lines = Lines()
    log = HookLog(lines)
    for name in ("debug", "info", "warning", "warn", "error", "critical"):
        getattr(log, name)("x")
    for level in (logging.DEBUG, logging.ERROR, 5, 25, 60, "WARNING", "bogus"):
        log.log(level, "x")
    assert [level for level, _, _ in lines.found] == [
        *("debug", "info", "warning", "warning", "error", "critical"),
        *("debug", "error", "debug", "info", "critical", "warning", "info"),
    ]


def test_log_exceptions() -> None:
    """exception, exc_info=True, and exc_info with an exception have the traceback, if there is one."""
    lines = Lines()
    log = HookLog(lines)
    try:
        raise LookupError("gone")
    except LookupError as error:
        kept = error
        log.exception("a")
        log.warning("b", exc_info=True)
    log.error("c", exc_info=kept)
    log.error("d", exc_info=True)  # noqa: LOG014 - nothing is being handled
    assert [level for level, _, _ in lines.found] == ["error", "warning", "error", "error"]
    assert [(trace or "").splitlines()[-1:] for _, _, trace in lines.found] == [["LookupError: gone"]] * 3 + [
        []
    ]


def test_loggers() -> None:
    """Hooks that add handlers and filters find the loggers of logging."""
    log = HookLog(ignore)
    assert log.error_log is logging.getLogger("gunicorn.error")
    assert log.access_log is logging.getLogger("gunicorn.access")


def test_config() -> None:
    """Settings by gunicorn's names and in gunicorn's types; those without meaning here exist as well."""
    cfg = HookSettings(
        loaded(
            bind=["127.0.0.1:80", "unix:/run/a.sock", "[::1]:81"],
            workers="2..8",
            timeout="30",
            raw_env=["A=1=2"],
        ).settings
    )
    assert cfg.address == [("127.0.0.1", 80), "/run/a.sock", ("::1", 81)]
    assert cfg.bind == ["127.0.0.1:80", "unix:/run/a.sock", "[::1]:81"]
    assert cfg.workers == 2
    assert (cfg.timeout, type(cfg.timeout)) == (30, int)
    assert cfg.env == {"A": "1=2"}
    assert cfg.worker_tmp_dir is None
    assert not cfg.is_ssl
    assert (cfg.settings["workers"].value, cfg.settings["proc_name"].get()) == (2, None)


def test_config_is_read_only() -> None:
    """The errors for setting a value and for an unknown setting."""
    cfg = HookSettings(loaded().settings)
    with pytest.raises(AttributeError, match=r"cfg\.workers can't be set"):
        cfg.workers = 3
    with pytest.raises(AttributeError, match=r"cfg\.workers can't be set"):
        cfg.set("workers", 3)
    with pytest.raises(AttributeError, match="cfg has no setting 'wrokers'; ostler --print-config"):
        _ = cfg.wrokers
    assert not hasattr(cfg, "nonsense")


def test_server() -> None:
    """The attributes that the examples in gunicorn's documentation and users' files read."""
    given = server(proc_name="shop", bind=["127.0.0.1:0"], workers="3")
    assert (given.proc_name, given.num_workers, given.pid) == ("shop", 3, os.getppid())
    assert (given.WORKERS, given.LISTENERS, given.address) == ({}, [], [("127.0.0.1", 0)])
    with socket.create_server(("127.0.0.1", 0)) as listener:
        given.listen([listener])
        assert given.address == [listener.getsockname()]
    assert server().proc_name == "site:app"


def test_listeners_read_as_their_addresses(tmp_path: Path) -> None:
    """`str(server.LISTENERS[0])` is an address as in gunicorn; everything else is the socket's."""
    path = str(tmp_path / "a.sock")
    with (
        socket.create_server(("127.0.0.1", 0)) as plain,
        socket.create_server(("::1", 0), family=socket.AF_INET6) as six,
        socket.socket(socket.AF_UNIX) as unix,
    ):
        unix.bind(path)
        given = server()
        given.listen([plain, six, unix])
        port, port6 = plain.getsockname()[1], six.getsockname()[1]
        assert [str(listener) for listener in given.LISTENERS] == [
            f"http://127.0.0.1:{port}",
            f"http://[::1]:{port6}",
            f"unix:{path}",
        ]
        assert given.LISTENERS[0].fileno() == plain.fileno()
        assert given.LISTENERS[0].sock is plain
        assert HookWorker(given, 1, 1).sockets is given.LISTENERS
        secure = server(certfile="a.pem", keyfile="a.pem")
        secure.listen([plain])
        assert str(secure.LISTENERS[0]) == f"https://127.0.0.1:{port}"


def test_unknown_attributes() -> None:
    """The error names all attributes, including those that a hook has set."""
    given = server()
    given.note = 1  # type: ignore[attr-defined]
    with pytest.raises(
        AttributeError, match=r"server has no attribute 'cgf' here; it has .*cfg, .*log, .*note"
    ):
        _ = given.cgf
    worker = HookWorker(given, 1, 1)
    with pytest.raises(
        AttributeError, match=r"worker has no attribute 'reloader' here; it has aborted, age, alive, app"
    ):
        _ = worker.reloader
    assert getattr(worker, "tmp", None) is None


def test_app() -> None:
    """`app.wsgi()` loads the app, once; `app.callable` does not."""
    loads: list[int] = []
    app = HookApp(lambda: loads.append(1) or "the app", "site:app")
    assert app.callable is None
    assert [app.wsgi(), app.wsgi(), app.callable] == ["the app"] * 3
    assert loads == [1]


def test_worker() -> None:
    """It counts requests, asks for a successor once when `alive` is set to False, and may ask for time."""
    worker = HookWorker(server(timeout="7"), 5, 2)
    assert (worker.age, worker.slot, worker.pid, worker.alive, worker.nr) == (5, 2, "[booting]", True, 0)
    retired: list[int] = []
    asked: list[float] = []
    worker.work(lambda: 12, retired.append, asked.append)
    worker.notify()
    worker.alive = False
    worker.alive = False
    assert (retired, asked, worker.alive) == ([12], [7], False)


def test_what_counts_towards_max_requests() -> None:
    """`nr` and `max_requests` may be changed, and what is taken off does not count."""
    worker = HookWorker(server(max_requests="100", max_requests_jitter="20"), 5, 2)
    assert 100 <= worker.max_requests <= 120
    worker.max_requests = 10
    assert worker.quota == 10
    requests, retired = 7, []
    worker.work(lambda: requests, retired.append)
    worker.nr -= 3
    assert (worker.nr, worker.quota) == (4, 13)
    requests = 12
    worker.retire_if_due()
    assert retired == []
    requests = 13
    worker.retire_if_due()
    worker.retire_if_due()
    assert (retired, worker.alive) == ([10], False)
    assert HookWorker(server(), 5, 2).quota is None
    with pytest.raises(TypeError, match="max_requests must be a number, got '7'"):
        worker.max_requests = "7"  # type: ignore[assignment]
    with pytest.raises(TypeError, match="max_requests must be a number, got nan"):
        worker.max_requests = float("nan")


def test_notify_outside_of_a_request() -> None:
    """notify() does nothing in a hook outside of a request."""

    def extend(_seconds: float) -> None:
        raise RuntimeError

    worker = HookWorker(server(), 1, 1)
    worker.work(extend=extend)
    worker.notify()
