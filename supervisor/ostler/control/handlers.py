"""Handlers translate: request -> fleet event -> view.

They use the `Backend`; of HTTP they know only statuses, and of processes nothing. The method for a route has
the route's name. A route that only shows something needs no method: see `Backend.shown`.
"""

from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Generic, Protocol

from ostler.control.limits import Quota
from ostler.control.metrics import Figures, render
from ostler.control.openapi import document
from ostler.control.problems import Conflict, Invalid, NotFound
from ostler.control.readiness import FleetReadiness
from ostler.control.routes import Ask, Scope
from ostler.control.views import (
    Asked,
    EventView,
    ExitView,
    ReforkBody,
    ReloadBody,
    ReloadView,
    SampleView,
    Scale,
    StatusView,
    Stop,
    WorkerView,
)
from ostler.fleet import events
from ostler.fleet.events import Event
from ostler.fleet.policies import MAX_WORKERS

MOST_WAITING = 64
WAITING_PER_PEER = 8
"""Requests that wait for the end of a reload: in total, and of one peer that is not admin."""
EXITS_SHOWN = 100
"""The default of `limit`."""


RELOADING = ("loading", "canary", "rolling")
"""The phases of a reload that is running."""


def _always() -> bool:
    return True


@dataclass(frozen=True, slots=True)
class Caller:
    """The sender of a request, as identified by the guard."""

    identity: str
    """`unix uid 1000` or `127.0.0.1`."""
    scope: Scope
    session: str | None = None
    """The session's secret; None without a session."""
    valid: Callable[[], bool] = _always
    """Whether its credentials are still valid; checked repeatedly by long answers."""

    @property
    def peer(self) -> str:
        """The key for limits: a browser's session, else the user or address."""
        return self.session or self.identity


@dataclass(frozen=True, slots=True)
class Call(Generic[Ask]):
    """One request, checked and decoded."""

    caller: Caller
    ask: Ask
    path: Mapping[str, str] = field(default_factory=dict)
    query: Mapping[str, int] = field(default_factory=dict)

    @property
    def by(self) -> str:
        return f"api {self.caller.identity}"


@dataclass(frozen=True, slots=True)
class Answer:
    """view: the body, or None; status: None for the route's own."""

    view: object = None
    status: int | None = None
    headers: Mapping[str, str] = field(default_factory=dict)


Handler = Callable[[Call[object]], Awaitable[Answer]]


class Subscription(Protocol):
    """A bounded queue of events; if its reader is too slow the oldest events are dropped."""

    async def next_event(self) -> EventView:
        """Wait for the next event."""
        ...

    def close(self) -> None: ...


class Backend(Protocol):
    """What handlers and streams use of the daemon. All of it is called in the event loop's thread."""

    @property
    def shown(self) -> Mapping[str, Callable[[], object]]:
        """By a route's name, what makes its view: the routes that only show something (`Route.shown_by`)."""
        ...

    def submit(self, event: Event) -> None:
        """Send a request to the fleet; the views show its effects immediately afterwards."""
        ...

    def status(self) -> StatusView: ...

    def readiness(self) -> FleetReadiness:
        """Whether load balancers are to send requests. Costs far less than `status`."""
        ...

    def workers(self) -> list[WorkerView]:
        """Sorted by slot; within a slot the serving worker comes before those that are leaving."""
        ...

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


def shows(read: Callable[[], object]) -> Handler:
    """The handler of a route that only shows something."""

    async def handler(_call: Call[object]) -> Answer:
        return Answer(read())

    return handler


