"""The access log: gunicorn's atoms, and lines that no client can forge."""

import base64
import os
import re
import time
from datetime import datetime
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ostler.errors import SettingError
from ostler.logs import access_format
from ostler.logs.access import AccessLog
from ostler.logs.access_format import Answered, all_atoms, compile_format, unknown_atoms
from ostler.logs.logfile import LogFile
from ostler.settings.table.logs import DEFAULT_ACCESS_FORMAT

ENVIRON = {
    "REMOTE_ADDR": "192.0.2.7",
    "HTTP_HOST": "example.com",
    "HTTP_REFERER": "http://a.example/",
    "HTTP_USER_AGENT": "curl/8.0",
    "HTTP_X_REQUEST_ID": "42",
    "CONTENT_TYPE": "text/plain",
    "CONTENT_LENGTH": "3",
    "Server.Start": "soon",
}


def answered(log: Answered, **changes: Any) -> Any:
    """Record an answered request."""
    values: dict[str, Any] = {
        "method": "GET",
        "target": "/a%20b?c=d",
        "protocol": "HTTP/1.1",
        "environ": dict(ENVIRON),
        "status": "200 OK",
        "headers": [("Content-Type", "text/html"), ("X-Cache", "miss"), ("x-cache", "hit")],
        "sent": 1234,
        "nanoseconds": 2_345_678_901,
    }
    return log(*(values | changes).values())


def line(text: str, **changes: Any) -> str:
    """The line of a request, without its end."""
    got = answered(compile_format(text), **changes)
    assert got.endswith(b"\n")
    return str(got[:-1], "utf-8")


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "access.log"


@pytest.mark.parametrize(
    ("atom", "value"),
    [
        ("h", "192.0.2.7"),
        ("l", "-"),
        ("u", "-"),
        ("r", "GET /a%20b?c=d HTTP/1.1"),
        ("m", "GET"),
        ("U", "/a b"),
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
        ("L", "2.345678"),
        ("{host}i", "example.com"),
        ("{X-Request-Id}i", "42"),
        ("{content-type}i", "text/plain"),
        ("{Content-Length}i", "3"),
        ("{cookie}i", "-"),
        ("{x-cache}o", "hit"),
        ("{X-CACHE}o", "hit"),
        ("{etag}o", "-"),
        ("{REMOTE_ADDR}e", "192.0.2.7"),
        ("{remote_addr}e", "192.0.2.7"),
        ("{SERVER.start}e", "soon"),
        ("{server.start}e", "soon"),
        ("{nothing}e", "-"),
    ],
)
def test_atoms(atom: str, value: str) -> None:
    """Each atom has the meaning of gunicorn's documentation."""
    assert line(f"%({atom})s") == value


@pytest.mark.parametrize(
    ("target", "path", "query"),
    [
        ("/", "/", ""),
        ("/a%0Ab?x=%0A", "/a\\x0ab", "x=%0A"),
        ("/caf%C3%A8?", "/caf\xc3\xa8", ""),
        ("/a?b?c", "/a", "b?c"),
        ("/a://b", "/a://b", ""),
        ("http://example.com/a%2Fb?c", "/a/b", "c"),
        ("http://example.com?c", "/", "c"),
        ("*", "*", ""),
    ],
)
def test_path_and_query(target: str, path: str, query: str) -> None:
    """`U` is decoded like PATH_INFO, `q` is not, as in gunicorn; for an absolute URL they are its parts."""
    assert line("%(U)s %(q)s", target=target) == f"{path} {query}"


@pytest.mark.parametrize(
    ("nanoseconds", "text"),
    [
        (0, "0 0 0 0.000000"),
        (999_999, "0 0 999 0.000999"),
        (86_400_000_000_000, "86400 86400000 86400000000 "),
    ],
)
def test_durations(nanoseconds: int, text: str) -> None:
    """All are truncated, none is rounded, so that they agree with each other; they may exceed a day."""
    assert line("%(T)s %(M)s %(D)s %(L)s", nanoseconds=nanoseconds).startswith(text)


def test_pid() -> None:
    """`p` is the worker's pid in angle brackets, as gunicorn writes it."""
    assert line("%(p)s") == f"<{os.getpid()}>"


