"""What is to be done about once a second. Chores are independent of each other.

A chore that raises is logged and tried again later, with growing delays; the others are done as before. One
that waits (a coroutine) delays no other one, and is not started again before it has ended.
"""

import asyncio
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field

from ostler.daemon.attempts import Attempts
from ostler.daemon.retry_delay import RetryDelay


@dataclass(slots=True)
class _Chore:
    name: str
    call: Callable[[], Awaitable[None] | None]
    retry_delay: RetryDelay = field(default_factory=RetryDelay)
    task: asyncio.Task[None] | None = None


class Chores:
    """Calls chores once a second. Called only by the event loop's thread.

    Args:
        attempt: logs what they raise.
        clock: CLOCK_MONOTONIC, seconds.

    Attributes:
        rounds: how often they have been due.
    """

    def __init__(self, attempt: Attempts, clock: Callable[[], float] = time.monotonic) -> None:
        self._attempt = attempt
        self._clock = clock
        self._chores: list[_Chore] = []
        self.rounds = 0

    def add(self, name: str, call: Callable[[], Awaitable[None] | None]) -> None:
        """Add one that returns nothing, or something to wait for. name: for the log."""
        self._chores.append(_Chore(name, call))

    async def run(self) -> None:
        """Do them at each full second of the wall clock, until cancelled."""
        try:
            while True:
                await asyncio.sleep(1.0 - time.time() % 1.0)
                self.do_all()
        finally:
            for chore in self._chores:
                if chore.task is not None:
                    chore.task.cancel()

    def do_all(self) -> None:
        """Do all that do not wait for their next try."""
        self.rounds += 1
        for chore in self._chores:
            if chore.task is None and chore.retry_delay.wait(self._clock()) <= 0:
                self._do(chore)

    def _do(self, chore: _Chore) -> None:
        try:
            waiting = chore.call()
        except Exception:  # noqa: BLE001 - whatever it is, the others must be done
            self._failed(chore)
            return
        if waiting is None:
            chore.retry_delay.succeeded()
        else:
            chore.task = asyncio.ensure_future(self._finish(chore, waiting))

    async def _finish(self, chore: _Chore, waiting: Awaitable[None]) -> None:
        try:
            await waiting
        except Exception:  # noqa: BLE001 - as above
            self._failed(chore)
        else:
            chore.retry_delay.succeeded()
        finally:
            chore.task = None

    def _failed(self, chore: _Chore) -> None:
        chore.retry_delay.failed(self._clock())
        self._attempt.failed(f"failed: {chore.name}")
