"""A scripted control API: serves the built dashboard and plausible test data on a free loopback port.

It uses the real views and serves the page as the daemon does, including the content security policy, so a
change of either shows at once. The only thing that it does by itself is
to send a sample each second; without samples the page reports that the supervisor is gone.
"""

import asyncio
import math
import random
import time
from dataclasses import dataclass, field
from types import TracebackType
from typing import Any, Self

import msgspec
from aiohttp import web

from ostler.control.pages import add_pages
from ostler.control.views import (
    UNPLANNED,
    Asked,
    ErrorView,
    EventView,
    ExitView,
    ReloadView,
    RequestView,
    SampleView,
    SessionView,
    StatusView,
    Totals,
    WorkerView,
)

CODE = "kT4vZ1xq8WcJ"
SESSION = "o5n2c7"

TRACEBACK = """\
Traceback (most recent call last):
  File "/srv/shop/wsgi.py", line 3, in <module>
    from shop import create_app
  File "/srv/shop/shop/__init__.py", line 12, in <module>
    from shop.billing import invoices
  File "/srv/shop/shop/billing/invoices.py", line 8, in <module>
    from shop.billing.tax import TaxTable, vat_rate
ImportError: cannot import name 'vat_rate' from 'shop.billing.tax' (/srv/shop/shop/billing/tax.py)
"""


def a_request(slot: int, method: str, path: str, age: float, thread: int = 0) -> RequestView:
    return RequestView(slot, 41_200 + slot, thread, method, path, age, 30.0 - age)


def a_worker(slot: int, *in_flight: RequestView, **changes: Any) -> WorkerView:
    worker = WorkerView(
        slot=slot,
        pid=41_200 + slot,
        generation=7,
        state="ready",
        leaving=None,
        age=15_132.4 + 0.2 * slot,
        threads=1,
        connections=6 + slot,
        requests=318_442 - 977 * slot,
        errors=(3, 0, 1, 0)[slot % 4],
        in_flight=list(in_flight),
        cpu_percent=31.2 - 7.9 * (slot % 3),
        rss=68_157_440 + 1_310_720 * slot,
        uss=23_592_960 + 917_504 * slot,
        deadline_in=min(
            (view.deadline_in for view in in_flight if view.deadline_in is not None), default=None
        ),
    )
    return msgspec.structs.replace(worker, **changes)


def some_workers() -> list[WorkerView]:
    return [
        a_worker(1, a_request(1, "GET", "/catalogue/shoes?page=3", 0.041)),
        a_worker(2),
        a_worker(3, a_request(3, "POST", "/checkout/confirm", 1.312)),
        a_worker(4, a_request(4, "GET", "/reports/2026/q3/margins.csv?currency=EUR&group=region", 23.8)),
    ]


def a_status(**changes: Any) -> StatusView:
    status = StatusView(
        name="shop",
        version="0.1.0",
        pid=41_187,
        app="shop.wsgi:app",
        python="3.13.1",
        state="ready",
        health="All 4 workers are ready.",
        wanted=4,
        ready=4,
        booting=0,
        draining=0,
        generation=7,
        worker_class="sync",
        threads=1,
        timeout=30.0,
        listeners=["http://127.0.0.1:8000", "unix:/run/shop/app.sock"],
        started_at=time.time() - 273_912,
        uptime=273_912.0,
        in_flight=3,
        totals=Totals(
            requests=18_204_331,
            errors=417,
            bytes_sent=214_882_119_004,
            connections=96_310,
            spawned=61,
            deaths=1,
        ),
        reload=a_reload("done", replaced=4, seconds=1.94, generation=7),
    )
    return msgspec.structs.replace(status, **changes)


def a_reload(phase: str, generation: int = 8, **changes: Any) -> ReloadView:
    reload = ReloadView(
        generation=generation,
        phase=phase,  # type: ignore[arg-type]
        replaced=0,
        of=4,
        seconds=0.4,
        asked_by="dashboard",
        reason=None,
        traceback=None,
    )
    return msgspec.structs.replace(reload, **changes)


