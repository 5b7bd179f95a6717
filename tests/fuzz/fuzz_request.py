#!/usr/bin/env python3
"""Fuzzes the request parser, guided by coverage: python tests/fuzz/fuzz_request.py --seconds 60

An input is some bytes; its first two determine how they are cut into reads. A finding is an input that raises
anything but a ProtocolViolation, or that parses differently when it is cut, or with empty caches.

Exit status: 0 nothing found; 77 atheris is not installed (pip install atheris); anything else: a finding,
which is in a file named crash-* in the current directory. The file can be given as an argument.
"""

import argparse
import io
import os
import sys
import tempfile
from pathlib import Path

SKIPPED = 77

try:
    import atheris
except ImportError:
    print("fuzz_request: skipped, atheris is not installed")
    raise SystemExit(SKIPPED) from None

sys.path.insert(0, str(Path(__file__).parents[2]))

with atheris.instrument_imports(include=["ostler.http1"]):
    from ostler.http1.request import Rules
    from tests.unit.http1.parsing import fed

RULES = (
    Rules(),
    Rules(limit_request_line=40, limit_request_fields=4, limit_request_field_size=60, limit_request_body=20),
    Rules(header_map="refuse", secure_scheme_headers={b"x-forwarded-proto": b"https"}),
    Rules(stream=True),
)

GET = b"GET /a?b HTTP/1.1\r\nHost: x\r\n\r\n"
POST = b"POST / HTTP/1.1\r\nHost: x\r\n"
SEEDS = (
    GET,
    GET + GET,
    b"GET http://y:80/a HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n",
    b"OPTIONS * HTTP/1.0\r\nConnection: keep-alive\r\n\r\n" + GET,
    b"GET / HTTP/1.1\r\nHost: [::1]:80\r\nX_Y: z\r\nX-Forwarded-Proto: https\r\nCookie: a=b \r\n\r\n",
    POST + b"Content-Length: 5\r\nExpect: 100-continue\r\n\r\nhello" + GET,
    POST
    + b'Transfer-Encoding: chunked\r\n\r\n5;a="b"\r\nhello\r\n00A\r\n0123456789\r\n0\r\nX: y\r\n\r\n'
    + GET,
    POST + b"Connection: Upgrade\r\nUpgrade: h2c\r\nContent-Length: 0\r\n\r\n" + GET,
)
WORDS = (
    *(
        "GET ",
        "POST ",
        "CONNECT ",
        "OPTIONS ",
        "HTTP/1.1\\x0D\\x0A",
        "HTTP/1.0\\x0D\\x0A",
        "HTTP/2.0\\x0D\\x0A",
    ),
    *(
        "Host: x\\x0D\\x0A",
        "Content-Length: ",
        "Transfer-Encoding: ",
        "chunked",
        "gzip",
        "Connection: ",
        "close",
    ),
    *(
        "Upgrade: ",
        "Expect: ",
        "100-continue",
        "keep-alive",
        "Content-Type: ",
        "http://",
        "\\x0D\\x0A\\x0D\\x0A",
    ),
    *("\\x0D\\x0A", "0\\x0D\\x0A\\x0D\\x0A", ";a=b", "\\x0D", "\\x0A", "[::1]", "_", "%41"),
)


# Attributes of a Line; one of the C extension is no such object.
LINE = "method target protocol raw_uri path query authority ordinary".split()


def outcome(pieces: list[bytes], rules: Rules, remember: bool = True) -> object:
    """All that an owner can see of a parser after these reads."""
    parser, status = fed(pieces, rules, remember)
    requests = [
        (
            [getattr(request.line, name) for name in LINE],
            request.headers,
            request.head.https,
            request.keep_alive,
            request.body.getvalue() if isinstance(request.body, io.BytesIO) else None,
            request.length,
            request.complete,
        )
        for request in parser.requests
    ]
    return requests, status, parser.receiving, parser.in_body, parser.received


def fuzz_one(data: bytes) -> None:
    """One input.

    Raises:
        AssertionError: a cut, or the memory, made a difference.
    """
    if len(data) < 3:
        return
    rules = RULES[data[0] % len(RULES)]
    step = data[1] % 32 + 1
    wire = data[2:]
    pieces = [wire[at : at + step] for at in range(0, len(wire), step)]
    whole = outcome([wire], rules)
    assert outcome(pieces, rules) == whole, "a cut makes a difference"
    twice = [wire, *pieces, wire]
    assert outcome(twice, rules) == outcome(twice, rules, remember=False), "memory makes a difference"


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--seconds", type=int, default=60, help="default: %(default)s")
    parser.add_argument("crash", nargs="*", type=Path, help="files to try instead of fuzzing")
    options = parser.parse_args()
    for file in options.crash:
        fuzz_one(file.read_bytes())
    if options.crash:
        return
    with tempfile.TemporaryDirectory(prefix="ostler-fuzz-") as name:
        folder = Path(name)
        corpus = folder / "corpus"
        corpus.mkdir()
        for number, seed in enumerate(SEEDS):
            for rules in range(len(RULES)):
                (corpus / f"{number}-{rules}").write_bytes(bytes((rules, 2 + 5 * number)) + seed)
        words = folder / "words"
        words.write_text("".join(f'"{word}"\n' for word in WORDS))
        limits = [
            f"-max_total_time={options.seconds}",
            "-max_len=2048",
            "-timeout=10",
            "-rss_limit_mb=1024",
            "-verbosity=0",
        ]
        atheris.Setup([sys.argv[0], *limits, f"-dict={words}", "-print_final_stats=1", str(corpus)], fuzz_one)
        child = os.fork()  # libFuzzer ends its process, and the folder must be removed
        if not child:
            atheris.Fuzz()
        _, status = os.waitpid(child, 0)
    sys.exit(os.waitstatus_to_exitcode(status) and 1)


if __name__ == "__main__":
    main()
