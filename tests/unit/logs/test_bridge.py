"""The loggers of the standard library: they exist, they may be reconfigured, no line is lost or forged."""

import io
import json
import logging
import logging.handlers
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from ostler.logs import bridge
from ostler.logs.access_format import compile_format
from ostler.logs.logfile import LogFile
from ostler.logs.worker_log import Log

ERROR, ACCESS = logging.getLogger("gunicorn.error"), logging.getLogger("gunicorn.access")
ENVIRON = {"REMOTE_ADDR": "192.0.2.7", "HTTP_USER_AGENT": "probe"}
REQUEST = ("GET", "/a%0ab?c", "HTTP/1.1", ENVIRON, "200 OK", [("X-Y", "z")], 3, 2_000_000)


class Kept(logging.Handler):
    """A handler that keeps its records."""

    def __init__(self) -> None:
        super().__init__()
        self.records: list[logging.LogRecord] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.records.append(record)


@pytest.fixture(autouse=True)
def _restored() -> Iterator[None]:
    loggers = (ERROR, ACCESS)
    before = [(logger.handlers[:], logger.filters[:], logger.propagate, logger.level) for logger in loggers]
    yield
    for logger, (handlers, filters, propagate, level) in zip(loggers, before, strict=True):
        logger.handlers[:], logger.filters[:], logger.propagate = handlers, filters, propagate
        logger.setLevel(level)
        logger.disabled = False
    bridge._failures.clear()
    bridge._error_handler.log = bridge._access_handler.file = None
    bridge._error_handler.setFormatter(None)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "error.log"


@pytest.fixture
def log(path: Path) -> Iterator[Log]:
    log = Log(LogFile(str(path), 2), "json", "info", {"slot": 3, "pid": 7})
    bridge.attach(log)
    bridge.set_up("info", access=False)
    yield log
    log.close()