class FleetHandlers:
    """The routes that change the fleet, or have parameters or statuses of their own."""

    def __init__(self, backend: Backend) -> None:
        self._backend = backend
        self._waiting = Quota(
            "requests that wait for a reload", MOST_WAITING, WAITING_PER_PEER, MOST_WAITING // 4
        )

    async def healthz(self, _call: Call[None]) -> Answer:
        return Answer("ok\n")

    async def readyz(self, _call: Call[None]) -> Answer:
        found = self._backend.readiness()
        return Answer(f"{found.value}\n", 200 if found is FleetReadiness.READY else 503)

    async def openapi(self, _call: Call[None]) -> Answer:
        return Answer(document())

    async def worker(self, call: Call[None]) -> Answer:
        return Answer(self._worker(call.path["slot"]))

    async def reload_status(self, _call: Call[None]) -> Answer:
        newest = self._backend.reload()
        if newest is None:
            raise NotFound("there was no reload since the start of the daemon")
        return Answer(newest)

    async def events(self, call: Call[None]) -> Answer:
        after = call.query.get("after", 0)
        return Answer([event for event in self._backend.recent_events() if event.id > after])

    async def exits(self, call: Call[None]) -> Answer:
        return Answer(self._backend.exits(call.query.get("limit", EXITS_SHOWN)))

    async def metrics(self, _call: Call[None]) -> Answer:
        return Answer(render(self._backend.figures()))

    async def scale(self, call: Call[Scale]) -> Answer:
        ask = call.ask
        if (ask.workers is not None) + (ask.delta is not None) + ask.auto != 1:
            raise Invalid('send exactly one of "workers", "delta" and "auto"')
        if ask.workers is not None and not 1 <= ask.workers <= MAX_WORKERS:
            raise Invalid(f"workers must be from 1 to {MAX_WORKERS}, not {ask.workers}")
        before = self._backend.status()
        if ask.delta is not None and before.wanted + ask.delta > MAX_WORKERS:
            raise Invalid(f"a delta of {ask.delta:+} would exceed {MAX_WORKERS} workers")
        self._refuse_if_stopping()
        if before.state == "paused" and ask.delta is not None and ask.delta < 0:
            raise Conflict("the fleet is paused and has no workers; resume it, or set a number")
        self._backend.submit(events.ResizeAsked(by=call.by, workers=ask.workers, delta=ask.delta))
        return Answer(self._backend.status())

    async def reload(self, call: Call[ReloadBody]) -> Answer:
        self._refuse_if_stopping()
        key, trusted = call.caller.peer, call.caller.scope == "admin"
        if call.ask.wait and (refusal := self._waiting.refusal(key, trusted)) is not None:
            raise Conflict(f"{refusal}; send the request without `wait`")
        self._backend.submit(events.ReloadAsked(by=call.by))
        started = self._backend.reload()
        if started is None:
            raise Conflict("the fleet can't be reloaded now; see the daemon's log")
        if not call.ask.wait:
            return Answer(started)
        with self._waiting.one(key, trusted):
            ended = await self._backend.reload_ended(started.generation)
        return Answer(ended, 200 if ended.phase == "done" else 409)

    async def abort_reload(self, call: Call[None]) -> Answer:
        running = self._backend.reload()
        if running is None or running.phase not in RELOADING:
            raise Conflict("no reload is running")
        self._backend.submit(events.AbortReloadAsked(by=call.by))
        after = self._backend.reload()
        if after is not None and after.phase in RELOADING:
            raise Conflict("the new generation has taken over, and the old one is not kept (see --probation)")
        return Answer(after)

    async def rollback(self, call: Call[None]) -> Answer:
        self._refuse_if_stopping()
        if self._backend.status().rollback_to is None:
            raise Conflict("no older generation is kept (see --probation and --keep-generations)")
        self._backend.submit(events.RollbackAsked(by=call.by))
        return Answer(self._backend.status())

    async def recycle(self, call: Call[None]) -> Answer:
        worker = self._worker(call.path["slot"])
        self._refuse_if_stopping()
        self._backend.submit(events.RecycleAsked(by=call.by, slot=worker.slot))
        return Answer(next((now for now in self._backend.workers() if now.slot == worker.slot), worker))

    async def refork(self, call: Call[ReforkBody]) -> Answer:
        slot = call.ask.slot
        self._refuse_if_stopping()
        self._refuse_if_reloading("nothing can be reforked")
        ready = [worker.slot for worker in self._backend.workers() if worker.state == "ready"]
        if slot is not None and slot not in ready:
            raise Conflict(f"no worker is ready in slot {slot}")
        if not ready:
            raise Conflict("no worker is ready")
        return self._ask(events.ReforkAsked(by=call.by, slot=slot, force=call.ask.force))

    async def upgrade(self, call: Call[None]) -> Answer:
        self._refuse_if_stopping()
        self._refuse_if_reloading("the daemon can't be upgraded")
        return self._ask(events.UpgradeAsked(by=call.by))

    async def pause(self, call: Call[None]) -> Answer:
        return self._ask_unless_stopping(events.PauseAsked(by=call.by))

    async def drain(self, call: Call[None]) -> Answer:
        return self._ask_unless_stopping(events.DrainAsked(by=call.by))

    async def resume(self, call: Call[None]) -> Answer:
        answer = self._ask_unless_stopping(events.ResumeAsked(by=call.by))
        if self._backend.status().state in ("paused", "draining"):
            raise Conflict("the daemon is about to stop")
        return answer

    async def stop(self, call: Call[Stop]) -> Answer:
        self._backend.submit(events.StopAsked(by=call.by, how="graceful" if call.ask.graceful else "quick"))
        return Answer(self._backend.status())

    def _ask(self, event: Event) -> Answer:
        """Submit an event whose outcome is reported by later events."""
        recent = self._backend.recent_events()
        asked = Asked(recent[-1].id if recent else 0)
        self._backend.submit(event)
        return Answer(asked)

    def _ask_unless_stopping(self, event: Event) -> Answer:
        """Submit an event whose outcome the status shows at once."""
        self._refuse_if_stopping()
        self._backend.submit(event)
        return Answer(self._backend.status())

    def _worker(self, slot: str) -> WorkerView:
        """The serving worker of a slot, else the first one in it. Raises NotFound."""
        if slot.isascii() and slot.isdigit() and len(slot) <= 9:
            for worker in self._backend.workers():
                if worker.slot == int(slot):
                    return worker
        raise NotFound(f"there is no worker in slot {slot[:40]!r}")

    def _refuse_if_stopping(self) -> None:
        if self._backend.status().state == "stopping":
            raise Conflict("the daemon is stopping")

    def _refuse_if_reloading(self, consequence: str) -> None:
        newest = self._backend.reload()
        if newest is not None and newest.phase in RELOADING:
            raise Conflict(
                f"a reload to generation {newest.generation} is running; {consequence} until its end"
            )
