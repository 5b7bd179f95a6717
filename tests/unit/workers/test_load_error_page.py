"""The page that is served instead of an app that can't be loaded."""

import asyncio
import sys
from pathlib import Path
from typing import Any

import pytest

from ostler.workers.load_error_page import MARK, AsgiErrorPage, ErrorPage, Failure
from ostler.workers.load_errors import AppLoadError
from ostler.workers.loader import load_app


def failure(spec: str) -> Failure:
    with pytest.raises(AppLoadError) as caught:
        load_app(spec)
    return Failure.of(caught.value)


def asked(page: ErrorPage, method: str = "GET", accept: str = "*/*") -> tuple[str, dict[str, str], str]:
    seen: list[Any] = []
    body = page(
        {"REQUEST_METHOD": method, "HTTP_ACCEPT": accept},
        lambda status, headers: seen.append((status, dict(headers))),
    )
    return *seen[0], b"".join(body).decode()


def test_place_of_a_syntax_error(here: Path) -> None:
    """The line that can't be parsed, with those around it."""
    (here / "bad_page.py").write_text(
        "".join(f"x{n} = {n}\n" for n in range(1, 20)) + "def (\n" + "y = 1\n" * 9
    )
    excerpt = failure("bad_page:app").excerpt
    assert excerpt is not None
    assert (excerpt.file, excerpt.line) == ("bad_page.py", 20)
    assert list(excerpt.lines) == list(range(15, 26))
    assert excerpt.lines[20] == "def ("


def test_place_in_the_apps_own_code(here: Path) -> None:
    """For an exception deep in an installed package the place is where the app called it."""
    (here / "site-packages").mkdir()
    (here / "site-packages/deep_package.py").write_text("def f():\n    raise ValueError('deep')\n")
    sys.path.insert(0, str(here / "site-packages"))
    (here / "calls_page.py").write_text("import deep_package\n\ndeep_package.f()\n")
    excerpt = failure("calls_page:app").excerpt
    assert excerpt is not None
    assert (excerpt.file, excerpt.line) == ("calls_page.py", 3)


def test_no_place() -> None:
    """An error that is in no file has no place."""
    assert failure("no_such_page:app").excerpt is None


def test_source_and_message_are_escaped(here: Path) -> None:
    """Source and message are escaped as text."""
    evil = "<script>alert(1)</script>"
    (here / "evil_page.py").write_text(f"raise RuntimeError('{evil} & \\udc80')\n")
    status, headers, body = asked(ErrorPage(failure("evil_page:app"), 7), accept="text/html")
    assert status == "500 Internal Server Error"
    assert headers["Content-Type"] == "text/html; charset=utf-8"
    assert int(headers["Content-Length"]) == len(body.encode())
    assert headers[MARK] == "7"
    assert evil not in body
    assert "&lt;script&gt;alert(1)&lt;/script&gt; &amp; " in body


@pytest.mark.parametrize(
    ("accept", "html"),
    [("text/html,*/*;q=0.1", True), ("*/*", False), ("", False), ("application/json", False)],
)
def test_form(accept: str, html: bool) -> None:
    """HTML for clients that accept it by name, as browsers do; else plain text."""
    page = ErrorPage(Failure("why", "Traceback", None), 1)
    _, headers, body = asked(page, accept=accept)
    assert ("text/html" in headers["Content-Type"]) is html
    assert body.startswith("<!doctype" if html else "why\n\nTraceback\n")


def test_methods() -> None:
    """HEAD has the length and no body; only the page for GET has the script that follows the next edit."""
    page = ErrorPage(Failure("why", None, None), 1)
    for method in ("GET", "HEAD", "POST"):
        _, headers, body = asked(page, method, "text/html")
        assert (body == "") is (method == "HEAD")
        assert int(headers["Content-Length"]) > 500
        assert ("<script>" in body) is (method == "GET")


def test_asgi() -> None:
    """The same page for ASGI; startup and shutdown succeed, a websocket is closed."""
    page = AsgiErrorPage(Failure("why", None, None), 3)

    def run(scope: dict[str, Any], *received: str) -> list[dict[str, Any]]:
        sent: list[dict[str, Any]] = []
        waiting = list(received)

        async def receive() -> dict[str, Any]:
            return {"type": waiting.pop(0)}

        async def send(message: dict[str, Any]) -> None:
            sent.append(message)

        asyncio.run(page(scope, receive, send))
        return sent

    begun = run({"type": "lifespan"}, "lifespan.startup", "lifespan.shutdown")
    assert [message["type"] for message in begun] == [
        "lifespan.startup.complete",
        "lifespan.shutdown.complete",
    ]
    assert run({"type": "websocket"}, "websocket.connect")[0]["type"] == "websocket.close"
    start, body = run({"type": "http", "method": "GET", "headers": [(b"accept", b"text/html")]})
    assert start["status"] == 500
    assert dict(start["headers"])[MARK.lower().encode()] == b"3"
    assert body["body"].startswith(b"<!doctype")
    assert run({"type": "http", "method": "HEAD", "headers": []})[1]["body"] == b""
