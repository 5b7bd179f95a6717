"""A block of header fields: httptools (llhttp) splits it, and its result is checked here.

Nearly all blocks are so plain that each line is one field whatever the rules are; these are split here, in
half the time. Of all others llhttp decides what they are.

Each complete block goes to a new llhttp parser, behind a fixed request line. So no parser state outlives a
block, none is shared, and llhttp's own view of bodies and connections does not matter.
"""

import re
from collections.abc import Mapping
from typing import Any

import httptools
import msgspec

from ostler import native
from ostler.http1.errors import ExpectationFailed, HeadTooLarge, NotSupported, ProtocolViolation
from ostler.http1.line import MAX_LINE, LineRules, is_authority

MAX_HEAD = 16 * 1024 * 1024
"""The most bytes of a block, whatever the settings say; a longer one is refused before its end."""
MAX_FIELDS = 32768
"""The most fields, whatever the settings say, as in gunicorn."""

CHUNKED = -1
"""In the place of a length: the body is chunked."""

# What a field means to the server; _PLAIN (false) if it is only for the app.
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
_MAX_DIGITS = 18  # of a Content-Length; llhttp also refuses what does not fit into 64 bits

_BLANKS = (b" ", b"\t")
_NEVER_FOLDED = frozenset((b"host", b"content-length", b"transfer-encoding", b"connection", b"expect"))

_REMEMBERED_NAMES = 1024
_LONGEST_NAME = 64
_REMEMBERED_HOSTS = 256
_LONGEST_HOST = 255

_hosts: set[bytes] = set()  # values of Host that are valid

# Names that can't be confused with others in variables, and values of visible ASCII characters and blanks.
_PLAIN_BLOCK = re.compile(rb"(?:\r\n[0-9A-Za-z\-]++:[\t\x20-\x7e]*+)+\r\n\r\n")


class FieldMeanings:
    """What each field name means to the server, under given rules.

    Attributes:
        known: the meanings of names seen so far, by the name as sent. A plain dict: a subclass with
            `__missing__` is slower.
    """

    __slots__ = ("_allowed", "_map", "_schemes", "known")

    def __init__(self, rules: "Rules") -> None:
        self._map = rules.header_map
        self._allowed = rules.forwarder_headers
        self._schemes = frozenset(rules.secure_scheme_headers)
        self.known: dict[bytes, int] = {}

    def learn(self, name: bytes) -> int:
        """Find and remember the meaning of a name that is not in `known`."""
        lower = name.lower()
        if b"_" in lower and lower not in self._allowed and self._map != "dangerous":
            # X_Forwarded_For has the same variable as X-Forwarded-For, which only a proxy may set.
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
    """Limits and options for requests; one object for each kind of peer, shared by connections.

    Attributes:
        limit_request_line: bytes of the request line without its end; 0: only MAX_LINE bounds it.
        limit_request_fields: number of fields; 0: only MAX_FIELDS bounds it.
        limit_request_field_size: bytes of one field line; 0: only MAX_HEAD bounds it.
        limit_request_body: bytes of the body; 0: no limit.
        header_map: what to do with a name with an underscore: `drop`, `refuse` or `dangerous` (keep it).
        forwarder_headers: names with an underscore, in lower case, that are always kept.
        secure_scheme_headers: names in lower case, each with the value that stands for https.
        stream: yield a request as soon as its head is complete.
        body_in_memory: bytes of a body that its sink keeps in memory, as far as that is known. Such bodies,
            if not streamed, are for the C extension.
        permit_obsolete_folding: a field may continue in lines that begin with blanks (RFC 9112 section 5.2).
        strip_header_spaces: blanks between a name and its colon are ignored (RFC 9112 section 5.1).
        permit_unconventional_http_method, casefold_http_method, permit_unconventional_http_version: see
            `LineRules`.
        lenient_fields: one of the options for fields is set; line_rules: the options for lines, None if none
            is set.
        max_line, max_fields, max_field_size: the limits, with 0 and values above the hard bounds resolved.
        max_head: bytes of a block; it follows from these, so that no block is refused whose fields all pass.
        meanings: a FieldMeanings, filled as names come.
        native: a `RequestRules` of the C extension; None: there is none, or the rules permit what it does not
            know.
    """

    limit_request_line: int = 4094
    limit_request_fields: int = 100
    limit_request_field_size: int = 8190
    limit_request_body: int = 0
    header_map: str = "drop"
    forwarder_headers: frozenset[bytes] = frozenset()
    secure_scheme_headers: Mapping[bytes, bytes] = msgspec.field(default_factory=dict)
    stream: bool = False
    body_in_memory: int = 0
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
    max_head: int = 0
    meanings: Any = None  # a FieldMeanings; msgspec need not know that type
    native: Any = None

    def __post_init__(self) -> None:
        settle = msgspec.structs.force_setattr
        settle(self, "max_line", min(self.limit_request_line or MAX_LINE, MAX_LINE))
        settle(self, "max_fields", min(self.limit_request_fields or MAX_FIELDS, MAX_FIELDS))
        settle(self, "max_field_size", min(self.limit_request_field_size or MAX_HEAD, MAX_HEAD))
        settle(self, "lenient_fields", self.permit_obsolete_folding or self.strip_header_spaces)
        # A line end for each field, one before the first, and the empty line; and blanks that do not count.
        size = self.max_fields * (self.max_field_size + 2) * (2 if self.lenient_fields else 1) + 4
        settle(self, "max_head", min(size, MAX_HEAD))
        lines = LineRules(
            self.permit_unconventional_http_method,
            self.casefold_http_method,
            self.permit_unconventional_http_version,
        )
        settle(self, "line_rules", None if lines == LineRules() else lines)
        settle(self, "meanings", FieldMeanings(self))
        if native.module is not None and not self.lenient_fields and self.line_rules is None:
            body = min(self.body_in_memory, self.limit_request_body or self.body_in_memory)
            limits = self.max_line, self.max_fields, self.max_field_size, 0 if self.stream else body
            schemes = dict(self.secure_scheme_headers)
            settle(self, "native", native.module.RequestRules(self, parse_head, schemes, *limits))


