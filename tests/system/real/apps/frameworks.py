"""A Flask, a Django, a Bottle and a Falcon app, each below its name; all answer what they read of a body.

`/NAME/own` reads as the framework's documents say, `/NAME/raw` reads `wsgi.input` to its end. The answer is
CONTENT_LENGTH or `none`, and what was read.
"""

from collections.abc import Callable, Iterable
from typing import Any

import bottle
import django
import falcon
import flask
from django.conf import settings
from django.core.handlers.wsgi import WSGIHandler
from django.http import HttpRequest, HttpResponse
from django.urls import path

Environ = dict[str, Any]


def answer(environ: Environ, body: bytes) -> bytes:
    return environ.get("CONTENT_LENGTH", "none").encode() + b" " + body


flask_app = flask.Flask(__name__)


@flask_app.post("/<way>")
def flask_view(way: str) -> bytes:
    environ = flask.request.environ
    return answer(environ, flask.request.get_data() if way == "own" else environ["wsgi.input"].read())


settings.configure(ROOT_URLCONF=__name__, ALLOWED_HOSTS=["*"], SECRET_KEY="of no use outside the tests")


def django_view(request: HttpRequest, way: str) -> HttpResponse:
    environ = request.META
    return HttpResponse(answer(environ, request.body if way == "own" else environ["wsgi.input"].read()))


urlpatterns = [path("<way>", django_view)]
django.setup(set_prefix=False)

bottle_app = bottle.Bottle()


@bottle_app.post("/<way>")
def bottle_view(way: str) -> bytes:
    environ = bottle.request.environ
    return answer(environ, bottle.request.body.read() if way == "own" else environ["wsgi.input"].read())


class Resource:
    def on_post(self, request: falcon.Request, response: falcon.Response, way: str) -> None:
        body = request.stream.read() if way == "own" else request.env["wsgi.input"].read()
        response.data = answer(request.env, body)


falcon_app = falcon.App()
falcon_app.add_route("/{way}", Resource())

APPS: dict[str, Callable[..., Iterable[bytes]]] = {
    "flask": flask_app,
    "django": WSGIHandler(),
    "bottle": bottle_app,
    "falcon": falcon_app,
}


def app(environ: Environ, start_response: Callable[..., Any]) -> Iterable[bytes]:
    name = environ["PATH_INFO"].split("/")[1]
    environ["SCRIPT_NAME"] += f"/{name}"
    environ["PATH_INFO"] = environ["PATH_INFO"].removeprefix(f"/{name}")
    return APPS[name](environ, start_response)
