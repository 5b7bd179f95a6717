"""An everyday Flask app."""

import os
import time
from pathlib import Path

from flask import Flask, Response, abort, request

app = Flask(__name__)


@app.get("/")
def index() -> str:
    return "<h1>the shop</h1>"


@app.get("/pid")
def pid() -> str:
    return str(os.getpid())


@app.post("/orders")
def order() -> tuple[dict[str, object], int]:
    return {"ordered": request.get_json(), "length": request.content_length}, 201


@app.post("/upload")
def upload() -> str:
    return f"{len(request.get_data())} bytes"


@app.get("/stream")
def stream() -> Response:
    return Response((f"line {n}\n" for n in range(100)), mimetype="text/plain")


@app.get("/forbidden")
def forbidden() -> None:
    abort(403)


@app.get("/fail")
def fail() -> None:
    raise RuntimeError("the shop burns")


@app.get("/gate/<name>")
def gate(name: str) -> str:
    while not Path(f"{name}.open").exists():
        time.sleep(0.005)
    return f"{name} passed"


def create_app(title: str = "made") -> Flask:
    made = Flask("made")
    made.add_url_rule("/", view_func=lambda: title)
    return made
