"""Inputs for the C extension's fuzzer, and what is checked with one.

An input is some bytes. The first one says what they are: requests and how they are cut into reads, or what
an app does with a request.
"""

import random
import re
import reprlib
import socket
from collections.abc import Callable, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, TypeVar

from ostler import native
from ostler.http1.errors import ProtocolViolation
from ostler.http1.request import BodySink, RequestParser, Rules
from ostler.wsgi.body import BufferedBody
from tests.fuzz.wires import GET, SEEDS, WORDS
from tests.property import test_native_exchanges as exchanges
from tests.property import test_native_requests as requests
from tests.unit.http1.parsing import fed, python_only, resume
from tests.unit.http1.test_malformed import MALFORMED

T = TypeVar("T")

# How many inputs of ten are requests: those take a tenth of the time that apps take.
REQUESTS = 8
# One access log is read as a whole behind each request.
_APPS_PER_PAIR = 200
_KEPT = 200
# Bytes of an input before those of the requests.
_BEFORE_WIRE = 4

ALL_RULES = [
    *[requests.ALL_RULES[1]] * 6,
    *requests.ALL_RULES,
    Rules(body_in_memory=requests.MEMORY, header_map="refuse", limit_request_fields=3),
    Rules(body_in_memory=requests.MEMORY, stream=True),
]
PLACES: list[tuple[Any, str]] = [
    (("127.0.0.1", 8000), ""),
    (("::1", 80, 0, 0), "/mount"),
    ("/run/x.sock", ""),
    ("/run/x.sock", "/mount"),
]
FIELDS = (
    *(b"Content-Length: 5", b"content-length: 0", b"Transfer-Encoding: chunked", b"Expect: 100-continue"),
    *(b"Host: x", b"host: www.example.com:8000", b"Connection: keep-alive", b"Connection: close, x"),
    *(b"X-Forwarded-Proto: https", b"X-Forwarded-Proto: http", b"X-Forwarded-Ssl: on", b"Script_Name: /m"),
    *(b"Cookie: a=b", b"cookie: c=d", b"Content-Type: text/plain", b"Proxy: x", b"Upgrade: h2c", b"X-Y:"),
    *(b"n" * size + b": z" for size in (51, 52, 53, 255, 256)),
    *(b"X-Long: " + b"v" * size for size in (8181, 8182, 8183)),
)
PARTS_OF_TARGETS = (b"%", b"%4", b"%zz", b"%00", b"%c3%a9", b"?", b"//", b"/mount", b"/../", b"#", b"\xe9")
BYTES = b"\0\t\n\r !#%*,-./:;?@AZ_az{}~\x7f\x80\xff0159"
ORDINARY = [
    GET,
    *(requests.varied(number) for number in range(4)),
    *(requests.with_body(body) for body in (b"", b"hello", b"x" * 3000)),
]
OTHERS = [*SEEDS, *(raw for _, raw, _ in MALFORMED if len(raw) < 4000)]
# The most that the C extension recognizes.
MOST = 65535


class Choices:
    """Choices that the bytes of an input make; zeros behind their end."""

    def __init__(self, data: bytes) -> None:
        self._data = iter(data)

    def below(self, number: int) -> int:
        return next(self._data, 0) % number

    def one(self, options: Sequence[T]) -> T:
        return options[self.below(len(options))]

    def some(self, options: Sequence[T], most: int) -> list[T]:
        return [self.one(options) for _ in range(self.below(most + 1))]


# -- requests ----------------------------------------------------------------------------------------------


