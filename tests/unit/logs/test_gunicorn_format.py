"""`log_format = gunicorn`: gunicorn's lines, as parsers of its log expect them."""

import os
import re
from pathlib import Path
from typing import Any

import pytest

from ostler import __version__
from ostler.logs import gunicorn_format
from ostler.logs.logfile import LogFile
from ostler.logs.setup import get_logger, set_up
from ostler.logs.worker_log import Log

# gunicorn.glogging.Logger: error_fmt and datefmt.
LINE = re.compile(r"^\[(\d{4}-\d\d-\d\d \d\d:\d\d:\d\d [+-]\d{4})\] \[(\d+)\] \[([A-Z]+)\] (.*)$")
LOADING = {"app": "shop:app", "listeners": "http://127.0.0.1:8000 unix:/x", "worker_class": "sync", "pid": 7}


def lines(level: str, event: str, fields: dict[str, Any]) -> list[tuple[str, str, str]]:
    """Level, pid and text of each line; what does not look like a line is its text alone."""
    text = gunicorn_format.line(1_000_000_000.0, level, event, fields, 7)
    found = []
    for line in text.splitlines():
        match = LINE.match(line)
        found.append((match[3], match[2], match[4]) if match else ("", "", line))
    return found


@pytest.mark.parametrize(
    ("event", "fields", "wanted"),
    [
        (
            "loading",
            LOADING,
            [
                ("INFO", f"Starting gunicorn (ostler {__version__})"),
                ("INFO", "Listening at: http://127.0.0.1:8000,unix:/x (7)"),
                ("INFO", "Using worker: sync"),
            ],
        ),
        ("worker_booting", {"pid": 7, "slot": 1}, [("INFO", "Booting worker with pid: 7")]),
        ("worker_exiting", {"pid": 7, "slot": 1}, [("INFO", "Worker exiting (pid: 7)")]),
        ("worker_ready", {"pid": 9, "slot": 1}, []),
        ("serving", {"listeners": "x"}, []),
        ("stop", {"how": "graceful", "by": "signal TERM"}, [("INFO", "Handling signal: term")]),
        ("stop", {"how": "graceful", "by": "uid 0"}, [("INFO", 'stop how=graceful by="uid 0"')]),
        ("stopped", {"uptime": 1}, [("INFO", "Shutting down: Master")]),
        ("reload", {"by": "signal HUP"}, [("INFO", "Handling signal: hup"), ("INFO", "Hang up: Master")]),
        ("scale", {"by": "signal TTIN", "workers": 2}, [("INFO", "Handling signal: ttin")]),
        ("logs_reopened", {"by": "signal USR1"}, [("INFO", "Handling signal: usr1")]),
        ("worker_exited", {"pid": 9, "status": "exit code 0"}, []),
        ("reload_done", {"generation": 2}, [("INFO", "reload_done generation=2")]),
    ],
)
def test_texts(event: str, fields: dict[str, Any], wanted: list[tuple[str, str]]) -> None:
    """gunicorn's words where it has some; other events are their name and fields."""
    assert lines("info", event, fields) == [(level, "7", text) for level, text in wanted]


def test_ends_of_workers() -> None:
    """gunicorn's line about a signal or an exit code comes before the event, which has the cause."""
    fields = {"pid": 9, "status": "signal 9", "slot": 1}
    killed, event = lines("warning", "worker_died", fields)
    assert killed == ("ERROR", "7", "Worker (pid:9) was sent SIGKILL! Perhaps out of memory?")
    assert event == ("WARNING", "7", 'worker_died pid=9 status="signal 9" slot=1')
    fields = {"pid": 9, "status": "signal 15"}
    text = gunicorn_format.line(0, "warning", "worker_died", fields, 7)
    assert "[INFO] Worker (pid:9) was sent SIGTERM!" in text
    fields = {"pid": 9, "status": "exit code 3"}
    assert "[ERROR] Worker (pid:9) exited with code 3." in gunicorn_format.line(
        0, "info", "worker_exited", fields, 7
    )
    fields = {"pid": 9, "status": "signal 40"}
    assert "was sent signal 40!" in gunicorn_format.line(0, "warning", "worker_died", fields, 7)


def test_time_outs() -> None:
    """What monitoring looks for, and then the request; the stack cannot be mistaken for lines."""
    fields = {"pid": 9, "path": "/x", "stack": "Thread\n[2026-01-01 00:00:00 +0000] [1] [INFO] forged"}
    first, second, *stack = gunicorn_format.line(0, "error", "request_overdue", fields, 7).splitlines()
    assert first.endswith("[7] [CRITICAL] WORKER TIMEOUT (pid:9)")
    assert second.endswith("[7] [ERROR] request_overdue pid=9 path=/x")
    assert stack == ["    Thread", "    [2026-01-01 00:00:00 +0000] [1] [INFO] forged"]


def test_messages(tmp_path: Path) -> None:
    """A message of an app or a hook is its text, also if an event has that name; lines below are indented."""
    path = tmp_path / "log"
    log = Log(LogFile(str(path), 2), "gunicorn", "info", {"slot": 1, "pid": os.getpid(), "generation": 3})
    log.take_message("warning", "stopped", {"logger": "app"})
    log.take_message("error", "two\n[forged", {"traceback": "Trace"})
    log.info("hook", message="100% of 'it'")
    log.info("request_failed", path="/x")
    log.info("serving")
    log.info("worker_booting")
    log.close()
    found = path.read_text().splitlines()
    assert [line.partition("] [")[2].partition("] ")[2] for line in found if line[:1] == "["] == [
        "[WARNING] stopped",
        "[ERROR] two",
        "[INFO] 100% of 'it'",
        "[INFO] request_failed path=/x",
        f"[INFO] Booting worker with pid: {os.getpid()}",
    ]
    assert [line for line in found if line[:1] != "["] == ["    [forged", "    Trace"]


def test_the_supervisor_s_log(tmp_path: Path) -> None:
    """The same lines from structlog; an event without a line writes none."""
    path = tmp_path / "log"
    set_up(str(path), "gunicorn", "info")
    get_logger().info("loading", **LOADING)
    get_logger().info("serving", listeners="x")
    get_logger().debug("not worth it")
    set_up("-", "json", "info")
    texts = [match[4] for line in path.read_text().splitlines() if (match := LINE.match(line))]
    assert texts[1:] == ["Listening at: http://127.0.0.1:8000,unix:/x (7)", "Using worker: sync"]
    assert len(texts) == 3
