"""contrib/bench: the requests that are sent, and the servers that are left out."""

import asyncio
import importlib
import json
import shutil
import sys
from argparse import Namespace
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import ModuleType
from typing import Any
from urllib.parse import parse_qs, urlsplit

import pytest

BENCH = Path(__file__).parents[2] / "contrib/bench"
VARIED = ("X-Request-Id", "X-Forwarded-For", "Referer", "Cookie")

Import = Callable[[str], ModuleType]


@pytest.fixture
def bench(monkeypatch: pytest.MonkeyPatch) -> Import:
    monkeypatch.syspath_prepend(BENCH)
    return importlib.import_module


@pytest.mark.parametrize("post", [False, True])
def test_varied(bench: Import, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, post: bool) -> None:
    """No two requests have the same path, query, request id, client address, referer, cookie or body."""
    traffic = bench("traffic")
    monkeypatch.setattr(traffic, "COUNT", 1000)
    requests = traffic.read(traffic.prepare("varied", tmp_path / "requests", "/sleep", post=post))
    assert len(requests) == traffic.COUNT
    parsed = [traffic.parse(request) for request in requests]
    assert {method for method, *_ in parsed} == {"POST" if post else "GET"}
    targets = [urlsplit(target) for _, target, _, _ in parsed]
    assert all(target.path.startswith("/sleep/") for target in targets)
    # Drawn by lot, so some may be alike.
    most = 0.99 * len(parsed)
    assert len({target.path for target in targets}) > most
    assert len({parse_qs(target.query)["q"][0] for target in targets}) > most
    for name in VARIED:
        assert len({dict(fields)[name] for _, _, fields, _ in parsed}) > most, name
    assert len({dict(fields)["User-Agent"] for _, _, fields, _ in parsed}) > 20
    bodies = [body for _, _, _, body in parsed]
    if post:
        assert len(set(bodies)) == len(bodies)
        for (_, _, fields, body), _ in zip(parsed, range(100), strict=False):
            assert json.loads(body)["items"]
            assert dict(fields)["Content-Length"] == str(len(body)) == str(traffic.BODY_BYTES)
    else:
        assert set(bodies) == {b""}
    # floor.c looks for the end of a head.
    assert all(request.count(b"\r\n\r\n") == 1 for request in requests)


def test_identical(bench: Import, tmp_path: Path) -> None:
    """One request, with the fields that are asked for."""
    traffic = bench("traffic")
    requests = traffic.read(traffic.prepare("identical", tmp_path / "requests"))
    assert requests == [b"GET /items/1 HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n"]
    fields = traffic.BROWSER_FIELDS
    (request,) = traffic.read(traffic.prepare("identical", tmp_path / "requests", fields=fields))
    assert traffic.parse(request) == ("GET", "/items/1", [("Host", "127.0.0.1"), *fields.items()], b"")


def test_the_same_requests_in_each_run(bench: Import, tmp_path: Path) -> None:
    """Runs can be compared."""
    traffic = bench("traffic")
    first, second = (traffic.prepare("varied", tmp_path / name).read_bytes() for name in ("first", "second"))
    assert first == second


def test_the_file_for_wrk(bench: Import, tmp_path: Path) -> None:
    """Requests come back as they were written, whatever is in their bodies."""
    traffic = bench("traffic")
    requests = [b"GET / HTTP/1.1\r\n\r\n", b"POST / HTTP/1.1\r\n\r\n3\n\n12\n", b"\n"]
    traffic.write(requests, tmp_path / "requests")
    assert traffic.read(tmp_path / "requests") == requests
    assert (tmp_path / "requests").read_bytes().startswith(b"18\nGET / HTTP/1.1\r\n")


