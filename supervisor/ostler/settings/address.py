"""Addresses that a server can listen on, in gunicorn's spelling."""

import os
from dataclasses import dataclass
from ipaddress import ip_address
from typing import Literal

# Of a descriptor's number: it is far below what a C int holds.
_MOST_DIGITS = 9


@dataclass(frozen=True, slots=True)
class Address:
    """One listening address.

    kind `tcp`: host (may be empty: all interfaces) and port; `unix`: path; `fd`: an inherited descriptor.
    """

    kind: Literal["tcp", "unix", "fd"]
    host: str = ""
    port: int = 0
    path: str = ""
    fd: int = -1

    def __str__(self) -> str:
        if self.kind == "unix":
            return f"unix:{self.path}"
        if self.kind == "fd":
            return f"fd://{self.fd}"
        host = f"[{self.host}]" if ":" in self.host else self.host
        return f"{host}:{self.port}"

    @property
    def all_interfaces(self) -> Literal[4, 6] | None:
        """The IP version if it stands for all addresses of the machine; None if it does not.

        A socket of version 6 takes IPv4 connections as well, unless it is made IPv6-only (ipv6(7)).
        """
        if self.kind != "tcp":
            return None
        try:
            address = ip_address(self.host or "0.0.0.0")  # noqa: S104 - as the user wrote it
        except ValueError:
            return None
        return address.version if address.is_unspecified else None


def parse_address(text: str) -> Address:
    """Read `HOST:PORT`, `:PORT`, `HOST`, `[V6]:PORT`, `unix:PATH` or `fd://N`.

    A host without a port gets 8000, as in gunicorn; port 0 lets the kernel choose.

    Raises:
        ValueError: its text is the problem, for the user.
    """
    for scheme in ("http://", "https://", "tcp://"):
        text = text.removeprefix(scheme)
    if text.startswith("unix:"):
        path = text.removeprefix("unix:")
        if path.startswith("//"):
            # unix:///run/app.sock and unix://app.sock, as gunicorn reads them. More slashes mean one, or the
            # path would not be the same when it is read again.
            path = path[2:]
            path = "/" + path.lstrip("/") if path.startswith("/") else path
        if not path:
            raise ValueError("expected unix:PATH, the path is empty")
        # sun_path holds 108 bytes, the closing NUL included (unix(7)); '@' is the abstract name space.
        if (size := len(os.fsencode(path))) > 107:
            raise ValueError(f"the path of a Unix socket has at most 107 bytes, got {size}")
        return Address("unix", path=path)
    if text.startswith("fd://"):
        number = text.removeprefix("fd://")
        if not number.isdecimal() or len(number) > _MOST_DIGITS:
            raise ValueError(f"expected fd://N with a descriptor's number, got {text!r}")
        return Address("fd", fd=int(number))
    if text.startswith("["):
        host, bracket, rest = text[1:].partition("]")
        if not bracket or (rest and not rest.startswith(":")):
            raise ValueError(f"expected [V6]:PORT, got {text!r}")
        return Address("tcp", host=host, port=_port(rest[1:] if rest else "8000", text))
    if text.count(":") > 1:
        raise ValueError(f"write an IPv6 address in brackets, as in [::1]:8000, got {text!r}")
    host, colon, port = text.rpartition(":")
    if not colon:
        # A bare number is a port, as in gunicorn.
        host, port = ("", text) if text.isdecimal() else (text, "8000")
    return Address("tcp", host=host, port=_port(port, text))


def _port(port: str, text: str) -> int:
    if not port.isdecimal() or int(port) > 65535:
        raise ValueError(f"expected a port from 0 to 65535 in {text!r}")
    return int(port)


def host_and_port(text: str, port: int) -> tuple[str, int]:
    """Where to send something: `HOST`, `HOST:PORT`, `[V6]:PORT` or a bare `V6`; without a port it is `port`.

    Raises:
        ValueError: its text is the problem, for the user.
    """
    if text.startswith("["):
        host, _, rest = text[1:].partition("]")
        return host, _port(rest.removeprefix(":") or str(port), text)
    if text.count(":") > 1:
        return text, port
    host, colon, given = text.partition(":")
    return host or "localhost", _port(given, text) if colon else port
