"""The demo app, called through wsgiref's validator, so that every server can serve it."""

import io
import json
import os
import subprocess
import sys
import time
from typing import Any
from wsgiref.util import setup_testing_defaults
from wsgiref.validate import validator

import pytest

from ostler.demo import app, page, routes


class Reply:
    """One answer of the app, read to its end."""

    def __init__(self, status: str, headers: dict[str, str], body: bytes) -> None:
        self.status = int(status.split()[0])
        self.headers = headers
        self.body = body

    @property
    def text(self) -> str:
        return self.body.decode()


def ask(
    target: str, method: str = "GET", body: bytes = b"", *, length: str | None = None, **extra: Any
) -> Reply:
    """Call the app as a server would; `extra` goes into the environ."""
    path, _, query = target.partition("?")
    environ: dict[str, Any] = {
        "REQUEST_METHOD": method,
        "PATH_INFO": path,
        "QUERY_STRING": query,
        "SCRIPT_NAME": "",
    }
    if body or length is not None:
        environ |= {"wsgi.input": io.BytesIO(body), "CONTENT_LENGTH": length or str(len(body))}
    environ |= extra
    setup_testing_defaults(environ)
    started: list[tuple[str, dict[str, str]]] = []

    def start_response(status: str, headers: list[tuple[str, str]], exc_info: Any = None) -> Any:
        started.append((status, dict(headers)))
        return lambda data: None

    pieces = validator(app)(environ, start_response)
    try:
        whole = b"".join(pieces)
    finally:
        pieces.close()  # type: ignore[attr-defined]
    [(status, headers)] = started
    return Reply(status, headers, whole)


@pytest.fixture
def empty_memory(monkeypatch: pytest.MonkeyPatch) -> routes.KeptMemory:
    """Memory that is freed at the end of the test."""
    memory = routes.KeptMemory()
    monkeypatch.setattr(routes, "kept", memory)
    return memory


QUICK = ["/", "/slow?seconds=0", "/cpu?ms=1", "/json", "/stream?lines=2&interval=0", "/headers", "/healthz"]


@pytest.mark.parametrize("target", QUICK)
def test_get_answers_with_its_length(target: str) -> None:
    """Each page answers 200 and its Content-Length is correct, unless it streams."""
    reply = ask(target)
    assert reply.status == 200
    assert reply.body
    if not target.startswith("/stream"):
        assert int(reply.headers["Content-Length"]) == len(reply.body)


@pytest.mark.parametrize("target", [*QUICK, "/no-such-page"])
def test_head_has_the_headers_of_get_and_no_body(target: str) -> None:
    """HEAD differs from GET only in the body (RFC 9110, 9.3.2)."""
    got, head = ask(target), ask(target, "HEAD")
    assert head.body == b""
    assert head.status == got.status
    assert head.headers.keys() == got.headers.keys()
    assert head.headers["Content-Type"] == got.headers["Content-Type"]


def test_home_names_the_worker_and_what_to_try() -> None:
    """The page shows the pid that made it, links every page and shows the commands."""
    text = ask("/").text
    assert f"<strong>{os.getpid()}</strong>" in text
    for path in routes.ROUTES:
        assert path == "/" or f'"{path[1:]}' in text
    for command in ("ctl workers", "ctl scale +2", "kill -TTIN", "ctl reload"):
        assert command in text
    assert "prefers-color-scheme: dark" in text


def test_home_gives_the_supervisors_pid_only_under_ostler() -> None:
    """Under another server the parent may be a shell, so its pid is never offered to `kill`."""
    assert f"kill -TTIN {os.getppid()}<" in ask("/", SERVER_SOFTWARE="ostler/0.1.0").text
    assert f"kill -TTIN {os.getppid()}<" not in ask("/", SERVER_SOFTWARE="WSGIServer/0.2").text


