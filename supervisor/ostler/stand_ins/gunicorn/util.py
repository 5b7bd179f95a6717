"""Functions of gunicorn's that other code uses."""

import email.utils
import fcntl
import ipaddress
import os
import sys
import time
from typing import Any

from ostler.osapi.process import set_title
from ostler.settings.address import parse_address as _parse
from ostler.workers.load_errors import AppLoadError
from ostler.workers.loader import load_app

from .errors import AppImportError


def import_app(module: str) -> Any:
    """The app MODULE:NAME. Raises AppImportError."""
    try:
        return load_app(module)
    except AppLoadError as error:
        raise AppImportError(error.reason) from error


def parse_address(netloc: str, default_port: str = "8000") -> Any:
    """(host, port), or the path of a Unix socket, or the number of a descriptor."""
    address = _parse(netloc if ":" in netloc or netloc.startswith("/") else f"{netloc}:{default_port}")
    if address.kind == "tcp":
        return address.host, address.port
    return address.path if address.kind == "unix" else address.fd


def is_ipv6(addr: str) -> bool:
    try:
        return ipaddress.ip_address(addr).version == 6
    except ValueError:
        return False


def _setproctitle(title: str) -> None:
    set_title(f"gunicorn: {title}")


def getcwd() -> str:
    return os.environ.get("PWD") or os.getcwd()  # noqa: PTH109 - as its name says


def http_date(timestamp: float | None = None) -> str:
    return email.utils.formatdate(time.time() if timestamp is None else timestamp, usegmt=True)


def to_bytestring(value: str | bytes, encoding: str = "utf8") -> bytes:
    return value if isinstance(value, bytes) else value.encode(encoding)


def bytes_to_str(value: str | bytes) -> str:
    return value if isinstance(value, str) else value.decode("latin1")


def close_on_exec(fd: int) -> None:
    os.set_inheritable(fd, False)


def set_non_blocking(fd: int) -> None:
    fcntl.fcntl(fd, fcntl.F_SETFL, fcntl.fcntl(fd, fcntl.F_GETFL) | os.O_NONBLOCK)


def warn(msg: str) -> None:
    print(f"WARNING: {msg}", file=sys.stderr)
