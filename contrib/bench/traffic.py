"""The requests that the load generators send.

`varied` is the default: no two requests have the same path, query, request id, client address, referer or
cookie, as behind a proxy that mixes the requests of many clients. `identical` is one request, again and
again: a server that remembers what it has seen looks quicker than it is for real clients.

The requests are made once for a run, from a fixed seed, and written into a file that replay.lua sends from.
So all servers get the same bytes, the C loop of floor.c included, and wrk only copies them.
"""

import json
import random
from collections.abc import Mapping
from pathlib import Path

KINDS = ("varied", "identical")
# More than a cache in a server can be expected to hold; wrk sends them from the beginning again at the end.
COUNT = 10_000
BODY_BYTES = 1024
BROWSER_FIELDS = {
    "User-Agent": "Mozilla/5.0 (X11; Linux x86_64) AppleWebKit/537.36 (KHTML, like Gecko) Chrome/131.0.0.0 "
    "Safari/537.36",
    "Accept": "text/html,application/xhtml+xml,application/xml;q=0.9,image/avif,image/webp,*/*;q=0.8",
    "Accept-Language": "en-GB,en;q=0.9,de;q=0.8",
    "Accept-Encoding": "gzip, deflate, br, zstd",
    "Cache-Control": "max-age=0",
    "Upgrade-Insecure-Requests": "1",
    "Sec-Fetch-Dest": "document",
    "Sec-Fetch-Mode": "navigate",
    "Sec-Fetch-Site": "same-origin",
    "Sec-Fetch-User": "?1",
    "Sec-CH-UA-Platform": '"Linux"',
    "Referer": "http://127.0.0.1/shop/list?page=2",
    "Cookie": "session=eyJ1c2VyX2lkIjoxMjM0NX0.Zx1abc.0123456789abcdefghijklmnopqrstuvwxyz; theme=dark; "
    "consent=1",
}


def prepare(
    kind: str,
    file: Path,
    path: str = "/items",
    *,
    post: bool = False,
    fields: Mapping[str, str] | None = None,
) -> Path:
    """Write the requests of a run into `file`, and return it.

    Args:
        kind: one of `KINDS`.
        file: is replaced.
        path: the first segment of the target; the second is different in each of the varied requests.
        post: a POST of 1 KB of JSON instead of a GET.
        fields: further fields of the identical request; the varied ones have their own.
    """
    dice = random.Random(1)
    if kind == "varied":
        requests = [_varied(dice, path, post) for _ in range(COUNT)]
    else:
        body = _body(dice) if post else b""
        requests = [_request(f"{path}/1", {"Host": "127.0.0.1", **(fields or {})}, body)]
    write(requests, file)
    return file


def write(requests: list[bytes], file: Path) -> None:
    """Each request after its length in decimal digits and a line feed, which Lua can read."""
    file.write_bytes(b"".join(b"%d\n%b" % (len(request), request) for request in requests))


def read(file: Path) -> list[bytes]:
    """What `write` has written."""
    requests = []
    rest = file.read_bytes()
    at = 0
    while at < len(rest):
        begin = rest.index(b"\n", at) + 1
        at = begin + int(rest[at : begin - 1])
        requests.append(rest[begin:at])
    return requests


def parse(request: bytes) -> tuple[str, str, list[tuple[str, str]], bytes]:
    """Method, target, fields and body of one of these requests."""
    head, _, body = request.partition(b"\r\n\r\n")
    first, *lines = head.decode("latin-1").split("\r\n")
    method, target, _ = first.split(" ")
    fields = [(name, value) for name, _, value in (line.partition(": ") for line in lines)]
    return method, target, fields, body


def _varied(dice: random.Random, path: str, post: bool) -> bytes:
    address = ".".join(str(dice.randint(1, 223)) for _ in range(4))
    fields = {
        "Host": "shop.example.org",
        "X-Request-Id": _hex(dice, 32),
        "X-Forwarded-For": address,
        "X-Forwarded-Proto": "https",
        "User-Agent": "Mozilla/5.0 (Windows NT 10.0; Win64; x64; rv:128.0) Gecko/20100101 "
        f"Firefox/{dice.randint(115, 145)}.0",
        "Accept": "text/html,application/xhtml+xml,application/xml;q=0.9,*/*;q=0.8",
        "Accept-Language": "en-GB,en;q=0.7,fr;q=0.3",
        "Accept-Encoding": "gzip, deflate, br",
        "Referer": f"https://shop.example.org/search?from={_hex(dice, 8)}",
        "Sec-Fetch-Mode": "navigate",
        "Sec-Fetch-Site": "same-origin",
        "Cookie": f"session={_hex(dice, 32)}; token={_hex(dice, 32)}",
    }
    target = f"{path}/{_hex(dice, 8)}?page={dice.randint(1, 999)}&q={_hex(dice, 8)}"
    return _request(target, fields, _body(dice) if post else b"")


def _request(target: str, fields: Mapping[str, str], body: bytes) -> bytes:
    if body:
        fields = {**fields, "Content-Type": "application/json", "Content-Length": str(len(body))}
    lines = "".join(f"{name}: {value}\r\n" for name, value in fields.items())
    return f"{'POST' if body else 'GET'} {target} HTTP/1.1\r\n{lines}\r\n".encode() + body


def _body(dice: random.Random) -> bytes:
    order = {
        "customer": _hex(dice, 12),
        "items": [{"id": _hex(dice, 8), "count": dice.randint(1, 9), "price": 9.95} for _ in range(12)],
        "note": "",
    }
    order["note"] = _hex(dice, BODY_BYTES - len(json.dumps(order)))
    return json.dumps(order).encode()


def _hex(dice: random.Random, digits: int) -> str:
    return f"{dice.getrandbits(4 * digits):0{digits}x}"
