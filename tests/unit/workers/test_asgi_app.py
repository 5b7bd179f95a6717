"""How requests of an ASGI app are shown, counted and logged, without uvicorn's protocols."""

import asyncio
import mmap
import sys
from collections.abc import Awaitable, Callable, Iterator
from types import SimpleNamespace
from typing import Any

import pytest

pytest.importorskip("uvicorn")

from ostler.daemon.children.stack_dumps import stack_of
from ostler.scoreboard import layout, memory
from ostler.scoreboard.accounting import Accounting
from ostler.settings.table import Settings
from ostler.workers.asgi.app import AsgiApp
from ostler.workers.asgi.interface import EXTEND
from ostler.workers.asgi.soft_interrupt import AsgiSoftInterrupts
from ostler.wsgi.interruption import DeadlineExceeded

SLOTS = 5


async def never() -> Any:
    raise AssertionError("the app reads nothing")


async def sent(_message: Any) -> None:
    pass


def http(method: str = "GET", path: str = "/") -> dict[str, Any]:
    return {
        "type": "http",
        "method": method,
        "path": path,
        "raw_path": path.encode(),
        "scheme": "http",
        "query_string": b"",
        "http_version": "1.1",
        "headers": [],
        "client": None,
    }


class Rig:
    """An app whose requests wait until the test lets them continue."""

    def __init__(self) -> None:
        self.accounting = Accounting(mmap.mmap(-1, memory.size(SLOTS)), SLOTS)
        self.loop_slot = self.accounting.thread_slot(0)
        self.loop = asyncio.new_event_loop()
        self.logged: list[dict[str, Any]] = []
        self.lines: list[tuple[str, int]] = []
        self.go_on = asyncio.Event()
        log: Any = SimpleNamespace(error=lambda _event, **fields: self.logged.append(fields))
        access: Any = SimpleNamespace(answered=self._answered)
        self.soft_interrupts = AsgiSoftInterrupts(self.accounting, self.loop, self.loop.call_soon)
        self.app = AsgiApp(
            *(self.serve, Settings(), self.accounting, self.loop, self.soft_interrupts.extend),
            *(log, access, 0, lambda _: None, lambda: None),
        )

    async def serve(self, scope: Any, receive: Any, send: Any) -> None:
        body = scope["path"].encode()
        if scope["path"] == "/wait":
            await self.go_on.wait()
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": body})
        if scope["path"] == "/background":
            await self.go_on.wait()

    def _answered(self, method: str, *rest: Any) -> None:
        self.lines.append((method, rest[5]))

    def words(self) -> memoryview:
        return self.loop_slot.counts

    def run(self, play: Callable[[], Awaitable[None]]) -> None:
        self.loop.run_until_complete(asyncio.wait_for(play(), 30))

    def begin(self, scope: dict[str, Any]) -> "asyncio.Task[None]":
        return self.loop.create_task(self.app(scope, never, sent))

    def close(self) -> None:
        self.loop.close()
        self.accounting.close()


@pytest.fixture
def rig() -> Iterator[Rig]:
    rig = Rig()
    yield rig
    rig.close()


@pytest.mark.parametrize("count", [1, 2 * SLOTS])
def test_only_what_is_answered_to_head_has_no_body(rig: Rig, count: int) -> None:
    """Also if there are more requests than the scoreboard shows: each has its own method."""

    async def play() -> None:
        tasks = [rig.begin(http(method, "/wait")) for method in ("GET", "HEAD") * count]
        await asyncio.sleep(0)
        assert rig.accounting.busy
        rig.go_on.set()
        await asyncio.gather(*tasks)

    rig.run(play)
    assert sorted(rig.lines) == sorted([("GET", 5), ("HEAD", 0)] * count)
    assert rig.words()[layout.BYTES_SENT] == 5 * count
    assert rig.accounting.answered == 2 * count
    assert not rig.accounting.busy


def test_after_its_answer_a_request_is_not_shown(rig: Rig) -> None:
    """Its background work has no deadline, and another request may use the slot."""

    async def play() -> None:
        background = rig.begin(http(path="/background"))
        await asyncio.sleep(0)
        assert not rig.accounting.busy
        other = rig.begin(http(path="/wait"))
        await asyncio.sleep(0)
        assert [slot.owner.name()["path"] for slot in rig.accounting.slots[1:]] == ["/wait"]
        rig.go_on.set()
        await asyncio.gather(background, other)

    rig.run(play)
    assert rig.accounting.answered == 2