@pytest.mark.skipif(not shutil.which("wrk"), reason="wrk is not installed")
async def test_wrk_sends_them(bench: Import, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """All of them in turn, and then from the beginning again."""
    traffic = bench("traffic")
    monkeypatch.setattr(traffic, "COUNT", 5)
    file = traffic.prepare("varied", tmp_path / "requests", post=True)
    requests = traffic.read(file)
    received: list[bytes] = []

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            while True:
                head = await reader.readuntil(b"\r\n\r\n")
                received.append(head + await reader.readexactly(traffic.BODY_BYTES))
                writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n")
        except (asyncio.IncompleteReadError, ConnectionError):
            writer.close()

    async with await asyncio.start_server(answer, "127.0.0.1", 0) as server:
        port = server.sockets[0].getsockname()[1]
        script = str(BENCH / "replay.lua")
        wrk = await asyncio.create_subprocess_exec(
            *("wrk", "-t1", "-c1", "-d1s", "-s", script, f"http://127.0.0.1:{port}/", "--", str(file)),
            stdout=asyncio.subprocess.PIPE,
        )
        output, _ = await wrk.communicate()
    assert wrk.returncode == 0
    assert b"Socket errors" not in output
    assert len(received) > len(requests)
    first = requests.index(received[0])
    assert received == [requests[(first + number) % len(requests)] for number in range(len(received))]


@pytest.mark.parametrize("bare", [None, 5.0])
def test_the_table(bench: Import, bare: float | None) -> None:
    """Ratios are those of the same round: here the machine becomes three times slower, the ratio stays."""
    hello, drive = bench("hello"), bench("drive")

    def samples(*costs: float) -> list[Any]:
        return [drive.Sample(cpu_us=cost, rate=1.0, p99=0.001, errors=0, requests=1) for cost in costs]

    found = {hello.FLOOR: samples(5.0, 15.0, 15.0), "a": samples(10.0, 30.0, 31.5), "b": samples(20.0)}
    head, floor, *rows = hello.table(found, bare).splitlines()
    assert head.split()[:5] == ["CPU", "us/req", "x", "floor", "range"]
    assert floor.split()[:5] == ["C", "floor", "15.00", "1.00", "1.00-1.00"]
    assert rows[0].split()[:4] == ["a", "30.00", "2.00", "2.00-2.10"]
    assert rows[1].split()[:4] == ["b", "20.00", "4.00", "4.00-4.00"]
    if bare:
        assert rows[0].split()[4] == "25.0"
        assert rows[2].split()[:3] == ["bare", "call", "5.00"]


def test_the_bare_call(bench: Import, tmp_path: Path) -> None:
    """The app gets what a server would make of the request."""
    traffic, barecall = bench("traffic"), bench("barecall")
    (request,) = traffic.read(traffic.prepare("identical", tmp_path / "requests", post=True))
    environ, body = barecall.prepare(request)
    assert environ["REQUEST_METHOD"] == "POST"
    assert (environ["PATH_INFO"], environ["QUERY_STRING"]) == ("/items/1", "")
    assert environ["HTTP_HOST"] == "127.0.0.1"
    assert environ["CONTENT_LENGTH"] == str(len(body))
    assert json.loads(body)["items"]


def field(bench: Import, *also: Path, only: str | None = None) -> Any:
    return bench("peers").Field(Namespace(only=only, python=sys.executable, also=list(also)))


def test_only(bench: Import) -> None:
    """Several words, any of which may be in the name."""
    peers = bench("peers")
    found = field(bench, only="sync,1x4")
    for shape in (peers.Shape(), peers.Shape(threads=4)):
        names = [row.name for row in found.pick(["ostler sync", "ostler gthread"], shape)]
        assert names == (["ostler sync 1x4", "ostler gthread 1x4"] if shape.threads == 4 else ["ostler sync"])


def test_gunicorn_with_and_without_its_c_parser(bench: Import) -> None:
    """The parser is always named: by default gunicorn takes what is installed."""
    peers = bench("peers")
    python = replace(
        peers.Python.at(sys.executable), modules=frozenset({"gunicorn", "gunicorn.ctl", "gunicorn_h1c"})
    )
    for name, parser in [("gunicorn sync", "python"), ("gunicorn sync h1c", "fast")]:
        assert python.has(peers.PEERS[name])
        command = peers.PEERS[name].build(python, peers.Shape())
        assert command[command.index("--http-parser") + 1] == parser
    # Older ones have neither the option nor the parser.
    python = replace(python, modules=frozenset({"gunicorn", "gunicorn_h1c"}))
    assert "--http-parser" not in peers.PEERS["gunicorn sync"].build(python, peers.Shape())
    assert not python.has(peers.PEERS["gunicorn sync h1c"])


def test_a_peer_that_is_not_installed(bench: Import, capsys: pytest.CaptureFixture[str]) -> None:
    """It is left out with one line, however often it is asked for."""
    peers = bench("peers")
    found = field(bench)
    found.python = replace(found.python, modules=frozenset({"bjoern"}))
    for threads in (1, 4):
        names = [one.name for one in found.pick(["bjoern", "fastpysgi"], peers.Shape(threads=threads))]
        assert [name.split()[0] for name in names] == ["bjoern"]
    assert capsys.readouterr().err == "fastpysgi: skipped, it is not installed\n"


def test_another_checkout(bench: Import, tmp_path: Path) -> None:
    """Each row runs the package of its checkout; a folder without one is an error."""
    peers, servers = bench("peers"), bench("servers")
    with pytest.raises(servers.BenchError, match="no checkout"):
        field(bench, tmp_path)
    (tmp_path / "supervisor/ostler").mkdir(parents=True)
    rows = field(bench, tmp_path).pick(["ostler sync"], peers.Shape(native=False))
    assert [row.name for row in rows] == [
        "ostler sync Python only",
        f"ostler sync Python only @{tmp_path.name}",
    ]
    for row, root in zip(rows, (servers.ROOT, tmp_path), strict=True):
        assert row.environment["PYTHONPATH"].split(":")[0] == str(root / "supervisor")
        assert row.environment["OSTLER_NATIVE"] == "0"


def test_python_only_where_nothing_is_built(
    bench: Import, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """No row claims to have the C extension if one of the checkouts lacks it."""
    (tmp_path / "supervisor/ostler").mkdir(parents=True)
    assert field(bench, tmp_path).cores() == (False,)
    assert "the C extension is not built" in capsys.readouterr().err
