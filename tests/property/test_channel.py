"""The real shell receives arbitrary input from its children: bytes, messages in any order, descriptors,
deaths.

For any input, no exception leaves the shell, only children that misbehave are killed, each death is
recorded, and the daemon can be stopped.
"""

import asyncio
import os
from collections.abc import Callable, Coroutine
from contextlib import suppress
from typing import Annotated, Any, NamedTuple, get_args, get_origin

import msgspec
import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from ostler.fleet import events
from ostler.ipc import messages
from ostler.settings.load import Loaded, load
from tests.kit.standins import ShellHarness
from tests.kit.tiers import thorough

KINDS = sorted(
    {
        kind
        for union in (messages.FromForkServer, messages.FromWorker, messages.ToForkServer, messages.ToWorker)
        for kind in get_args(union)
    },
    key=lambda kind: kind.__name__,
)
LOADED = load({"wsgi_app": "a:b", "bind": ["127.0.0.1:0"], "workers": 2}, {}, None, lambda: 1)
PID = "the pid of one of the children"
texts = st.one_of(
    st.sampled_from(["", "on_exit", "child_exit", "/", "/tmp", "/a\0b", "\x1b[31m", "x" * 3000, "é" * 50]),
    st.text(max_size=8),
)
numbers = st.one_of(
    st.integers(0, 6),
    st.sampled_from([-1, 9, 15, 64, 65, 2**31, 2**63, 2**64 - 1, os.getpid()]),
    st.just(PID),
)


def values(kind: Any) -> st.SearchStrategy[Any]:
    """Values that a field of a type may have, and sometimes values that it may not have."""
    while get_origin(kind) is Annotated:
        kind = get_args(kind)[0]
    if get_origin(kind) is list:
        return st.lists(texts, max_size=4)
    fitting: dict[Any, st.SearchStrategy[Any]] = {
        int: numbers,
        str: texts,
        bool: st.booleans(),
        float: st.floats(),
        Loaded: st.sampled_from(
            [
                msgspec.to_builtins(LOADED),
                {},
                msgspec.to_builtins(LOADED) | {"settings": {"workers": -1, "timeout": 1e400}},
            ]
        ),
    }
    found = [fitting.get(part, st.none()) for part in (get_args(kind) or (kind,))]
    return st.one_of(*found, st.sampled_from([None, 1, "x", [], {}, -5]))


@st.composite
def said(draw: Callable[[st.SearchStrategy[Any]], Any]) -> dict[str, Any]:
    kind = draw(st.sampled_from(KINDS))
    fields = {field.name: draw(values(field.type)) for field in msgspec.structs.fields(kind)}
    return {"type": kind.__name__, **fields}


class Step(NamedTuple):
    """What happens.

    what: a child sends (`bytes`, `message`, `descriptors`, `many`), writes a dump, or dies; or others act.
    who: which child, of all that there were.
    """

    what: str
    who: int
    load: Any = None


def step(what: str, load: st.SearchStrategy[Any] = st.none()) -> st.SearchStrategy[Step]:  # noqa: B008
    return st.builds(Step, st.just(what), st.integers(0, 4), load)


steps = st.lists(
    st.one_of(
        step("bytes", st.binary(max_size=40)),
        step("message", said()),
        step("message", said()),
        step("descriptors", st.integers(1, 253)),
        step("many", said()),
        step("dump", st.binary(max_size=40)),
        step("die"),
        step("play"),
        step("resize", st.integers(1, 3)),
        step("reload"),
        step("refork"),
        step("turn"),
    ),
    max_size=12,
)


def run(work: Coroutine[Any, Any, None]) -> None:
    asyncio.run(work)


async def carry_out(harness: ShellHarness, step: Step) -> None:
    one = harness.stand_ins[step.who % len(harness.stand_ins)]
    shell = harness.shell
    match step.what:
        case "bytes":
            one.sent = True
            one.send(step.load)
        case "message" | "many":
            one.sent = True
            pids = [other.pid for other in harness.stand_ins]
            fields = {
                name: pids[step.who % len(pids)] if value == PID else value
                for name, value in step.load.items()
            }
            for _ in range(1 if step.what == "message" else 1500):
                one.send(msgspec.msgpack.encode(fields))
        case "descriptors":
            one.sent = True
            one.send(b"x", [0] * step.load)
        case "dump" if one.stacks >= 0:
            with suppress(BrokenPipeError):
                os.write(one.stacks, step.load)
        case "die":
            one.sent = True  # it ends
            one.kill()
            await harness.killed(one)
        case "play":
            await harness.play(3)
        case "resize":
            shell.submit(events.ResizeAsked("a test", workers=step.load))
        case "reload":
            shell.submit(events.ReloadAsked("a test"))
        case "refork":
            shell.submit(events.ReforkAsked("a test", None, False))
        case "turn":
            await harness.turn()


async def survive(todo: list[Step]) -> None:
    with ShellHarness() as harness:
        await harness.start().play()
        shell = harness.shell
        assert shell.state.ready == 2
        for step in todo:
            await carry_out(harness, step)
        await harness.play()
        assert harness.errors == []
        assert harness.events("internal_error") == []
        guilty = {one.pid for one in harness.stand_ins if one.sent}
        assert {fields.get("pid") for fields in harness.events("protocol_error")} <= guilty | {None}
        # Each death is recorded.
        dead = {one.pid for one in harness.stand_ins if one.dead}
        assert not {pid for pid in dead if shell.children.with_pid(pid)}
        assert not dead & {worker.pid for worker in shell.state.workers.values()}
        assert not dead & {server.pid for server in shell.children.fork_servers.values()}
        booked = {end.pid for end in harness.ledger.newest_first(1000)}
        assert {one.pid for one in harness.stand_ins if one.dead and one.fork_server} <= booked
        # The daemon still works.
        shell.submit(events.ResizeAsked("a test", workers=3))
        assert shell.state.override == 3
        await harness.stopped()
        assert harness.errors == []
        assert harness.events("internal_error") == []


GARBAGE = Step("bytes", 1, b"\xff")


SETTINGS = settings(deadline=None, derandomize=True, suppress_health_check=list(HealthCheck), database=None)


EXAMPLES = [
    [GARBAGE, Step("die", 1), Step("bytes", 2, b"\xff"), Step("die", 2)],
    [Step("bytes", 0, b"\xff"), Step("die", 0)],
    [Step("descriptors", 0, 253), Step("descriptors", 1, 1)],
    [
        Step("many", 1, {"type": "Signalled", "signum": 15}),
        Step("many", 2, {"type": "Signalled", "signum": 15}),
    ],
    [Step("refork", 0), Step("play", 0), Step("message", 1, {"type": "ZygoteReady"}), Step("die", 1)],
]


@pytest.mark.parametrize("number", [6, *thorough(60)])
def test_anything(number: int) -> None:
    """Bytes, and messages in any order from any child; see the module."""

    @settings(SETTINGS, max_examples=number)
    @given(steps)
    def anything(todo: list[Step]) -> None:
        run(survive(todo))

    for todo in EXAMPLES:
        anything = example(todo)(anything)
    anything()
