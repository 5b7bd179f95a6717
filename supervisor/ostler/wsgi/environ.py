"""The environ of a request (PEP 3333, with RFC 3875's names).

What is the same for all requests of a worker, a listener or a connection is made once and copied. A client
may repeat its header fields byte for byte on a connection; then their variables are reused, too.
"""

import os
import sys
from io import BytesIO
from typing import Any, cast

from ostler import native
from ostler.http1.head import CHUNKED
from ostler.http1.request import Request
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


def connection_environ(listener: Environ, peer: Any, peer_info: Environ) -> Environ:
    """The variables that all requests of a connection share.

    Args:
        listener: a result of `listener_environ`.
        peer: the client's getpeername().
        peer_info: more variables for the connection: of TLS, of the client behind a proxy.
    """
    environ = listener.copy()
    if isinstance(peer, tuple):
        environ["REMOTE_ADDR"] = peer[0]
        environ["REMOTE_PORT"] = str(peer[1])
    else:
        environ["REMOTE_ADDR"] = ""
    environ.update(peer_info)
    # Keys for what differs between requests, so that setting them does not make the dict grow.
    environ["REQUEST_METHOD"] = environ["RAW_URI"] = environ["PATH_INFO"] = environ["QUERY_STRING"] = ""
    environ["SERVER_PROTOCOL"] = environ["wsgi.input"] = ""
    return environ


def request_environ(template: Environ, request: Request, mountable: bool = False) -> Environ:
    """The complete environ of one request.

    Args:
        template: a result of `connection_environ`.
        mountable: the client is a trusted proxy, which may set where the app is mounted by the field
            SCRIPT_NAME.
    """
    if type(request) is _NativeRequest:
        environ: Environ = request.environ(template)  # type: ignore[attr-defined]
        return environ
    environ = template.copy()
    line, head = request.line, request.head
    environ["REQUEST_METHOD"] = line.method
    environ["RAW_URI"] = line.raw_uri
    environ["PATH_INFO"] = line.path
    environ["QUERY_STRING"] = line.query
    environ["SERVER_PROTOCOL"] = line.protocol
    if head.https:
        environ["wsgi.url_scheme"] = "https"
    variables = head.variables
    if variables is None:
        variables = head.variables = _variables(head.headers, mountable)
    environ.update(variables)
    if not environ["SERVER_PORT"] and "HTTP_HOST" in variables:
        https = environ["wsgi.url_scheme"] == "https"
        if (server := host_and_port(variables["HTTP_HOST"], https)) is not None:
            environ["SERVER_NAME"], environ["SERVER_PORT"] = server
    if not line.ordinary and line.authority is not None:
        environ["HTTP_HOST"] = line.authority.decode("latin-1")
    body = request.body
    if body is None:
        environ["wsgi.input"] = BytesIO()
    else:
        environ["wsgi.input"] = cast("BufferedBody | StreamedBody", body).input()
        if (length := head.length) != CHUNKED:
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


def _variables(headers: list[tuple[bytes, bytes]], mountable: bool) -> dict[str, str]:
    """The variables of header fields. For `mountable` see `request_environ`."""
    found: dict[str, str] = {}
    for name, value in headers:
        try:
            key = _names[name]
        except KeyError:
            key = _translate(name)
        if key is None:
            continue
        text = value.decode("latin-1")
        if key not in found:
            found[key] = text
        else:
            # RFC 9110 section 5.3; cookies are the exception (RFC 6265 section 5.4).
            found[key] += f"{'; ' if key == 'HTTP_COOKIE' else ','}{text}"
    if mountable and "HTTP_SCRIPT_NAME" in found:
        mounts = [value for name, value in headers if name.lower() == b"script_name"]
        if mounts:
            others = [field for field in headers if field[0].lower() != b"script_name"]
            found = _variables(others, False) | {"SCRIPT_NAME": mounts[-1].decode("latin-1").rstrip("/")}
    return found


def _translate(name: bytes) -> str | None:
    variable = "HTTP_" + name.decode("latin-1").upper().replace("-", "_")
    key = _SPECIAL.get(name.lower(), variable)
    if len(_names) >= _REMEMBERED:
        _names.clear()
    _names[name] = key
    return key
