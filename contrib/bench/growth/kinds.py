"""What is sent: the kinds of requests to an app. No two requests have the same fields."""

from collections.abc import Callable
from dataclasses import dataclass


def fields(number: int, more: str = "") -> str:
    """Fields that are the same in no two requests."""
    return (
        f"Host: host{number}.example\r\nCookie: id={number:x}; other={number * 7919}\r\n"
        f"User-Agent: agent/{number}\r\nX-Id-{number}: {number}\r\n"
        f"X-Forwarded-For: 10.{number >> 16 & 255}.{number >> 8 & 255}.{number & 255}\r\n{more}"
    )


def get(path: str, number: int, more: str = "Connection: close\r\n") -> bytes:
    return f"GET {path}/{number}?n={number} HTTP/1.1\r\n{fields(number, more)}\r\n".encode()


def post(number: int, more: str, body: str = "") -> bytes:
    return f"POST /{number} HTTP/1.1\r\n{fields(number, more)}\r\n{body}".encode()


def upgrade(path: str, number: int) -> bytes:
    return get(
        path,
        number,
        "Connection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Version: 13\r\n"
        "Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\nSec-WebSocket-Extensions: permessage-deflate\r\n",
    )


BATCH = 50


def batch(path: str) -> Callable[[int], bytes]:
    """Pipelined requests; the last one ends the connection."""

    def made(number: int) -> bytes:
        numbers = range(number * BATCH, (number + 1) * BATCH - 1)
        return b"".join(get(path, n, "") for n in numbers) + get(path, numbers.stop)

    return made


@dataclass(frozen=True)
class Kind:
    """A kind of request.

    Attributes:
        data: what connection number n sends.
        per_connection: requests that this is.
        end: the client waits for the `server` to close, or resets `at once` or at an `answer`'s first byte.
        share: how many of the requests are made.
        at_once: connections open at a time.
        words: more of the command line.
        status: of the first answer on most connections; empty: any or none.
        preface: sent before all else, TLS included; then: sent when an answer begins.
    """

    data: Callable[[int], bytes]
    per_connection: int = 1
    end: str = "server"
    share: float = 1.0
    at_once: int = 100
    words: tuple[str, ...] = ()
    status: bytes = b""
    preface: Callable[[int], bytes] | None = None
    then: bytes = b""


LATE = ("--header-timeout", "0.2", "--body-timeout", "0.2", "--keep-alive", "0.2")
SMALL = ("--limit-request-body", "100000")
OVERDUE = ("--timeout", "0.1", "--timeout-grace", "60")
CUT = "Content-Length: 100\r\n"
MANY = 2000
CHUNKED = "Connection: close\r\nTransfer-Encoding: chunked\r\n"
PROXIED = ("--proxy-protocol", "v1", "--proxy-allow-from", "*")
# RFC 6455 section 5.2: a text of one letter, and the end; both masked with zeros.
FRAMES = b"\x81\x81\0\0\0\0x\x88\x82\0\0\0\0\x03\xe8"


def proxied(number: int) -> bytes:
    address = f"10.{number >> 16 & 255}.{number >> 8 & 255}.{number & 255}"
    return f"PROXY TCP4 {address} 192.0.2.1 {number % 50_000 + 1} 443\r\n".encode()


KINDS: dict[str, Kind] = {
    "served": Kind(batch("/ok"), BATCH, at_once=16, status=b"200"),
    "served, new": Kind(lambda n: get("/ok", n), status=b"200"),
    "body": Kind(lambda n: post(n, "Connection: close\r\nContent-Length: 3\r\n", "abc"), status=b"200"),
    "404 of the app": Kind(batch("/missing"), BATCH, at_once=16, status=b"404"),
    "error in the app": Kind(lambda n: get("/error", n), share=0.2, status=b"500"),
    "400 line": Kind(lambda n: f"what is {n}?\r\n\r\n".encode(), status=b"400"),
    "400 field": Kind(lambda n: get("/", n, f"a b{n}: c\r\n"), status=b"400"),
    "413": Kind(lambda n: post(n, "Content-Length: 100001\r\n"), words=SMALL, status=b"413"),
    "414": Kind(lambda n: get("/" + "x" * 9000, n), status=b"414"),
    "431": Kind(lambda n: get("/", n, f"x: {'x' * 60_000}\r\n"), status=b"431"),
    "431 fields": Kind(lambda n: get("/", n, "".join(f"n{i}-{n}: b\r\n" for i in range(200))), status=b"431"),
    "reset in a head": Kind(lambda n: get("/", n)[:-10], end="at once"),
    "reset in a body": Kind(lambda n: post(n, CUT, "abc"), end="at once"),
    "reset in an answer": Kind(lambda n: get("/large", n), end="answer", at_once=16),
    "504 deadline": Kind(lambda n: get("/sleep", n), share=0.02, at_once=200, words=OVERDUE, status=b"504"),
    "408 head": Kind(lambda n: get("/", n)[:-10], at_once=MANY, words=LATE, status=b"408"),
    "408 body": Kind(lambda n: post(n, CUT, "abc"), at_once=MANY, words=LATE, status=b"408"),
    "idle": Kind(lambda n: get("/ok", n, ""), at_once=MANY, words=LATE, status=b"200"),
    "silent": Kind(lambda _: b"", share=0.05, at_once=MANY, words=LATE),
    "trailers": Kind(lambda n: post(n, CHUNKED, f"3\r\nabc\r\n0\r\nX-{n}: {n}\r\n\r\n"), status=b"200"),
    "continue, reset": Kind(lambda n: post(n, f"{CUT}Expect: 100-continue\r\n"), end="answer", status=b"100"),
    "pipelined, reset": Kind(batch("/large"), BATCH, end="at once", at_once=16),
    "PROXY": Kind(lambda n: get("/ok", n), words=PROXIED, preface=proxied, status=b"200"),
    "PROXY, reset": Kind(lambda n: get("/ok", n)[:-10], end="at once", words=PROXIED, preface=proxied),
}  # fmt: skip
WEBSOCKETS: dict[str, Kind] = {
    "websocket": Kind(lambda n: upgrade("/ok", n), then=FRAMES, status=b"101"),
    "websocket refused": Kind(lambda n: upgrade("/refused", n), status=b"403"),
    "websocket reset": Kind(lambda n: upgrade("/ok", n), end="answer", status=b"101"),
    "websocket cut": Kind(lambda n: upgrade("/ok", n)[:-10], end="at once"),
}
TLS_KINDS: dict[str, Kind] = {
    "plain HTTP": Kind(lambda n: get("/", n)),
    "no TLS": Kind(lambda n: b"\x16\x03\x01" + bytes([n & 255]) * 300),
    "late handshake": Kind(lambda _: b"\x16\x03\x01", at_once=MANY, words=LATE),
}
# uvicorn has no such limits, or wider ones, or knows no PROXY headers.
NOT_FOR_ASGI = {"413", "414", "431", "431 fields", "PROXY", "PROXY, reset"}
# A first head that is late gets no answer there.
SILENT_IN_ASGI = {"408 head"}
