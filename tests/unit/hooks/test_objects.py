"""The arguments of hooks: their attributes, and the errors for unknown ones."""

import logging
import os
import socket
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


def test_notify_outside_of_a_request() -> None:
    """notify() does nothing in a hook outside of a request."""

    def extend(_seconds: float) -> None:
        raise RuntimeError

    worker = HookWorker(server(), 1, 1)
    worker.work(extend=extend)
    worker.notify()