class Mutator:
    """Makes inputs, the same ones for a seed.

    Requests that the C extension recognizes are what later ones are made of, too.
    """

    def __init__(self, seed: int) -> None:
        self._random = random.Random(seed)
        self._wires = list(ORDINARY)

    def make(self) -> bytes:
        chance = self._random
        if chance.randrange(10) >= REQUESTS:
            return bytes([REQUESTS]) + chance.randbytes(48)
        wire = self._mutated(chance.choice(chance.choice([self._wires, self._wires, self._wires, OTHERS])))
        # Most are one read, or one for each request, as the C extension recognizes no others.
        cut = chance.choice([0, 0, 0, 1, 1, chance.randrange(256)])
        return bytes([chance.randrange(REQUESTS), *chance.randbytes(2), cut]) + wire

    def keep(self, data: bytes) -> None:
        """Make others of this input, whose requests are recognized."""
        wire = data[_BEFORE_WIRE:]
        if len(self._wires) < _KEPT:
            self._wires.append(wire)
        else:
            self._wires[self._random.randrange(len(ORDINARY), _KEPT)] = wire

    def _mutated(self, wire: bytes) -> bytes:
        chance = self._random
        for _ in range(chance.choice([1, 1, 1, 2, 2, 3])):
            wire = chance.choice(self._ways)(self, wire)[:70_000]
        return wire

    def _place(self, wire: bytes) -> int:
        return self._random.randrange(len(wire) + 1)

    def _replaced(self, wire: bytes) -> bytes:
        at, chance = self._place(wire), self._random
        byte = chance.choice(BYTES) if chance.randrange(2) else chance.randrange(256)
        return wire[:at] + bytes([byte]) + wire[at + 1 :]

    def _inserted(self, wire: bytes) -> bytes:
        at = self._place(wire)
        return wire[:at] + self._random.choice([*WORDS, self._random.randbytes(3)]) + wire[at:]

    def _removed(self, wire: bytes) -> bytes:
        at = self._place(wire)
        return wire[:at] + wire[at + self._random.choice([1, 1, 2, 8, 64]) :]

    def _truncated(self, wire: bytes) -> bytes:
        return wire[: self._place(wire)]

    def _continued(self, wire: bytes) -> bytes:
        return wire + self._random.choice(self._wires)

    def _with_other_lines(self, wire: bytes) -> bytes:
        """One line moved, repeated, removed or added."""
        chance = self._random
        lines = wire.split(b"\r\n")
        line = lines.pop(chance.randrange(len(lines)))
        for added in chance.choice([[], [line], [line, line], [line, chance.choice(FIELDS)], [line] * 120]):
            lines.insert(chance.randrange(len(lines) + 1), added)
        return b"\r\n".join(lines)

    def _in_other_case(self, wire: bytes) -> bytes:
        at = self._place(wire)
        end = at + self._random.randrange(20)
        return wire[:at] + wire[at:end].swapcase() + wire[end:]

    def _with_a_name(self, wire: bytes) -> bytes:
        """With a name that was not there before: only so many are remembered."""
        line, _, rest = wire.partition(b"\r\n")
        return b"%b\r\nX-%d: y\r\n%b" % (line, self._random.randrange(10_000), rest)

    def _with_another_target(self, wire: bytes) -> bytes:
        method, blank, rest = wire.partition(b" ")
        at = self._random.randrange(max(rest.find(b" "), 0) + 1)
        return method + blank + rest[:at] + self._random.choice(PARTS_OF_TARGETS) + rest[at:]

    def _padded(self, wire: bytes) -> bytes:
        """With about as many bytes as are recognized, in a line or in its body."""
        at, size = self._place(wire), MOST - len(wire) + self._random.randrange(-40, 3)
        if self._random.randrange(4):
            return wire  # this takes much time
        if self._random.randrange(2):
            return wire[:at] + b"p" * size + wire[at:]
        return self._with_its_length(wire + b"p" * (size - 23))

    def _with_its_length(self, wire: bytes) -> bytes:
        """With a body whose length is announced."""
        head, _, body = wire.partition(b"\r\n\r\n")
        return b"%b\r\nContent-Length: %d\r\n\r\n%b" % (head, len(body), body)

    _ways = (
        _replaced,
        _replaced,
        _inserted,
        _inserted,
        _removed,
        _truncated,
        _continued,
        _with_other_lines,
        _with_other_lines,
        _in_other_case,
        _with_a_name,
        _with_another_target,
        _with_its_length,
        _with_its_length,
        _padded,
    )


def check_request(data: bytes) -> bool:
    """Feed requests to both parsers; returns whether the C extension recognizes any.

    Raises:
        AssertionError: there is a difference.
    """
    choices = Choices(data[1:_BEFORE_WIRE])
    rules, (address, mount), cut = choices.one(ALL_RULES), choices.one(PLACES), choices.below(256)
    wire = data[_BEFORE_WIRE:]
    if cut > 1:
        pieces = [wire[at : at + cut] for at in range(0, len(wire), cut)]
    else:
        pieces = re.split(rb"(?<=\r\n\r\n)", wire) if cut else [wire]
    ours, refused = (received if data[0] % 2 else fed)(pieces, rules, new_body=_body)
    theirs, refused_by_python = fed(pieces, python_only(rules), new_body=_body)
    assert refused == refused_by_python, "only one of them refuses it"
    for name in (
        "receiving",
        "wants_continue",
        "in_body",
        "received",
        "gathered",
        "holds",
        "held",
        "beginning",
    ):
        assert getattr(ours, name) == getattr(theirs, name), name
    recognized = False
    for request, reference in zip(ours.requests, theirs.requests, strict=True):
        assert native.module is not None
        if isinstance(request, native.module.Request):
            recognized = True
            requests.compare(request, reference, address, mount)
        else:
            assert requests.shown(request) == requests.shown(reference)
    return recognized


