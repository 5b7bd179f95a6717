"""The access log: gunicorn's atoms, and lines that no client can forge."""

import base64
import os
import re
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from supervisor.errors import SettingError
from supervisor.logs.access import AccessLog, Served, compile_format
from supervisor.logs.lean import LogFile
from supervisor.settings.table import DEFAULT_ACCESS_FORMAT

ENVIRON = {
    "REMOTE_ADDR": "192.0.2.7",
    "HTTP_HOST": "example.com",
    "HTTP_REFERER": "http://a.example/",
    "HTTP_USER_AGENT": "curl/8.0",
    "HTTP_X_REQUEST_ID": "42",
    "CONTENT_TYPE": "text/plain",
    "CONTENT_LENGTH": "3",
}


def served(**changes: Any) -> Served:
    """A request that was answered."""
    values: dict[str, Any] = {
        "method": "GET",
        "target": "/a%20b?c=d",
        "protocol": "HTTP/1.1",
        "environ": dict(ENVIRON),
        "status": "200 OK",
        "headers": [("Content-Type", "text/html"), ("X-Cache", "hit")],
        "sent": 1234,
        "nanoseconds": 2_345_678_901,
    }
    return Served(**(values | changes))


def line(text: str, **changes: Any) -> str:
    return compile_format(text)(served(**changes))


@pytest.mark.parametrize(
    ("atom", "value"),
    [
        ("h", "192.0.2.7"),
        ("l", "-"),
        ("u", "-"),
        ("r", "GET /a%20b?c=d HTTP/1.1"),
        ("m", "GET"),
        ("U", "/a%20b"),
        ("q", "c=d"),
        ("H", "HTTP/1.1"),
        ("s", "200"),
        ("B", "1234"),
        ("b", "1234"),
        ("f", "http://a.example/"),
        ("a", "curl/8.0"),
        ("T", "2"),
        ("M", "2345"),
        ("D", "2345678"),
        ("L", "2.345679"),
        ("{host}i", "example.com"),
        ("{X-Request-Id}i", "42"),
        ("{content-type}i", "text/plain"),
        ("{Content-Length}i", "3"),
        ("{cookie}i", "-"),
        ("{x-cache}o", "hit"),
        ("{X-CACHE}o", "hit"),
        ("{etag}o", "-"),
        ("{REMOTE_ADDR}e", "192.0.2.7"),
        ("{nothing}e", "-"),
    ],
)
def test_atoms(atom: str, value: str) -> None:
    """Each atom of gunicorn's documentation says what it says there."""
    assert line(f"%({atom})s") == value


def test_pid() -> None:
    """`p` is the worker's pid in angle brackets, as gunicorn writes it."""
    assert line("%(p)s") == f"<{os.getpid()}>"


def test_time_is_common_log_format() -> None:
    """E.g. [21/Nov/2026:09:00:00 +0000], whatever the locale."""
    month = "Jan|Feb|Mar|Apr|May|Jun|Jul|Aug|Sep|Oct|Nov|Dec"
    assert re.fullmatch(rf"\[\d\d/({month})/\d{{4}}:\d\d:\d\d:\d\d [+-]\d{{4}}\]", line("%(t)s"))


@pytest.mark.parametrize("atom", "hufa")
def test_what_is_missing_is_a_dash(atom: str) -> None:
    """A client that says nothing, or a Unix socket without an address, leaves `-`."""
    assert line(f"%({atom})s", environ={"REMOTE_ADDR": ""}) == "-"


def test_nothing_sent() -> None:
    """`b` is `-` for an empty body, as in the common log format; `B` is 0."""
    assert line("%(b)s %(B)s", sent=0) == "- 0"


@pytest.mark.parametrize(
    ("environ", "user"),
    [
        ({"REMOTE_USER": "ann"}, "ann"),
        ({"HTTP_AUTHORIZATION": "Basic " + base64.b64encode(b"bob:secret").decode()}, "bob"),
        ({"HTTP_AUTHORIZATION": "basic " + base64.b64encode(b"bob:se:cret").decode()}, "bob"),
        ({"HTTP_AUTHORIZATION": "Basic " + base64.b64encode("zo\xeb:x".encode()).decode()}, "zo\xeb"),
        ({"HTTP_AUTHORIZATION": "Basic " + base64.b64encode(b'a"\n:x').decode()}, '"a\\"\\x0a'[1:]),
        ({"HTTP_AUTHORIZATION": "Basic " + base64.b64encode(b"\xff\xfe:x").decode()}, "-"),
        ({"HTTP_AUTHORIZATION": "Basic " + base64.b64encode(b":x").decode()}, "-"),
        ({"HTTP_AUTHORIZATION": "Basic !!!"}, "-"),
        ({"HTTP_AUTHORIZATION": "Basic \xe9"}, "-"),
        ({"HTTP_AUTHORIZATION": "Bearer abc"}, "-"),
        ({"HTTP_AUTHORIZATION": "Basic"}, "-"),
    ],
)
def test_user(environ: dict[str, str], user: str) -> None:
    """`u` is the user of basic authentication, as in gunicorn, or whom the app names; never a password."""
    assert line("%(u)s", environ=environ) == user