class Head(msgspec.Struct):
    """A parsed block of header fields.

    Attributes:
        block: its bytes, from the line end before the first field to the empty line.
        headers: (name, value) as sent, in order, values without surrounding blanks.
        https: a trusted field says that the client uses https.
        keep_alive: the connection may stay open (RFC 9112 section 9.3).
        length: bytes of the body; CHUNKED if its length is not announced.
        expects_continue: the client waits for `100 Continue` (RFC 9110 section 10.1.1).
        repeatable: an equal block in a later request has this head, too.
        upgrade: the client offers to go on with another protocol, e.g. websocket (RFC 9110 section 7.8).
        variables: what its owner has made of `headers`, for later requests with an equal block; or None.
    """

    block: bytes
    headers: list[tuple[bytes, bytes]]
    https: bool
    keep_alive: bool
    length: int
    expects_continue: bool
    repeatable: bool
    upgrade: bool = False
    variables: dict[str, str] | None = None


class _Fields(list[tuple[bytes, bytes]]):
    """Collects the fields that httptools finds, which calls `on_header`."""

    __slots__ = ()

    def on_header(self, name: bytes, value: bytes) -> None:
        # llhttp does not remove blanks behind a value (RFC 9112 section 5.1).
        self.append((name, value.rstrip(b" \t")))


def parse_head(block: bytes, protocol: str, rules: Rules) -> Head:
    """Parse and check a block.

    Raises:
        ProtocolViolation: it is malformed, ambiguous or too large, or asks for what is not implemented.
    """
    if not rules.lenient_fields and _PLAIN_BLOCK.fullmatch(block):
        try:
            headers = _split_plain(block)
            _check_limits(block, headers, rules)
            return _understand(block, headers, protocol, rules)
        except ProtocolViolation:
            pass  # llhttp finds some of these first, and has the words for it
    strict = _strict(block, rules) if rules.lenient_fields else block
    headers = _split(strict)
    _check_limits(strict, headers, rules)
    return _understand(block, headers, protocol, rules)


def _split_plain(block: bytes) -> list[tuple[bytes, bytes]]:
    """The fields of a block that `_PLAIN_BLOCK` matches."""
    headers = []
    for line in block[2:-4].split(b"\r\n"):
        name, _, value = line.partition(b":")
        headers.append((name, value.strip(b" \t")))
    return headers


def _split(block: bytes) -> list[tuple[bytes, bytes]]:
    """The fields of any block, as llhttp finds them. Raises ProtocolViolation."""
    headers: list[tuple[bytes, bytes]] = _Fields()
    try:
        httptools.HttpRequestParser(headers).feed_data(b"GET / HTTP/1.1" + block)
    except httptools.HttpParserUpgrade:
        pass  # whether the offer is taken is decided later (RFC 9110 section 7.8)
    except httptools.HttpParserCallbackError as error:
        # No fault of the client: an exception of a signal handler, or no memory, in a callback.
        raise (error.__context__ or error) from None
    except httptools.HttpParserError as error:
        text = str(error)
        names = {"Transfer-Encoding": "transfer_encoding", "Content-Length": "content_length"}
        rule = next((rule for name, rule in names.items() if name in text), "fields")
        raise ProtocolViolation(text, rule) from None
    # Each line must be one field. Otherwise llhttp splits lines in another way than the caller, which looks
    # for the next request behind this block.
    if block.count(b"\n") != len(headers) + 2:
        raise ProtocolViolation("malformed fields", "fields")
    return headers


