"""A block of header fields: httptools (llhttp) takes it apart, and what it lets through is checked here.

llhttp sees each block whole and in a parser of its own, behind a request line of ours. So no state of it
outlives a block, none is shared, and what it thinks of bodies and connections does not matter.
"""

from collections.abc import Mapping
from typing import Any

import httptools
import msgspec

from ostler.http1.errors import ExpectationFailed, HeadTooLarge, NotSupported, ProtocolViolation
from ostler.http1.line import MAX_LINE, LineRules, is_authority

MAX_HEAD = 64 * 1024
"""Bytes of a block at most, whatever the settings say; one that has not ended by then never will."""
MAX_FIELDS = 1000
"""Fields at most, whatever the settings say."""

CHUNKED = -1
"""In place of a length: the body is chunked."""

# What a field means to us; nothing if it is for the app alone.
_PLAIN, _HOST, _LENGTH, _CODING, _TYPE, _CONNECTION, _EXPECT, _UPGRADE, _SCHEME, _DROP, _REFUSE = range(11)
_MEANINGS = {
    b"host": _HOST,
    b"content-length": _LENGTH,
    b"transfer-encoding": _CODING,
    b"content-type": _TYPE,
    b"connection": _CONNECTION,
    b"expect": _EXPECT,
    b"upgrade": _UPGRADE,
}
_MAX_DIGITS = 18  # of a Content-Length; llhttp, too, refuses what does not fit into 64 bits

_BLANKS = (b" ", b"\t")
_NEVER_FOLDED = frozenset((b"host", b"content-length", b"transfer-encoding", b"connection", b"expect"))

_REMEMBERED_NAMES = 1024
_LONGEST_NAME = 64
_REMEMBERED_HOSTS = 256
_LONGEST_HOST = 255

_hosts: set[bytes] = set()  # values of Host that were found valid


class Meanings:
    """What names mean under some rules.

    Attributes:
        known: of the names that were met, as sent. A dict by itself: one with `__missing__` is slower.
    """

    __slots__ = ("_allowed", "_map", "_schemes", "known")

    def __init__(self, rules: "Rules") -> None:
        self._map = rules.header_map
        self._allowed = rules.forwarder_headers
        self._schemes = frozenset(rules.secure_scheme_headers)
        self.known: dict[bytes, int] = {}

    def learn(self, name: bytes) -> int:
        """What a name means that is not known."""
        lower = name.lower()
        if b"_" in lower and lower not in self._allowed and self._map != "dangerous":
            # X_Forwarded_For would pass for X-Forwarded-For, which only a proxy may set.
            meaning = _REFUSE if self._map == "refuse" else _DROP
        elif lower in self._schemes:
            meaning = _SCHEME
        else:
            meaning = _MEANINGS.get(lower, _PLAIN)
        if len(name) <= _LONGEST_NAME:
            if len(self.known) >= _REMEMBERED_NAMES:
                self.known.clear()
            self.known[name] = meaning
        return meaning


