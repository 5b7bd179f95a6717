"""httpbin, as two widely used HTTP clients see it: requests (urllib3) and httpx (h11)."""

import asyncio
import base64
import itertools
import json
import random
import re
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any
from urllib.parse import unquote

import pytest

from tests.kit.daemon import Daemon, Place
from tests.kit.waiting import PATIENCE
from tests.system.real.bodies import sha256

pytestmark = pytest.mark.system

pytest.importorskip("httpbin", reason="httpbin is not installed")
requests = pytest.importorskip("requests", reason="requests is not installed")
httpx = pytest.importorskip("httpx", reason="httpx is not installed")

Client = Any
"""A requests.Session or an httpx.Client: what they share is enough for most tests."""
LARGE = random.Random(5).randbytes(3_000_000)


@pytest.fixture(scope="module", params=[["-w", "2"], ["--threads", "4"]], ids=["sync", "gthread"])
def site(request: pytest.FixtureRequest, shared_place: Place) -> Iterator[Daemon]:
    daemon = shared_place.start(*request.param, "httpbin:app")
    yield daemon
    assert daemon.events("request_failed") == []
    assert daemon.events("worker_died") == []


@pytest.fixture(params=["requests", "httpx"])
def client(request: pytest.FixtureRequest) -> Iterator[Client]:
    """A client with connections of its own, which ignores the machine's proxy settings."""
    if request.param == "requests":
        with requests.Session() as session:
            session.trust_env = False
            yield session
    else:
        with httpx.Client(trust_env=False, follow_redirects=True, timeout=PATIENCE) as client:
            yield client


def is_httpx(client: Client) -> bool:
    return isinstance(client, httpx.Client)


def raw(client: Client, body: Any) -> dict[str, Any]:
    """The argument with which this client sends a body unchanged; an iterable is sent in chunks."""
    return {"content" if is_httpx(client) else "data": body}


def opened(session: Client, site: Daemon) -> int:
    """How many connections a requests session has opened."""
    pools = session.get_adapter(site.url).poolmanager.pools
    return sum(pools[key].num_connections for key in pools.keys())  # noqa: SIM118 (it is no mapping)


def data_of(answer: Any) -> bytes:
    """The body that httpbin received: text if it was UTF-8, else in Base64 (RFC 2397)."""
    text = answer.json()["data"]
    head, found, coded = text.partition(";base64,")
    return base64.b64decode(coded) if found and head.startswith("data:") else text.encode()


# -- methods, status codes, headers -------------------------------------------------------------------


@pytest.mark.parametrize("method", ["GET", "POST", "PUT", "PATCH", "DELETE", "TRACE"])
def test_methods(site: Daemon, client: Client, method: str) -> None:
    """Each method reaches the app with its query and fields."""
    sent = {"params": {"a": ["1", "2"]}, "headers": {"X-Mine": "yes"}}
    answer = client.request(method, f"{site.url}/anything", **sent)
    found = answer.json()
    assert (answer.status_code, found["method"], found["args"]) == (200, method, {"a": ["1", "2"]})
    assert found["headers"]["X-Mine"] == "yes"
    assert found["headers"]["Host"] == site.url.removeprefix("http://")
    assert found["origin"] == "127.0.0.1"
    assert found["url"] == f"{site.url}/anything?a=1&a=2"


def test_options_and_wrong_method(site: Daemon, client: Client) -> None:
    """OPTIONS lists the methods; a method that is not listed is refused."""
    answer = client.options(f"{site.url}/get")
    assert {"GET", "HEAD", "OPTIONS"} <= set(re.split(", *", answer.headers["Allow"]))
    assert client.post(f"{site.url}/get").status_code == 405


def test_head(site: Daemon, client: Client) -> None:
    """HEAD has GET's length and no body, and the connection serves the next request."""
    for target in ("/html", "/json", "/image/png"):
        head, get = client.head(site.url + target), client.get(site.url + target)
        assert (head.status_code, head.content) == (200, b"")
        assert head.headers["Content-Length"] == get.headers["Content-Length"] == str(len(get.content))
    if not is_httpx(client):
        assert opened(client, site) == 1