def _check_limits(block: bytes, headers: list[tuple[bytes, bytes]], rules: Rules) -> None:
    """Raises HeadTooLarge."""
    if len(headers) > rules.max_fields:
        raise HeadTooLarge("too many fields", "limit_request_fields")
    limit = rules.max_field_size
    if len(block) > limit and any(len(line) > limit for line in block.split(b"\r\n")):
        raise HeadTooLarge("a field is too long")


def _understand(block: bytes, headers: list[tuple[bytes, bytes]], protocol: str, rules: Rules) -> Head:
    """Find what the fields of a block mean to the server. Raises ProtocolViolation."""
    old = protocol == "HTTP/1.0"
    host = coding = content_type = None
    length: int | None = None
    close = https = insecure = expects = upgrades = asks_upgrade = dropped = False
    keep = not old
    meanings: FieldMeanings = rules.meanings
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
                raise ProtocolViolation("more than one Host", "host")
            host = value
        elif meaning == _LENGTH:
            if length is not None or not value.isdigit() or len(value) > _MAX_DIGITS:
                raise ProtocolViolation("invalid Content-Length", "content_length")
            length = int(value)
        elif meaning == _CODING:
            if coding is not None:
                raise ProtocolViolation("more than one Transfer-Encoding", "transfer_encoding")
            coding = value
        elif meaning == _TYPE:
            if content_type is not None:
                raise ProtocolViolation("more than one Content-Type", "fields")
            content_type = value
        elif meaning == _CONNECTION:
            if value == b"keep-alive":  # as nearly always
                keep = True
                continue
            options = [option.strip(b" \t") for option in value.lower().split(b",")]
            close = close or b"close" in options
            keep = keep or b"keep-alive" in options
            asks_upgrade = asks_upgrade or b"upgrade" in options
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
            raise ProtocolViolation("a field name has an underscore", "header_map")
    if host is None:
        if not old:
            raise ProtocolViolation("Host is missing", "missing_host")
    elif host not in _hosts:
        _check_host(host)
    if coding is not None:
        if length is not None:
            raise ProtocolViolation("Transfer-Encoding with Content-Length", "transfer_encoding")
        _check_coding(coding, old)
        length = CHUNKED
    if https and insecure:
        raise ProtocolViolation("contradictory fields for the scheme", "secure_scheme_headers")
    if dropped:
        headers = [field for field in headers if meanings.learn(field[0]) != _DROP]
    keep = keep and not close
    repeatable = keep and not (old or length or expects or upgrades)
    upgrade = upgrades and asks_upgrade and not old
    return Head(block, headers, https, keep, length or 0, expects, repeatable, upgrade)


def _strict(block: bytes, rules: Rules) -> bytes:
    """The block in the strict form, for what the rules permit beyond it."""
    fields: list[list[bytes]] = []  # each with its continuation lines
    for line in block.split(b"\r\n")[1:-2]:
        name, colon, value = line.partition(b":")
        if line[:1] in _BLANKS:
            if not rules.permit_obsolete_folding or not fields:
                raise ProtocolViolation("a field in several lines", "fields")
            before = fields[-1][0].partition(b":")
            # Fields for framing and routing must mean the same to a recipient that ignores the folding.
            if not before[1] or before[0].lower() in _NEVER_FOLDED:
                raise ProtocolViolation("a field that must not be in several lines", "fields")
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
        raise ProtocolViolation("invalid Host", "host")
    if len(value) <= _LONGEST_HOST:
        if len(_hosts) >= _REMEMBERED_HOSTS:
            _hosts.clear()
        _hosts.add(value)


def _check_coding(value: bytes, old: bool) -> None:
    """`chunked` is the only transfer coding that is decoded here (RFC 9112 section 6.1)."""
    if old:
        raise ProtocolViolation("Transfer-Encoding in HTTP/1.0", "transfer_encoding")
    coding = value.lower()
    if coding != b"chunked":
        codings = [part.strip(b" \t") for part in coding.split(b",")]
        # Unless chunked comes last, and once, the end of the body is undefined.
        if codings[-1] != b"chunked" or codings.count(b"chunked") > 1 or b"" in codings:
            raise ProtocolViolation("Transfer-Encoding does not end with chunked", "transfer_encoding")
        raise NotSupported("a transfer coding other than chunked", "transfer_encoding")
