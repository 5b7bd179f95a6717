"""The environ of a request (PEP 3333, with RFC 3875's names).

What is the same for all requests of a worker, a listener or a connection is put together once and copied.
Most clients repeat their header fields byte for byte on a connection, so that goes for those, too: a request
then adds only what its first line says.
"""

import os
import sys
from io import BytesIO
from typing import IO, Any, cast

from ostler.http1.request import Head, Request
from ostler.wsgi.body import Body, StreamedBody

Environ = dict[str, Any]

_REMEMBERED = 1024
# Names that are not HTTP_*; None for what never reaches an app. The coding of a request is undone by then.
_SPECIAL: dict[bytes, str | None] = {
    b"content-type": "CONTENT_TYPE",
    b"content-length": "CONTENT_LENGTH",
    b"transfer-encoding": None,
    # httpoxy (CVE-2016-5385): HTTP_PROXY means something else to programs that an app may start.
    b"proxy": None,
}
# Header names are translated once and remembered.
_names: dict[bytes, str | None] = {}


class FileWrapper:
    """`wsgi.file_wrapper`: yields a file's blocks, and closes it; the kernel sends real files instead."""

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


class BlockWrapper(FileWrapper):
    """The same without the kernel's help (setting `sendfile`)."""


def worker_environ(
    multithread: bool, sendfile: bool = True, errors: Any = None, root_path: str = ""
) -> Environ:
    """What all requests of a worker share.

    root_path: where the app is mounted, if neither the environment nor a proxy says so.
    """
    mount = os.environ.get("SCRIPT_NAME", "") or (root_path and f"/{root_path.strip('/')}")
    return {
        "wsgi.version": (1, 0),
        "wsgi.url_scheme": "http",
        "wsgi.errors": errors or sys.stderr,
        "wsgi.multithread": multithread,
        "wsgi.multiprocess": True,
        "wsgi.run_once": False,
        "wsgi.input_terminated": True,
        "wsgi.file_wrapper": FileWrapper if sendfile else BlockWrapper,
        "SERVER_SOFTWARE": "ostler",
        "SCRIPT_NAME": os.fsencode(mount).decode("latin-1").rstrip("/"),
    }


def listener_environ(shared: Environ, address: Any) -> Environ:
    """What all requests of a listener share; `address` is its getsockname()."""
    if isinstance(address, tuple):
        host = f"[{address[0]}]" if ":" in address[0] else address[0]  # RFC 3875 section 4.1.14
        return shared | {"SERVER_NAME": host, "SERVER_PORT": str(address[1])}
    return shared | {"SERVER_NAME": "localhost", "SERVER_PORT": "80"}


def head_environ(listener: Environ, peer: Any, facts: Environ, head: Head, mountable: bool) -> Environ:
    """What all requests of a connection with the same header fields share.

    Args:
        listener: of `listener_environ`.
        peer: the client's getpeername().
        facts: what else is known of the connection: TLS, the client behind a proxy.
        head: of one of its requests.
        mountable: the client is a proxy that may say where the app is mounted, by the field SCRIPT_NAME.
    """
    environ = listener.copy()
    if isinstance(peer, tuple):
        environ["REMOTE_ADDR"] = peer[0]
        environ["REMOTE_PORT"] = str(peer[1])
    else:
        environ["REMOTE_ADDR"] = ""
    environ.update(facts)
    if head.https:
        environ["wsgi.url_scheme"] = "https"
    # Places for what differs, so that filling them in does not make the dict grow.
    environ["REQUEST_METHOD"] = environ["RAW_URI"] = environ["PATH_INFO"] = environ["QUERY_STRING"] = ""
    environ["SERVER_PROTOCOL"] = environ["wsgi.input"] = ""
    came: set[str] = set()
    for name, value in head.headers:
        try:
            key = _names[name]
        except KeyError:
            key = _translate(name)
        if key is None:
            continue
        if mountable and key == "HTTP_SCRIPT_NAME" and name.lower() == b"script_name":
            environ["SCRIPT_NAME"] = value.decode("latin-1").rstrip("/")
            continue
        text = value.decode("latin-1")
        if key in came:
            # RFC 9110 section 5.3; cookies are the exception (RFC 6265 section 5.4).
            text = f"{environ[key]}{'; ' if key == 'HTTP_COOKIE' else ','}{text}"
        came.add(key)
        environ[key] = text
    return environ


def request_environ(template: Environ, request: Request) -> Environ:
    """The whole environ of one request; `template` is of `head_environ` for its head."""
    environ = template.copy()
    line = request.line
    environ["REQUEST_METHOD"] = line.method
    environ["RAW_URI"] = line.raw_uri
    environ["PATH_INFO"] = line.path
    environ["QUERY_STRING"] = line.query
    environ["SERVER_PROTOCOL"] = line.protocol
    if not line.ordinary and line.authority is not None:
        environ["HTTP_HOST"] = line.authority.decode("latin-1")
    body = request.body
    if body is None:
        environ["wsgi.input"] = BytesIO()
    else:
        environ["wsgi.input"] = cast("Body | StreamedBody", body).input()
        if request.complete:
            environ["CONTENT_LENGTH"] = str(request.length)
    if mount := environ["SCRIPT_NAME"]:
        path = line.path
        if path == mount or path.startswith(f"{mount}/"):
            environ["PATH_INFO"] = path[len(mount) :]
    return environ


def _translate(name: bytes) -> str | None:
    variable = "HTTP_" + name.decode("latin-1").upper().replace("-", "_")
    key = _SPECIAL.get(name.lower(), variable)
    if len(_names) >= _REMEMBERED:
        _names.clear()
    _names[name] = key
    return key
