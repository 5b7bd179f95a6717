"""Finds the daemon that `ctl` is to use, and defines the options that choose it.

The command line takes precedence over the environment. Without either it must be the only running daemon.
"""

import os
import pwd
from collections.abc import Callable, Collection
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import click

from ostler.cli import output
from ostler.control.client import Client, Discovery, UntrustedServerError, discover
from ostler.control.sockets import UntrustedFolder, trusted_owners
from ostler.errors import OstlerError
from ostler.osapi.peers import account_name

Command = TypeVar("Command", bound=Callable[..., object])

_MOST_SHOWN = 5


class AmbiguousTarget(OstlerError):
    """More than one daemon is running; each of `known` is a line that describes one."""

    def __init__(self, message: str, known: list[str]) -> None:
        super().__init__(message)
        self.known = known


@dataclass(slots=True)
class Target:
    """The daemon to use, and how answers are shown. Options before and after a command's name both set it."""

    socket: str | None = None
    name: str | None = None
    url: str | None = None
    owner: str | None = None
    json: bool = False

    def client(self) -> Client:
        """The one daemon that is meant; closed when the command ends.

        The command line counts more than the environment. Raises OstlerError if there is none, or it is
        not clear which.
        """
        client = self._connect()
        click.get_current_context().call_on_close(client.close)
        return client

    def _connect(self) -> Client:
        socket, url = self.socket, self.url
        if not (socket or url or self.name):
            socket, url = os.environ.get("OSTLER_SOCKET"), os.environ.get("OSTLER_URL")
        owner = _uid(self.owner or os.environ.get("OSTLER_OWNER"))
        if socket:
            path = Path(socket)
            return Client.unix(path, judge=SocketOwner(path, owner))
        if url:
            token = os.environ.get("OSTLER_TOKEN")
            if not token:
                raise OstlerError("set OSTLER_TOKEN to the daemon's bearer token")
            if not (token.isascii() and token.isprintable()) or " " in token:
                raise OstlerError(
                    "OSTLER_TOKEN is no bearer token: that has only printable ASCII characters and no spaces"
                )
            return Client.tcp(url, token, trusted=_trusted(owner))
        return _the_one(discover(), self.name)


class SocketOwner:
    """Checks the account of the process that serves a control socket which the user has named.

    Any account is accepted, with a warning if it is not the caller's or root's. There is no warning for the
    account that root has given the socket's folder to, which mostly is a service's.

    Args:
        path: the socket's; owner: the uid that --owner names, or None.
    """

    def __init__(self, path: Path, owner: int | None) -> None:
        self._path = path
        self._owner = owner

    def __call__(self, uid: int) -> None:
        """Raises UntrustedServerError."""
        if uid in _trusted(self._owner) or (self._owner is None and uid in self._of_folder()):
            return
        served = f"{self._path} is served by a process of {account_name(uid)}"
        if self._owner is not None:
            raise UntrustedServerError(
                f"{served}, not of {account_name(self._owner)}; nothing was sent to it"
            )
        output.print_problem(f"ctl: warning: {served}, not yours or root's (--owner USER accepts it)")
        self._owner = uid  # the only one accepted from now on

    def _of_folder(self) -> Collection[int]:
        try:
            return trusted_owners(self._path.absolute().parent)
        except (UntrustedFolder, OSError):
            return ()


def _trusted(owner: int | None) -> set[int]:
    return {0, os.geteuid()} if owner is None else {0, os.geteuid(), owner}


def _uid(user: str | None) -> int | None:
    """The number of a user by name or number. Raises OstlerError if there is no such user."""
    if not user:
        return None
    try:
        return pwd.getpwnam(user).pw_uid
    except (KeyError, ValueError):
        if user.isascii() and user.isdecimal() and len(user) < 11:
            return int(user)
        raise OstlerError(f"--owner: there is no user {user!r}") from None


def _the_one(discovery: Discovery, name: str | None) -> Client:
    for problem in discovery.untrusted[:_MOST_SHOWN]:
        output.print_problem(f"ctl: warning: {problem}; it is not used")
    found = [one for one in discovery.found if name is None or name in (one.status.name, one.path.stem)]
    # One that does not answer may be the one that is meant.
    silent = [path for path in discovery.silent if name is None or not found]
    if silent:
        others = "; choose another one with --socket" if found else ""
        raise OstlerError(f"the Ostler at {silent[0]} does not answer{others}")
    if len(found) == 1:
        return found[0].client()
    if found:
        known = [
            f"{one.status.name}: pid {one.status.pid}, {one.status.app}, "
            f"{', '.join(one.status.listeners) or 'no listener'}, --socket {one.path}"
            for one in found
        ]
        option = "--name" if len({one.status.name for one in found}) == len(found) else "--socket"
        raise AmbiguousTarget(f"{len(found)} instances run; choose one with {option}", known)
    if name is not None and discovery.found:
        names = ", ".join(sorted(one.status.name for one in discovery.found))
        raise OstlerError(f"no instance is named {name!r}; there is {names}")
    if discovery.denied:
        raise OstlerError(
            f"another user's instance may be at {discovery.denied[0]}: try as that user or root"
        )
    folders = ", ".join(map(str, discovery.looked_in))
    raise OstlerError(
        f"no running Ostler found in {folders}; start one with `ostler MODULE:APP`, or give --socket PATH"
    )


def _remember(context: click.Context, parameter: click.Parameter, value: object) -> None:
    if value and parameter.name:
        setattr(context.ensure_object(Target), parameter.name, value)


def with_target(command: Command) -> Command:
    """Options that are understood before and after the command's name."""
    for decorate in (
        _option("--json", is_flag=True, help="Print the API's own JSON."),
        _option(
            "--owner",
            metavar="USER",
            help="With --url or --socket: the daemon's user, if neither you nor root. [OSTLER_OWNER]",
        ),
        _option(
            "--url",
            metavar="URL",
            help="Use TCP, e.g. http://127.0.0.1:9000, with OSTLER_TOKEN. [OSTLER_URL]",
        ),
        _option("--name", metavar="NAME", help="The instance of this name."),
        _option("--socket", metavar="PATH", help="The instance with this control socket. [OSTLER_SOCKET]"),
    ):
        command = decorate(command)
    return command


def with_waiting(command: Command) -> Command:
    """Options of commands that ask for something and wait for the outcome."""
    command = click.option("--no-wait", is_flag=True, help="Only ask; do not wait for the outcome.")(command)
    return with_timeout(command)


def with_timeout(command: Command) -> Command:
    return click.option(
        "--timeout",
        type=click.FloatRange(min=0, min_open=True),
        default=120.0,
        show_default=True,
        metavar="SECONDS",
        help="How long to wait for the outcome.",
    )(command)


def _option(*names: str, **settings: Any) -> Callable[[Command], Command]:
    return click.option(*names, callback=_remember, expose_value=False, **settings)


pass_target = click.make_pass_decorator(Target, ensure=True)
