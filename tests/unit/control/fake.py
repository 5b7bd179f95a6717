"""A fake daemon: a `Backend` whose fleet advances by one step at each call.

So tests of clients that poll need no clock: after some calls the change is complete.
"""

import asyncio
import threading
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import msgspec
import structlog
from structlog.testing import CapturingLogger

from ostler.control.handlers import Subscription
from ostler.control.metrics import AcceptQueue, Figures, Histogram
from ostler.control.readiness import FleetReadiness, readiness
from ostler.control.routes import CONFIG, STATUS, WORKERS
from ostler.control.server import ControlServer
from ostler.control.views import (
    UNPLANNED,
    ChangeView,
    ConfigView,
    EventView,
    ExitView,
    FleetState,
    ReloadPhase,
    ReloadView,
    RequestView,
    SampleView,
    SettingView,
    StatusView,
    Totals,
    WorkerState,
    WorkerView,
)
from ostler.fleet.events import (
    Event,
    RecycleAsked,
    ReforkAsked,
    ReloadAsked,
    ResizeAsked,
    StopAsked,
    UpgradeAsked,
)

TOKEN = "a-token-for-the-tests"


def captured_log() -> tuple[Any, list[dict[str, Any]]]:
    """A structlog logger, and the list of event dictionaries that it fills."""
    records: list[dict[str, Any]] = []

    def keep(_logger: object, method: str, event: Any) -> Any:
        records.append({"level": method, **event})
        raise structlog.DropEvent

    return structlog.wrap_logger(
        CapturingLogger(), processors=[keep], wrapper_class=structlog.make_filtering_bound_logger(0)
    ), records


@dataclass
class FakeWorker:
    slot: int
    pid: int
    generation: int = 1
    state: WorkerState = "ready"
    leaving: str | None = None
    in_flight: list[RequestView] = field(default_factory=list)

    def view(self) -> WorkerView:
        return WorkerView(
            slot=self.slot,
            pid=self.pid,
            generation=self.generation,
            state=self.state,
            leaving=self.leaving,
            age=12.5,
            threads=1,
            connections=len(self.in_flight),
            requests=1000 + self.slot,
            errors=0,
            in_flight=self.in_flight,
            cpu_percent=3.0,
            rss=40 << 20,
            uss=8 << 20,
            deadline_in=min((r.deadline_in for r in self.in_flight if r.deadline_in), default=None),
        )


def an_exit(number: int, **changes: Any) -> ExitView:
    view = ExitView(
        id=number,
        at=1_700_000_000.0 + number,
        kind="worker",
        slot=2,
        pid=100 + number,
        generation=1,
        cause="recycled",
        status="exit code 0",
        code=0,
        signal=None,
        age=3725.0,
        requests=1000,
        last_requests=["GET /basket"],
        peak_memory=41 << 20,
        stack=None,
    )
    planned = changes.get("cause", view.cause) not in UNPLANNED
    return msgspec.structs.replace(view, **{"planned": planned} | changes)


class FakeSubscription:
    def __init__(self, backend: "FakeBackend") -> None:
        self._backend = backend
        self.queue: asyncio.Queue[EventView] = asyncio.Queue()

    async def next_event(self) -> EventView:
        return await self.queue.get()

    def close(self) -> None:
        self._backend.subscriptions.remove(self)
        self._backend.left.set()


