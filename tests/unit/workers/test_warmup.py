"""Warm-up requests: they pass through the complete engine, do not count,
and a failing one keeps the worker from serving.
"""

import gc
import ssl
import threading
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import msgspec
import pytest

from ostler.ipc import messages
from ostler.logs.logfile import LogFile
from ostler.logs.worker_log import Log
from ostler.settings.kinds.http import WarmupRequest
from ostler.settings.table import Settings
from ostler.workers.warmup import WarmupError, warm_up
from tests.unit.workers.keeper import Keeper

Environ = dict[str, Any]
App = Callable[[Environ, Callable[..., Any]], Iterable[bytes]]
LISTENER = ("0.0.0.0", 8443)


def answering(status: str, seen: list[Environ] | None = None, body: Iterable[bytes] = (b"ok",)) -> App:
    def app(environ: Environ, start_response: Callable[..., Any]) -> Iterable[bytes]:
        if seen is not None:
            seen.append(environ)
        start_response(status, [("Content-Type", "text/plain")])
        return body

    return app


def run(app: App, tmp_path: Path, *requests: WarmupRequest, **more: Any) -> str:
    """Run the warm-up; returns what was logged."""
    tls, listener = more.pop("tls", None), more.pop("listener", LISTENER)
    settings = msgspec.structs.replace(Settings(), warmup_request=requests, **more)
    log = LogFile(str(tmp_path / "log"), 2)
    try:
        warm_up(app, settings, Log(log, "console", "debug", {}), tls, listener)
    finally:
        log.close()
    return (tmp_path / "log").read_text()


def test_the_app_sees_requests_of_ours(tmp_path: Path) -> None:
    """Method, path, query and header fields are as set; the rest is as for a client on this machine."""
    seen: list[Environ] = []
    first = WarmupRequest("/health?deep=1", headers={"X-Warm": "yes", "User-Agent": "probe"})
    assert run(answering("200 OK", seen), tmp_path, first, WarmupRequest("/cart", "POST"), threads=4) == ""
    expected = {
        "REQUEST_METHOD": "GET",
        "PATH_INFO": "/health",
        "QUERY_STRING": "deep=1",
        "HTTP_X_WARM": "yes",
        "HTTP_USER_AGENT": "probe",
        "HTTP_HOST": "localhost",
        "SERVER_NAME": "localhost",
        "SERVER_PORT": "8443",
        "SERVER_PROTOCOL": "HTTP/1.1",
        "REMOTE_ADDR": "127.0.0.1",
        "wsgi.url_scheme": "http",
        "wsgi.multithread": True,
    }
    assert {name: seen[0].get(name) for name in expected} == expected
    assert (seen[1]["REQUEST_METHOD"], seen[1]["CONTENT_LENGTH"]) == ("POST", "0")


def test_a_host_that_is_given_is_sent(tmp_path: Path) -> None:
    """For apps that answer certain hosts only; fields for framing can't be set."""
    seen: list[Environ] = []
    headers = {"Host": "shop.example", "Content-Length": "10", "Connection": "keep-alive"}
    run(answering("200 OK", seen), tmp_path, WarmupRequest("/", headers=headers), listener="/run/shop.sock")
    assert (seen[0]["HTTP_HOST"], seen[0]["SERVER_PORT"]) == ("shop.example", "80")
    assert "CONTENT_LENGTH" not in seen[0]


def test_the_scheme_is_that_of_clients(tmp_path: Path) -> None:
    """With TLS configured the app gets https, although the request itself is not encrypted."""
    seen: list[Environ] = []
    run(answering("200 OK", seen), tmp_path, WarmupRequest("/"), tls=ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER))
    assert (seen[0]["wsgi.url_scheme"], seen[0]["HTTPS"]) == ("https", "on")


@pytest.mark.parametrize("status", ["204 No Content", "302 Found", "404 Not Found", "499 Whatever"])
def test_any_answer_below_500_will_do(tmp_path: Path, status: str) -> None:
    """An app that answers can serve: a wrong path or a missing login does not matter."""
    run(answering(status), tmp_path, WarmupRequest("/"))


def test_large_answers_are_taken(tmp_path: Path) -> None:
    """An answer in parts, larger than the buffers of the sockets, is read while the app runs."""
    parts = (b"x" * 1_000_000 for _ in range(24))
    run(
        answering("200 OK", body=parts),
        tmp_path,
        WarmupRequest("/"),
        buffer_response=1024,
        buffer_response_file=0,
    )


def test_500_is_a_failure(tmp_path: Path) -> None:
    """The reason has the request and the status; the first failure ends the warm-up."""
    with pytest.raises(WarmupError) as caught:
        run(answering("503 Database away"), tmp_path, WarmupRequest("/health", "HEAD"), WarmupRequest("/b"))
    assert caught.value.reason == "warmup_request HEAD /health was answered with 503 Database away"
    assert caught.value.trace is None


