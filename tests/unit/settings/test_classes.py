"""Names of worker classes."""

import pytest

from ostler.settings.classes import BUILT_IN, GEVENT_WEBSOCKET, canonical, names


@pytest.mark.parametrize(
    ("written", "name"),
    [
        ("sync", "sync"),
        (" Gevent ", "gevent"),
        ("gunicorn.workers.ggevent.GeventWorker", "gevent"),
        ("gunicorn.workers.ggevent.GeventPyWSGIWorker", "gevent"),
        ("egg:gunicorn#gevent_pywsgi", "gevent"),
        ("gunicorn.workers.geventlet.EventletWorker", "eventlet"),
        ("gunicorn.workers.gthread.ThreadWorker", "gthread"),
        ("egg:gunicorn#sync", "sync"),
        ("egg:meinheld#gunicorn_worker", "meinheld"),
        ("meinheld.gmeinheld.MeinheldWorker", "meinheld"),
        ("meinheld.gmeinheld:MeinheldWorker", "meinheld"),
        ("uvicorn.workers.UvicornWorker", "asgi"),
        ("uvicorn_worker.UvicornWorker", "asgi"),
        ("uvicorn.workers.UvicornH11Worker", "uvicorn.workers.UvicornH11Worker"),
        ("uvicorn_worker.UvicornH11Worker", "uvicorn.workers.UvicornH11Worker"),
        ("gunicorn.workers.gasgi.ASGIWorker", "asgi"),
        ("geventwebsocket.gunicorn.workers.geventwebsocketworker", GEVENT_WEBSOCKET),
        ("flask_sockets.worker", GEVENT_WEBSOCKET),
        # Other names keep their case, because entry points and paths are case-sensitive.
        ("MyApp.workers.Mine", "MyApp.workers.Mine"),
    ],
)
def test_what_is_meant(written: str, name: str) -> None:
    """Names that gunicorn users write, in upper or lower case."""
    assert canonical(written) == name


def test_a_class_itself() -> None:
    """A configuration file may contain a class: its path is its name."""
    kind = type("EventletWorker", (), {"__module__": "gunicorn.workers.geventlet"})
    assert canonical(kind) == "eventlet"


@pytest.mark.parametrize(
    ("written", "words"),
    [
        ("tornado", "Tornado"),
        ("gunicorn.workers.gtornado.TornadoWorker", "Tornado"),
        ("aiohttp.GunicornUVLoopWebWorker", "aiohttp.web.run_app"),
        ("gaiohttp", "aiohttp.web.run_app"),
        ("sanic.worker.GunicornWorker", "use asgi"),
        ("gunicorn.workers.base.Worker", "gunicorn.workers.base.Worker is a base class"),
        ("pyuwsgi", "uWSGI"),
        ("", "expected the name"),
        (7, "expected the name"),
    ],
)
def test_what_can_not_be_had(written: object, words: str) -> None:
    """One line of advice."""
    with pytest.raises(ValueError, match=words) as caught:
        canonical(written)
    assert "\n" not in str(caught.value)


def test_names() -> None:
    """Similar names are searched among these: the short ones, each of which is a class of Ostler."""
    assert {canonical(name) for name in names()} == set(BUILT_IN)
    assert not [name for name in names() if "." in name or ":" in name]
