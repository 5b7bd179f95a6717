"""The route table, everything that is derived from it, and the answer of each route."""

import os
import re
from typing import Any

import msgspec
import pytest

from ostler.control.guard import LoginHandlers
from ostler.control.openapi import document
from ostler.control.routes import RELOAD, ROUTES, SCALE, Route
from ostler.control.server import bind_handlers
from ostler.control.views import Asked, EventView, ExitView, ReloadView, StatusView, WorkerView
from ostler.fleet.events import (
    RecycleAsked,
    ReforkAsked,
    ReloadAsked,
    ResizeAsked,
    StopAsked,
    UpgradeAsked,
)
from tests.unit.control.conftest import Rig
from tests.unit.control.fake import FakeBackend, an_exit


def test_each_route_has_a_handler_and_a_name_of_its_own() -> None:
    """The table and the handlers agree: no row without code, no two rows with one name or one place."""
    bound = bind_handlers(FakeBackend(), LoginHandlers())
    assert {*bound, "stream"} == {route.name for route in ROUTES}
    assert len({route.name for route in ROUTES}) == len(ROUTES)
    assert len({(route.method, route.path) for route in ROUTES}) == len(ROUTES)


@pytest.mark.parametrize("route", [r for r in ROUTES if r.method == "POST" or r.query or "{" in r.path])
def test_routes_that_need_a_handler(route: Route[Any, Any]) -> None:
    """A method without arguments can't serve a route that has parameters or changes something."""
    with pytest.raises(ValueError, match=route.name):
        route.shown_by(dict)


def test_what_is_shown_belongs_to_a_route() -> None:
    """A view that no route would serve is a mistake."""
    backend = FakeBackend()
    backend.shown["nowhere"] = dict
    with pytest.raises(KeyError, match="nowhere"):
        bind_handlers(backend, LoginHandlers())


def test_the_document_lists_exactly_the_table() -> None:
    """OpenAPI has each route with its body, answers and authentication, and nothing else."""
    paths = document()["paths"]
    operations = {
        (method.upper(), path): what for path, methods in paths.items() for method, what in methods.items()
    }
    assert set(operations) == {(route.method, route.path) for route in ROUTES}
    for route in ROUTES:
        operation = operations[route.method, route.path]
        assert operation["operationId"] == route.name
        assert ("requestBody" in operation) == (route.ask is not None)
        assert (operation["security"] == []) == route.open
        assert {str(s) for s in (route.status, *route.also)} <= set(operation["responses"])


def test_the_document_has_no_dangling_reference() -> None:
    """Each $ref names an existing schema, and the stream's types exist as well."""
    text = msgspec.json.encode(document()).decode()
    schemas = document()["components"]["schemas"]
    assert set(re.findall(r'"#/components/schemas/(\w+)"', text)) <= set(schemas)
    assert {"EventView", "ExitView", "SampleView", "ErrorView", "WorkerView"} <= set(schemas)
    assert {"Scale", "Reload", "Refork", "Stop", "Login"} <= set(schemas)
    assert schemas["Reload"]["title"] == "Reload"


@pytest.mark.parametrize("route", [r for r in ROUTES if r.method == "GET" and r.view], ids=lambda r: r.name)
async def test_a_get_answers_its_view(rig: Rig, route: Route[object, Any]) -> None:
    """The answer of a GET route decodes as the type in the table, on both listeners."""
    await rig.unix.post(RELOAD.path)
    for session in (rig.unix, rig.tcp):
        async with session.get(route.path.format(slot=2), headers=rig.bearer) as answer:
            assert answer.status == route.status
            assert answer.content_type == route.media.partition(";")[0]
            if route.media == "application/json":
                msgspec.json.decode(await answer.read(), type=route.view)


@pytest.mark.parametrize(("body", "wanted"), [({"workers": 5}, 5), ({"delta": -1}, 2), ({"delta": -9}, 1)])
async def test_scale_submits_one_event(rig: Rig, body: dict[str, int], wanted: int) -> None:
    """A scale request becomes one ResizeAsked with the caller; the answer is the new status."""
    async with rig.unix.post("/v1/scale", json=body) as answer:
        view = msgspec.json.decode(await answer.read(), type=StatusView)
    (seen,) = rig.backend.submitted
    assert seen == ResizeAsked(by=f"api unix uid {os.geteuid()}", **body)
    assert view.wanted == wanted


