"""Flask under test: a small JSON answer to a GET, and to the POST of a JSON document."""

from typing import Any

from flask import Flask, request

app = Flask("bench")


@app.get("/")
@app.get("/items/<key>")
def show(key: str = "") -> dict[str, str]:
    return {"item": key}


@app.post("/items/<key>")
def order(key: str) -> dict[str, Any]:
    document = request.get_json()
    return {"item": key, "count": sum(item["count"] for item in document["items"])}
