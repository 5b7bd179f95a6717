"""A Flask app with the views that most apps have."""

import hashlib
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from flask import Flask, Response, request, send_file, session, stream_with_context

app = Flask(__name__)
app.secret_key = "of no use outside the tests"


@app.get("/")
def index() -> str:
    return "hello"


@app.get("/pid")
def pid() -> str:
    return str(os.getpid())


@app.post("/json")
def json() -> dict[str, Any]:
    return {"got": request.get_json(), "type": request.content_type}


@app.post("/upload")
def upload() -> dict[str, Any]:
    return {
        "files": {
            name: {"name": file.filename, "sha256": hashlib.sha256(file.stream.read()).hexdigest()}
            for name, file in request.files.items()
        },
        "fields": request.form.to_dict(),
    }


@app.put("/raw")
def raw() -> dict[str, Any]:
    digest, size = hashlib.sha256(), 0
    while chunk := request.stream.read(10_000):
        digest.update(chunk)
        size += len(chunk)
    return {"size": size, "sha256": digest.hexdigest()}


@app.get("/lines")
def lines() -> Response:
    @stream_with_context
    def produce() -> Iterator[str]:
        for number in range(1000):
            yield f"{request.args['word']} {number}\n"

    return Response(produce(), mimetype="text/plain")


@app.get("/cut")
def cut() -> Response:
    def produce() -> Iterator[str]:
        yield "the beginning\n"
        raise RuntimeError("the generator's own mistake")

    return Response(produce(), mimetype="text/plain")


@app.get("/download")
def download() -> Response:
    return send_file(Path("large.bin").resolve(), conditional=True)


@app.get("/count")
def count() -> str:
    session["count"] = session.get("count", 0) + 1
    return str(session["count"])
