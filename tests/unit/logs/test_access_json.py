"""The access log as JSON: names and types of fields, and what clients can't forge."""

import json
import logging
from datetime import datetime
from typing import Any

import pytest

from ostler.logs import bridge
from ostler.logs.access import AccessLog, renderer
from ostler.logs.access_json import is_json

ENVIRON = {
    "REMOTE_ADDR": "192.0.2.7",
    "HTTP_HOST": "shop.example",
    "HTTP_USER_AGENT": "probe/1",
    "wsgi.url_scheme": "https",
}
REQUEST = ("GET", "/a%20b?c=d", "HTTP/1.1", ENVIRON, "200 OK", [("X-Y", "z")], 3, 2_345_678)


def rendered(*request: Any) -> dict[str, Any]:
    line: bytes = renderer("json")(*request)
    assert line.endswith(b"\n")
    assert line.count(b"\n") == 1
    assert all(0x20 <= byte < 0x7F for byte in line[:-1])
    found: dict[str, Any] = json.loads(line)
    return found


def test_fields() -> None:
    """Numbers are numbers, what is missing is null, the time is as in the error log."""
    found = rendered(*REQUEST)
    assert datetime.fromisoformat(found.pop("timestamp")).utcoffset() is not None
    assert isinstance(found.pop("pid"), int)
    assert found == {
        "level": "info",
        "event": "access",
        "remote_addr": "192.0.2.7",
        "remote_user": None,
        "method": "GET",
        "scheme": "https",
        "host": "shop.example",
        "path": "/a%20b",
        "query": "c=d",
        "protocol": "HTTP/1.1",
        "status": 200,
        "bytes_sent": 3,
        "duration": 0.002345,
        "referer": None,
        "user_agent": "probe/1",
    }


def test_fields_of_proxies() -> None:
    """Two more where a proxy has sent the headers; the user of basic authentication."""
    environ = ENVIRON | {
        "HTTP_X_FORWARDED_FOR": "203.0.113.9",
        "HTTP_X_REQUEST_ID": "r-1",
        "HTTP_AUTHORIZATION": "Basic YWRhOnNlY3JldA==",
    }
    found = rendered("GET", "/", "HTTP/1.1", environ, "404 Not Found", [], 0, 0)
    assert (found["x_forwarded_for"], found["request_id"], found["remote_user"]) == (
        "203.0.113.9",
        "r-1",
        "ada",
    )
    assert (found["status"], found["query"]) == (404, None)


@pytest.mark.parametrize(
    ("sent", "read"),
    [
        ('a"b\\c', 'a"b\\c'),
        ('"}\n{"event": "forged"', '"}\n{"event": "forged"'),
        ("\x00\x1b[31m\x7f\x9b", "\x00\x1b[31m\x7f\\x9b"),
        ("caf\u00c3\u00a9", "café"),  # UTF-8, as a WSGI server hands it on (PEP 3333)
        ("caf\u00e9", "caf\\xe9"),  # bytes that are no UTF-8
        ("\u20ac \udc80", "\u20ac \udc80"),  # what only an app can have put there
    ],
)
def test_escaping(sent: str, read: str) -> None:
    """Whatever a client sends is one line of ASCII, which is read back as it was sent."""
    found = rendered("GET", "/", "HTTP/1.1", ENVIRON | {"HTTP_USER_AGENT": sent}, "200 OK", [], 0, 0)
    assert found["user_agent"] == read


def test_objects_of_the_app() -> None:
    """REMOTE_USER and its like may be anything that the app has put there."""

    class Broken:
        def __str__(self) -> str:
            raise ValueError

    assert rendered("GET", "/", "", ENVIRON | {"REMOTE_USER": 7}, "200 OK", [], 0, 0)["remote_user"] == "7"
    assert rendered("GET", "/", "", ENVIRON | {"HTTP_HOST": Broken()}, "20x", [], 0, 0)["status"] is None


def test_refused_requests() -> None:
    """What the parser has refused has its line as it was received, and no method."""
    lines: list[bytes] = []
    log = AccessLog(None, "JSON", lines=[lines.append])
    log.refused(ENVIRON, b"G\x01T /\r\nHost: x\r\n", "400 Bad Request", 12)
    log.flush()
    found = json.loads(lines[0])
    assert (found["request"], found["method"], found["path"], found["status"]) == (
        "G\x01T /",
        None,
        None,
        400,
    )


def test_the_value() -> None:
    """json in any case; a format that only contains it is a format."""
    assert is_json(" Json ")
    assert not is_json("json %(h)s")
    assert not is_json("")


def test_loggers_get_the_line_and_the_atoms() -> None:
    """A handler of gunicorn.access gets the object as message, and the atoms as arguments."""
    records: list[logging.LogRecord] = []
    logger = logging.getLogger("gunicorn.access")
    before = logger.handlers[:], logger.level
    handler = logging.Handler()
    handler.emit = records.append  # type: ignore[method-assign]
    logger.handlers, logger.level = [handler], logging.INFO
    try:
        bridge.access_to_logger("json", None)(*REQUEST)
    finally:
        logger.handlers, logger.level = before
    (record,) = records
    assert json.loads(record.getMessage())["status"] == 200
    assert isinstance(record.args, dict)
    assert record.args["s"] == "200"