class Rules(msgspec.Struct, frozen=True):
    """What requests may be; one for each kind of peer, shared by connections.

    Attributes:
        limit_request_line: bytes of the request line without its end; 0: only MAX_LINE bounds it.
        limit_request_fields: how many fields; 0: only MAX_FIELDS bounds them.
        limit_request_field_size: bytes of one field line; 0: only MAX_HEAD bounds it.
        limit_request_body: bytes of the body; 0: no limit.
        header_map: what becomes of a name with an underscore: `drop`, `refuse` or `dangerous` (is kept).
        forwarder_headers: names with an underscore, in lower case, that are kept all the same.
        secure_scheme_headers: names in lower case, each with the value that means https.
        stream: hand a request out as soon as its head is there.
        permit_obsolete_folding: a field may go on in lines that begin with blanks (RFC 9112 section 5.2).
        strip_header_spaces: blanks between a name and its colon do not count (RFC 9112 section 5.1).
        permit_unconventional_http_method, casefold_http_method, permit_unconventional_http_version: see
            `LineRules`.
        lenient_fields: one of those for fields is set; line_rules: those for lines if one is set.
        max_line, max_fields, max_field_size: what the limits and the hard bounds come to.
        meanings: what names mean under these rules; filled as they come.
    """

    limit_request_line: int = 4094
    limit_request_fields: int = 100
    limit_request_field_size: int = 8190
    limit_request_body: int = 0
    header_map: str = "drop"
    forwarder_headers: frozenset[bytes] = frozenset()
    secure_scheme_headers: Mapping[bytes, bytes] = msgspec.field(default_factory=dict)
    stream: bool = False
    permit_obsolete_folding: bool = False
    strip_header_spaces: bool = False
    permit_unconventional_http_method: bool = False
    casefold_http_method: bool = False
    permit_unconventional_http_version: bool = False
    lenient_fields: bool = False
    line_rules: LineRules | None = None
    max_line: int = 0
    max_fields: int = 0
    max_field_size: int = 0
    meanings: Any = None  # a Meanings, which msgspec does not need to know

    def __post_init__(self) -> None:
        settle = msgspec.structs.force_setattr
        settle(self, "max_line", min(self.limit_request_line or MAX_LINE, MAX_LINE))
        settle(self, "max_fields", min(self.limit_request_fields or MAX_FIELDS, MAX_FIELDS))
        settle(self, "max_field_size", min(self.limit_request_field_size or MAX_HEAD, MAX_HEAD))
        settle(self, "lenient_fields", self.permit_obsolete_folding or self.strip_header_spaces)
        lines = LineRules(
            self.permit_unconventional_http_method,
            self.casefold_http_method,
            self.permit_unconventional_http_version,
        )
        settle(self, "line_rules", None if lines == LineRules() else lines)
        settle(self, "meanings", Meanings(self))


class Head(msgspec.Struct):
    """What was made of a block of header fields.

    Attributes:
        block: its bytes, from the line end before the first field to the empty line.
        headers: (name, value) as sent, in order, values without surrounding blanks.
        https: a field that the rules trust says that the client came by https.
        keep_alive: the connection may go on (RFC 9112 section 9.3).
        length: of the body, in bytes; CHUNKED if only the end will tell.
        expects_continue: the client waits for `100 Continue` (RFC 9110 section 10.1.1).
        repeatable: the same block may be taken for the same head again.
    """

    block: bytes
    headers: list[tuple[bytes, bytes]]
    https: bool
    keep_alive: bool
    length: int
    expects_continue: bool
    repeatable: bool


class _Fields(list[tuple[bytes, bytes]]):
    """Gathers what httptools finds; it looks callbacks up by name."""

    __slots__ = ()

    def on_header(self, name: bytes, value: bytes) -> None:
        # llhttp leaves blanks behind a value (RFC 9112 section 5.1).
        self.append((name, value.rstrip(b" \t")))


