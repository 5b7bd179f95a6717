"""The app that replaces one that can't be loaded (`reload`): a page with the traceback.

Browsers get HTML that checks once a second whether the app answers again, and then reloads; others get text.
It is an app of either interface, so every worker class can serve it.
"""

import linecache
import os
import traceback
from collections.abc import Awaitable, Callable, Iterable
from dataclasses import dataclass
from html import escape
from typing import Any, Self

from ostler.settings.watched import is_installed
from ostler.workers.load_errors import AppLoadError
from ostler.workers.loaded_files import is_foreign

# Lines shown before and after the failing one.
_AROUND = 5
# The header field by which this page differs from answers of the app.
MARK = "X-Ostler-Error-Page"

_STYLE = """
:root { color-scheme: light dark; --back: #f6f6f4; --front: #1d1d1b; --soft: #6b6b66; --card: #fff;
  --line: #deded9; --bad: #b3261e; --tint: #fbe9e7; }
@media (prefers-color-scheme: dark) {
  :root { --back: #191918; --front: #e8e8e3; --soft: #9c9c95; --card: #232321; --line: #3a3a36;
    --bad: #ff8a80; --tint: #43211f; } }
body { margin: 0; padding: 2.5rem 1.25rem; background: var(--back); color: var(--front);
  font: 16px/1.5 system-ui, sans-serif; }
main { max-width: 60rem; margin: auto; }
h1 { margin: 0 0 1.5rem; color: var(--bad); font-size: 1.35rem; overflow-wrap: anywhere; }
h2 { margin: 0; padding: .6rem 1rem; border-bottom: 1px solid var(--line); font-size: .9rem;
  font-weight: 600; overflow-wrap: anywhere; }
section { margin: 0 0 1.25rem; border: 1px solid var(--line); border-radius: 8px; background: var(--card);
  overflow: hidden; }
pre { margin: 0; padding: .75rem 0; overflow-x: auto; font: 13.5px/1.55 ui-monospace, monospace; }
pre span { display: block; width: max-content; min-width: 100%; box-sizing: border-box; padding: 0 1rem;
  white-space: pre; }
pre i { display: inline-block; width: 3.5em; color: var(--soft); font-style: normal; user-select: none; }
pre .bad { background: var(--tint); box-shadow: inset 3px 0 var(--bad); }
pre.trace { padding: .75rem 1rem; white-space: pre-wrap; overflow-wrap: anywhere; }
footer { color: var(--soft); font-size: .9rem; }
"""

_SCRIPT = """
setInterval(async () => {
  if (document.hidden) return;
  try {
    const answer = await fetch(location.href, {method: "HEAD", cache: "no-store"});
    if (answer.headers.get("%s") !== "%s") location.reload();
  } catch { /* no answer at this moment */ }
}, 1000);
"""


@dataclass(frozen=True, slots=True)
class Excerpt:
    """Where it failed: the file, the number of the line, and the lines around it by number."""

    file: str
    line: int
    lines: dict[int, str]


@dataclass(frozen=True, slots=True)
class Failure:
    """Why an app can't be loaded.

    Args:
        reason: one line; trace: the app's traceback, or None; excerpt: the place, if it is known.
    """

    reason: str
    trace: str | None
    excerpt: Excerpt | None

    @classmethod
    def of(cls, error: AppLoadError) -> Self:
        try:
            excerpt = _excerpt(error.__cause__)
        except Exception:  # noqa: BLE001 - the exception or a file's name may be any object of the app
            excerpt = None
        return cls(error.reason, error.trace, excerpt)


def _excerpt(error: BaseException | None) -> Excerpt | None:
    if isinstance(error, SyntaxError) and error.filename and error.lineno:
        return _lines(error.filename, error.lineno)
    if error is None:
        return None
    places = [(frame.filename, frame.lineno or 0) for frame in traceback.extract_tb(error.__traceback__)]
    mentioned = [place for place in places if not place[0].startswith("<") and not is_foreign(place[0])]
    # It may be raised deep in a package; the app's own line is the one to correct.
    own = [place for place in mentioned if not is_installed(place[0])]
    return _lines(*(own or mentioned)[-1]) if mentioned else None


def _lines(file: str, line: int) -> Excerpt | None:
    linecache.checkcache(file)
    lines = linecache.getlines(file)
    first = max(1, line - _AROUND)
    shown = {
        number: lines[number - 1].rstrip() for number in range(first, min(len(lines), line + _AROUND) + 1)
    }
    return Excerpt(_short(file), line, shown) if shown else None