def test_an_exception_is_a_failure_with_its_traceback(tmp_path: Path) -> None:
    """The app's traceback is part of the failure, and is not logged as well."""

    def app(environ: Environ, start_response: Callable[..., Any]) -> Iterable[bytes]:
        raise KeyError("no such table")

    with pytest.raises(WarmupError) as caught:
        run(app, tmp_path, WarmupRequest("/"))
    assert caught.value.reason == "warmup_request GET / was answered with 500 Internal Server Error"
    assert "KeyError: 'no such table'" in (caught.value.trace or "")
    assert (tmp_path / "log").read_text() == ""


def test_an_exception_behind_a_good_status_is_a_failure(tmp_path: Path) -> None:
    """An app that raises in the middle of its answer has failed."""

    def parts() -> Iterable[bytes]:
        yield b"so far"
        raise ZeroDivisionError

    with pytest.raises(WarmupError) as caught:
        run(answering("200 OK", body=parts()), tmp_path, WarmupRequest("/"))
    assert caught.value.reason == "warmup_request GET / made the app raise after it had answered with 200 OK"
    assert "ZeroDivisionError" in (caught.value.trace or "")


def test_no_answer_is_a_failure(tmp_path: Path) -> None:
    """An app that closes the connection instead of answering has failed."""

    def app(environ: Environ, start_response: Callable[..., Any]) -> Iterable[bytes]:
        raise ConnectionError("gone")

    with pytest.raises(WarmupError):
        run(app, tmp_path, WarmupRequest("/"))


def test_nothing_is_left(tmp_path: Path) -> None:
    """Neither a thread nor a descriptor, which the audit of a zygote would find."""
    gc.collect()  # objects of earlier tests could be collected at any time
    threads, descriptors = set(threading.enumerate()), len(list(Path("/proc/self/fd").iterdir()))
    run(answering("200 OK"), tmp_path, WarmupRequest("/"), WarmupRequest("/b"))
    assert set(threading.enumerate()) <= threads
    assert len(list(Path("/proc/self/fd").iterdir())) <= descriptors


def test_without_requests_nothing_is_done(tmp_path: Path) -> None:
    """The setting is off by default: the app is not called."""
    seen: list[Environ] = []
    run(answering("500 No", seen), tmp_path)
    assert seen == []


APP = """\
def app(environ, start_response):
    import colorsys
    if environ["PATH_INFO"] == "/broken":
        raise LookupError("the shop is closed")
    start_response("200 OK", [("Content-Length", "2")])
    return [b"ok"]
"""


def test_a_worker_is_warm_before_it_is_ready(tmp_path: Path) -> None:
    """The request is neither counted nor in the access log; modules imported for it are reported."""
    (tmp_path / "app.py").write_text(APP)
    with Keeper(tmp_path, wsgi_app="app:app", warmup_request=["/"], accesslog="access.log") as keeper:
        worker = keeper.boot(keeper.server())
        assert "colorsys" in worker.receive(messages.Ready).modules
        assert keeper.answered(worker) == 0
        keeper.get("/counted")
        assert keeper.answered(worker) == 1
        worker.send_message(messages.Drain())
        worker.wait_until_ended()
    lines = (tmp_path / "access.log").read_text().splitlines()
    assert [line.split('"')[1] for line in lines] == ["GET /counted HTTP/1.1"]


@pytest.mark.parametrize("preload", [False, True])
def test_a_worker_that_fails_does_not_boot(tmp_path: Path, preload: bool) -> None:
    """It sends the reason instead of `Ready`, and ends."""
    (tmp_path / "app.py").write_text(APP)
    settings = {"wsgi_app": "app:app", "warmup_request": ["/", "/broken"], "preload_app": preload}
    with Keeper(tmp_path, **settings) as keeper:
        worker = keeper.boot(keeper.server())
        failed = worker.receive(messages.BootFailed)
        worker.wait_until_ended()
    assert failed.reason == "warmup_request GET /broken was answered with 500 Internal Server Error"
    assert "LookupError: the shop is closed" in (failed.traceback or "")


def test_workers_of_a_zygote_are_warmed_up(tmp_path: Path) -> None:
    """They have the app already, and run the warm-up nevertheless."""
    (tmp_path / "app.py").write_text(
        "count = 0\n"
        + APP.replace("    import colorsys", "    global count; count += 1").replace(
            'b"ok"', "b'%02d' % count"
        )
    )
    with Keeper(tmp_path, wsgi_app="app:app", warmup_request="/") as keeper:
        zygote = keeper.make_zygote(keeper.spawn(keeper.server()))
        keeper.spawn(zygote, 2)
        assert keeper.get() == ("200 OK", b"03")
