"""A Flask app as its clients see it: JSON, uploads, a generator, a file, a session."""

import hashlib
import http.client
import json
import random

import pytest

from tests.kit.daemon import Daemon, Place
from tests.system.real.bodies import form, sha256

pytestmark = pytest.mark.system

LARGE = random.Random(3).randbytes(5_000_000)


@pytest.fixture(scope="module", params=[["-w", "2"], ["--threads", "4"]], ids=["sync", "gthread"])
def site(request: pytest.FixtureRequest, shared_place: Place) -> Daemon:
    (shared_place.app_folder / "large.bin").write_bytes(LARGE)
    return shared_place.start(*request.param, "flask_site:app")


def test_json(site: Daemon) -> None:
    """What was posted as JSON comes back the same, any script and size."""
    connection = site.connect()
    for value in ({"word": "Grüße, 世界 🐎"}, [], list(range(50_000))):
        sent = json.dumps(value).encode()
        headers = {"Content-Type": "application/json"}
        answer = connection.asked("/json", "POST", body=sent, headers=headers).answer()
        assert answer.status == 200
        assert json.loads(answer.body) == {"got": value, "type": "application/json"}


@pytest.mark.parametrize("chunked", [False, True], ids=["length", "chunked"])
def test_upload(site: Daemon, chunked: bool) -> None:
    """A form with a small and a large file arrives whole, fields too."""
    body, kind = form({"note": "drei Äpfel"}, {"small": ("a.txt", b"abc"), "large": ("ü.bin", LARGE)})
    sent = iter([body[:10], body[10:70_000], body[70_000:]]) if chunked else body
    headers = {"Content-Type": kind}
    answer = site.connect().asked("/upload", "POST", body=sent, headers=headers, encode_chunked=chunked)
    got = json.loads(answer.answer().body)
    assert got["fields"] == {"note": "drei Äpfel"}
    assert got["files"] == {
        "small": {"name": "a.txt", "sha256": sha256(b"abc")},
        "large": {"name": "ü.bin", "sha256": sha256(LARGE)},
    }


@pytest.mark.parametrize("chunked", [False, True], ids=["length", "chunked"])
def test_raw_body(site: Daemon, chunked: bool) -> None:
    """A body that is not a form is read from the stream to its end, and the connection continues after it."""
    connection = site.connect()
    for body in (b"", b"x", LARGE):
        sent = iter([body] if body else []) if chunked else body
        answer = connection.asked("/raw", "PUT", body=sent, encode_chunked=chunked).answer()
        assert json.loads(answer.body) == {"size": len(body), "sha256": sha256(body)}


def test_generator(site: Daemon) -> None:
    """A generator that needs the request's context is sent in chunks,
    in several answers one after the other.
    """
    connection = site.connect()
    for word in ("one", "two"):
        answer = connection.asked(f"/lines?word={word}").answer()
        assert answer.headers["transfer-encoding"] == "chunked"
        assert answer.text == "".join(f"{word} {number}\n" for number in range(1000))


def test_generator_that_fails(site: Daemon) -> None:
    """The client sees that the answer is incomplete, and other clients are not affected."""
    with pytest.raises(http.client.IncompleteRead) as caught:
        site.get("/cut")
    assert caught.value.partial == b"the beginning\n"
    assert site.event("request_failed", path="/cut")
    assert site.get("/").text == "hello"


def test_send_file(site: Daemon) -> None:
    """A file is sent completely, in part, and not at all if the client has it."""
    connection = site.connect()
    whole = connection.asked("/download").answer()
    assert (whole.status, whole.headers["content-length"]) == (200, str(len(LARGE)))
    assert hashlib.sha256(whole.body).digest() == hashlib.sha256(LARGE).digest()
    part = connection.asked("/download", headers={"Range": "bytes=1000000-1999999"}).answer()
    assert (part.status, part.headers["content-range"]) == (206, f"bytes 1000000-1999999/{len(LARGE)}")
    assert part.body == LARGE[1_000_000:2_000_000]
    tail = connection.asked("/download", headers={"Range": "bytes=-5"}).answer()
    assert (tail.status, tail.body) == (206, LARGE[-5:])
    beyond = connection.asked("/download", headers={"Range": "bytes=5000000-"}).answer()
    assert beyond.status == 416
    same = connection.asked("/download", headers={"If-None-Match": whole.headers["etag"]}).answer()
    assert (same.status, same.body) == (304, b"")
    head = connection.asked("/download", "HEAD").answer()
    assert (head.status, head.headers["content-length"], head.body) == (200, str(len(LARGE)), b"")


def test_session(site: Daemon) -> None:
    """A signed cookie is set and comes back, whichever worker answers."""
    cookie = ""
    for number in (1, 2, 3):
        answer = site.get("/count", headers={"Cookie": cookie} if cookie else {})
        assert answer.text == str(number)
        cookie = answer.headers["set-cookie"].partition(";")[0]