@pytest.mark.parametrize("method", ["GET", "POST", "DELETE"])
def test_status_codes(site: Daemon, client: Client, method: str) -> None:
    """Many status codes arrive on one connection, with and without a body."""
    for code in (200, 201, 202, 203, 204, 206, 304, 400, 401, 402, 404, 406, 409, 410, 418, 429, 500, 503):
        answer = client.request(method, f"{site.url}/status/{code}")
        assert answer.status_code == code
        if code in (204, 304):
            assert answer.content == b""
    if not is_httpx(client):
        assert opened(client, site) == 1


def test_response_headers(site: Daemon, client: Client) -> None:
    """Fields of the answer arrive as the app has set them, including one that is set twice."""
    params = {"X-One": "eins", "X-Many": ["a", "b"], "Warning": '199 - "a, b; c"'}
    answer = client.get(f"{site.url}/response-headers", params=params)
    assert (answer.headers["X-One"], answer.headers["X-Many"]) == ("eins", "a, b")
    assert answer.headers["Warning"] == '199 - "a, b; c"'
    assert {"Date", "Server"} <= {name.title() for name in answer.headers}


def test_request_headers(site: Daemon, client: Client) -> None:
    """Many fields, long fields, and values with unusual but legal characters arrive unchanged."""
    sent = {f"X-Number-{number}": str(number) * number for number in range(60)}
    sent |= {"X-Long": "x" * 6000, "X-Special": 'a\tb;"c",=!#$%&*+-.^_`|~', "X-Empty": ""}
    found = client.get(f"{site.url}/headers", headers=sent).json()["headers"]
    assert {name: found[name] for name in sent} == sent


def test_cookies(site: Daemon, client: Client) -> None:
    """Cookies are set over a redirect, come back, and go away again."""
    both = client.get(f"{site.url}/cookies/set?one=1&two=zwei").json()
    assert both["cookies"] == {"one": "1", "two": "zwei"}
    assert client.get(f"{site.url}/cookies/delete?one").json()["cookies"] == {"two": "zwei"}


@pytest.mark.parametrize("kind", ["redirect", "relative-redirect", "absolute-redirect"])
def test_redirects(site: Daemon, client: Client, kind: str) -> None:
    """A chain of redirects leads to its end; absolute ones lead to the address that the client knows."""
    answer = client.get(f"{site.url}/{kind}/4")
    assert (answer.status_code, len(answer.history)) == (200, 4)
    assert str(answer.url) == f"{site.url}/get"


def test_redirect_keeps_method_and_body(site: Daemon, client: Client) -> None:
    """After 307 the same body is posted again; after 303 the page is fetched."""
    target = f"{site.url}/redirect-to?url=/anything&status_code="
    again = client.post(f"{target}307", **raw(client, b"a body"))
    assert (again.json()["method"], data_of(again)) == ("POST", b"a body")
    assert client.post(f"{target}303", **raw(client, b"a body")).json()["method"] == "GET"


def test_conditional(site: Daemon, client: Client) -> None:
    """An entity tag decides between 200, 304 and 412."""
    url = f"{site.url}/etag/abc"
    assert client.get(url).headers["ETag"].strip('"') == "abc"
    same = client.get(url, headers={"If-None-Match": '"abc"'})
    assert (same.status_code, same.content) == (304, b"")
    assert client.get(url, headers={"If-Match": '"other"'}).status_code == 412


def test_authentication(site: Daemon, client: Client) -> None:
    """Basic and digest authentication: refused, challenged, accepted."""
    url = f"{site.url}/basic-auth/ann/secret"
    refused = client.get(url, auth=("ann", "wrong"))
    assert (refused.status_code, refused.headers["WWW-Authenticate"]) == (401, 'Basic realm="Fake Realm"')
    assert client.get(url, auth=("ann", "secret")).json() == {"authenticated": True, "user": "ann"}
    assert client.get(f"{site.url}/bearer", headers={"Authorization": "Bearer abc"}).json()["token"] == "abc"
    digest = httpx.DigestAuth if is_httpx(client) else requests.auth.HTTPDigestAuth
    answer = client.get(f"{site.url}/digest-auth/auth/ann/secret", auth=digest("ann", "secret"))
    assert answer.status_code == 200


