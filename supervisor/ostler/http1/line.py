"""The request line: its syntax and its parts (RFC 9112 section 3)."""

import re
from urllib.parse import unquote_to_bytes

import msgspec

from ostler.http1.errors import NotSupported, ProtocolViolation, VersionNotSupported

MAX_LINE = 1024 * 1024
"""The most bytes of a request line, whatever the settings say. gunicorn's compiled parser has the same."""

# Any token without lower-case letters is a method (RFC 9110 section 9.1): `get` is a mistake or an attempt to
# get past a filter. RFC 9112 section 3 asks for 501 for a method that is longer than any known one.
_METHOD_CHARACTERS = rb"!#$%&'*+\-.^_`|~0-9A-Z"
_MAX_METHOD = 20
_METHOD = re.compile(rb"[%b]{0,%d}" % (_METHOD_CHARACTERS, _MAX_METHOD + 1))

# What `LineRules` can permit besides: tokens in any case and of any length.
_TOKEN_CHARACTERS = _METHOD_CHARACTERS + rb"a-z"
_ANY_METHOD = re.compile(rb"[%b]*" % _TOKEN_CHARACTERS)

# Exactly one blank between the parts, and none elsewhere. Bytes beyond ASCII are not allowed in a URI, but
# browsers and tools send UTF-8 paths and queries unencoded, other servers accept them, and they have no
# meaning for framing; so they are accepted. A fragment is never sent (RFC 9112 section 3.2).
_LINE = re.compile(
    rb"([%b]{1,%d}) ([^\x00-\x20\x7f#]+) HTTP/([0-9])\.([0-9])" % (_METHOD_CHARACTERS, _MAX_METHOD)
)
_LENIENT_LINE = re.compile(rb"([%b]+) ([^\x00-\x20\x7f#]+) HTTP/([0-9])\.([0-9])" % _TOKEN_CHARACTERS)
_ABSOLUTE = re.compile(rb"(?i:https?)://([^/?]*)(.*)", re.DOTALL)

# RFC 3986 section 3.2, without userinfo, which RFC 9110 section 4.2.4 wants treated as an error.
_AUTHORITY = re.compile(
    rb"(?:\[(?:[0-9A-Fa-f:.]{2,45}|[vV][0-9A-Fa-f]+\.[0-9A-Za-z\-._~!$&'()*+,;=:]+)\]"
    rb"|[0-9A-Za-z\-._~!$&'()*+,;=]*+(?:%[0-9A-Fa-f]{2}[0-9A-Za-z\-._~!$&'()*+,;=]*+)*)"
    rb"(?::([0-9]*))?"
)


class LineRules(msgspec.Struct, frozen=True):
    """What is permitted in request lines beyond the standard.

    Attributes:
        any_method: methods in lower case, and of any length.
        fold_method: a method in lower case stands for the one in upper case.
        any_version: a version below 1 counts as HTTP/1.0, one above as HTTP/1.1.
    """

    any_method: bool = False
    fold_method: bool = False
    any_version: bool = False


class Line(msgspec.Struct):
    """A parsed request line.

    Attributes:
        method: e.g. `GET`.
        target: the request target as sent (RFC 9112 section 3.2).
        protocol: `HTTP/1.0` or `HTTP/1.1`.
        raw_uri: the target as latin-1.
        path: of the target, percent-decoded, as latin-1; empty for `*`.
        query: the part behind the first `?`, as latin-1.
        authority: of a target in absolute form; it replaces `Host` (RFC 9112 section 3.2.2).
        ordinary: HTTP/1.1 with a target in origin form, as in nearly all requests.
    """

    method: str
    target: bytes
    protocol: str
    raw_uri: str
    path: str
    query: str
    authority: bytes | None
    ordinary: bool


def parse_line(raw: bytes, lenient: LineRules | None = None) -> Line:
    """Parse a request line, without its line end.

    Raises:
        ProtocolViolation: it is malformed, or its method or version is not served.
    """
    match = _LINE.fullmatch(raw)
    right = match is not None
    if match is None and lenient is not None and (lenient.any_method or lenient.fold_method):
        match = _LENIENT_LINE.fullmatch(raw)
    if match is None:
        check_beginning(raw, lenient)
        raise ProtocolViolation("malformed request line", "request_line")
    method, target, major, minor = match.groups()
    if not right:
        assert lenient is not None
        method = method.upper() if lenient.fold_method else method
        if len(method) > _MAX_METHOD and not lenient.any_method:
            raise NotSupported("the method is too long")
    if major != b"1" and (lenient is None or not lenient.any_version):
        raise VersionNotSupported(f"the version is HTTP/{major.decode()}.{minor.decode()}")
    # A higher minor version is handled like the highest known one (RFC 9110 section 2.5).
    protocol = "HTTP/1.0" if major == b"0" or (major == b"1" and minor == b"0") else "HTTP/1.1"
    authority = None
    rest = target
    if method == b"CONNECT":
        _refuse_connect(target)
    elif target == b"*":
        if method != b"OPTIONS":
            raise ProtocolViolation("the target * is only for OPTIONS", "request_line")
        rest = b""
    elif target[:1] != b"/":
        absolute = _ABSOLUTE.fullmatch(target)
        if absolute is None:
            raise ProtocolViolation("the target is neither a path nor an http URI", "request_line")
        authority, rest = absolute.groups()
        if not authority or authority[:1] == b":" or not is_authority(authority):
            raise ProtocolViolation("the target has no valid authority", "request_line")
        if rest[:1] != b"/":
            rest = b"/" + rest
    path, _, query = rest.decode("latin-1").partition("?")
    if "%" in path:
        path = unquote_to_bytes(path.encode("latin-1")).decode("latin-1")
    ordinary = target[:1] == b"/" and protocol == "HTTP/1.1"
    return Line(
        method.decode("ascii"), target, protocol, target.decode("latin-1"), path, query, authority, ordinary
    )


def _refuse_connect(target: bytes) -> None:
    """Refuse CONNECT: an origin server makes no tunnels (RFC 9110 section 9.3.6)."""
    match = _AUTHORITY.fullmatch(target)
    if match is None or not match[1] or target[:1] == b":":
        raise ProtocolViolation("CONNECT needs a host and a port", "request_line")
    raise NotSupported("the method CONNECT is for proxies")


def check_beginning(part: bytes | bytearray, lenient: LineRules | None = None) -> None:
    """Check the beginning of a request line, so that what can't become one is refused at once.

    Raises:
        ProtocolViolation: no request line begins like this.
    """
    any_case = lenient is not None and (lenient.any_method or lenient.fold_method)
    match = (_ANY_METHOD if any_case else _METHOD).match(part)
    assert match is not None
    end = match.end()
    if end > _MAX_METHOD and not (lenient is not None and lenient.any_method):
        raise NotSupported("the method is too long")
    behind = part[end : end + 1]
    if behind and behind != (b" " if end else b"\r"):  # CR: the first half of an empty line
        raise ProtocolViolation("malformed method", "request_line")


def is_authority(value: bytes) -> bool:
    """Whether this is a host with or without a port; an empty host counts as one (RFC 9110 section 7.2)."""
    match = _AUTHORITY.fullmatch(value)
    return match is not None and (not match[1] or (len(match[1]) <= 5 and int(match[1]) <= 65535))
