"""The apps under test: one that does as little as possible, the same through Flask,
and one with several paths.
"""

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


def hello(environ: dict[str, Any], start_response: Callable[..., Any]) -> Iterable[bytes]:  # noqa: ARG001
    """Answers a constant, so that only the server is measured."""
    start_response("200 OK", FIELDS)
    return BODY


def site(environ: dict[str, Any], start_response: Callable[..., Any]) -> Iterable[bytes]:
    """The constant at /, and the paths that the benchmarks of clients and threads use."""
    path = environ["PATH_INFO"]
    if path == "/big":
        start_response("200 OK", BIG_FIELDS)
        return BIG
    if path == "/mix":
        # The app draws which requests are long, so that any load generator can send them.
        long = random.random() < LONG_SHARE
        time.sleep(LONG if long else SLEEP)
        body = b"%s %d" % (b"long" if long else b"short", os.getpid())
        start_response("200 OK", [("Content-Type", "text/plain"), ("Content-Length", str(len(body)))])
        return [body]
    if path == "/upload":
        environ["wsgi.input"].read(int(environ["CONTENT_LENGTH"]))
    elif path == "/sleep":
        time.sleep(SLEEP)
    elif path == "/wait":
        time.sleep(WAIT)
    elif path == "/burn":
        end = time.thread_time() + BURN
        while time.thread_time() < end:
            pass
    start_response("200 OK", FIELDS)
    return BODY


try:
    from flask import Flask
except ImportError:
    pass
else:
    flask_json = Flask("bench")

    @flask_json.get("/")
    def greet() -> dict[str, str]:
        return {"message": "Hello"}
