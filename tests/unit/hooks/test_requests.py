"""pre_request and post_request around the app, in a real engine."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from ostler.hooks.calling import HookFunctions
from ostler.hooks.objects import HookApp, HookLog, HookServer, HookWorker
from ostler.hooks.requests import HookRequest, HookResponse, RequestHooks
from ostler.settings import load
from ostler.wsgi.exchange import Exchange
from tests.unit.workers.rig import Rig


def app(environ: dict[str, Any], start_response: Callable[..., Any]) -> list[bytes]:
    if environ["PATH_INFO"] == "/boom":
        raise ValueError("boom")
    body = environ.get("HTTP_X_NEW", "-").encode() + environ.get("HTTP_X_OLD", "-").encode()
    start_response("200 OK", [("Content-Length", str(len(body)))])
    return [body]


class Hooked:
    """A rig whose exchanges call hooks."""

    def __init__(self, folder: Path, threads: int = 1, **hooks: Callable[..., Any]) -> None:
        settings = load({"wsgi_app": "site:app"}, {}, None, lambda: 1).settings
        self.recorded: list[dict[str, Any]] = []
        server = HookServer(settings, HookApp(lambda: app, "site:app"), HookLog(self._log))
        self.worker = HookWorker(server, 1, 1)
        self.requests = RequestHooks(HookFunctions(hooks, self._log), self.worker)
        self.worker.work(lambda: self.requests.begun)
        self.rig = Rig(folder, app, threads=threads, exchange=self.requests.exchange())

    def _log(self, level: str, name: str, **fields: Any) -> None:
        self.recorded.append({"level": level, "event": name, **fields})


def test_no_cost_without_request_hooks(tmp_path: Path) -> None:
    """Without these hooks a worker uses the plain exchange class, at no additional cost."""
    assert RequestHooks(HookFunctions({"post_fork": print}, print), None).exchange() is Exchange  # type: ignore[arg-type]


def test_what_hooks_see(tmp_path: Path) -> None:
    """Attributes of the request and of the answer; those that pre_request sets on the request are kept."""
    seen: list[Any] = []

    def pre(worker: HookWorker, req: Any) -> None:
        req.note = worker.nr
        seen.append((req.method, req.uri, req.path, req.query, req.fragment, req.version, req.scheme))
        seen.append([field for field in req.headers if field[0] != "HOST"])
        seen.append((req.remote_addr[0], req.peer_addr[0], req.body.read(), req.should_close()))

    def post(worker: HookWorker, req: Any, environ: dict[str, Any], resp: HookResponse) -> None:
        seen.append((req.note, worker.nr, environ["PATH_INFO"]))
        seen.append((resp.status, resp.status_code, resp.headers, resp.sent, resp.response_length))
        seen.append((resp.headers_sent, resp.should_close(), resp.req is req))

    hooked = Hooked(tmp_path, pre_request=pre, post_request=post)
    with hooked.rig as rig:
        client = rig.client()
        assert client.get("/a%20b?x=1", "X-Old: é").status.endswith("200 OK")
    assert seen == [
        ("GET", "/a%20b?x=1", "/a%20b", "x=1", "", (1, 1), "http"),
        [("X-OLD", "Ã©")],
        ("127.0.0.1", "127.0.0.1", b"", False),
        (0, 1, "/a b"),
        ("200 OK", 200, [("Content-Length", "5")], 5, 5),
        (True, False, True),
    ]


def test_fields_that_a_hook_changes(tmp_path: Path) -> None:
    """Header fields that pre_request adds (request ids) reach the app; removing fields has no effect."""

    def pre(_worker: HookWorker, req: HookRequest) -> None:
        req.headers = [field for field in req.headers if field[0] != "X-OLD"]
        req.headers.append(("X-New", 7))  # type: ignore[arg-type]

    hooked = Hooked(tmp_path, pre_request=pre)
    with hooked.rig as rig:
        client = rig.client()
        assert client.get("/", "X-Old: 1").body == b"7-"
        assert client.get("/").body == b"7-"


@pytest.mark.parametrize("error", [RuntimeError("no"), SystemExit(3)])
def test_pre_request_raises(tmp_path: Path, error: BaseException) -> None:
    """The answer is a 500, as in gunicorn; post_request is called, the app is not;
    the next request is served.
    """
    seen: list[tuple[int, int]] = []

    def pre(_worker: HookWorker, req: HookRequest) -> None:
        if req.path == "/no":
            raise error

    def post(worker: HookWorker, _req: Any, _environ: Any, resp: HookResponse) -> None:
        seen.append((resp.status_code, worker.nr))

    hooked = Hooked(tmp_path, pre_request=pre, post_request=post)
    with hooked.rig as rig:
        assert rig.client().get("/no").status.endswith("500 Internal Server Error")
        assert rig.client().get("/").status.endswith("200 OK")
    assert seen == [(500, 0), (200, 1)]


@pytest.mark.parametrize("error", [RuntimeError("late"), SystemExit(3), KeyboardInterrupt()])
def test_post_request_raises(tmp_path: Path, error: BaseException) -> None:
    """The client has its answer, the connection continues, and the log has the traceback."""

    def post(*_args: Any) -> None:
        raise error

    hooked = Hooked(tmp_path, post_request=post)
    with hooked.rig as rig:
        client = rig.client()
        assert client.get("/").body == b"--"
        assert client.get("/").body == b"--"
    assert [line["hook"] for line in hooked.recorded] == ["post_request"] * 2
    assert "in post" in hooked.recorded[0]["traceback"]


def test_post_request_after_a_failure(tmp_path: Path) -> None:
    """An app that raised was answered with 500, and post_request gets that answer."""
    seen: list[str] = []
    hooked = Hooked(tmp_path, post_request=lambda _worker, req, _environ, resp: seen.append(resp.status))
    with hooked.rig as rig:
        client = rig.client()
        assert client.get("/boom").status.endswith("500 Internal Server Error")
    assert seen == ["500 Internal Server Error"]