def test_extending_the_request_at_hand(rig: Rig) -> None:
    """From a task that the request has started; where no request is served it is an error."""
    scope = http(path="/wait")

    async def extending(scope: Any, receive: Any, send: Any) -> None:
        await asyncio.create_task(asyncio.to_thread(scope[EXTEND], 100.0))
        await rig.serve(scope, receive, send)

    rig.app.app = extending

    async def play() -> None:
        task = rig.begin(scope)
        (slot,) = rig.accounting.slots[1:] or [None]
        while slot is None or not slot._words[layout.EXTENDED_UNTIL]:
            await asyncio.sleep(0.001)
            (slot,) = rig.accounting.slots[1:] or [None]
        assert slot._words[layout.EXTENDED_FOR] == slot.started
        rig.go_on.set()
        await task

    rig.run(play)
    with pytest.raises(RuntimeError, match="no request"):
        rig.soft_interrupts.extend(5)
    with pytest.raises(ValueError, match="can't be extended"):
        rig.soft_interrupts.extend(0)


def test_overdue_requests_end_where_they_wait(rig: Rig) -> None:
    """They are answered with 504; others continue."""

    async def play() -> None:
        late, other = rig.begin(http(path="/wait")), rig.begin(http(path="/wait"))
        await asyncio.sleep(0)
        slot = rig.accounting.slots[1]
        slot._words[layout.OVERDUE] = slot.started
        rig.soft_interrupts.interrupt(None)
        await late
        assert not other.done()
        rig.go_on.set()
        await other

    rig.run(play)
    assert rig.words()[layout.STATUS_CLASSES + 5] == rig.words()[layout.STATUS_CLASSES + 2] == 1
    (line,) = rig.logged
    assert "in serve" in line["stack"]


def test_stacks_of_overdue_requests(rig: Rig) -> None:
    """A dump has the stack of each, as its own part, and of a task that it awaits; not of other requests."""
    rig.accounting.own_idents = True

    async def inner() -> None:
        await rig.go_on.wait()

    async def deep(scope: Any, receive: Any, send: Any) -> None:
        await asyncio.create_task(inner())
        await rig.serve(scope, receive, send)

    async def beside(scope: Any, receive: Any, send: Any) -> None:
        started.append(asyncio.create_task(inner()))
        await rig.go_on.wait()
        await rig.serve(scope, receive, send)

    started: list[Any] = []
    # Before Python 3.12 it is not known which request has started a task.
    others = ["wait", "inner"] if sys.version_info >= (3, 12) else []

    async def play() -> None:
        assert rig.soft_interrupts.stacks(None) == ""
        late, other = rig.begin(http(path="/wait")), rig.begin(http(path="/wait"))
        await asyncio.sleep(0)
        rig.app.app = deep
        deeper = rig.begin(http())
        await asyncio.sleep(0)
        rig.app.app = beside
        besides = rig.begin(http())
        await asyncio.sleep(0)
        slots = [rig.accounting.slots[number] for number in (1, 3, 4)]
        for slot in slots:
            slot._words[layout.OVERDUE] = slot.started
        await asyncio.sleep(0)
        dump = rig.soft_interrupts.stacks(None)
        rig.go_on.set()
        await asyncio.gather(late, other, deeper, besides, *started)
        assert dump.count("Thread 0x") == 3
        expected = (["wait", "serve"], ["wait", "inner", "deep"], ["wait", "beside", *others])
        for slot, names in zip(slots, expected, strict=True):
            lines = stack_of(dump, slot.ident).splitlines()
            assert "(task, most recent call first)" in lines[0]
            assert [line.rpartition(" in ")[2] for line in lines[1:]] == names

    rig.run(play)


def test_the_stack_of_a_request_that_computes(rig: Rig) -> None:
    """It is what the signal has interrupted."""

    async def computing(scope: Any, receive: Any, send: Any) -> None:
        (slot,) = rig.accounting.slots[1:]
        slot._words[layout.OVERDUE] = slot.started
        found.append(rig.soft_interrupts.stacks(sys._getframe()))
        await rig.serve(scope, receive, send)

    rig.app.app = computing
    found: list[str] = []

    async def play() -> None:
        await rig.begin(http())

    rig.run(play)
    assert found[0].splitlines()[1].endswith(" in computing")


def test_a_websocket(rig: Rig) -> None:
    """It has no deadline, and its duration does not count as that of a request."""

    async def echo(scope: Any, receive: Any, send: Any) -> None:
        await send({"type": "websocket.accept"})
        (slot,) = rig.accounting.slots[1:]
        assert slot._words[layout.EXTENDED_UNTIL] == layout.NEVER
        await send({"type": "websocket.send", "text": "hello"})

    rig.app.app = echo

    async def play() -> None:
        scope = http()
        del scope["method"]
        await rig.begin({**scope, "type": "websocket"})

    rig.run(play)
    words = rig.words()
    assert (words[layout.STATUS_CLASSES + 1], words[layout.BYTES_SENT]) == (1, 5)
    assert sum(words[layout.HISTOGRAM : layout.HISTOGRAM + layout.BUCKETS]) == 0