def events(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_the_recipe_of_apps(log: Log, path: Path) -> None:
    """Handlers and level of `gunicorn.error` used for an app's own logger: its lines look like Ostler's."""
    app = logging.getLogger("app.of.recipe")
    app.propagate = False
    app.handlers, app.level = ERROR.handlers, ERROR.level
    app.debug("not worth it")
    app.info("from %s", "the app")
    try:
        raise ValueError("mistake")
    except ValueError:
        app.exception("failed")
    first, second = events(path)
    assert (first["level"], first["event"], first["slot"]) == ("info", "from the app", 3)
    assert first["logger"] == "app.of.recipe"
    assert second["level"] == "error"
    assert second["traceback"].endswith("ValueError: mistake")
    assert ERROR.propagate is ACCESS.propagate is False
    assert logging.getLevelName(ERROR.level) == "INFO"


def test_its_own_lines_go_past_it(log: Log, path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As long as the logger is unchanged no log records are made."""
    ERROR.handlers = [bridge._error_handler]  # pytest adds a handler of its own
    monkeypatch.setattr(ERROR, "handle", None)
    log.info("own")
    log.event("debug", "too little")
    assert [event["event"] for event in events(path)] == ["own"]


def test_another_handler_gets_records(log: Log, path: Path) -> None:
    """Events become records with fields as attributes and the traceback as `exc_text`;
    there is no line of ours.
    """
    kept = Kept()
    ERROR.handlers = [kept]
    log.error("request_failed", path="/x", module="not the logger's", traceback="Trace\n<0>back")
    log.event("debug", "too little")
    (record,) = kept.records
    assert record.getMessage() == 'request_failed slot=3 pid=7 path=/x module="not the logger\'s"'
    assert (record.name, record.levelname, record.exc_text) == (
        "gunicorn.error",
        "ERROR",
        "    Trace\n    <0>back",
    )
    assert vars(record)["slot"] == 3
    assert logging.Formatter("%(message)s").format(record).count("\n") == 2
    assert path.read_text() == ""


def test_level_is_the_logger_s(log: Log) -> None:
    """A configuration with loggers of its own sets the level there, as in gunicorn."""
    kept = Kept()
    ERROR.handlers = [kept]
    ERROR.setLevel(logging.DEBUG)
    log.debug("little")
    ERROR.setLevel(logging.ERROR)
    log.warning("not enough")
    assert [record.levelname for record in kept.records] == ["DEBUG"]


def test_both(log: Log, path: Path) -> None:
    """With another handler besides ours:
    a line here in our format with its fields, a record there, each once.
    """
    kept, in_sink = Kept(), []
    ERROR.addHandler(kept)
    log.sinks = [lambda *event: in_sink.append(event)]
    log.info("own", n=1)
    ERROR.warning("the app's")
    assert [(event["event"], event.get("n")) for event in events(path)] == [("own", 1), ("the app's", None)]
    assert len(kept.records) == 2
    assert [(level, name) for level, name, _ in in_sink] == [("info", "own"), ("warning", "the app's")]


def test_a_handler_that_raises(log: Log, path: Path) -> None:
    """An event that the handler can't process is written to the log; the reason is logged once."""

    class Broken(logging.Handler):
        def handle(self, record: logging.LogRecord) -> bool:
            raise RuntimeError("no room")

    ERROR.handlers = [Broken()]
    log.info("one")
    log.info("two")
    assert [event["event"] for event in events(path)] == ["logger_failed", "one", "two"]


def test_a_disabled_logger(log: Log, path: Path) -> None:
    """`disable_existing_loggers` of an app's own configuration does not silence the server."""
    ERROR.disabled = True
    log.error("seen")
    assert [event["event"] for event in events(path)] == ["seen"]


def test_a_formatter_decides(log: Log, path: Path) -> None:
    """A handler of ours to which an app has given a formatter uses it."""
    ERROR.handlers[0].setFormatter(logging.Formatter("MINE %(levelname)s %(message)s"))
    ERROR.info("text")
    assert path.read_text() == "MINE INFO text\n"


def test_lines_can_not_be_forged(path: Path) -> None:
    """The further lines of a message are indented; control characters are escaped."""
    log = Log(LogFile(str(path), 2), "console", "info", {})
    bridge.attach(log)
    bridge.set_up("info", access=False)
    ERROR.info("said \x1b[2J %s", "a\n12:00:00.000 info  forged")
    log.close()
    first, second = path.read_text().splitlines()
    assert first.endswith(r"said \x1b[2J a")
    assert second == "    12:00:00.000 info  forged"


def test_the_supervisor_s_events(log: Log) -> None:
    """They have the pid of the supervisor, not of the process that logs them, and keep a field named pid."""
    kept = Kept()
    ERROR.handlers = [kept]
    assert bridge.take_event("info", "worker_exited", {"pid": 5}, supervisor=4)
    (record,) = kept.records
    assert (record.process, record.getMessage()) == (4, "worker_exited pid=5")


def test_requests_as_records(log: Log) -> None:
    """The format is the message, all atoms are its arguments."""
    kept = Kept()
    ACCESS.handlers = [kept]
    bridge.access_to_logger('"%(r)s" %(s)s %({user-agent}i)s %({nothing}i)s', None)(*REQUEST)
    (record,) = kept.records
    assert record.getMessage() == '"GET /a%0ab?c HTTP/1.1" 200 probe -'
    assert isinstance(record.args, dict)
    assert (record.args["U"], record.args["{x-y}o"], record.args["D"]) == (r"/a\x0ab", "z", 2000)
    assert (record.name, record.levelname) == ("gunicorn.access", "INFO")


def test_a_filter_drops_health_checks(log: Log) -> None:
    """By the path in `record.args`, or by the message."""
    kept = Kept()
    kept.addFilter(lambda record: record.args["U"] != "/health")
    ACCESS.handlers = [kept]
    log_request = bridge.access_to_logger("%(r)s", None)
    log_request("GET", "/health", *REQUEST[2:])
    log_request(*REQUEST)
    assert [record.args["U"] for record in kept.records] == [r"/a\x0ab"]


def test_a_level_drops_requests(log: Log) -> None:
    """With a level above INFO no record is made."""
    ACCESS.setLevel(logging.WARNING)
    bridge.access_to_logger("%(r)s", None)()


def test_a_filter_that_raises(log: Log, path: Path, tmp_path: Path) -> None:
    """The request is answered; its line goes to the access log, and the error is logged once."""
    ACCESS.addFilter(lambda _record: 1 / 0)
    file = LogFile(str(tmp_path / "access.log"), 1)
    log_request = bridge.access_to_logger("%(m)s", compile_format("%(m)s", file.gather))
    log_request(*REQUEST)
    log_request(*REQUEST)
    file.close()
    assert (tmp_path / "access.log").read_text() == "GET\nGET\n"
    assert [event["event"] for event in events(path)] == ["logger_failed"]


def test_an_app_writes_to_the_access_logger(log: Log, tmp_path: Path) -> None:
    """The message is in the access log, on one line."""
    file = LogFile(str(tmp_path / "access.log"), 1)
    bridge.set_up("info", access=True)
    bridge.attach_access(file)
    ACCESS.handlers = [bridge._access_handler]  # pytest adds a handler of its own
    assert not bridge.access_diverted()
    ACCESS.info("mine\nforged")
    file.close()
    assert (tmp_path / "access.log").read_text() == "mine\\nforged\n"


@pytest.mark.parametrize("kind", [logging.FileHandler, logging.handlers.RotatingFileHandler])
def test_files_are_reopened(log: Log, tmp_path: Path, kind: Any) -> None:
    """USR1: every FileHandler of any logger writes to the new file, also in the middle of a line."""
    path, logger = tmp_path / "mine.log", logging.getLogger("some.app")
    handler = kind(str(path))
    logger.addHandler(handler)
    try:
        logger.error("before")
        path.rename(tmp_path / "old.log")
        stream = handler.stream
        bridge.reopen_files()
        assert handler.stream is stream
        logger.error("after")
        path.rename(tmp_path / "older.log")
        (tmp_path / "mine.log").mkdir()  # from now on it can't be opened
        bridge.reopen_files()
        logger.error("kept")
    finally:
        logger.removeHandler(handler)
        handler.close()
    assert (tmp_path / "old.log").read_text() == "before\n"
    assert (tmp_path / "older.log").read_text() == "after\nkept\n"


def test_wsgi_errors_go_where_the_lines_go(log: Log) -> None:
    """To the streams of the logger's handlers; to our log if the handlers are ours; never an error."""
    own: list[str] = []
    write = bridge.write_errors(own.append)
    write("one\n")
    stream, closed = io.StringIO(), io.StringIO()
    closed.close()
    ERROR.handlers = [logging.StreamHandler(stream), logging.StreamHandler(closed)]
    write("two\n")
    assert (own, stream.getvalue()) == (["one\n"], "two\n")


# -- messages ------------------------------------------------------------------------------------------------


def test_a_hook_s_message_is_unchanged(log: Log, path: Path) -> None:
    """What a hook logs arrives at other handlers once and verbatim, with the fields as attributes."""
    kept = Kept()
    ERROR.handlers = [kept]
    text = "two\n  lines, 100% of 'it' \x1b[1m \"q\"\n"
    log.info("hook", message=text, traceback=None)
    (record,) = kept.records
    assert record.getMessage() == text
    assert (record.slot, record.exc_text) == (3, None)  # type: ignore[attr-defined]
    assert path.read_text() == ""


def test_gunicorn_s_lines_for_other_handlers(log: Log, path: Path) -> None:
    """With log_format = gunicorn records have gunicorn's messages: several, or none, for an event."""
    kept = Kept()
    ERROR.handlers = [kept]
    bridge.set_up("info", access=False, log_format="gunicorn")
    ERROR.handlers = [kept]
    try:
        fields = {"listeners": "http://127.0.0.1:1", "worker_class": "sync", "pid": 4}
        assert bridge.take_event("info", "loading", fields, supervisor=4)
        assert bridge.take_event("info", "serving", {}, supervisor=4)
        log.info("worker_booting")
    finally:
        bridge.set_up("info", access=False)
    texts = [record.getMessage() for record in kept.records]
    assert texts[1:3] == ["Listening at: http://127.0.0.1:1 (4)", "Using worker: sync"]
    assert texts[3].startswith("Booting worker with pid: ")
    assert {record.process for record in kept.records[:3]} == {4}


def test_an_event_of_several_records_is_one_event(log: Log, path: Path) -> None:
    """Our own handler beside another one writes the event, not each of its records."""
    kept = Kept()
    bridge.set_up("info", access=False, log_format="gunicorn")
    ERROR.handlers = [bridge._error_handler, kept]
    try:
        bridge.take_event("info", "loading", {"listeners": "x", "worker_class": "sync"}, supervisor=4)
    finally:
        bridge.set_up("info", access=False)
    assert len(kept.records) == 3
    assert [event["event"] for event in events(path)] == ["loading"]
