#!/usr/bin/env python3
"""Measures what a call of the app costs without any server: CPU microseconds, on standard output.

The environs are prepared once, from the requests that the servers get, and copied for each call, because no
app may find what the call before has left in it. A body is a new BytesIO for each call.
"""

import argparse
import io
import itertools
import sys
import time
from pathlib import Path
from typing import Any

import apps
import traffic

DISTINCT = 1000  # environs: each is some 5 KB


def prepare(request: bytes) -> tuple[dict[str, Any], bytes]:
    """The environ of a request, without its `wsgi.input`, and the body."""
    method, target, fields, body = traffic.parse(request)
    path, _, query = target.partition("?")
    environ = {
        "REQUEST_METHOD": method,
        "SCRIPT_NAME": "",
        "PATH_INFO": path,
        "QUERY_STRING": query,
        "SERVER_NAME": "127.0.0.1",
        "SERVER_PORT": "8000",
        "SERVER_PROTOCOL": "HTTP/1.1",
        "REMOTE_ADDR": "127.0.0.1",
        "wsgi.version": (1, 0),
        "wsgi.url_scheme": "http",
        "wsgi.errors": sys.stderr,
        "wsgi.multithread": False,
        "wsgi.multiprocess": False,
        "wsgi.run_once": False,
    }
    for name, value in fields:
        key = name.upper().replace("-", "_")
        environ[key if key in ("CONTENT_TYPE", "CONTENT_LENGTH") else "HTTP_" + key] = value
    return environ, body


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("app", metavar="MODULE:APP")
    parser.add_argument("requests", type=Path, help="a file of traffic.py")
    parser.add_argument("seconds", type=float, help="how long to measure")
    options = parser.parse_args()
    app = apps.load(options.app)
    prepared = [prepare(request) for request in traffic.read(options.requests)[:DISTINCT]]
    following = itertools.cycle(prepared)

    def start_response(status: str, fields: list[tuple[str, str]], exc_info: object = None) -> None:
        pass

    def call(times: int) -> None:
        for environ, body in itertools.islice(following, times):
            answer = app({**environ, "wsgi.input": io.BytesIO(body)}, start_response)
            for _block in answer:
                pass
            if hasattr(answer, "close"):
                answer.close()

    call(1000)  # so that one-time work is not measured
    calls, began = 0, time.process_time()
    while (took := time.process_time() - began) < options.seconds:
        call(200)
        calls += 200
    print(took / calls * 1e6)


if __name__ == "__main__":
    main()
