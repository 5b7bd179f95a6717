"""`paste` and `spew` with real daemons."""

import sys

import pytest

from tests.kit.daemon import Place
from tests.kit.tiers import thorough

pytestmark = pytest.mark.system

APP = """
def make(global_conf, **own):
    def app(environ, start_response):
        start_response('200 OK', [('Content-Type', 'text/plain')])
        return [f"{global_conf['colour']} {own['greeting']}".encode()]
    return app
"""
INI = """
[DEFAULT]
colour = red
[app:main]
paste.app_factory = papa:make
greeting = hello
[app:admin]
paste.app_factory = papa:make
greeting = %(mood)s
[server:main]
use = egg:ostler#main
bind = 127.0.0.1:0
workers = 2
"""


@pytest.fixture
def site(place: Place) -> Place:
    place.add("papa.py", APP)
    place.add("site.ini", INI)
    return place


@pytest.mark.parametrize("preload", [[], *thorough(["--preload"])])
def test_app(site: Place, preload: list[str]) -> None:
    """The file's app and server section, and a second app with a variable of the command line."""
    daemon = site.start("--paste", "site.ini", "--paste-global", "mood=m", *preload, bind=None)
    assert daemon.get().text == "red hello"
    assert len(daemon.settled(2)) == 2
    assert daemon.events("configuration") == []
    other = site.start("--paste", "config:site.ini#admin", "--paste-global", "mood=merry", *preload)
    assert other.get().text == "red merry"


def test_reload(site: Place) -> None:
    """The file is one of those that `reload` watches."""
    daemon = site.start("--reload", "--paste", "site.ini", "--paste-global", "mood=m", bind=None)
    site.add("site.ini", INI.replace("hello", "good morning"))
    daemon.until(lambda: daemon.get().text == "red good morning", "the new greeting")
    assert daemon.event("reload")["by"] == "file site.ini changed"


def test_mistakes(site: Place) -> None:
    """An app that is not in the file, and a missing file: one line each."""
    done = site.run("--paste", "site.ini#none", "--check-config")
    assert done.code == 3
    assert "No section 'none'" in done.err
    assert "loadwsgi.py" not in done.err
    done = site.run("--paste", "none.ini", "--check-config")
    assert (done.code, done.error) == (
        1,
        "ostler: error: paste: can't read 'none.ini': No such file or directory",
    )


def test_by_a_server_runner(site: Place) -> None:
    """Called by a command that has loaded the file, as pserve does, the daemon works the same."""
    code = (
        "from paste.deploy import loadapp\n"
        "from ostler.cli.paste import serve\n"
        "app = loadapp('config:site.ini', relative_to='.', global_conf={'mood': 'm'})\n"
        "serve(app, {'__file__': 'site.ini', 'mood': 'm'}, host='127.0.0.1', port='0', workers='1')\n"
    )
    daemon = site.start(argv=[sys.executable, "-c", code], bind=None)
    assert daemon.get().text == "red hello"
    assert daemon.status().wanted == 1


@pytest.mark.thorough
@pytest.mark.parametrize("more", [[], ["--threads", "2"], ["--preload"]])
def test_spew(place: Place, more: list[str]) -> None:
    """Each line that the app runs is in the log, in any thread; one warning at the start."""
    daemon = place.start("--spew", *more, "plain:app")
    assert daemon.get().text == "one"
    lines = daemon.events("line", file="plain.py", function="app")
    assert lines
    assert all(line["source"] for line in lines)
    assert {line["file"] for line in daemon.events("line")} == {"plain.py"}
    (warning,) = daemon.events("configuration")
    assert "for debugging only" in warning["problem"]