def _short(file: str) -> str:
    try:
        return file.removeprefix(f"{os.getcwd()}/")  # noqa: PTH109
    except OSError:
        return file  # the working folder was removed


class ErrorPage:
    """A WSGI app that answers every request with 500 and a failure.

    Args:
        failure: what the page shows.
        generation: of the app that failed.
    """

    def __init__(self, failure: Failure, generation: int) -> None:
        self._failure = failure
        self._generation = generation

    def __call__(self, environ: dict[str, Any], start_response: Callable[..., Any]) -> Iterable[bytes]:
        method, accept = environ["REQUEST_METHOD"], environ.get("HTTP_ACCEPT", "")
        headers, body = self.answer(method, accept)
        start_response("500 Internal Server Error", headers)
        return [b"" if method == "HEAD" else body]

    def answer(self, method: str, accept: str) -> tuple[list[tuple[str, str]], bytes]:
        """The header fields, and the body: HTML if the client accepts it, else text."""
        html = "text/html" in accept
        body = (self._html(method) if html else self._text()).encode("utf-8", "backslashreplace")
        headers = [
            ("Content-Type", f"text/{'html' if html else 'plain'}; charset=utf-8"),
            ("Content-Length", str(len(body))),
            ("Cache-Control", "no-store"),
            (MARK, str(self._generation)),
        ]
        return headers, body

    def _text(self) -> str:
        failure = self._failure
        parts = [failure.reason]
        if failure.excerpt is not None:
            place = failure.excerpt
            parts.append(f"{place.file}, line {place.line}:")
            parts.append(
                "\n".join(
                    f"{'>' if number == place.line else ' '} {number:5} {text}".rstrip()
                    for number, text in place.lines.items()
                )
            )
        parts += [failure.trace] if failure.trace else []
        parts.append("The app is loaded again when one of its files changes.")
        return "\n\n".join(parts) + "\n"

    def _html(self, method: str) -> str:
        failure = self._failure
        place = failure.excerpt
        # A reload of the page would send a form again.
        again = method in ("GET", "HEAD")
        source = ""
        if place is not None:
            lines = "".join(
                f"<span{' class=bad' if number == place.line else ''}><i>{number}</i>{escape(text)}</span>"
                for number, text in place.lines.items()
            )
            source = f"<section><h2>{escape(place.file)}, line {place.line}</h2><pre>{lines}</pre></section>"
        trace = (
            f"<section><h2>Traceback</h2><pre class=trace>{escape(failure.trace)}</pre></section>"
            if failure.trace
            else ""
        )
        hint = (
            "The app is loaded again when one of its files changes; then this page reloads."
            if again
            else "The app is loaded again when one of its files changes; then send this request again."
        )
        script = f"<script>{_SCRIPT % (MARK, self._generation)}</script>" if again else ""
        return (
            "<!doctype html><html lang=en><meta charset=utf-8>"
            '<meta name=viewport content="width=device-width">'
            f"<title>{escape(failure.reason)}</title><style>{_STYLE}</style>"
            f"<main><h1>{escape(failure.reason)}</h1>{source}{trace}"
            f"<footer>{hint}</footer></main>{script}</html>"
        )


class AsgiErrorPage(ErrorPage):
    """The same as an ASGI app. It confirms lifespan events and refuses websockets."""

    async def __call__(  # type: ignore[override]
        self,
        scope: dict[str, Any],
        receive: Callable[[], Awaitable[dict[str, Any]]],
        send: Callable[[dict[str, Any]], Awaitable[None]],
    ) -> None:
        if scope["type"] == "lifespan":
            while (asked := (await receive())["type"]) != "lifespan.shutdown":
                await send({"type": f"{asked}.complete"})
            await send({"type": "lifespan.shutdown.complete"})
        elif scope["type"] == "websocket":
            await receive()
            await send({"type": "websocket.close", "code": 1011})
        else:
            given = {name.lower(): value.decode("latin-1") for name, value in scope["headers"]}
            headers, body = self.answer(scope["method"], given.get(b"accept", ""))
            lines = [(name.lower().encode(), value.encode()) for name, value in headers]
            await send({"type": "http.response.start", "status": 500, "headers": lines})
            await send({"type": "http.response.body", "body": b"" if scope["method"] == "HEAD" else body})
