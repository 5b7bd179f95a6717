"""Header fields and warm-up requests: what a user may write, and the text of a refusal."""

from typing import Any

import pytest

from ostler.settings.kinds import http
from ostler.settings.kinds.kind import Kind
from tests.unit.settings.kinds.checks import assert_becomes, assert_refused


@pytest.mark.parametrize(
    ("kind", "given", "value"),
    [
        (http.WARMUP, "/health", (http.WarmupRequest("/health"),)),
        (http.WARMUP, ["HEAD /", "/a?b"], (http.WarmupRequest("/", "HEAD"), http.WarmupRequest("/a?b"))),
        (
            http.WARMUP,
            {"path": "/x", "headers": {"Host": "shop"}},
            (http.WarmupRequest("/x", "GET", {"HOST": "shop"}),),
        ),
        (http.HEADER_NAMES, "script_name,Remote_User", ("SCRIPT_NAME", "REMOTE_USER")),
        (http.HEADER_NAMES, ["*"], ("*",)),
        (http.HEADER_NAMES, "", ()),
        (http.HEADER_VALUES, {"X-Forwarded-Proto": " https "}, {"X-FORWARDED-PROTO": "https"}),
        (http.HEADER_VALUES, {}, {}),
    ],
)
def test_values(kind: Kind, given: Any, value: Any) -> None:
    """Text and Python objects become the typed value."""
    assert_becomes(kind, given, value)


@pytest.mark.parametrize(
    ("kind", "given", "problem"),
    [
        (http.WARMUP, "health", "expected a path such as /health"),
        (http.WARMUP, "GET /a b", "expected a path such as /health"),
        (http.WARMUP, {"path": "/", "body": ""}, "has path, method and headers, not 'body'"),
        (http.WARMUP, {"path": "/", "headers": {"X": "a\r\nb"}}, "the header X can't be"),
        (http.HEADER_NAMES, "A B", "expected the name of a header, got 'A B'"),
        (http.HEADER_VALUES, None, "expected a dictionary of header names and values, got None"),
        (http.HEADER_VALUES, "a=b", "expected a dictionary"),
        (http.HEADER_VALUES, {"A:": "b"}, "expected the name of a header, got 'A:'"),
        (http.HEADER_VALUES, {"A": 1}, "expected text, got 1"),
    ],
)
def test_mistakes(kind: Kind, given: Any, problem: str) -> None:
    """A wrong value is refused in one line that names what is expected."""
    assert_refused(kind, given, problem)
