"""Where log lines are written, and in which format."""

import json
import re

import pytest

from tests.kit.daemon import Place
from tests.kit.waiting import until

pytestmark = pytest.mark.system


def test_access_log_to_stdout(place: Place) -> None:
    """--access-logfile -: gunicorn's default format on stdout, one line per request, nothing else."""
    daemon = place.start("-w", "2", "--access-logfile", "-", "plain:app")
    daemon.get("/path?query=1", headers={"User-Agent": "probe/1.0", "Referer": "http://from.example/"})
    line = daemon.until(lambda: daemon.out.read_text(), "a line").rstrip("\n")
    assert re.fullmatch(
        r'127\.0\.0\.1 - - \[\d\d/[A-Z][a-z]{2}/\d{4}:\d\d:\d\d:\d\d [+-]\d{4}\] '
        r'"GET /path\?query=1 HTTP/1\.1" 200 3 "http://from\.example/" "probe/1\.0"',
        line,
    )  # fmt: skip
    daemon.get("/fail")
    lines = daemon.until(
        lambda: found if len(found := daemon.out.read_text().splitlines()) == 2 else None, "two"
    )
    assert '"GET /fail HTTP/1.1" 500 ' in lines[1]
    assert lines[1].endswith('"-" "-"')


def test_access_log_can_not_be_forged(place: Place) -> None:
    """Quotes and control characters of a client are escaped; a request is one line."""
    daemon = place.start("--access-logfile", "-", "plain:app")
    daemon.get("/", headers={"User-Agent": 'a" 200 "b\t\\'})
    line = daemon.until(lambda: daemon.out.read_text(), "a line")
    assert line.count("\n") == 1
    assert line.endswith(r'"a\" 200 \"b\x09\\"' + "\n")


def test_access_log_format(place: Place) -> None:
    """--access-logformat with headers and time."""
    daemon = place.start(
        "--access-logfile", "-", "--access-logformat", "%(m)s %(U)s %(s)s %(D)s %({host}i)s", "plain:app"
    )
    daemon.get("/x?y")
    line = daemon.until(lambda: daemon.out.read_text(), "a line")
    assert re.fullmatch(rf"GET /x 200 \d+ 127\.0\.0\.1:{daemon.port}\n", line)


def test_json_lines(place: Place) -> None:
    """When not on a terminal every line is a JSON object with time, level and event, from every process."""
    daemon = place.start("-w", "2", "plain:app")
    daemon.get("/fail")
    daemon.event("request_failed")
    assert daemon.ctl("recycle", "1").code == 0
    daemon.stop()
    lines = daemon.log.read_text().splitlines()
    for line in lines:
        event = json.loads(line)
        assert list(event)[:3] == ["timestamp", "level", "event"]
        assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z", event["timestamp"])
    serving = json.loads(next(line for line in lines if '"serving"' in line))
    assert serving["pid"] == daemon.pid
    failed = json.loads(next(line for line in lines if '"request_failed"' in line))
    assert {"slot", "pid", "generation", "method", "path", "traceback"} <= failed.keys()


def test_console(place: Place) -> None:
    """--log-format console: time, level, event, fields; tracebacks indented on lines of their own."""
    daemon = place.start("--log-format", "console", "plain:app", serving=False)
    found = until(lambda: re.search(r" serving .*listeners=(\S+)", daemon.log.read_text()), "serving")
    daemon.urls = [found[1]]
    daemon.get("/fail")
    text = until(lambda: text if "mistake" in (text := daemon.log.read_text()) else None, "the app's error")
    assert re.search(r"^\d\d:\d\d:\d\d\.\d{3} info +serving +listeners=http", text, re.MULTILINE)
    assert re.search(r"^\d\d:\d\d:\d\d\.\d{3} error +request_failed .*path=/fail", text, re.MULTILINE)
    assert "\n    RuntimeError: the app's own mistake" in text
    assert "\x1b" not in text


def test_log_level(place: Place) -> None:
    """--log-level warning: no line while there is no problem."""
    daemon = place.start("--log-level", "warning", "plain:app", serving=False)
    daemon.settled(1)
    assert daemon.ctl("reload").code == 0
    assert daemon.stop() == 0
    assert daemon.log.read_text() == ""


def test_quiet_in_everyday_operation(place: Place) -> None:
    """Start, scale, recycle, reload, stop: no warning, no error, no traceback, and few lines."""
    daemon = place.start("-w", "2", "shop:app")
    for command in (["scale", "3"], ["recycle", "1"], ["reload"], ["scale", "-1"]):
        assert daemon.ctl(*command).code == 0
    daemon.get()
    assert daemon.stop() == 0
    text = daemon.log.read_text()
    assert "Traceback" not in text
    assert {event["level"] for event in daemon.events()} == {"info"}
    assert len(text.splitlines()) < 30


def test_app_prints(place: Place) -> None:
    """Output of an app to stdout and stderr is unchanged."""
    place.add("talks.py", "import sys\nprint('at import', flush=True)\nfrom plain import app\n")
    daemon = place.start("talks:app")
    assert daemon.out.read_text() == "at import\n"


def test_wsgi_errors(place: Place) -> None:
    """wsgi.errors goes to the error log, also when that is a file."""
    place.add(
        "talks.py",
        "def app(environ, start_response):\n"
        "    environ['wsgi.errors'].write('written by the app\\n')\n"
        "    environ['wsgi.errors'].flush()\n"
        "    start_response('200 OK', [])\n"
        "    return [b'']\n",
    )
    daemon = place.start("talks:app")
    daemon.get()
    until(lambda: "written by the app" in daemon.log.read_text(), "the app's line")
