"""Refusals of requests. Each class has its status and error code; `app` renders all of them."""

from collections.abc import Mapping


class Refusal(Exception):
    """A request that is refused: an answer for the client, no failure of the server.

    Args:
        message: one line for people: what, where, what to do.
        headers: further headers of the answer.
    """

    status = 400
    code = "bad_request"

    def __init__(self, message: str, headers: Mapping[str, str] | None = None) -> None:
        super().__init__(message)
        self.message = message
        self.headers = dict(headers or {})


class Unauthorized(Refusal):
    status = 401
    code = "unauthorized"


class Forbidden(Refusal):
    status = 403
    code = "forbidden"


class NotFound(Refusal):
    status = 404
    code = "not_found"


class Conflict(Refusal):
    """The request is valid but the fleet's state does not allow it."""

    status = 409
    code = "conflict"


class SlowBody(Refusal):
    status = 408
    code = "slow_body"


class Unsized(Refusal):
    status = 411
    code = "length_required"


class TooLarge(Refusal):
    status = 413
    code = "body_too_large"


class Encoded(Refusal):
    status = 415
    code = "encoded"


class NotJson(Refusal):
    status = 415
    code = "not_json"


class Invalid(Refusal):
    """JSON, but not of the route's type."""

    status = 422
    code = "invalid"


class TooManyLogins(Refusal):
    status = 429
    code = "too_many_logins"


class TooManyStreams(Refusal):
    status = 503
    code = "too_many_streams"


class Internal(Refusal):
    """A defect of the server; its traceback is in the log, never in the answer."""

    status = 500
    code = "internal"


CODES = {400: "bad_request", 404: "not_found", 405: "method_not_allowed", 413: "body_too_large"}
"""Error words for the refusals that aiohttp itself raises."""
