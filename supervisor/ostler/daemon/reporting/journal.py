"""The journal: each event is logged, kept for the API among the newest, and sent to subscribers."""

import asyncio
import time
from collections import deque
from typing import Any

import msgspec

from ostler.control.views import EventView
from ostler.logs.setup import Logger

_KEPT = 1000
_SUBSCRIBER_LIMIT = 256
# Characters of a stack or traceback: very many of them must not fill the supervisor's memory.
_LONGEST = 8 * 1024


def shortened(text: str) -> str:
    """A text for keeping in memory: of a very long one the beginning and the end, which are most useful."""
    if len(text) <= _LONGEST:
        return text
    half = _LONGEST // 2
    return f"{text[:half]}\n... {len(text) - 2 * half} characters left out ...\n{text[-half:]}"


class JournalSubscription:
    """One reader of events. If it reads too slowly it misses the oldest ones."""

    def __init__(self, journal: "Journal") -> None:
        self._journal = journal
        self._waiting: deque[EventView] = deque(maxlen=_SUBSCRIBER_LIMIT)
        self._arrived = asyncio.Event()

    def put(self, event: EventView) -> None:
        self._waiting.append(event)
        self._arrived.set()

    async def next_event(self) -> EventView:
        while not self._waiting:
            self._arrived.clear()
            await self._arrived.wait()
        return self._waiting.popleft()

    def close(self) -> None:
        self._journal.subscribers.discard(self)


class JournalState(msgspec.Struct, frozen=True):
    """What an upgrade in place carries."""

    newest: int
    recent: list[EventView]


class Journal:
    """Records events."""

    def __init__(self, log: Logger) -> None:
        self._log = log
        self._newest = 0
        self.recent: deque[EventView] = deque(maxlen=_KEPT)
        self.subscribers: set[JournalSubscription] = set()

    def record(self, level: str, name: str, fields: dict[str, Any]) -> None:
        getattr(self._log, level)(name, **fields)
        if level == "debug":
            return
        self._newest += 1
        shown = {
            key: shortened(value) if isinstance(value, str) else value
            for key, value in fields.items()
            if value is not None
        }
        event = EventView(self._newest, time.time(), name, shown)
        self.recent.append(event)
        for subscriber in self.subscribers:
            subscriber.put(event)

    def subscribe(self) -> JournalSubscription:
        subscription = JournalSubscription(self)
        self.subscribers.add(subscription)
        return subscription

    def snapshot(self) -> JournalState:
        return JournalState(self._newest, list(self.recent))

    def restore(self, state: JournalState) -> None:
        """Continue where the program before this one stopped: its events come before ours.

        Called once. Events that were recorded already get the numbers after the other program's, so that each
        number is used once.
        """
        mine = [msgspec.structs.replace(event, id=event.id + state.newest) for event in self.recent]
        self._newest += state.newest
        self.recent = deque([*state.recent, *mine], maxlen=_KEPT)