# -- paths ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("target", "url", "args"),
    [
        ("/anything/a//b/./c/../d", "/anything/a//b/./c/../d", {}),
        ("/anything/J%C3%BCrgen/%E4%B8%96%E7%95%8C", "/anything/Jürgen/世界", {}),
        ("/anything/a%20b+c;d=e,f:g@h!$&'()*", "/anything/a b+c;d=e,f:g@h!$&'()*", {}),
        ("/anything?x=%C3%A9&x=+&y=&z&=v&q=a%26b%3Dc", "/anything", {
            "x": ["é", " "], "y": "", "z": "", "": "v", "q": "a&b=c",
        }),
        ("/anything?a?b=c/d:e@f", "/anything", {"a?b": "c/d:e@f"}),
        ("/anything/" + "x" * 3000, "/anything/" + "x" * 3000, {}),
    ],
    ids=["dots", "utf8", "reserved", "query", "marks", "long"],
)  # fmt: skip
def test_paths(site: Daemon, target: str, url: str, args: dict[str, Any]) -> None:
    """The app interprets the target: nothing in it is normalized, and it is decoded at most once."""
    # Both clients normalize paths; http.client sends what it is given.
    found = json.loads(site.get(target).body)
    # Flask shows the path again with some characters encoded.
    path = unquote(re.sub("^http://[^/]*", "", found["url"]).partition("?")[0])
    assert (path, found["args"]) == (url, args)


# -- answers ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("coding", "key"), [("gzip", "gzipped"), ("deflate", "deflated"), ("brotli", "brotli")]
)
def test_compressed(site: Daemon, client: Client, coding: str, key: str) -> None:
    """Compressed answers arrive as the app sent them: both clients can decompress them."""
    answer = client.get(f"{site.url}/{coding}")
    assert answer.json()[key] is True


def test_bodies_of_any_size(site: Daemon, client: Client) -> None:
    """Random bytes, with a length and streamed, are those that their seed gives."""
    for size in (1, 1000, 65_535, 65_536, 102_400):
        plain = client.get(f"{site.url}/bytes/{size}?seed=1").content
        streamed = client.get(f"{site.url}/stream-bytes/{size}?seed=1&chunk_size=777")
        assert len(plain) == len(streamed.content) == size
        assert sha256(plain) == sha256(streamed.content)
        assert "Content-Length" not in streamed.headers
        assert streamed.headers["Transfer-Encoding"] == "chunked"


def lines_of(client: Client, url: str) -> list[str]:
    """The lines of a streamed answer, as the client splits them."""
    if is_httpx(client):
        with client.stream("GET", url) as answer:
            return list(answer.iter_lines())
    with client.get(url, stream=True) as answer:
        return [line.decode() for line in answer.iter_lines()]


def test_stream(site: Daemon, client: Client) -> None:
    """A stream of JSON lines is read line by line, twice on the same connection."""
    for count in (100, 20):
        assert [json.loads(line)["id"] for line in lines_of(client, f"{site.url}/stream/{count}")] == list(
            range(count)
        )
    if not is_httpx(client):
        assert opened(client, site) == 1


def test_drip(site: Daemon, client: Client) -> None:
    """A body that arrives byte by byte, with a length in its head."""
    answer = client.get(f"{site.url}/drip?numbytes=20&duration=0.2&code=202")
    assert (answer.status_code, answer.content) == (202, b"*" * 20)


def test_range(site: Daemon, client: Client) -> None:
    """Parts of a body make up the whole; a range beyond the end is 416."""
    url = f"{site.url}/range/10000?chunk_size=100"
    whole = client.get(url)
    assert whole.headers["Accept-Ranges"] == "bytes"
    parts = []
    for first in range(0, 10_000, 2500):
        last = first + 2499
        part = client.get(url, headers={"Range": f"bytes={first}-{last}"})
        assert (part.status_code, part.headers["Content-Range"]) == (206, f"bytes {first}-{last}/10000")
        parts.append(part.content)
    assert b"".join(parts) == whole.content
    assert client.get(url, headers={"Range": "bytes=20000-20001"}).status_code == 416


def test_text_and_images(site: Daemon, client: Client) -> None:
    """Text in many scripts and binary files keep their bytes and types."""
    text = client.get(f"{site.url}/encoding/utf8")
    assert "გთხოვთ" in text.content.decode()
    for kind, start in (("png", b"\x89PNG"), ("jpeg", b"\xff\xd8\xff"), ("webp", b"RIFF")):
        answer = client.get(f"{site.url}/image/{kind}")
        assert answer.headers["Content-Type"] == f"image/{kind}"
        assert answer.content.startswith(start)
        assert len(answer.content) == int(answer.headers["Content-Length"])


