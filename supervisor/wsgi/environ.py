"""The environ of a request (PEP 3333, with RFC 3875's names).

What is the same for all requests of a worker, a listener or a connection is put together once and copied;
header names are translated once and remembered.
"""

import sys
from io import BytesIO
from typing import IO, Any, cast
from urllib.parse import unquote_to_bytes

from supervisor.http1.request import Request

Environ = dict[str, Any]

_REMEMBERED = 1024
# Names that are not HTTP_*; None for what never reaches an app. A request is received whole, so its coding
# is undone by then and CONTENT_LENGTH tells the true length.
_names: dict[bytes, str | None] = {}
_SPECIAL: dict[bytes, str | None] = {
    b"content-type": "CONTENT_TYPE",
    b"content-length": None,
    b"transfer-encoding": None,
    # httpoxy (CVE-2016-5385): HTTP_PROXY means something else to programs that an app may start.
    b"proxy": None,
}


class FileWrapper:
    """`wsgi.file_wrapper`: yields a file's blocks, and closes it."""

    def __init__(self, file: IO[bytes], block_size: int = 64 * 1024) -> None:
        self.file = file
        self.block_size = block_size
        if hasattr(file, "close"):
            self.close = file.close

    def __iter__(self) -> "FileWrapper":
        return self

    def __next__(self) -> bytes:
        if data := self.file.read(self.block_size):
            return data
        raise StopIteration


def worker_environ(multithread: bool, errors: Any = None) -> Environ:
    """What all requests of a worker share."""
    return {
        "wsgi.version": (1, 0),
        "wsgi.url_scheme": "http",
        "wsgi.errors": errors or sys.stderr,
        "wsgi.multithread": multithread,
        "wsgi.multiprocess": True,
        "wsgi.run_once": False,
        "wsgi.input_terminated": True,
        "wsgi.file_wrapper": FileWrapper,
        "SERVER_SOFTWARE": "ostler",
        "SCRIPT_NAME": "",
    }


def listener_environ(shared: Environ, address: Any) -> Environ:
    """What all requests of a listener share; `address` is its getsockname()."""
    if isinstance(address, tuple):
        return shared | {"SERVER_NAME": address[0], "SERVER_PORT": str(address[1])}
    return shared | {"SERVER_NAME": "localhost", "SERVER_PORT": "80"}


def connection_environ(listener: Environ, peer: Any) -> Environ:
    """What all requests of a connection share; `peer` is its getpeername()."""
    if isinstance(peer, tuple):
        return listener | {"REMOTE_ADDR": peer[0], "REMOTE_PORT": str(peer[1])}
    return listener | {"REMOTE_ADDR": ""}


def request_environ(connection: Environ, request: Request) -> Environ:
    """The whole environ of one request."""
    environ = connection.copy()
    target = request.target
    environ["REQUEST_METHOD"] = request.method
    environ["SERVER_PROTOCOL"] = request.protocol
    environ["RAW_URI"] = raw = target.decode("latin-1")
    if target[:1] != b"/":
        target = _origin_form(target)
        raw = target.decode("latin-1")
    path, _, environ["QUERY_STRING"] = raw.partition("?")
    if "%" in path:
        path = unquote_to_bytes(path.encode("latin-1")).decode("latin-1")
    environ["PATH_INFO"] = path
    body = request.body
    if body is None:
        environ["wsgi.input"] = BytesIO()
    else:
        file = cast("BytesIO", body)
        file.seek(0)
        environ["wsgi.input"] = file
        environ["CONTENT_LENGTH"] = str(request.length)
    for name, value in request.headers:
        try:
            key = _names[name]
        except KeyError:
            key = _translate(name)
        if key is None:
            if body is None and name.lower() == b"content-length":
                environ["CONTENT_LENGTH"] = value.decode("latin-1")
            continue
        text = value.decode("latin-1")
        if key in environ:
            # RFC 9110 section 5.3; cookies are the exception (RFC 6265 section 5.4).
            text = f"{environ[key]}{'; ' if key == 'HTTP_COOKIE' else ','}{text}"
        environ[key] = text
    return environ


def _origin_form(target: bytes) -> bytes:
    """Path and query of a target in absolute form; `*` and others have no path (RFC 9112 section 3.2)."""
    scheme, separator, rest = target.partition(b"://")
    if not separator or scheme.lower() not in (b"http", b"https"):
        return b""
    for index, byte in enumerate(rest):
        if byte in b"/?":
            return rest[index:] if byte == b"/"[0] else b"/" + rest[index:]
    return b"/"


def _translate(name: bytes) -> str | None:
    lower = name.lower()
    if lower in _SPECIAL:
        key = _SPECIAL[lower]
    elif b"_" in name:
        # X_Forwarded_For would pass for X-Forwarded-For, which only a proxy may set.
        key = None
    else:
        key = "HTTP_" + name.decode("latin-1").upper().replace("-", "_")
    if len(_names) >= _REMEMBERED:
        _names.clear()
    _names[name] = key
    return key
