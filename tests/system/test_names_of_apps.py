"""What people name as the app: factories, classes, apps of the other interface, paths of files."""

import json
from pathlib import Path

import pytest

from tests.kit.daemon import Place
from tests.kit.tiers import thorough
from tests.kit.waiting import until

pytestmark = pytest.mark.system

LOCAL = ("-b", "127.0.0.1:0")

APPS = """\
import os

def app(environ, start_response):
    start_response("200 OK", [])
    return [b"hello"]

async def web(scope, receive, send):
    if scope["type"] == "lifespan":
        while True:
            message = await receive()
            await send({"type": message["type"] + ".complete"})
            if message["type"] == "lifespan.shutdown":
                return
    await send({"type": "http.response.start", "status": 200, "headers": []})
    await send({"type": "http.response.body", "body": b"hello"})

def create_app(config=None):
    return app

def create_web(config=None, debug=False):
    return web

def create_for(name):
    return app

class Site:
    def __call__(self, environ, start_response):
        return app(environ, start_response)
"""


@pytest.mark.parametrize("preload", [[], *thorough(["--preload"])])
@pytest.mark.parametrize(
    ("kind", "name"),
    [("sync", "create_app"), ("asgi", "web"), *thorough(("gevent", "Site"), ("asgi", "create_web"))],
)
def test_factories_serve(place: Place, kind: str, name: str, preload: list[str]) -> None:
    """A factory or a class without parentheses is called; every request is answered; one line in the log,
    however many workers there are and whatever becomes of them.
    """
    place.add("shop.py", APPS)
    daemon = place.start("-w", "3", "-k", kind, *preload, f"shop:{name}")
    daemon.settled(3)
    assert {daemon.get().text for _ in range(5)} == {"hello"}
    assert daemon.ctl("recycle", "1").code == 0
    notes = [event["note"] for event in daemon.events("factory_called")]
    assert len(notes) == (0 if name == "web" else 1)
    assert all(f"'shop:{name}' is " in note and f"'shop:{name}()' says so" in note for note in notes)
    assert daemon.ctl("reload").code == 0
    if notes:  # another generation has loaded it again
        daemon.event("factory_called", after=1)


def test_check_config_finds_it(place: Place) -> None:
    """What would fail each request fails the check; a factory that is called is named, and passes."""
    place.add("shop.py", APPS)
    done = place.run("--check-config", "shop:create_app")
    assert (done.code, done.out) == (0, "")
    assert json.loads(done.error)["event"] == "factory_called"
    done = place.run("--check-config", "shop:create_for")
    assert done.code == 3
    assert "needs the argument name" in done.error
    assert "write 'shop:create_for(VALUE)'" in done.error
    done = place.run("--check-config", "-k", "asgi", "shop:create_app")
    assert done.code == 3
    assert "'shop:create_app()' returned what is a WSGI app; serve it with -k sync" in done.error
    done = place.run("--check-config", "shop:create_web")
    assert done.code == 3
    assert "'shop:create_web()' returned what is an ASGI app; serve it with -k asgi" in done.error


def test_the_start_says_the_same(place: Place) -> None:
    """Without the check the daemon ends at its start, with the same line."""
    place.add("shop.py", APPS)
    done = place.run(*LOCAL, "shop:create_for")
    assert done.code == 3
    assert "write 'shop:create_for(VALUE)'" in done.err.splitlines()[-1]


@pytest.mark.parametrize(
    ("spec", "code", "words"),
    [
        ("./plain.py:app", 2, "write plain:app"),
        ("deep/inside:app", 2, "write deep.inside:app, or --chdir deep inside:app"),
        ("plain.py", 3, "it is named without its ending: plain:app"),
        ("plain.app", 3, "write plain:app"),
        ("plain", 3, "did you mean plain:app?"),
    ],
)
def test_paths_and_other_spellings(place: Place, spec: str, code: int, words: str) -> None:
    """A name that can't be right is one line with what to write; a path is a mistake in the command line."""
    done = place.run(*LOCAL, spec)
    assert done.code == code
    assert words in done.err.splitlines()[-1]


@pytest.mark.thorough
@pytest.mark.parametrize("preload", [[], ["--preload"]])
def test_server_software(place: Place, preload: list[str]) -> None:
    """os.environ names gunicorn before the app is imported, as code that wires its logging by it expects; the
    environ of requests names Ostler.
    """
    place.add(
        "conf.py",
        "import os\n"
        "before = os.environ.get('SERVER_SOFTWARE')\n"
        "print(before)\n"
        "def on_starting(server):\n"
        "    with open('hook', 'w') as file:\n"
        "        file.write(f\"{before} {os.environ['SERVER_SOFTWARE']}\")\n",
    )
    place.add(
        "look.py",
        "import os\n"
        "SEEN = os.environ['SERVER_SOFTWARE']\n"
        "def app(environ, start_response):\n"
        "    start_response('200 OK', [])\n"
        "    return [f\"{SEEN}|{environ['SERVER_SOFTWARE']}\".encode()]\n",
    )
    daemon = place.start("-c", "conf.py", *preload, "look:app")
    seen, own = daemon.get().text.split("|")
    assert seen.startswith("gunicorn (ostler/")
    assert own == "ostler"
    hook = Path(place.app_folder / "hook")
    until(lambda: hook.exists() and hook.read_text() == f"None {seen}", "the hook's file")