def test_commands_are_named_as_they_can_be_typed(
    monkeypatch: pytest.MonkeyPatch, tmp_path: "os.PathLike[str]"
) -> None:
    """A command outside PATH is shown with its folder, one on PATH by its name."""
    folder = os.path.join(tmp_path, "venv", "bin")  # noqa: PTH118
    os.makedirs(folder)  # noqa: PTH103
    ctl = os.path.join(folder, "ctl")  # noqa: PTH118
    with open(ctl, "w"):  # noqa: PTH123
        pass
    monkeypatch.setattr(sys, "executable", os.path.join(folder, "python"))  # noqa: PTH118
    monkeypatch.setenv("PATH", "/usr/bin")
    monkeypatch.chdir(tmp_path)
    assert page.command_path("ctl") == "venv/bin/ctl"
    monkeypatch.chdir("/")
    assert page.command_path("ctl").endswith("/venv/bin/ctl")
    monkeypatch.setenv("PATH", f"/usr/bin:{folder}")
    assert page.command_path("ctl") == "ctl"


def test_slow_sleeps_as_long_as_asked() -> None:
    """It really sleeps, so that a request is visible in flight."""
    before = time.monotonic()
    assert ask("/slow?seconds=0.05").status == 200
    assert time.monotonic() - before >= 0.05


def test_fail_raises_to_the_server() -> None:
    """The exception leaves the app, so that the server's error handling is visible."""
    with pytest.raises(routes.DeliberateDemoError, match="GET /fail always raises"):
        ask("/fail")


def test_cpu_burns_what_was_asked() -> None:
    """The time is CPU time of the serving thread, not wall clock time."""
    before = time.thread_time()
    assert "used 20 ms" in ask("/cpu?ms=20").text
    assert time.thread_time() - before >= 0.02