def an_exit(number: int, ago: float = 60.0, **changes: Any) -> ExitView:
    view = ExitView(
        id=number,
        at=time.time() - ago,
        kind="worker",
        slot=2,
        pid=39_800 + number,
        generation=7,
        cause="rolled",
        status="exit code 0",
        code=0,
        signal=None,
        age=15_132.4,
        requests=318_442,
        last_requests=["GET /catalogue/shoes"],
        peak_memory=71_303_168,
        stack=None,
    )
    planned = changes.get("cause", view.cause) not in UNPLANNED
    return msgspec.structs.replace(view, **{"planned": planned} | changes)


def some_exits() -> list[ExitView]:
    """Newest first."""
    return [
        an_exit(
            4,
            212,
            cause="deadline",
            status="signal 6 (ABRT)",
            code=None,
            signal=6,
            last_requests=["GET /reports/2026/q2"],
            stack='Thread 0x00007f1c (most recent call first):\n  File "/srv/shop/reports.py", line 9 in sum',
        ),
        an_exit(3, 539.1, slot=4),
        an_exit(2, 539.4, slot=3),
        an_exit(1, 539.9, kind="fork server", slot=None, requests=0, last_requests=[]),
    ]


def a_sample(at: float, chance: random.Random) -> SampleView:
    load = 400 + 90 * math.sin(at / 70) + chance.gauss(0, 14)
    p50 = 0.0061 * chance.uniform(0.92, 1.1)
    p95 = p50 * chance.uniform(4.2, 6.1)
    spike = chance.random() < 0.02
    return SampleView(
        at=at,
        requests_per_second=round(load, 1),
        errors_per_second=float(chance.choice((1, 2, 5))) if spike else 0.0,
        p50=p50,
        p95=p95,
        p99=p95 * (chance.uniform(6, 11) if spike else chance.uniform(1.6, 2.6)),
        in_flight=3,
        ready=4,
        wanted=4,
    )


def a_history(seconds: int = 600) -> list[SampleView]:
    chance = random.Random(7)
    end = math.floor(time.time())
    return [a_sample(float(at), chance) for at in range(end - seconds, end)]


def some_events() -> list[EventView]:
    end = time.time()
    recent: list[tuple[float, str, dict[str, Any]]] = [
        (541, "reload_started", {"generation": 7, "asked_by": "ctl (deploy)"}),
        (540.2, "worker_ready", {"slot": 1, "pid": 41_201, "generation": 7, "boot_seconds": 0.38}),
        (539.1, "reload_done", {"generation": 7, "replaced": 4, "seconds": 1.94}),
        (212, "request_overdue", {"slot": 2, "method": "GET", "path": "/reports/2026/q2", "age": 30.0}),
        (211.8, "worker_died", {"slot": 2, "pid": 39_877, "status": "signal 9", "cause": "deadline"}),
        (211.4, "worker_ready", {"slot": 2, "pid": 41_202, "generation": 7, "boot_seconds": 0.36}),
        (35, "fleet_resized", {"wanted": 4, "asked_by": "dashboard"}),
    ]
    return [EventView(i, end - ago, name, fields) for i, (ago, name, fields) in enumerate(recent, 1)]