class FakeBackend:
    """See the module.

    `broken`: reloads (which end as `failure`), reforks and upgrades fail; `stuck`: nothing moves; `on_stop`:
    called on StopAsked; `changes`: what a reload finds changed; `override_ends`: a reload ends the number set
    by hand.
    """

    def __init__(self, workers: int = 3, name: str = "shop") -> None:
        self.name = name
        self.pid = 4242
        self.state: FleetState = "ready"
        self.wanted = workers
        self.fleet = [FakeWorker(slot, 100 + slot) for slot in range(1, workers + 1)]
        self.submitted: list[Event] = []
        self.broken = False
        self.failure: ReloadPhase = "failed"
        self.stuck = False
        self.on_stop: Callable[[], object] = lambda: None
        self.subscriptions: list[FakeSubscription] = []
        self.left = asyncio.Event()
        """A subscriber has left."""
        self.events: deque[EventView] = deque(maxlen=1000)
        self.ends: list[ExitView] = []
        """Newest first."""
        self.changes: list[ChangeView] = []
        self.override: int | None = None
        self.override_ends = False
        self.version = "0.1.0"
        self.program_since = 1_700_000_000.0
        self.on_upgrade: Callable[[], object] = lambda: None
        self.seconds: list[SampleView] = []
        self.shown = dict(
            (
                STATUS.shown_by(self.status),
                WORKERS.shown_by(self.workers),
                CONFIG.shown_by(self.config),
            )
        )
        self._newest: ReloadView | None = None
        self._phases: list[ReloadPhase] = []
        self._ended = asyncio.Event()

    # -- Backend ---------------------------------------------------------------------------------------

    def submit(self, event: Event) -> None:
        self.submitted.append(event)
        match event:
            case ResizeAsked(workers=workers, delta=delta):
                self._resize(workers if workers is not None else max(1, self.wanted + (delta or 0)))
            case RecycleAsked(slot=slot):
                old = next(worker for worker in self.fleet if worker.slot == slot)
                old.leaving = "asked"
                self._add(FakeWorker(slot, old.pid + 1000, state="booting"))
            case ReloadAsked(by=by):
                generation = self._newest.generation + 1 if self._newest else 2
                self._newest = ReloadView(generation, "loading", 0, self.wanted, 0.1, by, None, None)
                self._phases = ["canary", "rolling", self.failure if self.broken else "done"]
                self._ended.clear()
            case ReforkAsked(by=by, slot=slot, force=force):
                chosen = slot or 1
                self.happen("refork", slot=chosen, pid=100 + chosen, by=by)
                if self.broken and not force:
                    self.happen("refork_refused", problem="2 threads are alive: poller, watcher")
                elif not self.stuck:
                    if self.broken:
                        self.happen("refork_warning", problem="2 threads are alive: poller, watcher")
                    self.happen("refork_done", slot=chosen, pid=100 + chosen, seconds=0.25, generation=1)
                    self._replace_all("refork", 1)
            case UpgradeAsked(by=by):
                self.happen("upgrade", by=by)
                if self.broken:
                    self.happen("upgrade_failed", problem="the new program does not start: no module named x")
                elif not self.stuck:
                    self.version, self.program_since = "0.2.0", self.program_since + 60
                    self.happen("upgraded", version=self.version)
                    self.submit(ReloadAsked("upgrade"))
                self.on_upgrade()
            case StopAsked():
                self.state = "stopping"
                self.on_stop()

    def readiness(self) -> FleetReadiness:
        return readiness(self.state, sum(worker.state == "ready" for worker in self.fleet))

    def status(self) -> StatusView:
        def count(state: WorkerState) -> int:
            return sum(worker.state == state for worker in self.fleet)

        return StatusView(
            name=self.name,
            version=self.version,
            pid=self.pid,
            app="flaskapp:app",
            python="3.11.2",
            state=self.state,
            health=f"{count('ready')} of {self.wanted} workers are ready.",
            wanted=self.wanted,
            ready=count("ready"),
            booting=count("booting"),
            draining=count("draining"),
            generation=1,
            worker_class="sync",
            threads=1,
            timeout=30.0,
            listeners=["http://127.0.0.1:8000", "http://[::1]:8000"],
            started_at=1_700_000_000.0,
            uptime=3725.0,
            in_flight=sum(len(worker.in_flight) for worker in self.fleet),
            totals=Totals(3006, 2, 99, 17, 3, 0),
            reload=self._newest,
            override=self.override,
            program_since=self.program_since,
        )

    def workers(self) -> list[WorkerView]:
        views = [worker.view() for worker in self.fleet]
        if not self.stuck:
            self._step()
        return views

    def config(self) -> ConfigView:
        return ConfigView(
            1,
            [
                SettingView("workers", 3, "command line", "live"),
                SettingView("bind", ["127.0.0.1:8000"], "default", "restart"),
                SettingView("pidfile", None, "default", "restart"),
                SettingView("probation", 600.0, "default", "live"),
            ],
        )

    def reload(self) -> ReloadView | None:
        view = self._newest
        if view is not None and not self.stuck:
            self._advance()
        return view

    async def reload_ended(self, generation: int) -> ReloadView:
        assert self._newest is not None
        assert self._newest.generation == generation
        while self._phases:
            self._advance()
        return self._newest

    def samples(self) -> Sequence[SampleView]:
        return self.seconds

    def subscribe(self) -> Subscription:
        subscription = FakeSubscription(self)
        self.subscriptions.append(subscription)
        return subscription

    def recent_events(self) -> Sequence[EventView]:
        return list(self.events)

    def exits(self, limit: int) -> list[ExitView]:
        return self.ends[:limit]

    def figures(self) -> Figures:
        return Figures(
            status=self.status(),
            workers=[worker.view() for worker in self.fleet],
            statuses=[0, 0, 2990, 10, 4, 2, 0, 0, 0, 0],
            open_connections=5,
            durations=Histogram([0.001, 0.01], [3000, 5, 1], 3.25),
            refused={"missing_host": 4, "fields": 0},
            queue_waits=None,
            exits={("worker", "crashed"): 2, ("fork server", "rolled"): 1},
            reloads={"done": 3},
            accept_queues={"http://127.0.0.1:8000": AcceptQueue(7, 2048)},
        )

    # -- its life --------------------------------------------------------------------------------------

    def happen(self, name: str, **fields: Any) -> None:
        event = EventView(len(self.events) + 1, 1_700_000_000.0, name, fields)
        self.events.append(event)
        for subscription in self.subscriptions:
            subscription.queue.put_nowait(event)

    def _resize(self, workers: int) -> None:
        self.wanted = workers
        for slot in range(len(self.fleet) + 1, workers + 1):
            self._add(FakeWorker(slot, 100 + slot, state="booting"))
        for worker in self.fleet:
            if worker.slot > workers:
                worker.leaving, worker.state = "scale", "draining"

    def _add(self, worker: FakeWorker) -> None:
        self.fleet.append(worker)
        self.fleet.sort(key=lambda one: one.slot)

    def _replace_all(self, why: str, generation: int) -> None:
        for old in list(self.fleet):
            old.leaving = why
            self._add(FakeWorker(old.slot, old.pid + 1000, generation, "booting"))

    def _step(self) -> None:
        self.fleet = [worker for worker in self.fleet if worker.state != "draining"]
        for worker in self.fleet:
            if worker.state == "booting":
                worker.state = "ready"
            elif worker.leaving:
                worker.state = "draining"

    def _advance(self) -> None:
        if not self._phases or self._newest is None:
            return
        phase = self._phases.pop(0)
        failed = phase == self.failure
        if phase == "rolling" and not self.broken:
            self._replace_all("reload", self._newest.generation)
            if self.override_ends:
                self.override = None
        self._newest = ReloadView(
            self._newest.generation,
            phase,
            self.wanted if phase == "done" else 0,
            self.wanted,
            0.25,
            self._newest.asked_by,
            "SyntaxError: invalid syntax\n(app.py, line 3)" if failed else None,
            "Traceback (most recent call last):\nSyntaxError: invalid syntax" if failed else None,
            self.changes,
        )


