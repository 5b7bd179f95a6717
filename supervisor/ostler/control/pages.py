"""Serves the dashboard's files, on TCP only. They contain no data, so they need no authentication."""

from pathlib import Path

from aiohttp import web

from ostler.control.problems import NotFound

STATIC = Path(__file__).parent / "static"
# Files that were read in advance, by path.
_read_before: dict[Path, bytes] = {}

# The built page has no inline script or style; styles set by scripts through the CSSOM need no
# 'unsafe-inline'.
CONTENT_SECURITY_POLICY = (
    "default-src 'self'; img-src 'self' data:; object-src 'none'; base-uri 'none'; form-action 'none'; "
    "frame-ancestors 'none'"
)
PAGE_HEADERS = {
    "Content-Security-Policy": CONTENT_SECURITY_POLICY,
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
    # A process of its own in the browser: without this, pages on other ports of the host may share it.
    "Origin-Agent-Cluster": "?1",
}
IMMUTABLE = "public, max-age=31536000, immutable"

# Not `mimetypes`: that reads the machine's tables, and a wrong one would break the page.
MEDIA_TYPES = {
    ".css": "text/css; charset=utf-8",
    ".html": "text/html; charset=utf-8",
    ".ico": "image/x-icon",
    ".js": "text/javascript; charset=utf-8",
    ".json": "application/json",
    ".map": "application/json",
    ".png": "image/png",
    ".svg": "image/svg+xml",
    ".txt": "text/plain; charset=utf-8",
    ".webmanifest": "application/manifest+json",
    ".woff2": "font/woff2",
}

NOT_BUILT = """<!doctype html>
<html lang="en">
<meta charset="utf-8">
<title>Ostler</title>
<h1>The dashboard is not built</h1>
<p>The server runs and its API answers; only the page's files are missing. Build them where the source is:</p>
<pre>cd web &amp;&amp; npm ci &amp;&amp; npm run build</pre>
<p>and load this page again. Until then, use the command <code>ctl</code>.</p>
"""


def read_all() -> None:
    """Read all files of the dashboard now: their folder may be removed."""
    for path in (*STATIC.glob("*.*"), *STATIC.glob("assets/*")):
        if path.suffix in MEDIA_TYPES:
            _read_before[path] = path.read_bytes()


def add_pages(app: web.Application, base_url: str, folder: Path = STATIC) -> None:
    """Serve `folder`'s index.html at `/`, `assets/*`, and single files beside the index, e.g. an icon."""

    async def index(request: web.Request) -> web.Response:
        host = request.host.lower().partition(":")[0]
        if host == "localhost" and base_url.startswith("http://127.0.0.1:"):
            # The page keeps a secret in its origin's storage. `localhost` is ::1 as well, where any user of
            # this machine may listen on the same port: its pages would have the same origin.
            return web.Response(status=307, headers={"Location": f"{base_url}/"})
        body = _read(folder, "index.html")
        return _page(body if body is not None else NOT_BUILT.encode(), ".html", "no-store")

    async def asset(request: web.Request) -> web.Response:
        # Vite puts a hash of the contents into these names.
        return _file(folder / "assets", request.match_info["file"], IMMUTABLE)

    async def single(request: web.Request) -> web.Response:
        return _file(folder, request.match_info["file"], "no-cache")

    app.router.add_get("/", index)
    app.router.add_get("/assets/{file}", asset)
    app.router.add_get(r"/{file:[\w-]+\.[a-z0-9]+}", single)


def _file(folder: Path, name: str, cache: str) -> web.Response:
    suffix = Path(name).suffix
    body = _read(folder, name) if suffix in MEDIA_TYPES else None
    if body is None:
        raise NotFound(f"there is no file {name[:80]!r}")
    return _page(body, suffix, cache)


def _read(folder: Path, name: str) -> bytes | None:
    # `{file}` matches one path segment, but an encoded slash is decoded after the matching.
    if "/" in name or "\0" in name or name.startswith("."):
        return None
    try:
        return _read_before.get(folder / name) or (folder / name).read_bytes()
    except OSError:
        return None  # it does not exist, its name is too long, or it can't be read


def _page(body: bytes, suffix: str, cache: str) -> web.Response:
    headers = PAGE_HEADERS | {"Cache-Control": cache, "Content-Type": MEDIA_TYPES[suffix]}
    return web.Response(body=body, headers=headers)