def test_the_default_format() -> None:
    """gunicorn's default, and so Apache's combined format."""
    got = line(DEFAULT_ACCESS_FORMAT)
    assert re.fullmatch(
        r'192\.0\.2\.7 - - \[[^]]+\] "GET /a%20b\?c=d HTTP/1\.1" 200 1234 "http://a\.example/" "curl/8\.0"',
        got,
    )


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("", ""),
        ("plain", "plain"),
        ("100% of %(s)s%", "100% of 200%"),
        ("%%(s)s", "%(s)s"),
        ("%%(s)s %(s)s", "%(s)s 200"),
        ("%% %(s)s", "% 200"),
        ("%(s)s%(m)s", "200GET"),
        ("%d %s {x}", "%d %s {x}"),
    ],
)
def test_literal_text(text: str, expected: str) -> None:
    """What is no atom is copied; `%%` is a percent sign, in front of anything."""
    assert line(text) == expected


@pytest.mark.parametrize(
    "text", ["%(h)d", "%(x)s", "%(hh)s", "%(h)", "%({host}x)s", "%(s)s 50%(", "%({host)s"]
)
def test_a_mistake_names_the_setting(text: str) -> None:
    """A format that can't be read is refused at start, not logged wrongly for ever."""
    with pytest.raises(SettingError, match="access_log_format"):
        compile_format(text)


# -- what clients may try --------------------------------------------------------------------------------

EVERYTHING = "%(h)s|%(u)s|%(r)s|%(m)s|%(U)s|%(q)s|%(f)s|%(a)s|%({x-y}i)s|%({x-y}o)s|%({k}e)s"


def with_evil(evil: str) -> str:
    """A line with the text in every place a client or an app can reach."""
    environ = dict.fromkeys(
        ("REMOTE_ADDR", "REMOTE_USER", "HTTP_REFERER", "HTTP_USER_AGENT", "HTTP_X_Y", "k"), evil
    )
    target = f"/{evil}?{evil}"
    return line(EVERYTHING, method=evil, target=target, environ=environ, headers=[("X-Y", evil)])


@pytest.mark.parametrize(
    ("evil", "escaped"),
    [
        ("a\nb", "a\\x0ab"),
        ("a\r\nb", "a\\x0d\\x0ab"),
        ('a"b', 'a\\"b'),
        ("a\\b", "a\\\\b"),
        ("a\\x0ab", "a\\\\x0ab"),  # an escape of the client's own can't be taken for the log's
        ("\x1b[2J", "\\x1b[2J"),
        ("\x9b2J", "\\x9b2J"),
        ("\x00\x07\x7f", "\\x00\\x07\\x7f"),
        ("a\tb", "a\\x09b"),
        ("a\x85b", "a\\x85b"),
        ("caf\xe9", "caf\xe9"),
    ],
)
def test_escapes(evil: str, escaped: str) -> None:
    """Line ends, quotes, backslashes, control characters and terminal escapes are spelled out."""
    assert line("%(a)s", environ={"HTTP_USER_AGENT": evil}) == escaped
    assert with_evil(evil).count(escaped) == EVERYTHING.count("%") + 2  # `r` has it three times


@given(st.text(max_size=20))
def test_no_text_forges_a_line(evil: str) -> None:
    """Whatever is in a request, the line is one line of printable characters, and its quotes are escaped."""
    got = with_evil(evil)
    assert got.isprintable()
    assert len(got.splitlines()) == 1
    assert re.search(r'(?<!\\)(\\\\)*"', got) is None


def test_lines_are_appended(tmp_path: Path) -> None:
    """One line a request, in a file that may be moved away meanwhile."""
    path = tmp_path / "access.log"
    log = AccessLog(LogFile(str(path), 1), "%(m)s %(U)s")
    log.write(served(target="/one"))
    path.rename(tmp_path / "access.log.1")
    log.write(served(target="/two"))
    log.reopen()
    log.write(served(target="/three\n"))
    assert (tmp_path / "access.log.1").read_text() == "GET /one\nGET /two\n"
    assert path.read_text() == "GET /three\\x0a\n"