class Served:
    """A ControlServer with a fake daemon, in a thread of its own, for blocking clients."""

    def __init__(self, path: Path, backend: FakeBackend, *, tcp: bool = False) -> None:
        self.path = path
        self.backend = backend
        self.log, self.records = captured_log()
        self.url = ""
        self._tcp = tcp
        self._up = threading.Event()
        self._thread = threading.Thread(target=lambda: asyncio.run(self._run()))
        self._loop: asyncio.AbstractEventLoop
        self._end: asyncio.Event

    def start(self) -> None:
        self._thread.start()
        assert self._up.wait(10)

    def stop(self) -> None:
        if self._thread.is_alive():
            self._loop.call_soon_threadsafe(self._end.set)
        self._thread.join(10)
        assert not self._thread.is_alive()

    async def _run(self) -> None:
        self._loop, self._end = asyncio.get_running_loop(), asyncio.Event()
        self.backend.on_stop = self._end.set
        server = ControlServer(self.backend, self.log)
        try:
            await server.start_unix(self.path)
            if self._tcp:
                self.url = await server.start_tcp("127.0.0.1", 0, TOKEN)
        finally:
            self._up.set()
        await self._end.wait()
        await server.close()


@contextmanager
def served(path: Path, backend: FakeBackend | None = None, *, tcp: bool = False) -> Iterator[Served]:
    """Serve a fake on the Unix socket `path` (and on TCP) while the block runs."""
    running = Served(path, backend or FakeBackend(), tcp=tcp)
    running.start()
    try:
        yield running
    finally:
        running.stop()