async def test_by_says_who_asked_over_tcp(rig: Rig) -> None:
    """On TCP the event names the peer's address."""
    await rig.tcp.post("/v1/reload", headers=rig.bearer)
    assert rig.backend.submitted == [ReloadAsked(by="api 127.0.0.1")]


@pytest.mark.parametrize(
    "body",
    [
        {},
        {"workers": 2, "delta": 1},
        {"workers": 0},
        {"workers": 513},
        {"delta": 510},
        {"workers": "5"},
        {"n": 5},
        [],
    ],
)
async def test_scale_refuses_what_makes_no_sense(rig: Rig, body: object) -> None:
    """Neither or both numbers, numbers out of bounds, wrong types: 422, and no event for the fleet."""
    async with rig.unix.post(SCALE.path, json=body) as answer:
        assert answer.status == 422
        assert (await answer.json())["error"] == "invalid"
    assert rig.backend.submitted == []


async def test_an_empty_body_means_the_defaults(rig: Rig) -> None:
    """POST without a body: a reload without waiting, a graceful stop."""
    async with rig.unix.post("/v1/reload") as answer:
        assert answer.status == 202
        assert msgspec.json.decode(await answer.read(), type=ReloadView).phase == "loading"
    async with rig.unix.post("/v1/stop") as answer:
        assert answer.status == 202
    reload, stop = rig.backend.submitted
    assert isinstance(reload, ReloadAsked)
    assert isinstance(stop, StopAsked)
    assert stop.how == "graceful"


@pytest.mark.parametrize(("broken", "status", "phase"), [(False, 200, "done"), (True, 409, "failed")])
async def test_a_waited_reload_answers_the_outcome(rig: Rig, broken: bool, status: int, phase: str) -> None:
    """With `wait` the answer is sent at the end: 200 done, or 409 with reason and traceback."""
    rig.backend.broken = broken
    async with rig.unix.post("/v1/reload", json={"wait": True}) as answer:
        assert answer.status == status
        view = msgspec.json.decode(await answer.read(), type=ReloadView)
    assert view.phase == phase
    assert (view.traceback is not None) == broken


async def test_there_is_no_reload_before_the_first(rig: Rig) -> None:
    """GET /v1/reload is 404 before the first reload."""
    async with rig.unix.get("/v1/reload") as answer:
        assert answer.status == 404


async def test_recycle_names_the_slot(rig: Rig) -> None:
    """The event has the slot; the answer is the worker that is to leave, with the pid to wait for."""
    async with rig.unix.post("/v1/workers/2/recycle") as answer:
        assert answer.status == 202
        view = msgspec.json.decode(await answer.read(), type=WorkerView)
    assert (view.slot, view.pid, view.leaving) == (2, 102, "asked")
    (event,) = rig.backend.submitted
    assert isinstance(event, RecycleAsked)
    assert event.slot == 2


@pytest.mark.parametrize("slot", ["9", "0", "x", "-1", "²", "9" * 900])
async def test_a_slot_that_is_not_there_is_404(rig: Rig, slot: str) -> None:
    """Unknown numbers and texts that are not numbers get the same clear answer, never a 500."""
    for method, path in (("GET", f"/v1/workers/{slot}"), ("POST", f"/v1/workers/{slot}/recycle")):
        async with rig.unix.request(method, path) as answer:
            assert answer.status == 404
            assert (await answer.json())["error"] == "not_found"
    assert rig.backend.submitted == []


async def test_nothing_is_changed_while_stopping(rig: Rig) -> None:
    """While the daemon stops, every other change is refused, but a second stop is accepted."""
    rig.backend.state = "stopping"
    for path, body in (
        ("/v1/scale", {"delta": 1}),
        ("/v1/reload", {}),
        ("/v1/workers/1/recycle", {}),
        ("/v1/refork", {}),
        ("/v1/upgrade", {}),
    ):
        async with rig.unix.post(path, json=body) as answer:
            assert answer.status == 409
    async with rig.unix.post("/v1/stop", json={"graceful": False}) as answer:
        assert answer.status == 202
    (event,) = rig.backend.submitted
    assert isinstance(event, StopAsked)
    assert event.how == "quick"


