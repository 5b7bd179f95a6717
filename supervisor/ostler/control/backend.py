"""The control plane's view of the daemon: handlers use this interface, the daemon's shell implements it."""

from collections.abc import Sequence
from typing import Protocol

from ostler.control.metrics import Figures
from ostler.control.views import (
    ConfigView,
    EventView,
    ExitView,
    ReloadView,
    SampleView,
    StatusView,
    WorkerView,
)
from ostler.fleet.events import Event


class Subscription(Protocol):
    """A bounded queue of events; if its reader is too slow the oldest events are dropped."""

    async def next_event(self) -> EventView:
        """Wait for the next event."""
        ...

    def close(self) -> None: ...


class Backend(Protocol):
    """The daemon's interface for handlers. All methods are called in the event loop's thread."""

    def submit(self, event: Event) -> None:
        """Send a request to the fleet; the views show its effects immediately afterwards."""
        ...

    def status(self) -> StatusView: ...

    def workers(self) -> list[WorkerView]:
        """Sorted by slot; within a slot the serving worker comes before those that are leaving."""
        ...

    def config(self) -> ConfigView: ...

    def reload(self) -> ReloadView | None:
        """The newest reload, running or ended."""
        ...

    async def reload_ended(self, generation: int) -> ReloadView:
        """Wait until the reload to `generation` is done, failed or superseded."""
        ...

    def samples(self) -> Sequence[SampleView]:
        """The last ten minutes, oldest first."""
        ...

    def subscribe(self) -> Subscription: ...

    def recent_events(self) -> Sequence[EventView]:
        """The newest events (at most 1,000), oldest first."""
        ...

    def exits(self, limit: int) -> list[ExitView]:
        """The newest ends of processes, newest first."""
        ...

    def figures(self) -> Figures:
        """The numbers for `/metrics`."""
        ...