@dataclass
class FakeApi:
    """Serves while entered. Tests set its answers, `send` events to the page, and read `asked`."""

    status: StatusView = field(default_factory=a_status)
    workers: list[WorkerView] = field(default_factory=some_workers)
    history: list[SampleView] = field(default_factory=a_history)
    events: list[EventView] = field(default_factory=some_events)
    exits: list[ExitView] = field(default_factory=some_exits)
    recorded: list[EventView] = field(default_factory=list)
    """What `/v1/events` has, of all that is asked for by its id."""
    refusals: dict[str, ErrorView] = field(default_factory=dict)
    """Paths that are answered with 409 and this."""
    asked: list[tuple[str, Any]] = field(default_factory=list)
    """Every POST: its path and decoded body."""
    url: str = ""
    _streams: set[asyncio.Queue[tuple[str, Any] | None]] = field(default_factory=set)

    async def __aenter__(self) -> Self:
        app = web.Application(middlewares=[self._guard])
        add_pages(app, "")
        app.router.add_post("/v1/login", self._login)
        app.router.add_get("/v1/status", self._status)
        app.router.add_get("/v1/stream", self._stream)
        app.router.add_post("/v1/scale", self._scale)
        app.router.add_post("/v1/reload", self._reload)
        app.router.add_post("/v1/refork", self._refork)
        app.router.add_get("/v1/events", self._events)
        app.router.add_post("/v1/workers/{slot}/recycle", self._recycle)
        self._runner = web.AppRunner(app, access_log=None, shutdown_timeout=1.0)
        await self._runner.setup()
        site = web.TCPSite(self._runner, "127.0.0.1", 0)
        await site.start()
        host, port = self._runner.addresses[0][:2]
        self.url = f"http://{host}:{port}"
        self._pulse = asyncio.create_task(self._beat())
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._pulse.cancel()
        self.close_connections()
        await self._runner.cleanup()

    @property
    def login_url(self) -> str:
        return f"{self.url}/#login={CODE}"

    def send(self, name: str, view: Any) -> None:
        """Send a server-sent event to every page; what the page could ask for is kept up to date too."""
        if name == "status":
            self.status = view
        elif name == "workers":
            self.workers = view
        for stream in self._streams:
            stream.put_nowait((name, view))

    def close_connections(self) -> None:
        for stream in self._streams:
            stream.put_nowait(None)

    async def _beat(self) -> None:
        chance = random.Random(11)
        while True:
            await asyncio.sleep(1.0)
            self.send("sample", a_sample(float(math.floor(time.time())), chance))

    # -- what every answer goes through

    @web.middleware
    async def _guard(self, request: web.Request, handler: Any) -> web.StreamResponse:
        public = not request.path.startswith("/v1/") or request.path == "/v1/login"
        if not public and request.headers.get("Authorization") != f"Bearer {SESSION}":
            return _json(ErrorView("not_logged_in", "Log in first: `ctl open` gives a link."), 401)
        if request.method == "POST":
            self.asked.append((request.path, await request.json() if request.can_read_body else None))
        if refusal := self.refusals.get(request.path):
            return _json(refusal, 409)
        answer: web.StreamResponse = await handler(request)
        return answer

    # -- handlers

    async def _login(self, request: web.Request) -> web.Response:
        if (await request.json())["code"] != CODE:
            return _json(
                ErrorView("bad_code", "This login code is used up or wrong: run `ctl open` again."), 401
            )
        return _json(SessionView(SESSION, 3600.0))

    async def _status(self, request: web.Request) -> web.Response:
        return _json(self.status)

    async def _scale(self, request: web.Request) -> web.Response:
        wanted = self.status.wanted + (await request.json())["delta"]
        self.status = a_status(
            wanted=wanted, booting=1, health=f"4 of {wanted} workers are ready, 1 is booting."
        )
        return _json(self.status)

    async def _reload(self, request: web.Request) -> web.Response:
        view = a_reload("loading", seconds=0.0)
        self.status = a_status(state="reloading", health="Reloading: generation 8 is loading.", reload=view)
        return _json(view, 202)

    async def _refork(self, request: web.Request) -> web.Response:
        return _json(Asked(7), 202)

    async def _events(self, request: web.Request) -> web.Response:
        after = int(request.query["after"])
        return _json([event for event in self.recorded if event.id > after])

    async def _recycle(self, request: web.Request) -> web.Response:
        return _json(self.workers[int(request.match_info["slot"]) - 1], 202)

    async def _stream(self, request: web.Request) -> web.StreamResponse:
        answer = web.StreamResponse(
            headers={"Content-Type": "text/event-stream", "Cache-Control": "no-store"}
        )
        await answer.prepare(request)
        queue: asyncio.Queue[tuple[str, Any] | None] = asyncio.Queue()
        for first in ("history", "events", "exits", "status", "workers"):
            queue.put_nowait((first, getattr(self, first)))
        self._streams.add(queue)
        try:
            while (item := await queue.get()) is not None:
                name, view = item
                await answer.write(b"event: %s\ndata: %s\n\n" % (name.encode(), msgspec.json.encode(view)))
        except ConnectionResetError:
            pass
        finally:
            self._streams.discard(queue)
        return answer


def _json(view: Any, status: int = 200) -> web.Response:
    return web.Response(body=msgspec.json.encode(view), status=status, content_type="application/json")