def test_time_is_common_log_format() -> None:
    """E.g. [21/Nov/2026:09:00:00 +0000], whatever the locale."""
    month = "Jan|Feb|Mar|Apr|May|Jun|Jul|Aug|Sep|Oct|Nov|Dec"
    assert re.fullmatch(rf"\[\d\d/({month})/\d{{4}}:\d\d:\d\d:\d\d [+-]\d{{4}}\]", line("%(t)s"))


def test_time_follows_the_clock(monkeypatch: pytest.MonkeyPatch) -> None:
    """The cached text is used within its second only, even if the clock is set back."""
    start = now = 1_795_251_600.0

    def clock() -> float:
        return now

    monkeypatch.setattr(time, "time", clock)
    monkeypatch.setitem(access_format._NAMES, "time", clock)
    monkeypatch.setitem(access_format._NAMES, "stamp", access_format._Stamp())
    log = compile_format("%(t)s")
    times = []
    for seconds in (0, 0.999, 1, -3600):
        now = start + seconds
        stamp = datetime.strptime(answered(log).decode(), "[%d/%b/%Y:%H:%M:%S %z]\n")
        times.append(stamp.timestamp() - start)
    assert times == [0, 0, 1, -3600]


@pytest.mark.parametrize("atom", "hufa")
def test_what_is_missing_is_a_dash(atom: str) -> None:
    """A client without such fields, or a Unix socket without an address, gives `-`."""
    assert line(f"%({atom})s", environ={"REMOTE_ADDR": ""}) == "-"


def test_nothing_sent() -> None:
    """`b` is 0 for an empty body, as in gunicorn; the common log format would have `-`."""
    assert line("%(b)s %(B)s", sent=0) == "0 0"


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
    """`u` is the user of basic authentication, as in gunicorn, or the one that the app sets.

    Never a password.
    """
    assert line("%(u)s", environ=environ) == user


def test_the_default_format() -> None:
    """gunicorn's default, which is Apache's combined format."""
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
    """Other text is copied; `%%` is a percent sign, before anything."""
    assert line(text) == expected


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("%(D)d", "2345678"),
        ("%(B)08d|%(T)+.1f|%(B)x", "00001234|+2.0|4d2"),
        ("%(m)-6s|%(m)6s|%(h).3s|%({host}i)12s", "GET   |   GET|192| example.com"),
    ],
)
def test_conversions(text: str, expected: str) -> None:
    """gunicorn's formats are Python's: widths, and numbers written as such."""
    assert line(text) == expected


@pytest.mark.parametrize(
    "text",
    [
        "%(h)d",
        "%(h)",
        "%(s)s 50%(",
        "%(B)c",
        "%(a)r",
        "%({host}i)d",
    ],
)
def test_a_mistake_names_the_setting(text: str) -> None:
    """A format that can't be parsed is refused at the start, not logged wrongly."""
    with pytest.raises(SettingError, match="access_log_format"):
        compile_format(text)


@pytest.mark.parametrize("atom", ["x", "hh", "{host}x", "", "{host"])
def test_an_atom_that_there_is_not(atom: str) -> None:
    """It is `-`, as in gunicorn, and can be reported at the start."""
    assert line(f"%({atom})s %(m)s") == "- GET"
    assert unknown_atoms(f"%(m)s %({{Host}}I)s %% %({atom})s") == [f"%({atom})s"]
    assert line("%({Host}I)s") == "example.com"


# -- all atoms -----------------------------------------------------------------------------------------------


def test_all_atoms() -> None:
    """Each has the value that it has in a line of its own; numbers stay numbers."""
    atoms = answered(all_atoms)
    for name in "hlurmUqHsBbfaTMDLp":
        assert str(atoms[name]) == line(f"%({name})s"), name
    for name in "{host}i", "{content-type}i", "{x-request-id}i", "{x-cache}o", "{server.start}e":
        assert atoms[name] == line(f"%({name})s"), name
    assert (atoms["D"], atoms["B"], atoms["s"]) == (2345678, 1234, "200")


def test_atoms_are_found_as_in_gunicorn() -> None:
    """In any case within braces; unknown ones are `-` with `%`, and missing with `get`."""
    atoms = answered(all_atoms)
    wanted = ("m", "{Host}i", "{User-Agent}I", "zz", "{zz}o")
    assert [atoms[name] for name in wanted] == ["GET", "example.com", "curl/8.0", "-", "-"]
    assert atoms.get("zz") is None