def parse_head(block: bytes, protocol: str, rules: Rules) -> Head:
    """Take a block apart and check it.

    Raises:
        ProtocolViolation: it is malformed, ambiguous, too much, or asks for what is not done here.
    """
    whole = block
    if rules.lenient_fields:
        block = _strict(block, rules)
    headers: list[tuple[bytes, bytes]] = _Fields()
    try:
        httptools.HttpRequestParser(headers).feed_data(b"GET / HTTP/1.1" + block)
    except httptools.HttpParserUpgrade:
        pass  # none is offered, and a server may ignore the wish (RFC 9110 section 7.8)
    except httptools.HttpParserCallbackError as error:
        # Not the client's doing: a signal's exception, or no memory, in the middle of a callback.
        raise (error.__context__ or error) from None
    except httptools.HttpParserError as error:
        raise ProtocolViolation(str(error)) from None
    # Each line is one field, or llhttp has seen other lines than the caller, who will look for the next
    # request behind this block.
    if block.count(b"\n") != len(headers) + 2:
        raise ProtocolViolation("malformed fields")
    if len(headers) > rules.max_fields:
        raise HeadTooLarge("too many fields")
    limit = rules.max_field_size
    if len(block) > limit and any(len(line) > limit for line in block.split(b"\r\n")):
        raise HeadTooLarge("a field is too long")

    old = protocol == "HTTP/1.0"
    host = coding = content_type = None
    length: int | None = None
    close = https = insecure = expects = upgrades = dropped = False
    keep = not old
    meanings: Meanings = rules.meanings
    known = meanings.known
    for name, value in headers:
        try:
            meaning = known[name]
        except KeyError:
            meaning = meanings.learn(name)
        if not meaning:
            continue
        if meaning == _HOST:
            if host is not None:
                raise ProtocolViolation("Host is given twice")
            host = value
        elif meaning == _LENGTH:
            if length is not None or not value.isdigit() or len(value) > _MAX_DIGITS:
                raise ProtocolViolation("invalid Content-Length")
            length = int(value)
        elif meaning == _CODING:
            if coding is not None:
                raise ProtocolViolation("Transfer-Encoding is given twice")
            coding = value
        elif meaning == _TYPE:
            if content_type is not None:
                raise ProtocolViolation("Content-Type is given twice")
            content_type = value
        elif meaning == _CONNECTION:
            options = [option.strip(b" \t") for option in value.lower().split(b",")]
            close = close or b"close" in options
            keep = keep or b"keep-alive" in options
        elif meaning == _EXPECT:
            expects = not old
            if expects and value.lower() != b"100-continue":
                raise ExpectationFailed
        elif meaning == _SCHEME:
            if value == rules.secure_scheme_headers[name.lower()]:
                https = True
            else:
                insecure = True
        elif meaning == _UPGRADE:
            upgrades = True
        elif meaning == _DROP:
            dropped = True
        else:
            raise ProtocolViolation("a field name has an underscore")
    if host is None:
        if not old:
            raise ProtocolViolation("Host is missing")
    elif host not in _hosts:
        _check_host(host)
    if coding is not None:
        if length is not None:
            raise ProtocolViolation("Transfer-Encoding with Content-Length")
        _check_coding(coding, old)
        length = CHUNKED
    if https and insecure:
        raise ProtocolViolation("fields contradict each other about the scheme")
    if dropped:
        headers = [field for field in headers if meanings.learn(field[0]) != _DROP]
    keep = keep and not close
    repeatable = keep and not (old or length or expects or upgrades)
    return Head(whole, headers, https, keep, length or 0, expects, repeatable)


def _strict(block: bytes, rules: Rules) -> bytes:
    """The block as it had to be, where some rule allows it to be otherwise."""
    fields: list[list[bytes]] = []  # each with the lines that it goes on in
    for line in block.split(b"\r\n")[1:-2]:
        name, colon, value = line.partition(b":")
        if line[:1] in _BLANKS:
            if not rules.permit_obsolete_folding or not fields:
                raise ProtocolViolation("a field in several lines")
            before = fields[-1][0].partition(b":")
            # What frames a request or says whom it is for must not depend on how far somebody reads.
            if not before[1] or before[0].lower() in _NEVER_FOLDED:
                raise ProtocolViolation("a field that must not be in several lines")
            if len(fields[-1]) == 1:
                fields[-1][0] = fields[-1][0].rstrip(b" \t")
            fields[-1].append(line.strip(b" \t"))
        elif rules.strip_header_spaces:
            fields.append([name.rstrip(b" \t") + colon + value])
        else:
            fields.append([line])
    return b"\r\n".join([b"", *(b" ".join(lines) for lines in fields), b"", b""])


def _check_host(value: bytes) -> None:
    if not is_authority(value):
        raise ProtocolViolation("invalid Host")
    if len(value) <= _LONGEST_HOST:
        if len(_hosts) >= _REMEMBERED_HOSTS:
            _hosts.clear()
        _hosts.add(value)


def _check_coding(value: bytes, old: bool) -> None:
    """`chunked` is the one coding that is undone here (RFC 9112 section 6.1)."""
    if old:
        raise ProtocolViolation("Transfer-Encoding in HTTP/1.0")
    coding = value.lower()
    if coding != b"chunked":
        codings = [part.strip(b" \t") for part in coding.split(b",")]
        # Unless chunked comes last, and once, where the body ends is anybody's guess.
        if codings[-1] != b"chunked" or codings.count(b"chunked") > 1 or b"" in codings:
            raise ProtocolViolation("Transfer-Encoding does not end with chunked")
        raise NotSupported("a transfer coding besides chunked")
