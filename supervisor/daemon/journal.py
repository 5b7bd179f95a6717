"""What happened: every event goes to the log, to the newest ones kept for the API, and to subscribers."""

import asyncio
import time
from collections import deque
from typing import Any

from supervisor.control.views import EventView
from supervisor.logs.setup import Logger

_KEPT = 200
_SUBSCRIBER_LIMIT = 256


class JournalSubscription:
    """One reader of events; one that lags loses the oldest and goes on."""

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
        shown = {key: value for key, value in fields.items() if value is not None}
        event = EventView(self._newest, time.time(), name, shown)
        self.recent.append(event)
        for subscriber in self.subscribers:
            subscriber.put(event)

    def subscribe(self) -> JournalSubscription:
        subscription = JournalSubscription(self)
        self.subscribers.add(subscription)
        return subscription