def test_a_deadline_exception_is_not_an_error_of_the_app(rig: Rig) -> None:
    async def late(_scope: Any, _receive: Any, _send: Any) -> None:
        (slot,) = rig.accounting.slots[1:]
        slot.owner.overdue = True
        raise DeadlineExceeded

    rig.app.app = late

    async def play() -> None:
        await rig.begin(http())

    rig.run(play)
    assert rig.words()[layout.STATUS_CLASSES + 5] == 1
    assert rig.logged == []


# -- the client's time -----------------------------------------------------------------------------------


class Cycle:
    """What uvicorn has of a request, as far as it matters: the test says when its client sends or reads."""

    def __init__(self, more_body: bool = False, write_paused: bool = False) -> None:
        self.more_body = more_body
        self.flow = SimpleNamespace(write_paused=write_paused)
        self.disconnected = False
        self.moves = asyncio.Event()

    async def receive(self) -> dict[str, Any]:
        await self.moves.wait()
        return {"type": "http.request", "body": b"x", "more_body": False}

    async def send(self, message: dict[str, Any]) -> None:
        if self.flow.write_paused or message.get("more_body"):
            await self.moves.wait()


def words_of(rig: Rig) -> memoryview:
    return rig.accounting.slots[1]._words


def is_paused(rig: Rig) -> bool:
    words = words_of(rig)
    return bool(words[layout.PROGRESSED] == words[layout.STARTED] | layout.PAUSED)


async def serve_with(rig: Rig, cycle: Cycle, app: Any) -> "asyncio.Task[None]":
    rig.app.app = app
    task = rig.loop.create_task(rig.app(http("POST"), cycle.receive, cycle.send))
    for _ in range(3):
        await asyncio.sleep(0)
    return task


START = {"type": "http.response.start", "status": 200, "headers": []}


@pytest.mark.parametrize("what", ["body", "part", "begin"])
def test_waiting_for_the_client(rig: Rig, what: str) -> None:
    """For its body, for room, or for an answer before this one that it reads: no time of the app."""
    seen: list[int] = []

    async def app(_scope: Any, receive: Any, send: Any) -> None:
        if what == "body":
            await receive()
        elif what == "begin":
            await send(START)
        else:
            await send(START)
            await send({"type": "http.response.body", "body": b"x", "more_body": True})
        seen.append(words_of(rig)[layout.PROGRESSED])
        await rig.go_on.wait()

    async def play() -> None:
        cycle = Cycle(more_body=what == "body", write_paused=what == "begin")
        task = await serve_with(rig, cycle, app)
        assert is_paused(rig)
        assert seen == []
        cycle.moves.set()
        cycle.disconnected = True
        for _ in range(3):
            await asyncio.sleep(0)
        assert not is_paused(rig)
        assert seen[0] > words_of(rig)[layout.STARTED]
        rig.go_on.set()
        await task

    rig.run(play)
    assert rig.words()[layout.STATUS_CLASSES + 4] == 1, "it left before it had its answer"


def test_waiting_in_two_tasks(rig: Rig) -> None:
    """While one task waits for the body, a part that another one sends does not end that."""

    async def app(_scope: Any, receive: Any, send: Any) -> None:
        reading = asyncio.ensure_future(receive())
        await asyncio.sleep(0)
        await send(START)
        await send({"type": "http.response.body", "body": b"x", "more_body": True})
        await reading

    async def play() -> None:
        cycle = Cycle(more_body=True)
        receive = cycle.receive
        body = asyncio.Event()

        async def later() -> dict[str, Any]:
            await body.wait()
            return await receive()

        cycle.receive = later  # type: ignore[method-assign]
        task = await serve_with(rig, cycle, app)
        cycle.moves.set()
        for _ in range(5):
            await asyncio.sleep(0)
        assert is_paused(rig)
        body.set()
        await task

    rig.run(play)


def test_waiting_for_the_clients_end_is_the_apps_time(rig: Rig) -> None:
    """Once the body is there, `receive` waits for the client to leave, which says nothing about the app."""

    async def app(_scope: Any, receive: Any, _send: Any) -> None:
        await receive()

    async def play() -> None:
        cycle = Cycle()
        task = await serve_with(rig, cycle, app)
        assert not is_paused(rig)
        cycle.moves.set()
        await task

    rig.run(play)