# -- uploads ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("method", ["POST", "PUT", "PATCH"])
@pytest.mark.parametrize("chunked", [False, True], ids=["length", "chunked"])
def test_uploads(site: Daemon, client: Client, method: str, chunked: bool) -> None:
    """Bodies from nothing to some megabytes come back unchanged, sent in chunks of any size."""
    sizes = random.Random(7)
    for size in (1, 7000, len(LARGE)):
        body: Any = LARGE[:size]
        if chunked:
            cuts = sorted({0, size, *(sizes.randrange(size) for _ in range(20))})
            body = (LARGE[start:end] for start, end in itertools.pairwise(cuts))
        answer = client.request(method, f"{site.url}/{method.lower()}", **raw(client, body))
        # The whole body is received before the app is called, so the app gets its length in either case.
        assert answer.json()["headers"]["Content-Length"] == str(size)
        assert sha256(data_of(answer)) == sha256(LARGE[:size])


def test_forms(site: Daemon, client: Client) -> None:
    """A form, and one with files: names, values and contents, in any script."""
    fields = {"name": "Jürgen & Söhne", "empty": "", "many": ["1", "2"]}
    form = client.post(f"{site.url}/post", data=fields).json()
    assert form["form"] == fields
    files = {"text": ("ä.txt", "Grüße".encode()), "binary": ("b.bin", LARGE)}
    found = client.post(f"{site.url}/post", data={"note": "x"}, files=files).json()
    assert (found["form"], found["files"]["text"]) == ({"note": "x"}, "Grüße")
    assert sha256(base64.b64decode(found["files"]["binary"].partition(",")[2])) == sha256(LARGE)


def test_json(site: Daemon, client: Client) -> None:
    """JSON comes back as JSON."""
    value = {"words": ["世界", "🐎", ""], "numbers": [0, -1.5, 10**15], "none": None}
    assert client.post(f"{site.url}/anything", json=value).json()["json"] == value


def test_unread_body(site: Daemon, client: Client) -> None:
    """An app that does not read a body affects neither its answer nor the next request."""
    for _ in range(3):
        assert client.post(f"{site.url}/status/418", **raw(client, LARGE)).status_code == 418
        assert client.get(f"{site.url}/get").status_code == 200


# -- connections ------------------------------------------------------------------------------------------


def test_connections_are_reused(site: Daemon) -> None:
    """Requests of every kind, one after the other, use one connection,
    which is counted and verified by its port.
    """
    with requests.Session() as session:
        session.trust_env = False
        for target in ("/get", "/bytes/50000", "/stream/5", "/gzip", "/status/204", "/status/404") * 5:
            session.get(site.url + target)
            session.post(f"{site.url}/post", data=b"x" * 10_000)
        assert opened(session, site) == 1
    ports = set()
    with httpx.Client(trust_env=False, timeout=PATIENCE) as client:
        for _ in range(20):
            for method, content in (("GET", None), ("POST", iter([b"in a chunk"]))):
                answer = client.request(method, f"{site.url}/anything", content=content)
                ports.add(answer.extensions["network_stream"].get_extra_info("client_addr"))
    assert len(ports) == 1


def test_connection_close(site: Daemon, client: Client) -> None:
    """A client that asks for the end of the connection gets it, with a header that announces it."""
    answer = client.get(f"{site.url}/get", headers={"Connection": "close"})
    assert (answer.status_code, answer.headers["Connection"]) == (200, "close")


def test_many_clients(site: Daemon) -> None:
    """Sixteen clients at the same time, each with its own uploads: no client gets another's answer."""

    def run(number: int) -> list[bool]:
        right = []
        with requests.Session() as session:
            session.trust_env = False
            for turn in range(5):
                body = f"{number}-{turn}|".encode() * (2000 * turn + 1)
                answer = session.post(f"{site.url}/anything/{number}/{turn}", data=body)
                right.append(answer.json()["url"].endswith(f"/{number}/{turn}") and data_of(answer) == body)
        return right

    with ThreadPoolExecutor(16) as pool:
        assert [all(right) for right in pool.map(run, range(16))] == [True] * 16


async def test_asynchronous_client(site: Daemon) -> None:
    """Fifty requests at the same time from one event loop."""
    async with httpx.AsyncClient(trust_env=False, timeout=PATIENCE) as client:
        targets = [f"{site.url}/anything/{number}" for number in range(50)]
        answers = await asyncio.gather(*map(client.get, targets))
    assert [answer.json()["url"] for answer in answers] == targets
