"""Turns of connections: the event loop's time is shared out in small pieces.

A connection that has work gets a turn, and is queued again if work is left. There are a few turns per pass of
the loop, so that its other tasks are delayed by some milliseconds at most. Connections of trusted users come
first. A connection whose peer has used up its allowance gets its next turn when the allowance permits it.
"""

import asyncio
import time
from collections import deque
from collections.abc import Callable
from typing import Protocol

TURNS_PER_PASS = 4
SECONDS_PER_PASS = 0.003


class TakesTurns(Protocol):
    """A connection, as `Turns` uses it."""

    waits: bool
    """It is in the queue for a turn, or is going to be put there. Only `Turns` sets it."""

    @property
    def trusted(self) -> bool: ...

    @property
    def wants_turn(self) -> bool:
        """It has work for a turn."""
        ...

    def delay(self) -> float:
        """Seconds until the allowance of its peer permits a turn."""
        ...

    def take_turn(self) -> None:
        """Do a small piece of work."""
        ...


class Turns:
    """The queue for turns of one listener's connections. Called only by the event loop's thread.

    Args:
        loop: the running event loop.
        clock: monotonic seconds.
    """

    def __init__(self, loop: asyncio.AbstractEventLoop, clock: Callable[[], float] = time.monotonic) -> None:
        self._loop = loop
        self._clock = clock
        self._trusted: deque[TakesTurns] = deque()
        self._others: deque[TakesTurns] = deque()
        self._pass_due = False

    def add(self, connection: TakesTurns) -> None:
        """Queue the connection if it wants a turn and is not in the queue."""
        if connection.wants_turn and not connection.waits:
            connection.waits = True
            (self._trusted if connection.trusted else self._others).append(connection)
            self._pass_soon()

    def _pass_soon(self) -> None:
        if (self._trusted or self._others) and not self._pass_due:
            self._pass_due = True
            self._loop.call_soon(self._run)

    def _run(self) -> None:
        self._pass_due = False
        end = self._clock() + SECONDS_PER_PASS
        for _ in range(min(len(self._trusted) + len(self._others), TURNS_PER_PASS)):
            connection = (self._trusted or self._others).popleft()
            connection.waits = False
            if not connection.wants_turn:
                continue
            if delay := connection.delay():
                connection.waits = True
                self._loop.call_later(delay, self._add_again, connection)
                continue
            connection.take_turn()
            self.add(connection)
            if self._clock() > end:
                break
        self._pass_soon()

    def _add_again(self, connection: TakesTurns) -> None:
        connection.waits = False
        self.add(connection)
