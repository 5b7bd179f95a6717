"""Finding the app by its name: what is loaded, and the line for a name that does not fit."""

import os
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from ostler import __version__
from ostler.settings.table import Settings
from ostler.workers.load_errors import AppLoadError
from ostler.workers.loader import load_app, set_environment

SOURCE = """\
def app(environ, start_response):
    return []

async def web(scope, receive, send):
    pass

calls = []

def make(name=None):
    calls.append(name)
    return app

def make_web():
    return web

def broken():
    raise RuntimeError("no database")

def forgetful(config=None):
    app

class Dash:
    server = staticmethod(app)

dash = Dash()
VERSION = "1"
"""


@pytest.fixture
def shop(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """The name of a module, which is new in each test."""
    name = f"shop_{tmp_path.name}".replace("-", "_")
    (tmp_path / f"{name}.py").write_text(SOURCE)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.chdir(tmp_path)
    yield name
    sys.modules.pop(name, None)


def problem_of(spec: str, interface: str = "wsgi") -> str:
    with pytest.raises(AppLoadError) as caught:
        load_app(spec, interface)
    assert "\n" not in caught.value.reason
    return caught.value.reason


def test_a_factory_is_called_once(shop: str) -> None:
    """A factory named without parentheses is called, and one line says so; with parentheses there is none."""
    remarks: list[str] = []
    app = load_app(f"{shop}:make", "wsgi", remarks.append)
    module = sys.modules[shop]
    assert app is module.app
    assert module.calls == [None]
    what = "is a function that needs no arguments: it was called to make the app"
    assert remarks == [f"'{shop}:make' {what}; '{shop}:make()' says so"]
    assert load_app(f"{shop}:make('x')", "wsgi", remarks.append) is module.app
    assert load_app(f"{shop}:app", "wsgi", remarks.append) is module.app
    assert module.calls == [None, "x"]
    assert len(remarks) == 1


def test_what_a_factory_makes_is_checked(shop: str) -> None:
    """Named with or without parentheses."""
    for call in ("make_web", "make_web()"):
        problem = problem_of(f"{shop}:{call}")
        assert problem == f"wsgi_app: '{shop}:make_web()' returned what is an ASGI app; serve it with -k asgi"
    assert f"'{shop}:forgetful()' returned None" in problem_of(f"{shop}:forgetful")
    assert load_app(f"{shop}:make_web", "asgi") is sys.modules[shop].web


def test_a_factory_that_fails(shop: str) -> None:
    """The traceback is the app's, whether the app or Ostler has called the factory."""
    with pytest.raises(AppLoadError) as caught:
        load_app(f"{shop}:broken")
    assert caught.value.reason == f"can't load '{shop}:broken': RuntimeError: no database"
    assert caught.value.trace is not None
    assert "in broken" in caught.value.trace


def test_names_that_are_not_there(shop: str) -> None:
    """The line names what is probably meant."""
    meant = f"; did you mean {shop}:app?"
    assert problem_of(shop) == f"wsgi_app: '{shop}': {shop} has no 'application'{meant}"
    assert problem_of(f"{shop}:ap") == f"wsgi_app: '{shop}:ap': {shop} has no 'ap'{meant}"
    assert problem_of(f"{shop}:VERSION").endswith(f"is no callable but str{meant}")
    assert problem_of(f"{shop}:dash").endswith(f"is no callable but Dash; write {shop}:dash.server")
    assert f"it is named without its ending: {shop}:app" in problem_of(f"{shop}.py")
    assert f"it is named without its ending: {shop}:web" in problem_of(f"{shop}.py:web")
    assert f"app is a name in {shop}: write {shop}:app" in problem_of(f"{shop}.app")
    assert problem_of("no_such_module_:app").endswith("see --chdir and --pythonpath")


def test_server_software(monkeypatch: pytest.MonkeyPatch) -> None:
    """The variable contains gunicorn's name, as many look for, whatever it was; raw_env can set it, too."""
    monkeypatch.setenv("SERVER_SOFTWARE", "other")
    set_environment(Settings())
    assert os.environ["SERVER_SOFTWARE"] == f"gunicorn (ostler/{__version__})"
    set_environment(Settings(raw_env=("SERVER_SOFTWARE=mine",)))
    assert os.environ["SERVER_SOFTWARE"] == "mine"
