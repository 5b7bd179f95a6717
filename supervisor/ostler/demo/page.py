"""The demo's home page: pages and commands to try; the commands can be pasted unchanged.

The page has no scripts and loads no other files, so it works without a network and in every browser.
"""

import os
import sys
from html import escape
from string import Template
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from wsgiref.types import WSGIEnvironment

# (link, label, effect). Links are relative, so that the app may be mounted anywhere.
PAGES = [
    ("slow?seconds=3", "/slow?seconds=3", "sleeps; meanwhile <code>$ctl requests</code> shows it in flight"),
    ("fail", "/fail", "raises: a traceback in the log, a 500 here; the worker goes on"),
    ("cpu?ms=200", "/cpu?ms=200", "burns CPU; see the CPU column of <code>$ctl workers</code>"),
    ("leak?mb=10", "/leak?mb=10", "keeps memory in one worker until it is recycled"),
    ("stream", "/stream", "a generator: ten lines, each sent when it is ready"),
    ("json", "/json", "data about the worker that answered"),
    ("headers", "/headers", "the headers of your request as the app gets them"),
    ("healthz", "/healthz", "for health checks of a load balancer"),
]

COMMANDS = [
    ("$ctl open", "the dashboard in the browser"),
    ("$ctl workers", "the fleet: pids, states, requests, memory"),
    ("$ctl scale +2", "two more workers"),
    ("kill -TTIN $supervisor", "one more, as in gunicorn (<code>-TTOU</code>: one fewer)"),
    ("kill -9 $pid", "kill this worker; a successor starts at once"),
    ("$ctl reload", "a new generation: new workers start before old ones end; no request is lost"),
    ("$ctl requests", "the requests that are running now"),
    ("$ctl stop", "finish running requests, then end"),
]

PAGE = Template("""\
<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta name="color-scheme" content="light dark">
<title>Ostler demo</title>
<link rel="icon" href="data:image/svg+xml,\
%3Csvg xmlns='http://www.w3.org/2000/svg' viewBox='0 0 16 16'%3E\
%3Ccircle cx='8' cy='8' r='5.5' fill='none' stroke='%23b45309' stroke-width='3'/%3E%3C/svg%3E">
<style>
:root {
  --paper: #faf8f4; --card: #fff; --ink: #1f1a14; --soft: #6b6257; --line: #e6dfd3; --accent: #9a4a0a;
  --code: #f3eee5;
}
@media (prefers-color-scheme: dark) {
  :root {
    --paper: #15130f; --card: #1e1b16; --ink: #efe9df; --soft: #a89e90; --line: #353027; --accent: #f0a35e;
    --code: #2a261f;
  }
}
* { box-sizing: border-box; }
body { margin: 0; background: var(--paper); color: var(--ink); font: 16px/1.55 system-ui, sans-serif; }
main { max-width: 60rem; margin: 0 auto; padding: 3rem 1.25rem; }
h1 { margin: 0; font-size: 2rem; letter-spacing: -.02em; }
h2 { margin: 0 0 .75rem; font-size: 1rem; color: var(--soft); font-weight: 600; }
header p { margin: .4rem 0 0; color: var(--soft); }
header strong { color: var(--accent); font-variant-numeric: tabular-nums; }
.cards { display: grid; gap: 1.25rem; margin-top: 2rem; grid-template-columns: 1fr; }
@media (min-width: 48rem) { .cards { grid-template-columns: 1fr 1fr; } }
section { background: var(--card); border: 1px solid var(--line); border-radius: .75rem; padding: 1.25rem; }
dl { margin: 0; }
dt + dd { margin: .1rem 0 .8rem; color: var(--soft); font-size: .9rem; }
dd:last-child { margin-bottom: 0; }
a { color: var(--accent); text-underline-offset: .2em; }
code, pre, textarea { font: .875rem/1.5 ui-monospace, "DejaVu Sans Mono", monospace; }
dt code, dd code, pre { background: var(--code); border-radius: .3rem; padding: .1rem .4rem; }
dt code { overflow-wrap: anywhere; user-select: all; }
form { display: flex; gap: .5rem; margin-top: 1rem; }
textarea { flex: 1; height: 2.6rem; padding: .5rem; color: inherit; background: var(--code);
  border: 1px solid var(--line); border-radius: .4rem; resize: vertical; }
button { padding: 0 1rem; color: var(--card); background: var(--accent); border: 0; border-radius: .4rem;
  font: inherit; cursor: pointer; }
footer { margin-top: 1.5rem; color: var(--soft); font-size: .9rem; }
</style>
</head>
<body>
<main>
<header>
<h1>Ostler is serving</h1>
<p>Worker <strong>$pid</strong> made this page. Reload it: another one may answer.</p>
</header>
<div class="cards">
<section>
<h2>Pages to try</h2>
<dl>
$pages</dl>
<form method="post" action="echo" enctype="text/plain">
<textarea name="body" aria-label="Body for /echo">a body for /echo</textarea>
<button>Echo</button>
</form>
</section>
<section>
<h2>Commands for another terminal</h2>
<dl>
$commands</dl>
</section>
</div>
<footer>Ctrl-C in the first terminal ends the demo. Your own app:
<code>$ostler MODULE:APP</code></footer>
</main>
</body>
</html>
""")


def command_path(name: str) -> str:
    """How to call one of our commands: its name if its folder is on PATH, else its path."""
    folder = os.path.dirname(sys.executable)  # noqa: PTH120 - pathlib is a large import for a worker
    if folder in os.environ.get("PATH", "").split(os.pathsep):
        return name
    path = os.path.join(folder, name)  # noqa: PTH118
    if not os.path.exists(path):  # noqa: PTH110
        return name
    near = os.path.relpath(path)
    return path if near.startswith(os.pardir) else near


def supervisor_pid(environ: "WSGIEnvironment") -> str:
    """The supervisor's pid: a worker's parent under Ostler; elsewhere a command that finds it."""
    if str(environ.get("SERVER_SOFTWARE", "")).lower().startswith("ostler"):
        return str(os.getppid())
    return "$(pgrep -of 'ostler: supervisor')"


def home_page(environ: "WSGIEnvironment") -> bytes:
    """The page as UTF-8, made for the worker that serves it."""
    values = {
        "pid": str(os.getpid()),
        "supervisor": escape(supervisor_pid(environ)),
        "ctl": escape(command_path("ctl")),
        "ostler": escape(command_path("ostler")),
    }
    pages = "".join(
        f'<dt><a href="{link}"><code>{label}</code></a></dt><dd>{effect}</dd>\n'
        for link, label, effect in PAGES
    )
    commands = "".join(f"<dt><code>{line}</code></dt><dd>{effect}</dd>\n" for line, effect in COMMANDS)
    return PAGE.substitute(
        values,
        pages=Template(pages).substitute(values),
        commands=Template(commands).substitute(values),
    ).encode()
