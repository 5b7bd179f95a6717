"""The peers of the control plane's connections, and how much of the event loop each may use."""

import os
import socket
import time
from collections.abc import Iterator
from contextlib import contextmanager

from ostler.osapi.peers import PeerGone, TcpPeers, unix_peer
from ostler.token_bucket import TokenBucket

OTHER_USER = 0.05, 0.1
OTHER_USERS = 0.1, 0.15
TRUSTED = 0.1, 0.2
"""Rate and burst of allowances.

One other user, all other users together, the daemon's user and root over TCP.
"""
UNKNOWN_SHARE = 0.1
"""The part of another user's allowance for each connection of an unknown user."""


class Peer:
    """All connections of one uid at one listener; with an unknown uid, a single connection.

    uid: None if unknown; trusted: the daemon's own user, or root; allowances: all of them must permit work.
    """

    def __init__(self, uid: int | None, trusted: bool, *allowances: TokenBucket) -> None:
        self.uid = uid
        self.trusted = trusted
        self._allowances = allowances

    def __str__(self) -> str:
        return "unknown uid" if self.uid is None else f"uid {self.uid}"

    @contextmanager
    def measured(self) -> Iterator[None]:
        """Measure the CPU time of the context, which must not wait, and count it."""
        before = time.thread_time()
        try:
            yield
        finally:
            self.use(time.thread_time() - before)

    def use(self, seconds: float) -> None:
        """Count seconds of the loop that were used for this peer."""
        now = time.monotonic()
        for allowance in self._allowances:
            allowance.use(seconds, now)

    def wait(self) -> float:
        """Seconds until more work for this peer is permitted."""
        now = time.monotonic()
        return max((allowance.wait(now) for allowance in self._allowances), default=0.0)

    def is_idle(self) -> bool:
        now = time.monotonic()
        return all(allowance.is_full(now) for allowance in self._allowances)


class PeerTable:
    """Finds the peer of a new connection."""

    def __init__(self, family: int) -> None:
        self._unix = family == socket.AF_UNIX
        self._tcp: TcpPeers | None = None
        self._trusted = {0, os.geteuid()}
        self._known: dict[int, Peer] = {}
        self._all_others = TokenBucket(*OTHER_USERS, time.monotonic())
        if not self._unix:
            try:
                self._tcp = TcpPeers()
            except OSError:
                pass  # without sock_diag all users are unknown

    def find(self, sock: socket.socket) -> Peer:
        """The peer of a connection; raises PeerGone."""
        if self._unix:
            try:
                uid: int | None = unix_peer(sock).uid
            except OSError as error:
                raise PeerGone from error
        else:
            uid = self._tcp.uid(sock) if self._tcp is not None else None
        now = time.monotonic()
        if uid is None:
            rate, burst = OTHER_USER
            share = TokenBucket(rate * UNKNOWN_SHARE, burst * UNKNOWN_SHARE, now)
            return Peer(None, False, share, self._all_others)
        if uid not in self._known:
            self._known[uid] = self._make(uid, now)
        return self._known[uid]

    def _make(self, uid: int, now: float) -> Peer:
        if uid not in self._trusted:
            return Peer(uid, False, TokenBucket(*OTHER_USER, now), self._all_others)
        # Over TCP a proxy of the same user may forward requests of others.
        return Peer(uid, True) if self._unix else Peer(uid, True, TokenBucket(*TRUSTED, now))

    def remove_unused(self, used: set[int | None]) -> None:
        """Remove idle peers whose uid is not in `used`."""
        gone = [uid for uid, peer in self._known.items() if uid not in used and peer.is_idle()]
        for uid in gone:
            del self._known[uid]

    def close(self) -> None:
        if self._tcp is not None:
            self._tcp.close()
