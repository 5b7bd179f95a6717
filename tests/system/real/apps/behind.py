"""What an app behind a proxy sees: the client, the connection, and a body's digest."""

import hashlib
import json
import os
import time
from pathlib import Path

VERSION = "one"


def app(environ, start_response):
    path = environ["PATH_INFO"]
    if path == "/slowly":
        start_response("200 OK", [("Content-Type", "text/plain")])
        return slowly()
    if path == "/large":
        body = b"0123456789abcdef" * 250_000
    elif environ["REQUEST_METHOD"] in ("POST", "PUT"):
        digest = hashlib.sha256()
        while chunk := environ["wsgi.input"].read(50_000):
            digest.update(chunk)
        body = digest.hexdigest().encode()
    elif path == "/environ":
        names = ("REMOTE_ADDR", "REMOTE_PORT", "wsgi.url_scheme", "HTTP_X_FORWARDED_FOR", "HTTP_CONNECTION")
        shown = {name: environ.get(name, "") for name in names}
        body = json.dumps(shown | {"pid": os.getpid()}).encode()
    else:
        body = VERSION.encode()
    start_response("200 OK", [("Content-Type", "text/plain"), ("Content-Length", str(len(body)))])
    return [body]


def slowly():
    """A first part, and a second one when the file `second.open` appears in the daemon's folder."""
    yield b"first"
    while not Path("second.open").exists():
        time.sleep(0.005)
    yield b"second"
