"""Requests that asgi workers refuse: why uvicorn does so, and how they are counted and logged.

uvicorn's protocols only say that a request is invalid; their parsers say more.
"""

import sys
from collections.abc import Callable
from http import HTTPStatus
from typing import Any

from ostler.http1.errors import RULES
from ostler.logs.access import AccessLog
from ostler.logs.limiter import LimitedLog
from ostler.scoreboard.request_slot import RequestSlot
from ostler.workers.refusals import log_refused

Report = Callable[[Any, int, int, str, str], object]
"""See `Refusals.report`."""
INVALID = "Invalid HTTP request received."
"""What uvicorn logs and answers."""
# Of httptools' exceptions and h11's messages, what belongs to a rule. The rest counts as `other`.
_BY_EXCEPTION = {
    "HttpParserInvalidMethodError": "method",
    "HttpParserInvalidURLError": "request_line",
}
_BY_TEXT = {
    "Missing mandatory Host": "missing_host",
    "multiple Host": "host",
    "Transfer-Encoding": "transfer_encoding",
    "Content-Length": "content_length",
    "chunk": "chunked",
    "header": "fields",
    "request line": "request_line",
    "version": "version",
}
MOST_LINE = 2048
"""Bytes of a head that are kept for the access log."""
_LONGEST = 200  # bytes of a reason: h11's may repeat what the client has sent


class Refusals:
    """Counts and logs refused requests. Used by the loop's thread only.

    Args:
        slot: the loop's.
        flush_soon: called when there are lines in the access log's buffer.
    """

    def __init__(
        self, slot: RequestSlot, limited: LimitedLog, access: AccessLog | None, flush_soon: Callable[[], None]
    ) -> None:
        self._slot = slot
        self._limited = limited
        self._access = access
        self._flush_soon = flush_soon

    def report(self, protocol: Any, status: int, size: int, rule: str, reason: str) -> None:
        """Note that a request was refused, before its connection is closed.

        Args:
            protocol: one of `reporting`.
            status, size: of the answer, the size in bytes.
            rule: one of http1.errors.RULES; reason: what is wrong with the request.
        """
        client = protocol.client[0] if protocol.client else ""
        log_refused(self._limited, client, status, rule, reason)
        if is_busy(protocol) or protocol.is_answered():
            self._slot.refused_in_app(rule)
            return
        self._slot.refused(status, size, rule)
        if self._access is not None:
            text = f"{status} {HTTPStatus(status).phrase}"
            self._access.refused({"REMOTE_ADDR": client}, protocol.head, text, size)
            self._flush_soon()


def reporting(protocol: type[Any], report: Report) -> type[Any]:
    """uvicorn's HTTP protocol, which reports each request that it, or a websocket's protocol, refuses.

    Attributes:
        head: the beginning of the newest head, as it came; empty: it is not known. Set by subclasses.
    """

    class Reporting(protocol):  # type: ignore[misc]
        head = b""

        def send_400_response(self, msg: str) -> None:
            rule, text = rule_of(sys.exc_info()[1])
            report(self, 400, len(msg), rule, f"{text or msg} ({RULES[rule]})")
            if is_busy(self):
                self.cycle.refused = 400  # see `AsgiApp.end`
            super().send_400_response(msg)

        def handle_websocket_upgrade(self, *args: Any) -> None:
            super().handle_websocket_upgrade(*args)
            successor = self.transport.get_protocol()
            if self.transport.is_closing() and successor is not self:  # it has not called the app
                response = getattr(successor, "response", None)
                status, body = getattr(response, "status_code", 400), getattr(response, "body", None) or b""
                error = getattr(getattr(successor, "conn", None), "handshake_exc", None)
                text = str(error or "an invalid handshake of a websocket")[:_LONGEST]
                report(self, status, len(body), "other", f"{text} (RFC 6455 section 4.2.1)")

    return Reporting


def is_busy(protocol: Any) -> bool:
    """Whether a request is not answered yet. The last one that came is answered last."""
    return protocol.cycle is not None and not protocol.cycle.response_complete


def rule_of(error: BaseException | None) -> tuple[str, str]:
    """The rule that a parser's exception is about, and its text. None: there is none."""
    kind = type(error).__name__
    if error is None or kind == "HttpParserUpgrade":
        return "method", "CONNECT is for proxies"  # to the parsers it is valid: see `unusual_requests`
    text = str(error)
    named = (rule for part, rule in _BY_TEXT.items() if part in text)
    return _BY_EXCEPTION.get(kind) or next(named, "other"), text[:_LONGEST]
