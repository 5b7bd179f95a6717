"""A Django project as its clients see it: a page, an upload, a stream, a file."""

import gzip
import json
import random

import pytest

from tests.kit.daemon import Daemon, Place
from tests.kit.processes import descriptors
from tests.system.real.bodies import form, sha256

pytest.importorskip("django", reason="Django is not installed")

pytestmark = pytest.mark.system

LARGE = random.Random(4).randbytes(5_000_000)


@pytest.fixture(scope="module", params=[["-w", "2"], ["--threads", "4"]], ids=["sync", "gthread"])
def site(request: pytest.FixtureRequest, shared_place: Place) -> Daemon:
    (shared_place.app_folder / "large.bin").write_bytes(LARGE)
    return shared_place.start(*request.param, "django_site:create_app()")


def test_hello(site: Daemon) -> None:
    """A page with a name in any script in its path, and two cookies in separate fields."""
    connection = site.connect()
    assert connection.asked("/").answer().text == "hello world"
    response = site.connect().asked("/hello/J%C3%BCrgen%20%E4%B8%96").getresponse()
    assert response.read().decode() == "hello Jürgen 世"
    cookies = response.headers.get_all("set-cookie") or []
    assert {cookie.partition("=")[0] for cookie in cookies} == {"seen", "theme"}


def test_upload(site: Daemon) -> None:
    """Uploaded files, which Django keeps in memory and in a file, have the digests of what was sent."""
    body, kind = form({"note": "ä"}, {"small": ("a.txt", b"abc"), "large": ("b.bin", LARGE)})
    connection = site.connect()
    for _ in range(2):
        answer = connection.asked("/upload", "POST", body=body, headers={"Content-Type": kind}).answer()
        assert json.loads(answer.body) == {
            "fields": {"note": "ä"},
            "files": {
                "small": {"name": "a.txt", "size": 3, "sha256": sha256(b"abc")},
                "large": {"name": "b.bin", "size": len(LARGE), "sha256": sha256(LARGE)},
            },
        }


def test_raw_body(site: Daemon) -> None:
    """A body that is not a form is read to its end."""
    answer = site.get("/raw", method="POST", body=LARGE)
    assert json.loads(answer.body) == {"size": len(LARGE), "sha256": sha256(LARGE)}


def test_stream(site: Daemon) -> None:
    """A streamed answer arrives completely, plain and compressed by Django while it is sent."""
    expected = "".join(f"line {number}\n" for number in range(1000))
    connection = site.connect()
    answer = connection.asked("/lines").answer()
    assert (answer.headers["transfer-encoding"], answer.text) == ("chunked", expected)
    packed = connection.asked("/lines", headers={"Accept-Encoding": "gzip"}).answer()
    assert packed.headers["content-encoding"] == "gzip"
    assert gzip.decompress(packed.body).decode() == expected


def test_download(site: Daemon) -> None:
    """A large file through wsgi.file_wrapper: every byte, a length, and a connection that stays open."""
    connection = site.connect()
    for _ in range(2):
        answer = connection.asked("/download").answer()
        assert answer.headers["content-length"] == str(len(LARGE))
        assert "large.bin" in answer.headers["content-disposition"]
        assert sha256(answer.body) == sha256(LARGE)
    file = str(site.place.app_folder / "large.bin")
    site.until(lambda: all(file not in descriptors(pid) for pid in site.pids()), "what was sent is closed")


def test_fail(site: Daemon) -> None:
    """A view that raises gives Django's own 500, and the next request is answered."""
    connection = site.connect()
    assert connection.asked("/fail").answer().status == 500
    assert connection.asked("/").answer().status == 200
    assert site.events("worker_died") == []
