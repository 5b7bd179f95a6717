"""The apps under test: one that does as little as possible, and one with several paths.

Those of frameworks are files of their own, so that no other benchmark measures their import and their memory.
"""

import importlib
import os
import random
import time
from collections.abc import Callable, Iterable
from typing import Any

FIELDS = [("Content-Type", "text/plain"), ("Content-Length", "5")]
BODY = [b"Hello"]

BIG = [b"x" * 1_000_000]
BIG_FIELDS = [("Content-Type", "application/octet-stream"), ("Content-Length", str(len(BIG[0])))]
WAIT = 0.01  # seconds that /wait takes
SLEEP = 0.001  # seconds that /sleep takes, and the short ones of /mix
BURN = 0.005  # CPU seconds of /burn
LONG = 0.2  # seconds of the long ones of /mix
LONG_SHARE = 0.05  # how many of /mix are long


def load(reference: str) -> Any:
    """The app at MODULE:APP."""
    module, _, name = reference.partition(":")
    return getattr(importlib.import_module(module), name)


def hello(environ: dict[str, Any], start_response: Callable[..., Any]) -> Iterable[bytes]:  # noqa: ARG001
    """Answers a constant, so that only the server is measured."""
    start_response("200 OK", FIELDS)
    return BODY


def site(environ: dict[str, Any], start_response: Callable[..., Any]) -> Iterable[bytes]:
    """The constant, unless the path begins with a word that the benchmarks of clients and threads use."""
    kind = environ["PATH_INFO"].split("/", 2)[1]
    if kind == "big":
        start_response("200 OK", BIG_FIELDS)
        return BIG
    if kind == "mix":
        # The app draws which requests are long, so that any load generator can send them.
        long = random.random() < LONG_SHARE
        time.sleep(LONG if long else SLEEP)
        body = b"%s %d" % (b"long" if long else b"short", os.getpid())
        start_response("200 OK", [("Content-Type", "text/plain"), ("Content-Length", str(len(body)))])
        return [body]
    if kind == "upload":
        environ["wsgi.input"].read(int(environ["CONTENT_LENGTH"]))
    elif kind == "sleep":
        time.sleep(SLEEP)
    elif kind == "wait":
        time.sleep(WAIT)
    elif kind == "burn":
        end = time.thread_time() + BURN
        while time.thread_time() < end:
            pass
    start_response("200 OK", FIELDS)
    return BODY
