"""Listening sockets: bound here, inherited by every worker, ended when no generation names them.

The workers of a generation that does not name an address any more accept from it, too. So when its reload has
ended the socket takes no new connections, and it is shut down when none waits in it (`osapi.refusing`).

`[::]:PORT` takes IPv4 connections as well, as in gunicorn. If all IPv4 addresses (`0.0.0.0:PORT`) are bound
beside it, it is IPv6-only. Which of both a socket is can't be changed later. So where a reload adds or
removes `0.0.0.0:PORT`, and after an upgrade from a version whose `[::]` was IPv6-only, sockets are used as
they are: one that takes both versions stands for both addresses, and an IPv6-only one has a socket for IPv4
beside it.
"""

import errno
import math
import os
import socket
from collections.abc import Iterable, Iterator

import msgspec

from ostler.daemon.listening.binding import Bound, listen, send_at_once, takes_v4
from ostler.daemon.listening.unix import Access, give, hold, ids, mode_of, reason_unix
from ostler.errors import SettingError
from ostler.osapi import received, refusing
from ostler.osapi.unix_sockets import identity_of, remove_own
from ostler.settings.address import Address, parse_address


class ListenersState(msgspec.Struct, frozen=True):
    """What an upgrade in place carries.

    sockets: descriptors by key; access: see `Access`; inherited: they were handed over by systemd; files: of
    Unix sockets, device and inode.
    """

    sockets: dict[str, int]
    access: dict[str, tuple[str | None, str | None]]
    inherited: bool
    files: dict[str, tuple[int, int]] = {}


