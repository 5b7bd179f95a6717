"""Encoding of response heads.

Most header lines of an app are the same in every response, so encoded lines are remembered by the tuple that
the app passes: each distinct header is checked and encoded once, not once per response.
"""

import re

from ostler.http1.errors import ResponseError

_REMEMBERED = 4096  # distinct header lines; when there are more all are dropped
_LONGEST = 256  # characters of a value; a longer one is not remembered

# Properties of a response's head that matter beyond its lines; a set of flags.
HAS_DATE, HAS_SERVER, CLOSE, BODILESS = 1, 2, 4, 32
# Other meanings of header lines; a plain one has 0.
_LENGTH, _DROPPED = 8, 16

_TOKEN = re.compile(r"[!#$%&'*+\-.^_`|~0-9A-Za-z]+")  # RFC 9110 section 5.6.2
# Anything but visible characters, blank, tab and obs-text (RFC 9110 section 5.5).
_BAD_VALUE = re.compile(r"[^\t\x20-\x7e\x80-\xff]")
_STATUS = re.compile(r"[1-9][0-9]{2} [^\x00-\x08\x0a-\x1f\x7f]*|[1-9][0-9]{2}")

# Fields that only the server sets (RFC 9110 section 7.6.1); PEP 3333 forbids apps to send them.
_HOP_BY_HOP = frozenset(
    "connection keep-alive proxy-connection transfer-encoding te trailer upgrade proxy-authenticate "
    "proxy-authorization".split()
)

HeaderList = list[tuple[str, str]]

# A line's bytes, its meaning, and the number if it is a Content-Length.
_Line = tuple[bytes, int, int]
_lines: dict[tuple[str, str], _Line] = {}
# The last head whose lines were all known: status, headers, and the encoded result. Apps send the same head
# again and again, and comparing two equal lists is faster than hashing one.
_last: tuple[str | None, HeaderList, tuple[bytes, int, int | None, int]] = (None, [], (b"", 0, None, 0))
_statuses: dict[str, tuple[bytes, int, int]] = {}


def encode_head(status: str, headers: HeaderList) -> tuple[list[bytes], int, int | None, int]:
    """Check and encode the arguments of an app to start_response.

    Returns:
        The encoded lines, the status as a number, the Content-Length or None, and flags (HAS_DATE, ...).

    Raises:
        ResponseError: status or headers are invalid.
    """
    global _last
    last_status, last_headers, made = _last
    if headers == last_headers and status == last_status:
        head, code, length, flags = made
        return [head], code, length, flags
    # Subscripts in `try` are faster than get() when they succeed, which is so except for the first time.
    try:
        line, code, flags = _statuses[status]
    except (KeyError, TypeError):
        line, code, flags = _status_line(status)
    lines = [line]
    length = None
    known = type(headers) is list
    for header in headers:
        try:
            line, meaning, number = _lines[header]
        except (KeyError, TypeError):  # TypeError: a list, which is common though PEP 3333 asks for tuples
            line, meaning, number = _header_line(header)
            known = False
        if not meaning:
            lines.append(line)
        elif meaning == _LENGTH:
            if length is not None and length != number:
                raise ResponseError("Content-Length is set twice, with different values")
            if length is None and code != 204 and code >= 200:  # RFC 9110 section 8.6
                lines.append(line)
            length = number
        elif meaning != _DROPPED:
            flags |= meaning
            if meaning != CLOSE:
                lines.append(line)
    if known:
        _last = status, list(headers), (b"".join(lines), code, length, flags)
    return lines, code, length, flags


def _status_line(status: str) -> tuple[bytes, int, int]:
    if not isinstance(status, str) or not _STATUS.fullmatch(status):
        raise ResponseError(f"status must be like '200 OK', got {status!r}")
    try:
        # The blank is required also without a reason phrase (RFC 9112 section 4).
        line = "".join(("HTTP/1.1 ", status, "" if len(status) > 3 else " ", "\r\n")).encode("latin-1")
    except UnicodeEncodeError:
        raise ResponseError(f"status must be latin-1 text, got {status!r}") from None
    if len(_statuses) > _REMEMBERED:
        _statuses.clear()
    code = int(status[:3])
    # RFC 9110 section 6.4.1: these never have a body.
    flags = BODILESS if code in (204, 304) else 0
    if code < 200:
        # An interim status is no final response: the client would take the next one on the connection for
        # that, so the connection is closed.
        flags = BODILESS | CLOSE
    entry = _statuses[status] = line, code, flags
    return entry


def _header_line(header: tuple[str, str]) -> _Line:
    """Check and encode one header; the line includes its line end."""
    try:
        name, value = header
        if isinstance(header, str):
            raise TypeError
    except (TypeError, ValueError):
        raise ResponseError(f"a header must be a (name, value) tuple, got {header!r}") from None
    if not isinstance(name, str) or not isinstance(value, str):
        raise ResponseError(f"header names and values must be str, got {header!r}")
    if not _TOKEN.fullmatch(name):
        raise ResponseError(f"invalid header name {name!r}")
    if _BAD_VALUE.search(value):
        raise ResponseError(f"invalid character in the value of header {name}: {value!r}")
    # No f-string: that would call __format__ of a subclass of str (e.g. of an Enum).
    line = "".join((name, ": ", value, "\r\n")).encode("latin-1")  # noqa: FLY002
    meaning = _meaning(name.lower(), value)
    entry = line, meaning, int(value) if meaning == _LENGTH else 0
    if len(_lines) > _REMEMBERED:
        _lines.clear()
    if type(header) is tuple and len(value) <= _LONGEST:
        _lines[header] = entry
    return entry


def _meaning(name: str, value: str) -> int:
    if name == "content-length":
        if not value.isascii() or not value.isdigit() or len(value) > 18:
            raise ResponseError(f"Content-Length must be a number, got {value!r}")
        return _LENGTH
    if name == "date":
        return HAS_DATE
    if name == "server":
        return HAS_SERVER
    if name in _HOP_BY_HOP:
        closes = name == "connection" and "close" in (option.strip() for option in value.lower().split(","))
        return CLOSE if closes else _DROPPED
    return 0


def chunk(data: bytes) -> bytes:
    """One chunk of the chunked coding (RFC 9112 section 7.1); `data` must not be empty."""
    return b"%x\r\n%b\r\n" % (len(data), data)


LAST_CHUNK = b"0\r\n\r\n"
CONTINUE = b"HTTP/1.1 100 Continue\r\n\r\n"


def plain_answer(status: str, text: str, date_server: bytes) -> bytes:
    """A complete response with a short text that closes the connection, for requests that no app answers."""
    body = text.encode("latin-1", "replace")
    return b"".join(
        (
            _status_line(status)[0],
            date_server,
            b"Content-Type: text/plain; charset=iso-8859-1\r\nContent-Length: %d\r\n" % len(body),
            b"Connection: close\r\n\r\n",
            body,
        )
    )
