"""Warm-up requests decide whether a worker, a reload or a daemon starts."""

import pytest

from tests.kit.certificates import Authority
from tests.kit.daemon import Place
from tests.kit.tiers import thorough

pytestmark = pytest.mark.system

APP = """\
import pathlib
seen = []

def app(environ, start_response):
    path = environ["PATH_INFO"]
    if path == "/health":
        seen.append(environ["wsgi.url_scheme"])
        if pathlib.Path("broken").exists():
            raise LookupError("no such table")
    answer = " ".join(["ok", *seen]).encode()
    start_response("200 OK", [("Content-Length", str(len(answer)))])
    return [answer]
"""
REASON = "warmup_request GET /health was answered with 500 Internal Server Error"


@pytest.mark.parametrize("preload", [[], *thorough(["--preload"])])
def test_a_reload_whose_canary_is_not_warm(place: Place, preload: list[str]) -> None:
    """`ctl reload` exits with 1, the request, the status and the app's traceback; the old workers serve."""
    place.add("shop.py", APP)
    daemon = place.start("-w", "2", *preload, "--warmup-request", "/health", "shop:app")
    before = [worker.pid for worker in daemon.settled(2)]
    (place.app_folder / "broken").touch()
    done = daemon.ctl("reload")
    assert done.code == 1
    assert REASON in done.err.splitlines()[-1]
    assert "LookupError: no such table" in done.err
    assert [worker.pid for worker in daemon.settled(2)] == before
    assert daemon.get().text == "ok http"
    (place.app_folder / "broken").unlink()
    assert daemon.ctl("reload").code == 0


def test_a_daemon_that_can_not_be_warmed_up(place: Place) -> None:
    """At the start it is as if the app could not be loaded: exit code 3, and the reason."""
    place.add("shop.py", APP)
    (place.app_folder / "broken").touch()
    done = place.run("-b", "127.0.0.1:0", "--warmup-request", "/health", "shop:app")
    assert done.code == 3
    assert REASON in done.err
    assert "LookupError: no such table" in done.err


def test_each_worker_is_warmed_up_unseen(place: Place) -> None:
    """The requests are neither counted nor in the access log; under TLS the app sees https."""
    server = Authority(place.folder).issue("localhost")
    place.add("shop.py", APP)
    tls = ("--certfile", server.cert, "--keyfile", server.key)
    daemon = place.start(
        "-w", "2", *tls, "--warmup-request", "/health", "--access-logfile", "a.log", "shop:app"
    )
    daemon.settled(2)
    assert daemon.status().totals.requests == 0
    assert (place.app_folder / "a.log").read_text() == ""


def test_an_answer_that_warms_little(place: Place) -> None:
    """A 404, perhaps of a misspelt path, is not a failure, but it is logged."""
    place.add("shop.py", APP.replace('"200 OK"', '"404 Not Found"'))
    daemon = place.start("--warmup-request", "/helth", "shop:app")
    assert "GET /helth was answered with 404 Not Found" in daemon.event("warmup_request")["problem"]
    assert daemon.get().status == 404


def test_it_is_part_of_booting(place: Place) -> None:
    """A warm-up request that is not answered in boot_timeout ends the worker,
    like an app that does not load.
    """
    place.add("shop.py", APP.replace("seen.append", "import time; time.sleep(1000); seen.append"))
    done = place.run("-b", "127.0.0.1:0", "--warmup-request", "/health", "--boot-timeout", "1", "shop:app")
    assert done.code == 3
    assert "boot" in done.err