def test_leak_keeps_memory_and_says_how_much() -> None:
    """Two calls add up, and the memory is resident, not only reserved (proc(5), statm)."""
    # In a process of its own, because memory of earlier tests may be freed in the middle of it.
    code = (
        "from pathlib import Path\n"
        "from tests.unit.test_demo import ask, routes\n"
        "pages = lambda: int(Path('/proc/self/statm').read_text().split()[1])\n"
        "before = pages()\n"
        "print(*(ask(f'/leak?mb={size}').text.strip() for size in (40, 60)), sep='\\n')\n"
        "print(pages() - before)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    first, second, pages = done.stdout.splitlines()
    assert "holds 40 MB now" in first
    assert "holds 100 MB now" in second
    assert int(pages) * os.sysconf("SC_PAGE_SIZE") >= 99 * routes.MEGABYTE


def test_leak_stops_at_its_bound(empty_memory: routes.KeptMemory) -> None:
    """A call that would exceed the bound is refused with a line, and nothing is kept."""
    empty_memory.megabytes = routes.MAX_HELD - 1
    reply = ask("/leak?mb=2")
    assert reply.status == 409
    assert "recycle it" in reply.text
    assert empty_memory.megabytes == routes.MAX_HELD - 1


def test_echo_gives_body_and_type_back() -> None:
    """Bytes come back unchanged, with the type that they were sent with."""
    body = bytes(range(256)) * 1000
    reply = ask("/echo", "POST", body, CONTENT_TYPE="application/x-test")
    assert (reply.status, reply.body) == (200, body)
    assert reply.headers["Content-Type"] == "application/x-test"


def test_echo_without_a_body() -> None:
    """No length means no body: the input is not read, because reading might wait for ever."""
    reply = ask("/echo", "POST")
    assert (reply.status, reply.body) == (200, b"")
    assert reply.headers["Content-Type"] == "application/octet-stream"


def test_echo_reads_chunked_input_to_its_end() -> None:
    """If the server marks the input's end, a body without a length comes back as well."""
    extra: dict[str, Any] = {"wsgi.input": io.BytesIO(b"chunks"), "wsgi.input_terminated": True}
    assert ask("/echo", "POST", **extra).body == b"chunks"


def test_echo_refuses_more_than_its_bound() -> None:
    """A Content-Length beyond the bound is refused; nothing is read."""
    reply = ask("/echo", "POST", b"x", length=str(routes.MAX_ECHO + 1))
    assert reply.status == 413


def test_echo_bounds_a_body_without_a_length(monkeypatch: pytest.MonkeyPatch) -> None:
    """A chunked body beyond the bound is refused and not read further."""
    monkeypatch.setattr(routes, "MAX_ECHO", 10)
    source = io.BytesIO(b"x" * 100)
    extra: dict[str, Any] = {"wsgi.input": source, "wsgi.input_terminated": True}
    reply = ask("/echo", "POST", **extra)
    assert reply.status == 413
    assert source.tell() == 11


def test_json_is_json() -> None:
    """Programs can read which worker answered."""
    reply = ask("/json")
    assert reply.headers["Content-Type"] == "application/json"
    assert json.loads(reply.body)["pid"] == os.getpid()


def test_stream_yields_line_by_line() -> None:
    """The lines are yielded one by one, without a Content-Length."""
    reply = ask("/stream?lines=3&interval=0")
    assert "Content-Length" not in reply.headers
    assert [line.split(" from ")[0] for line in reply.text.splitlines()] == [
        "line 1 of 3",
        "line 2 of 3",
        "line 3 of 3",
    ]


def test_headers_come_back_as_bytes_on_the_wire() -> None:
    """Non-ASCII header bytes survive WSGI's latin-1 strings."""
    wire = "grün".encode().decode("latin-1")
    assert "X-Colour: grün\n" in ask("/headers", HTTP_X_COLOUR=wire).text


@pytest.mark.parametrize(
    ("target", "line"),
    [
        ("/slow?seconds=soon", "seconds='soon' is not a number from 0 to 300"),
        ("/slow?seconds=", "seconds='' is not a number from 0 to 300"),
        ("/slow?seconds=nan", "seconds='nan' is not a number from 0 to 300"),
        ("/slow?seconds=301", "seconds='301' is not a number from 0 to 300"),
        ("/slow?seconds=-1", "seconds='-1' is not a number from 0 to 300"),
        ("/slow?second=1", "unknown parameter 'second': /slow takes seconds"),
        ("/cpu?ms=1e9", "ms='1e9' is not a number from 0 to 10000"),
        ("/leak?mb=0", "mb='0' is not a number from 1 to 1024"),
        ("/leak?mb=inf", "mb='inf' is not a number from 1 to 1024"),
        ("/stream?interval=11", "interval='11' is not a number from 0 to 10"),
        ("/stream?lines=1000&interval=1", "lines times interval is more than 300 seconds"),
        ("/stream?%0a<b>=1", "unknown parameter '\\n<b>': /stream takes lines and interval"),
    ],
)
def test_bad_parameters_are_one_clear_line(target: str, line: str) -> None:
    """A wrong parameter is a 400 with a single line of plain text."""
    reply = ask(target)
    assert reply.status == 400
    assert reply.text == line + "\n"
    assert reply.headers["Content-Type"].startswith("text/plain")


def test_unknown_paths_and_methods() -> None:
    """404 lists the pages; 405 has the allowed methods, also in Allow (RFC 9110, 15.5.6)."""
    assert ask("/nowhere").status == 404
    assert "/slow" in ask("/nowhere").text
    reply = ask("/json", "DELETE")
    assert (reply.status, reply.headers["Allow"]) == (405, "GET, HEAD")
    assert ask("/echo").headers["Allow"] == "POST, PUT"


def test_imports_stay_lean() -> None:
    """The demo must not make a worker use more memory than a user's app."""
    code = "import sys, ostler.demo; print(*sys.modules)"
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=30)
    loaded = run.stdout.split()
    assert not {"asyncio", "subprocess", "http.server", "email", "socket", "logging", "aiohttp"} & set(loaded)
