"""Why uvicorn refuses requests: its protocols only say that they are invalid; their parsers say more."""

import sys
from collections.abc import Callable
from typing import Any

from ostler.http1.errors import RULES

Report = Callable[[Any, int, int, str, str], object]
"""Counts and logs a refused request: its protocol, the answer's status and size, the rule, the reason."""

INVALID = "Invalid HTTP request received."
"""What uvicorn logs and answers."""
# Of httptools' exceptions and h11's messages, what belongs to a rule. The rest counts as `other`.
_BY_EXCEPTION = {"HttpParserInvalidMethodError": "method", "HttpParserInvalidURLError": "request_line"}
_BY_TEXT = {
    "Missing mandatory Host": "missing_host",
    "multiple Host": "host",
    "Transfer-Encoding": "transfer_encoding",
    "Content-Length": "content_length",
    "header": "fields",
    "chunk": "chunked",
    "request line": "request_line",
    "version": "version",
}
_LONGEST = 200  # bytes of a reason: h11's may repeat what the client has sent


def reporting(protocol: type[Any], report: Report) -> type[Any]:
    """uvicorn's HTTP protocol, which reports each request that it answers with 400."""

    class Reporting(protocol):  # type: ignore[misc]
        def send_400_response(self, msg: str) -> None:
            rule, text = rule_of(sys.exc_info()[1])
            report(self, 400, len(msg), rule, f"{text or msg} ({RULES[rule]})")
            super().send_400_response(msg)

    return Reporting


def rule_of(error: BaseException | None) -> tuple[str, str]:
    """The rule that a parser's exception is about, and its text."""
    text = str(error or "")
    named = (rule for part, rule in _BY_TEXT.items() if part in text)
    return _BY_EXCEPTION.get(type(error).__name__) or next(named, "other"), text[:_LONGEST]
