#!/usr/bin/env python3
"""Measures what a call of the app costs without any server: CPU microseconds, on standard output.

Header fields are read from standard input, one per line.

The environ is prepared once and copied for each call, because no app may find what the call before has left
in it.
"""

import argparse
import io
import sys
import time
from typing import Any

import apps


def prepare(lines: list[str]) -> dict[str, Any]:
    """The environ of a GET of / with these header fields."""
    environ = {
        "REQUEST_METHOD": "GET",
        "SCRIPT_NAME": "",
        "PATH_INFO": "/",
        "QUERY_STRING": "",
        "SERVER_NAME": "127.0.0.1",
        "SERVER_PORT": "8000",
        "SERVER_PROTOCOL": "HTTP/1.1",
        "REMOTE_ADDR": "127.0.0.1",
        "HTTP_HOST": "127.0.0.1:8000",
        "wsgi.version": (1, 0),
        "wsgi.url_scheme": "http",
        "wsgi.input": io.BytesIO(),
        "wsgi.errors": sys.stderr,
        "wsgi.multithread": False,
        "wsgi.multiprocess": False,
        "wsgi.run_once": False,
    }
    for line in lines:
        name, colon, value = line.partition(": ")
        if colon:
            environ["HTTP_" + name.upper().replace("-", "_")] = value
    return environ


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("app", help="a name in apps.py")
    parser.add_argument("seconds", type=float, help="how long to measure")
    options = parser.parse_args()
    app = getattr(apps, options.app)
    environ = prepare(sys.stdin.read().splitlines())

    def start_response(status: str, fields: list[tuple[str, str]], exc_info: object = None) -> None:
        pass

    def call(times: int) -> None:
        for _ in range(times):
            answer = app(environ.copy(), start_response)
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