def test_atoms_forge_nothing() -> None:
    """A line that a formatter makes of them has no control characters and no unescaped quotes of a client."""
    environ = {"REMOTE_ADDR": "::1", "HTTP_USER_AGENT": 'a"\n\x1b', "HTTP_X": "\r", "own": "\n", "wsgi.x": 1}
    atoms = answered(all_atoms, environ=environ, target="/%0a%22", headers=[("X-Y", "a\tb")])
    text = "".join(value for value in atoms.values() if isinstance(value, str))
    assert text.isprintable()
    assert (atoms["a"], atoms["U"], atoms["{x-y}o"]) == (r"a\"\x0a\x1b", r"/\x0a\"", r"a\x09b")
    assert atoms["{wsgi.x}e"] == 1


# -- what clients may try --------------------------------------------------------------------------------

EVERYTHING = "%(h)s|%(u)s|%(r)s|%(m)s|%(U)s|%(q)s|%(f)s|%(a)s|%({x-y}i)s|%({x-y}o)s|%({k}e)s"


@pytest.mark.parametrize(
    "text",
    [
        "{method} {0} {",
        "'; raise SystemExit #",
        '"""+exit()+"""',
        "\\",
        "\\N{DIGIT ONE}",
        "\n\r\t",
        "\x00",
        "caf\xe9 \u20ac",
        "%({'+exit()+'}i)s%({\\}o)s%({\"\n}e)s",
    ],
)
def test_the_format_is_not_executed(text: str) -> None:
    """Formats are compiled to Python; their text is never executed."""
    assert line(text) == re.sub(r"%\(.*?\)s", "-", text, flags=re.DOTALL)
    evil = line(text + "%(a)s", environ={"HTTP_USER_AGENT": "\n"})
    assert evil.removesuffix("\\x0a") == line(text)


def with_evil(evil: str) -> str:
    """A request with the text in every place that a client or an app controls."""
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
        ("a\\x0ab", "a\\\\x0ab"),  # an escape that the client has sent can't be confused with one of the log
        ("\x1b[2J", "\\x1b[2J"),
        ("\x9b2J", "\\x9b2J"),
        ("\x00\x07\x7f", "\\x00\\x07\\x7f"),
        ("a\tb", "a\\x09b"),
        ("a\x85b", "a\\x85b"),
        ("caf\xe9", "caf\xe9"),
    ],
)
def test_escapes(evil: str, escaped: str) -> None:
    """Line ends, quotes, backslashes, control characters and terminal escapes are written as escapes."""
    assert line("%(a)s", environ={"HTTP_USER_AGENT": evil}) == escaped
    assert with_evil(evil).count(escaped) == EVERYTHING.count("%") + 2  # `r` contains it three times


@given(st.text(max_size=20))
def test_no_text_forges_a_line(evil: str) -> None:
    """For any text in a request the line is one line of printable characters with escaped quotes."""
    got = with_evil(evil)
    assert got.isprintable()
    assert len(got.splitlines()) == 1
    assert re.search(r'(?<!\\)(\\\\)*"', got) is None


def test_only_the_line_with_something_in_it_changes() -> None:
    """Quotes and escapes of the format itself are not changed when a value has some."""
    text = '{"a": "%(a)s", "m": "\\t%(m)s\xe9"}'
    assert line(text) == '{"a": "curl/8.0", "m": "\\tGET\xe9"}'
    assert line(text, method='"') == '{"a": "curl/8.0", "m": "\\t\\"\xe9"}'


def test_a_width_does_not_cut_an_escape() -> None:
    """Otherwise a quote of the client at the right place would end the value."""
    assert line('"%(a).3s"', environ={"HTTP_USER_AGENT": 'ab"c'}) == '"ab\\""'


def test_an_object_of_the_apps() -> None:
    """An app may put any object into environ; one that can't be written does not fail the request."""

    class Proxy:
        def __str__(self) -> str:
            raise RuntimeError("not connected")

    assert line("%({x}e)s %({y}e)s %({z}e)s", environ={"x": [1], "y": 0, "z": Proxy()}) == "[1] 0 -"
    assert line("%(u)s", environ={"REMOTE_USER": Proxy()}) == "-"


