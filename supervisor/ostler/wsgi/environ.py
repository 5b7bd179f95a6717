"""The environ of a request (PEP 3333, with RFC 3875's names).

What is the same for all requests of a worker, a listener or a connection is made once and copied. Most
clients repeat their header fields byte for byte on a connection, so the variables of a head are reused, too:
a request then adds only those of its request line.
"""

import os
import sys
from io import BytesIO
from typing import Any, cast

from ostler import native
from ostler.http1.head import CHUNKED
from ostler.http1.request import Head, Request
from ostler.wsgi.body import BufferedBody, StreamedBody
from ostler.wsgi.file_wrapper import BlockWrapper, FileWrapper

Environ = dict[str, Any]

_REMEMBERED = 1024
# Names that are not HTTP_*; None for fields that the app does not get. The transfer coding is removed
# already.
_SPECIAL: dict[bytes, str | None] = {
    b"content-type": "CONTENT_TYPE",
    b"content-length": "CONTENT_LENGTH",
    b"transfer-encoding": None,
    # httpoxy (CVE-2016-5385): HTTP_PROXY has another meaning for programs that an app may start.
    b"proxy": None,
}
_NativeRequest: Any = native.module.Request if native.module is not None else None
# Variables by header name as sent.
_names: dict[bytes, str | None] = {}


def worker_environ(
    multithread: bool, sendfile: bool = True, errors: Any = None, root_path: str = ""
) -> Environ:
    """The variables that all requests of a worker share.

    root_path: where the app is mounted, unless the environment or a proxy sets SCRIPT_NAME.
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
    """The variables that all requests of a listener share; `address` is its getsockname().

    A Unix socket has no port: SERVER_PORT is empty, and SERVER_NAME its path, as in gunicorn. `head_environ`
    replaces both by what `Host` says.
    """
    if isinstance(address, tuple):
        # An IPv6 socket names an IPv4 address that a client has reached by the prefix of RFC 4291, 2.5.5.2.
        host = address[0].removeprefix("::ffff:")
        host = f"[{host}]" if ":" in host else host  # RFC 3875 section 4.1.14
        return shared | {"SERVER_NAME": host, "SERVER_PORT": str(address[1])}
    name = os.fsencode(address).decode("latin-1")
    # An abstract one (unix(7)) begins with NUL, for which tools write @.
    return shared | {"SERVER_NAME": name.replace("\0", "@"), "SERVER_PORT": ""}


def host_and_port(host: str, https: bool) -> tuple[str, str] | None:
    """What a client calls the server, and the port that it means.

    Args:
        host: the field Host; IPv6 addresses are in brackets, also in the result.
        https: the client uses https, so that 443 is meant where no port is given, not 80.

    Returns:
        None if there is no name.
    """
    name, colon, port = host.rpartition(":")
    if not colon or (port and not (port.isdecimal() and len(port) <= 5)):
        name, port = host, ""  # the last colon is one of an IPv6 address, or there is none
    return (name, port or ("443" if https else "80")) if name else None


def head_environ(listener: Environ, peer: Any, peer_info: Environ, head: Head, mountable: bool) -> Environ:
    """The variables that all requests of a connection with the same header fields share.

    Args:
        listener: a result of `listener_environ`.
        peer: the client's getpeername().
        peer_info: more variables for the connection: of TLS, of the client behind a proxy.
        head: of one of its requests.
        mountable: the client is a trusted proxy, which may set where the app is mounted by the field
            SCRIPT_NAME.
    """
    environ = listener.copy()
    if isinstance(peer, tuple):
        environ["REMOTE_ADDR"] = peer[0]
        environ["REMOTE_PORT"] = str(peer[1])
    else:
        environ["REMOTE_ADDR"] = ""
    environ.update(peer_info)
    if head.https:
        environ["wsgi.url_scheme"] = "https"
    # Keys for what differs between requests, so that setting them does not make the dict grow.
    environ["REQUEST_METHOD"] = environ["RAW_URI"] = environ["PATH_INFO"] = environ["QUERY_STRING"] = ""
    environ["SERVER_PROTOCOL"] = environ["wsgi.input"] = ""
    seen: set[str] = set()
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
        if key in seen:
            # RFC 9110 section 5.3; cookies are the exception (RFC 6265 section 5.4).
            text = f"{environ[key]}{'; ' if key == 'HTTP_COOKIE' else ','}{text}"
        seen.add(key)
        environ[key] = text
    if not environ["SERVER_PORT"] and "HTTP_HOST" in seen:
        https = environ["wsgi.url_scheme"] == "https"
        if (server := host_and_port(environ["HTTP_HOST"], https)) is not None:
            environ["SERVER_NAME"], environ["SERVER_PORT"] = server
    return environ


NO_FIELDS = Head(b"", [], False, True, 0, False, True)
"""Stands for the heads of all requests that the C extension has recognized; see `head_of_template`."""


def head_of_template(request: Request) -> Head:
    """The head for which `head_environ` is to make what `request_environ` needs for this request."""
    return NO_FIELDS if type(request) is _NativeRequest else request.head


def request_environ(template: Environ, request: Request) -> Environ:
    """The complete environ of one request.

    template: the result of `head_environ` for its `head_of_template`.
    """
    if type(request) is _NativeRequest:
        environ: Environ = request.environ(template)  # type: ignore[attr-defined]
        return environ
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
        environ["wsgi.input"] = cast("BufferedBody | StreamedBody", body).input()
        if (length := request.head.length) != CHUNKED:
            environ["CONTENT_LENGTH"] = str(length)
        elif type(body) is BufferedBody:
            # So Django and Bottle, which read by CONTENT_LENGTH alone, get chunked bodies too. One that is
            # streamed has none, also if all of it has come already: that is a matter of timing, on which no
            # app may depend. It ends where `wsgi.input` ends, which `wsgi.input_terminated` says.
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
