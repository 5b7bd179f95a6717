"""The OpenAPI 3.1 document, built from the route table and the views' types."""

import functools
import re
from typing import Any

import msgspec

from ostler import __version__
from ostler.control.routes import JSON, ROUTES, SSE, Route
from ostler.control.views import ErrorView, EventView, ExitView, SampleView

_REFERENCE = "#/components/schemas/{name}"
_MEANING = {
    200: "Done",
    202: "Accepted; it is in progress",
    204: "Done; no body",
    400: "The body is not JSON",
    401: "Not authenticated",
    403: "Not allowed, or a foreign Host or Origin",
    404: "Not found",
    408: "The body did not arrive in time",
    409: "The state does not allow it, or it failed",
    411: "The body has no Content-Length",
    413: "The body is too large",
    415: "The body is not declared as JSON, or has a Content-Encoding",
    422: "The body or a parameter is not valid",
    429: "The code is not valid, after many other failures",
    500: "Internal error; see the daemon's log",
    503: "Not available now",
}


@functools.cache
def document() -> dict[str, Any]:
    """The complete document as plain JSON types (https://spec.openapis.org/oas/v3.1.0)."""
    # The stream's payloads appear in no body, so they are named here.
    types = [ErrorView, EventView, ExitView, SampleView]
    types += [kind for route in ROUTES for kind in (route.ask, route.view) if kind]  # type: ignore[misc]
    schemas, components = msgspec.json.schema_components(types, ref_template=_REFERENCE)
    schema_of = dict(zip(map(repr, types), schemas, strict=True))
    paths: dict[str, dict[str, Any]] = {}
    for route in ROUTES:
        paths.setdefault(route.path, {})[route.method.lower()] = _operation(route, schema_of)
    return _without_body_suffix(
        {
            "openapi": "3.1.0",
            "info": {"title": "Ostler control API", "version": __version__},
            "paths": paths,
            "components": {
                "schemas": components,
                "securitySchemes": {
                    "bearer": {
                        "type": "http",
                        "scheme": "bearer",
                        "description": "The daemon's token, or a session's of `POST /v1/login`",
                    },
                },
            },
        }
    )


def _without_body_suffix(document: dict[str, Any]) -> dict[str, Any]:
    """Give schemas their public names: that of `ReloadBody` is `Reload`."""
    text = re.sub(r'([/"](?:Reload|Refork))Body"', r'\1"', msgspec.json.encode(document).decode())
    renamed: dict[str, Any] = msgspec.json.decode(text)
    return renamed


def _operation(route: Route[object, object], schema_of: dict[str, Any]) -> dict[str, Any]:
    def body(kind: object, media: str) -> dict[str, Any]:
        return {media: {"schema": schema_of[repr(kind)]}}

    operation: dict[str, Any] = {
        "operationId": route.name,
        "summary": route.summary,
        "x-scope": route.scope,
        # An empty alternative would mean "optional"; an empty list means "none".
        "security": [] if route.open else [{"bearer": []}],
    }
    parameters = [
        {"name": name, "in": "path", "required": True, "schema": {"type": "integer", "minimum": 1}}
        for name in re.findall(r"{(\w+)}", route.path)
    ] + [
        {"name": name, "in": "query", "required": False, "schema": {"type": "integer", "minimum": 0}}
        for name in route.query
    ]
    if parameters:
        operation["parameters"] = parameters
    if route.ask is not None:
        operation["requestBody"] = {"required": False, "content": body(route.ask, JSON)}
    answers: dict[str, Any] = {}
    for status in (route.status, *route.also):
        answers[str(status)] = {"description": _MEANING[status]}
        if route.view is not None:
            answers[str(status)]["content"] = body(route.view, route.media)
        elif route.media == SSE:
            answers[str(status)]["content"] = {SSE: {"schema": {"type": "string"}}}
    for status in error_statuses(route):
        answers.setdefault(str(status), {"description": _MEANING[status], "content": body(ErrorView, JSON)})
    operation["responses"] = dict(sorted(answers.items()))
    return operation


def error_statuses(route: Route[object, object]) -> list[int]:
    """All statuses with an ErrorView that a route can have, sorted."""
    statuses = {403, 500, *route.errors}
    if not route.open:
        statuses.add(401)
    if route.ask is not None:
        statuses |= {400, 408, 411, 413, 415, 422}
    if route.query:
        statuses.add(422)
    return sorted(statuses)
