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
    from tests.fuzz.wires import SEEDS, WORDS
    from tests.unit.http1.parsing import fed

RULES = (
    Rules(),
    Rules(limit_request_line=40, limit_request_fields=4, limit_request_field_size=60, limit_request_body=20),
    Rules(header_map="refuse", secure_scheme_headers={b"x-forwarded-proto": b"https"}),
    Rules(stream=True),
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


def escaped(word: bytes) -> str:
    """A word as libFuzzer's dictionaries have it."""
    return "".join(f"\\x{byte:02X}" for byte in word)


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
        words.write_text("".join(f'"{escaped(word)}"\n' for word in WORDS))
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