class Stub:
    """What the receiver of the C extension knows of a connection."""

    __slots__ = ("fd", "parser", "receiving_since")

    def __init__(self, fd: int, parser: RequestParser) -> None:
        self.fd = fd
        self.parser = parser
        self.receiving_since = 0


assert native.module is not None
_receiver = native.module.OrdinaryReceiver(connection_type=Stub, parser_type=RequestParser, size=1 << 17)


def received(
    pieces: list[bytes], rules: Rules, new_body: Callable[[], BodySink]
) -> tuple[RequestParser, str | None]:
    """As `fed`, but by the receiver of the C extension, from a socket."""
    parser = RequestParser(rules, new_body)
    ours, theirs = socket.socketpair()
    with ours, theirs:
        connection = Stub(ours.fileno(), parser)
        try:
            for piece in filter(None, pieces):
                theirs.sendall(piece)
                if (data := _receiver.receive(connection)) is not None:
                    assert data == piece
                    parser.feed(data)
                    resume(parser)
                connection.receiving_since = int(parser.receiving)
        except ProtocolViolation as violation:
            return parser, violation.status
    return parser, None


def _body() -> BufferedBody:
    return BufferedBody(requests.MEMORY, None)


# -- apps --------------------------------------------------------------------------------------------------


class AppChecker:
    """Lets both runners serve requests with an app."""

    def __init__(self) -> None:
        self._folder = TemporaryDirectory(prefix="ostler-fuzz-")
        self._pair: exchanges.Pair | None = None
        self._number = 0

    def check(self, data: bytes) -> None:
        """Serve one request.

        Raises:
            AssertionError: there is a difference.
        """
        if self._number % _APPS_PER_PAIR == 0:
            self.close()
            self._folder = TemporaryDirectory(prefix="ostler-fuzz-")
            self._pair = exchanges.Pair(Path(self._folder.name))
        self._number += 1
        assert self._pair is not None
        choices = Choices(data[1:])
        wire = choices.one([exchanges.GET, exchanges.GET, requests.varied(choices.below(100))])
        behaviour = behaviour_of(choices)
        wire = wire.replace(b"GET", choices.one(exchanges.METHODS), 1)
        by_c, by_python = self._pair.served(behaviour, wire)
        different = {key: (value, by_python[key]) for key, value in by_c.items() if value != by_python[key]}
        assert not different, reprlib.repr(behaviour) + reprlib.repr(different)

    def close(self) -> None:
        if self._pair is not None:
            self._pair.__exit__()
        self._folder.cleanup()


def behaviour_of(choices: Choices) -> exchanges.Behaviour:
    """What an app does; two of three have nothing unusual in each part of it."""
    unusual = [choices.below(3) == 0 for _ in range(6)]
    behaviour = exchanges.Behaviour(
        kind=choices.one(exchanges.KINDS), late=choices.below(4) == 0, handled=choices.below(8) == 0
    )
    if unusual[0]:
        behaviour.start = [start_of(choices) for _ in range(choices.below(3))]
    elif choices.below(2):
        behaviour.start = [("200 OK", [("Content-Type", "text/plain")])]
    if unusual[1]:
        behaviour.parts = choices.some(exchanges.BODIES, 3)
    if unusual[2]:
        behaviour.written = choices.some(exchanges.BODIES, 2)
    if unusual[3]:
        behaviour.error = choices.one(exchanges.ERRORS)
        behaviour.error_at = choices.one(["app", "parts", "close"])
    if unusual[4]:
        behaviour.closing = choices.some(exchanges.BODIES, 1)
    return behaviour


def start_of(choices: Choices) -> tuple[Any, ...]:
    """Arguments of start_response."""
    fields: list[Any] = []
    for _ in range(choices.below(5)):
        header = (choices.one(exchanges.NAMES), choices.one(exchanges.VALUES))
        odd = [list(header), exchanges.Header(*header), (), ("a", "b", "c"), "ab", None]
        fields.append(choices.one([header] * 12 + odd))
    headers = choices.one([fields] * 6 + [tuple(fields), exchanges.Parts(fields)])
    return choices.one([*exchanges.STATUSES, *["200 OK"] * 20]), headers