class Listeners:
    """All listening sockets, by the address that was asked for.

    Args:
        inherited: descriptors handed over by systemd (sd_listen_fds(3)); they take the place of what `bind`
            asks for, as in gunicorn.
    """

    def __init__(self, inherited: list[int]) -> None:
        self._inherited = [socket.socket(fileno=fd) for fd in inherited]
        self._sockets: dict[str, socket.socket] = {}
        self._access: dict[str, Access] = {}
        self._files: dict[str, tuple[int, int]] = {}
        # Those that take no new connections, and until when (CLOCK_MONOTONIC, s) they may be emptied.
        self._ending: dict[str, tuple[socket.socket, float]] = {}

    def snapshot(self) -> ListenersState:
        return ListenersState(
            {key: sock.fileno() for key, sock in self._sockets.items()},
            {key: (access.mode, access.owner) for key, access in self._access.items()},
            bool(self._inherited),
            self._files,
        )

    def restore(self, state: ListenersState) -> None:
        """Continue with the sockets of the program before this one."""
        self._sockets = {key: socket.socket(fileno=fd) for key, fd in state.sockets.items()}
        self._access = {key: Access(*pair) for key, pair in state.access.items()}
        self._inherited = list(self._sockets.values()) if state.inherited else []
        self._files = dict(state.files)

    def bind(
        self,
        addresses: tuple[str, ...],
        backlog: int,
        access: Access = Access(),  # noqa: B008 - frozen
        reuse_port: bool = False,
    ) -> list[str]:
        """Make sure that all `addresses` are bound; returns the keys for `fileno`, in their order.

        The keys are the addresses; `0.0.0.0:PORT` may be missing if a socket bound to `[::]:PORT` takes IPv4,
        and is added if that socket does not.

        Args:
            addresses: as in the setting `bind`.
            backlog: see listen(2).
            access: to Unix sockets. That of a socket which is bound already is changed if it differs from the
                one asked for before; what an administrator has changed by hand meanwhile stays.
            reuse_port: other programs may listen there, too (SO_REUSEPORT in socket(7)).

        Raises:
            SettingError: one can't be bound; those bound by this call are closed again.
        """
        if self._inherited:
            keys = []
            for sock in self._inherited:
                sock.setblocking(False)
                send_at_once(sock)
                key = f"fd://{sock.fileno()}"
                self._sockets[key] = sock
                keys.append(key)
            return keys
        fresh: list[str] = []
        wanted = self._wanted(addresses)
        for key, (sock, _) in [*self._ending.items()]:
            # An address that is wanted again, so soon, can't wait for others to accept.
            if key in wanted or not refusing.has_waiting(sock):
                self._shut(key)
        try:
            for text in wanted:
                if text in self._sockets:
                    self._sockets[text].listen(backlog)  # it may have changed
                    self._change_access(text, access)
                else:
                    address = parse_address(text)
                    only_v6 = address.all_interfaces == 6 and _all_v4(wanted, address.port) is not None
                    sock, file = self._listen(address, backlog, access, reuse_port, only_v6, fresh)
                    self._sockets[text] = sock
                    self._access[text] = access
                    fresh.append(text)
                    if file is not None:
                        self._files[text] = file
        except SettingError:
            for text in fresh:
                self._close(text)
            raise
        return wanted

    def _wanted(self, addresses: tuple[str, ...]) -> list[str]:
        """The keys of the sockets that serve all `addresses`."""
        wanted = list(dict.fromkeys(addresses))
        for text in tuple(wanted):
            address = parse_address(text)
            if address.all_interfaces != 6 or address.port == 0:
                continue
            named = _all_v4(wanted, address.port)
            v4 = named or _all_v4(self._sockets, address.port)
            bound = self._sockets.get(text)
            if bound is not None and takes_v4(bound):
                if named is not None and named not in self._sockets:
                    wanted.remove(named)
            elif named is None and (bound is not None or v4 is not None):
                wanted.insert(wanted.index(text) + 1, v4 or f"0.0.0.0:{address.port}")
        return wanted

    def _listen(
        self,
        address: Address,
        backlog: int,
        access: Access,
        reuse_port: bool,
        only_v6: bool,
        fresh: list[str],
    ) -> Bound:
        """As `binding.listen`; if this daemon itself has the port, the error says so.

        fresh: keys of what was bound for the same setting.
        """
        try:
            return listen(address, backlog, access, reuse_port, only_v6)
        except SettingError as error:
            why = error.__context__
            if isinstance(why, OSError) and why.errno == errno.EADDRINUSE and address.kind == "tcp":
                for key, sock in self._sockets.items():
                    name = sock.getsockname()
                    if isinstance(name, tuple) and name[1] == address.port:
                        problem = f"this daemon listens on {key}, which overlaps; a restart can change that"
                        if key in fresh:
                            problem = f"it overlaps with {key}; leave one of them out"
                            if 6 in (address.all_interfaces, parse_address(key).all_interfaces):
                                problem = f"it overlaps with {key}, as [::] takes IPv4 as well; leave one out"
                        raise SettingError("bind", f"{address}: {problem}") from None
            raise

    def _change_access(self, key: str, access: Access) -> None:
        address = parse_address(key)
        if access == self._access.get(key, access) or address.kind != "unix" or address.path.startswith("@"):
            return
        try:
            file = hold(address.path)
            try:
                if self._files.get(key) not in (None, identity_of(file)):
                    raise OSError(errno.ENOTSOCK, "it was replaced by another socket")
                give(file, mode_of(access), *ids(access.owner))
            finally:
                os.close(file)
        except OSError as error:
            raise SettingError("bind", f"{key}: {reason_unix(error, access)}") from None
        self._access[key] = access

    # -- the end of the daemon -----------------------------------------------------------------------------

    def _own(self) -> Iterator[tuple[str, socket.socket]]:
        """Those that were bound here. The others are also of the program that handed them over, systemd or a
        parent: what waits there is for whatever accepts next, and it must stay open."""
        return ((key, sock) for key, sock in self._sockets.items() if parse_address(key).kind != "fd")

    def refuse_new(self) -> None:
        """Take no new connections; workers accept those that wait."""
        for key, sock in self._own():
            self._remove_file(key)
            refusing.refuse_new(sock)

    def shut_empty(self) -> bool:
        """Shut those down in which no connection waits; whether all are shut. Their ports are free then."""
        left = [sock for _, sock in self._own()]
        for sock in left:
            if not refusing.has_waiting(sock):
                refusing.shut(sock)
        return all(refusing.is_shut(sock.fileno()) for sock in left)

    def close_all(self) -> None:
        """Close all; no process that still has one of our own keeps it open."""
        self.keep_only(set(), 0.0)
        self.shut_ended(math.inf)

    # ------------------------------------------------------------------------------------------------------

    def fileno(self, key: str) -> int:
        return self._sockets[key].fileno()

    def urls(self, keys: list[str], scheme: str = "http") -> list[str]:
        """The addresses as they are really bound, for people. scheme: of TCP sockets."""
        return [_url(self._sockets[key], scheme) for key in keys if key in self._sockets]

    def sockets(self, keys: list[str]) -> list[socket.socket]:
        """In the order of `urls`."""
        return [self._sockets[key] for key in keys if key in self._sockets]

    def others(self, keys: list[str]) -> list[str]:
        """Keys of our own sockets that are not among `keys`; as many as one message can carry with these."""
        return [key for key, _ in self._own() if key not in keys][: max(0, received.MOST - 2 - len(keys))]

    def keep_only(self, keys: set[str], deadline: float) -> list[str]:
        """End all others; returns their keys.

        deadline: when those are shut down in which connections still wait (CLOCK_MONOTONIC, s).
        """
        own = {key for key, _ in self._own()}
        gone = [key for key in self._sockets if key not in keys]
        for key in gone:
            if key in own:
                self._refuse(key, deadline)
            else:
                self._close(key)
        return gone

    def shut_ended(self, now: float) -> None:
        """Shut down those that `keep_only` has ended, if none waits in them or they had their time."""
        for key, (sock, deadline) in [*self._ending.items()]:
            if now >= deadline or not refusing.has_waiting(sock):
                self._shut(key)

    def _refuse(self, key: str, deadline: float) -> None:
        """Take no new connections at one of our own, which no generation names any more."""
        self._remove_file(key)
        self._access.pop(key, None)
        sock = self._sockets.pop(key)
        refusing.refuse_new(sock)
        self._ending[key] = sock, deadline

    def _shut(self, key: str) -> None:
        sock, _ = self._ending.pop(key)
        refusing.shut(sock)
        sock.close()

    def _close(self, key: str) -> None:
        self._remove_file(key)
        self._access.pop(key, None)
        self._sockets.pop(key).close()

    def _remove_file(self, key: str) -> None:
        file = self._files.pop(key, None)
        if file is not None:
            remove_own(self._sockets[key].getsockname(), file)


def _all_v4(keys: Iterable[str], port: int) -> str | None:
    """The key among `keys` that stands for all IPv4 addresses with this port."""
    if port == 0:
        return None  # the kernel chooses another one for each
    for key in keys:
        address = parse_address(key)
        if address.all_interfaces == 4 and address.port == port:
            return key
    return None


def _url(sock: socket.socket, scheme: str) -> str:
    name = sock.getsockname()
    if isinstance(name, tuple):
        host = f"[{name[0]}]" if sock.family == socket.AF_INET6 else name[0]
        return f"{scheme}://{host}:{name[1]}"
    return f"unix:{name if isinstance(name, str) else name.decode()}"
