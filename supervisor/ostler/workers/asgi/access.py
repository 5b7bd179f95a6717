"""Lines of the access log for requests of ASGI apps."""

from http import HTTPStatus
from typing import Any

from ostler.logs.access import AccessLog
from ostler.workers.asgi.interface import Scope
from ostler.workers.asgi.request import AsgiRequest


def log_access(access: AccessLog, request: AsgiRequest, took: int) -> None:
    """Put a request that was answered into the access log. `took`: time in the app, in ns."""
    scope = request.scope
    target = scope.get("raw_path", b"").decode("latin-1")
    if query := scope["query_string"].decode("latin-1"):
        target = f"{target}?{query}"
    try:
        status = f"{request.status} {HTTPStatus(request.status).phrase}"
    except ValueError:
        status = str(request.status)
    try:
        headers = [(name.decode("latin-1"), value.decode("latin-1")) for name, value in request.headers]
    except (AttributeError, TypeError, ValueError):
        headers = []  # the app's are no headers, so that uvicorn has not sent them
    protocol = f"HTTP/{scope['http_version']}"
    method = scope.get("method", "GET")
    access.answered(method, target, protocol, _environ(scope), status, headers, request.sent, took)


def _environ(scope: Scope) -> dict[str, Any]:
    """The WSGI variables that an access log format may use."""
    host, port = scope.get("client") or ("", "")
    environ: dict[str, Any] = {
        "REMOTE_ADDR": host,
        "REMOTE_PORT": str(port),
        "REQUEST_METHOD": scope.get("method", "GET"),
        "SCRIPT_NAME": scope.get("root_path", ""),
        "PATH_INFO": scope["path"],
        "QUERY_STRING": scope["query_string"].decode("latin-1"),
        "SERVER_PROTOCOL": f"HTTP/{scope['http_version']}",
        "wsgi.url_scheme": scope["scheme"],
    }
    for name, value in scope["headers"]:
        key = name.decode("latin-1").upper().replace("-", "_")
        if key not in ("CONTENT_TYPE", "CONTENT_LENGTH"):
            key = f"HTTP_{key}"
        text = value.decode("latin-1")
        environ[key] = f"{environ[key]},{text}" if key in environ else text
    return environ
