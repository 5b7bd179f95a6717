"""Handlers translate: request -> fleet event -> view.

They know the `Backend` and nothing of HTTP beyond a status, nothing of processes at all. The method that
serves a route has the route's name.
"""

from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field
from typing import Generic

from supervisor.control.backend import Backend
from supervisor.control.openapi import document
from supervisor.control.problems import Conflict, Invalid, NotFound
from supervisor.control.routes import Ask, Scope
from supervisor.control.views import Reload, Scale, Stop, WorkerView
from supervisor.fleet.events import RecycleAsked, ReloadAsked, ResizeAsked, StopAsked
from supervisor.fleet.policies import MAX_WORKERS


def _always() -> bool:
    return True


@dataclass(frozen=True, slots=True)
class Caller:
    """Who asks, as the guard has found out."""

    who: str
    """`unix uid 1000` or `127.0.0.1`."""
    scope: Scope
    session: str | None = None
    """The session cookie's value, None if the caller proved itself otherwise."""
    valid: Callable[[], bool] = _always
    """Whether it would still be let in; long answers ask now and then."""


@dataclass(frozen=True, slots=True)
class Call(Generic[Ask]):
    """One request, checked and decoded."""

    caller: Caller
    ask: Ask
    path: Mapping[str, str] = field(default_factory=dict)

    @property
    def by(self) -> str:
        return f"api {self.caller.who}"


@dataclass(frozen=True, slots=True)
class Answer:
    """view: the body, or None; status: None for the route's own."""

    view: object = None
    status: int | None = None
    headers: Mapping[str, str] = field(default_factory=dict)


Handler = Callable[[Call[object]], Awaitable[Answer]]


class FleetHandlers:
    """The routes that read or steer the fleet."""

    def __init__(self, backend: Backend) -> None:
        self._backend = backend

    async def healthz(self, _call: Call[None]) -> Answer:
        return Answer("ok\n")

    async def readyz(self, _call: Call[None]) -> Answer:
        status = self._backend.status()
        if status.state == "stopping":
            return Answer("stopping\n", 503)
        return Answer("ready\n") if status.ready else Answer("no worker is ready\n", 503)

    async def openapi(self, _call: Call[None]) -> Answer:
        return Answer(document())

    async def status(self, _call: Call[None]) -> Answer:
        return Answer(self._backend.status())

    async def workers(self, _call: Call[None]) -> Answer:
        return Answer(self._backend.workers())

    async def worker(self, call: Call[None]) -> Answer:
        return Answer(self._worker(call.path["slot"]))

    async def config(self, _call: Call[None]) -> Answer:
        return Answer(self._backend.config())

    async def reload_status(self, _call: Call[None]) -> Answer:
        newest = self._backend.reload()
        if newest is None:
            raise NotFound("there was no reload since the daemon's start")
        return Answer(newest)

    async def scale(self, call: Call[Scale]) -> Answer:
        ask = call.ask
        if (ask.workers is None) == (ask.delta is None):
            raise Invalid('give exactly one of "workers" and "delta"')
        if ask.workers is not None and not 1 <= ask.workers <= MAX_WORKERS:
            raise Invalid(f"workers must be from 1 to {MAX_WORKERS}, not {ask.workers}")
        if ask.delta is not None and self._backend.status().wanted + ask.delta > MAX_WORKERS:
            raise Invalid(f"a delta of {ask.delta:+} would want more than {MAX_WORKERS} workers")
        self._refuse_if_stopping()
        self._backend.submit(ResizeAsked(by=call.by, workers=ask.workers, delta=ask.delta))
        return Answer(self._backend.status())

    async def reload(self, call: Call[Reload]) -> Answer:
        self._refuse_if_stopping()
        self._backend.submit(ReloadAsked(by=call.by))
        started = self._backend.reload()
        if started is None:
            raise Conflict("the fleet can't be reloaded now; see the daemon's log")
        if not call.ask.wait:
            return Answer(started)
        ended = await self._backend.reload_ended(started.generation)
        return Answer(ended, 200 if ended.phase == "done" else 409)

    async def recycle(self, call: Call[None]) -> Answer:
        worker = self._worker(call.path["slot"])
        self._refuse_if_stopping()
        self._backend.submit(RecycleAsked(by=call.by, slot=worker.slot))
        return Answer(next((now for now in self._backend.workers() if now.slot == worker.slot), worker))

    async def stop(self, call: Call[Stop]) -> Answer:
        self._backend.submit(StopAsked(by=call.by, how="graceful" if call.ask.graceful else "quick"))
        return Answer(self._backend.status())

    def _worker(self, slot: str) -> WorkerView:
        """The worker that serves in a slot, else the first that is there. Raises NotFound."""
        if slot.isascii() and slot.isdigit() and len(slot) <= 9:
            for worker in self._backend.workers():
                if worker.slot == int(slot):
                    return worker
        raise NotFound(f"there is no worker in slot {slot[:40]!r}")

    def _refuse_if_stopping(self) -> None:
        if self._backend.status().state == "stopping":
            raise Conflict("the daemon is stopping")
