"""A WSGI app that imports only the standard library. Slow requests wait for a file, not for time."""

import json
import os
import sys
import threading
import time
from pathlib import Path

VERSION = "one"


def app(environ, start_response):
    path = environ["PATH_INFO"]
    if path.startswith("/gate/"):
        body = wait_at_gate(path.removeprefix("/gate/"))
    elif path == "/modules":
        body = json.dumps(sorted(sys.modules))
    elif path == "/pid":
        body = str(os.getpid())
    elif path == "/threads":
        body = str(threading.active_count())
    elif path == "/environ":
        body = json.dumps({name: value for name, value in environ.items() if isinstance(value, str)})
    elif path == "/fail":
        raise RuntimeError("the app's own mistake")
    elif path == "/raw-env":
        body = os.environ.get("FROM_OSTLER", "")
    else:
        body = VERSION
    start_response("200 OK", [("Content-Type", "text/plain")])
    return [body.encode()]


def wait_at_gate(name):
    """Stay in the app until the file NAME.open appears in the folder the daemon was started in."""
    while not Path(f"{name}.open").exists():
        time.sleep(0.005)
    return f"{name} passed"


class Holder:
    class Inner:
        app = staticmethod(app)


def make(greeting="made"):
    def made(environ, start_response):
        start_response("200 OK", [("Content-Type", "text/plain")])
        return [greeting.encode()]

    return made