def test_lone_surrogates() -> None:
    """Lone surrogates, as in names from the operating system (PEP 383), are written in some form."""
    assert line("%({x}e)s", environ={"x": "a\udc80"}) == "a\\xdc80"


# -- the file --------------------------------------------------------------------------------------------


def test_lines_are_gathered(path: Path) -> None:
    """Lines of one pass of the loop are written together, in the order of the answers."""
    log = AccessLog(LogFile(str(path), 1), "%(U)s")
    answered(log.answered, target="/one")
    answered(log.answered, target="/two")
    assert path.read_text() == ""
    log.flush()
    log.flush()
    assert path.read_text() == "/one\n/two\n"


def test_a_large_batch_is_written_by_itself(path: Path) -> None:
    """A pass that answers very many requests writes before its end."""
    log = AccessLog(LogFile(str(path), 1), "%(U)s")
    for number in range(1000):
        answered(log.answered, target=f"/{number}")
    assert 900 < path.read_text().count("\n") < 1000
    log.flush()
    assert path.read_text() == "".join(f"/{number}\n" for number in range(1000))


EVERY_ATOM = " ".join(
    f"%({atom})s" for atom in (*"hlurmUqHsBbfaTMDL", "{host}i", "{etag}o", "{SERVER_PORT}e")
)


@pytest.mark.parametrize(
    ("received", "request_line"),
    [
        (b"GET /a%20b?c HTTP/1.1\r\nCookie: aaaa", "GET /a%20b?c HTTP/1.1|GET|/a b|c|HTTP/1.1"),
        (b"\r\nPUT / HTTP/1.0\n", "PUT / HTTP/1.0|PUT|/||HTTP/1.0"),
        (b"GET /a", "GET /a|-|||-"),
        (b"GET  / HTTP/1.1\r\n", "GET  / HTTP/1.1|-|||-"),
        (b'\x16\x03\x01\x02"\xe9', '\\x16\\x03\\x01\\x02\\"\xe9|-|||-'),
        (b"\x1b[2J \x00 \x07\r\n", "\\x1b[2J \\x00 \\x07|\\x1b[2J|\\x00||\\x07"),
        (b"", "-|-|||-"),
        (b"\r\n\r\n", "-|-|||-"),
    ],
)
def test_refused(path: Path, received: bytes, request_line: str) -> None:
    """A request that the parser refused is logged with its known parts, and can't forge a line either."""
    log = AccessLog(LogFile(str(path), 1), "%(h)s|%(r)s|%(m)s|%(U)s|%(q)s|%(H)s|%(s)s|%(B)s|%(T)s")
    log.refused({"REMOTE_ADDR": "192.0.2.7"}, received, "400 Bad Request", 11)
    log.flush()
    assert path.read_text() == f"192.0.2.7|{request_line}|400|11|0\n"


def test_refused_has_every_atom(path: Path) -> None:
    """Every atom of a format has a value."""
    log = AccessLog(LogFile(str(path), 1), EVERY_ATOM)
    log.refused({"REMOTE_ADDR": "::1", "SERVER_PORT": "80"}, b"GET / HTTP/1.1", "431 Too Large", 0, 1_500_000)
    log.flush()
    assert path.read_text() == "::1 - - GET / HTTP/1.1 GET /  HTTP/1.1 431 0 0 - - 0 1 1500 0.001500 - - 80\n"


def test_refused_is_cut(path: Path) -> None:
    """A line that was refused for its length is shortened."""
    log = AccessLog(LogFile(str(path), 1), "%(r)s")
    log.refused({}, b"GET /" + b"a" * 100_000, "414 URI Too Long", 0)
    log.flush()
    assert 1000 < path.stat().st_size < 5000


def test_lines_are_appended(path: Path) -> None:
    """The file may be moved away meanwhile; lines collected until then go to the old file."""
    file = LogFile(str(path), 1)
    log = AccessLog(file, "%(m)s %(U)s")
    answered(log.answered, target="/one")
    moved = path.rename(path.with_suffix(".1"))
    answered(log.answered, target="/two")
    file.reopen()
    answered(log.answered, target="/three\n")
    log.flush()
    assert moved.read_text() == "GET /one\nGET /two\n"
    assert path.read_text() == "GET /three\\x0a\n"