async def test_refork_names_slot_and_force(rig: Rig) -> None:
    """The event has both; the answer has the event id after which the outcome follows."""
    rig.backend.happen("worker_ready")
    async with rig.unix.post("/v1/refork", json={"slot": 2, "force": True}) as answer:
        assert answer.status == 202
        asked = msgspec.json.decode(await answer.read(), type=Asked)
    assert rig.backend.submitted == [ReforkAsked(f"api unix uid {os.geteuid()}", 2, True)]
    async with rig.unix.get(f"/v1/events?after={asked.after}") as answer:
        received = msgspec.json.decode(await answer.read(), type=list[EventView])
    assert [event.name for event in received] == ["refork", "refork_done"]


async def test_refork_that_can_not_be(rig: Rig) -> None:
    """No ready worker in the slot, none at all, a running reload: 409 with the reason, and no event."""

    async def refused(body: dict[str, object]) -> str:
        async with rig.unix.post("/v1/refork", json=body) as answer:
            assert answer.status == 409
            return str((await answer.json())["message"])

    rig.backend.fleet[1].state = "draining"
    assert await refused({"slot": 9}) == "no worker is ready in slot 9"
    assert await refused({"slot": 2}) == "no worker is ready in slot 2"
    rig.backend.fleet.clear()
    assert await refused({}) == "no worker is ready"
    rig.backend.stuck = True
    rig.backend.submit(ReloadAsked("somebody"))
    rig.backend.submitted.clear()
    assert "a reload to generation 2 is running" in await refused({})
    assert rig.backend.submitted == []


async def test_upgrade(rig: Rig) -> None:
    """One event; 409 during a reload."""
    async with rig.unix.post("/v1/upgrade") as answer:
        assert answer.status == 202
    assert rig.backend.submitted[0] == UpgradeAsked(f"api unix uid {os.geteuid()}")
    rig.backend.stuck = True
    rig.backend.submit(ReloadAsked("somebody"))
    async with rig.unix.post("/v1/upgrade") as answer:
        assert answer.status == 409


async def test_events_after_an_id(rig: Rig) -> None:
    """All events without `after`, only newer ones with it."""
    for name in ("one", "two", "three"):
        rig.backend.happen(name)

    async def names(query: str) -> list[str]:
        async with rig.unix.get(f"/v1/events{query}") as answer:
            return [event["name"] for event in await answer.json()]

    assert await names("") == ["one", "two", "three"]
    assert await names("?after=2") == ["three"]
    assert await names("?after=3") == []


async def test_exits_are_limited(rig: Rig) -> None:
    """A hundred unless another number is asked for."""
    rig.backend.ends = [an_exit(number) for number in range(200, 0, -1)]
    for query, count in (("", 100), ("?limit=3", 3), ("?limit=1000", 200)):
        async with rig.unix.get(f"/v1/exits{query}") as answer:
            view = msgspec.json.decode(await answer.read(), type=list[ExitView])
        assert [one.id for one in view] == list(range(200, 200 - count, -1))


@pytest.mark.parametrize("text", ["-1", "x", "1.5", "", "²", "9" * 30])
async def test_a_parameter_that_is_not_a_number(rig: Rig, text: str) -> None:
    """422 with the name of the parameter."""
    async with rig.unix.get("/v1/exits", params={"limit": text}) as answer:
        assert answer.status == 422
        assert "limit" in (await answer.json())["message"]


async def test_readiness(rig: Rig) -> None:
    """/readyz is 503 without a ready worker and while stopping;
    /healthz is 200 as long as the daemon runs.
    """

    async def get(path: str) -> int:
        async with rig.tcp.get(path) as answer:  # no token
            return answer.status

    assert await get("/readyz") == 200
    rig.backend.state = "stopping"
    assert await get("/readyz") == 503
    rig.backend.state = "degraded"
    rig.backend.fleet.clear()
    assert await get("/readyz") == 503
    assert await get("/healthz") == 200
