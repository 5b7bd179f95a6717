"""The API over TCP: loopback, bearer token, and routes that need no token."""

import json
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.kit.daemon import Daemon, Place
from tests.kit.http_client import Answer, ask

pytestmark = pytest.mark.system


@pytest.fixture(scope="module")
def daemon(shared_place: Place) -> Iterator[Daemon]:
    daemon = shared_place.start("--control-bind", "127.0.0.1:0", "plain:app")
    yield daemon
    daemon.stop()
    assert not token_file(daemon).exists()


def url(daemon: Daemon) -> str:
    return str(daemon.event("control")["url"])


def token_file(daemon: Daemon) -> Path:
    return daemon.socket.with_suffix(".token")


def bearer(daemon: Daemon) -> dict[str, str]:
    return {"Authorization": f"Bearer {token_file(daemon).read_text().strip()}"}


def test_without_token(daemon: Daemon) -> None:
    """Reading and changing need the token: 401 with an error view, and nothing has changed."""
    for method, path in (
        ("GET", "/v1/status"),
        ("GET", "/v1/config"),
        ("POST", "/v1/scale"),
        ("POST", "/v1/stop"),
    ):
        answer = ask(url(daemon), path, method)
        assert answer.status == 401, path
        assert json.loads(answer.body)["error"]
    wrong = {"Authorization": "Bearer " + "x" * 43}
    assert ask(url(daemon), "/v1/status", headers=wrong).status == 401
    assert daemon.status().wanted == 1


def test_with_token(daemon: Daemon) -> None:
    """The token from the file beside the socket is accepted."""
    answer = ask(url(daemon), "/v1/status", headers=bearer(daemon))
    assert answer.status == 200
    assert json.loads(answer.body)["pid"] == daemon.pid
    scaled = post(daemon, "/v1/scale", {"workers": 2})
    assert (scaled.status, json.loads(scaled.body)["wanted"]) == (200, 2)
    daemon.settled(2)
    assert post(daemon, "/v1/scale", {"delta": -1}).status == 200
    daemon.settled(1)


def test_token_file(daemon: Daemon) -> None:
    """Only its owner may read it."""
    assert token_file(daemon).stat().st_mode & 0o777 == 0o600


def test_health_is_open(daemon: Daemon) -> None:
    """Load balancers need no token for /healthz and /readyz."""
    for path in ("/healthz", "/readyz"):
        assert ask(url(daemon), path).status == 200


def test_ctl_over_tcp(daemon: Daemon) -> None:
    """--url with OSTLER_TOKEN does the same as the socket."""
    token = token_file(daemon).read_text().strip()
    done = daemon.place.run("ctl", "--url", url(daemon), "workers", "--json", OSTLER_TOKEN=token)
    assert done.code == 0
    assert json.loads(done.out)[0]["pid"] == daemon.pids()[0]
    assert daemon.place.run("ctl", "--url", url(daemon), "status", OSTLER_TOKEN="wrong").code == 1


def test_foreign_host_and_origin(daemon: Daemon) -> None:
    """A web page of another origin can't use it through a browser (DNS rebinding, cross-site requests)."""
    headers = bearer(daemon)
    assert ask(url(daemon), "/v1/status", headers=headers | {"Host": "evil.example"}).status in (
        400,
        403,
        421,
    )
    assert post(daemon, "/v1/scale", {"workers": 2}, Origin="http://evil.example").status == 403


def test_changes_are_logged(daemon: Daemon) -> None:
    """Each change is in the log, with the client that asked for it."""
    post(daemon, "/v1/scale", {"workers": 1})
    assert daemon.events("control_change")


def test_bad_asks(daemon: Daemon) -> None:
    """Each mistake has its own status and an error view, and none a traceback."""
    for path, body, status in (
        ("/v1/scale", {}, 422),
        ("/v1/scale", {"workers": 1, "delta": 1}, 422),
        ("/v1/scale", {"workers": "x"}, 422),
        ("/v1/workers/99/recycle", {}, 404),
        ("/v1/nothing", {}, 404),
    ):
        answer = post(daemon, path, body)
        assert answer.status in (status, 400), (path, body)
        assert json.loads(answer.body).keys() == {"error", "message"}
    assert "Traceback" not in daemon.log.read_text()


def test_own_token_file(place: Place) -> None:
    """--control-token-file: the token is read from there, and the file stays."""
    path = place.folder / "token"
    path.write_text("s3cret-and-long-enough\n")
    daemon = place.start("--control-bind", "127.0.0.1:0", "--control-token-file", str(path), "plain:app")
    headers = {"Authorization": "Bearer s3cret-and-long-enough"}
    assert ask(url(daemon), "/v1/status", headers=headers).status == 200
    daemon.stop()
    assert path.exists()


def test_readyz_while_paused(place: Place) -> None:
    """Without a ready worker /readyz is 503, /healthz 200."""
    daemon = place.start("--control-bind", "127.0.0.1:0", "plain:app")
    daemon.send(signal.SIGWINCH)
    daemon.settled(0)
    assert ask(url(daemon), "/readyz").status == 503
    assert ask(url(daemon), "/healthz").status == 200


def post(daemon: Daemon, path: str, body: dict[str, object], **headers: str) -> Answer:
    headers = bearer(daemon) | {"Content-Type": "application/json"} | headers
    return ask(url(daemon), path, "POST", body=json.dumps(body), headers=headers)
