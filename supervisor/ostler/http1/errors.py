"""What can be wrong with a request or a response; each error of a client has its status and its rule."""

from typing import Self

_RFC = "RFC 9112 section "
RULES = {
    "request_line": _RFC + "3",
    "method": "RFC 9110 section 9.1",
    "version": "RFC 9110 section 2.5",
    "line_ends": _RFC + "2.2",
    "fields": _RFC + "5",
    "missing_host": _RFC + "3.2",
    "host": _RFC + "3.2",
    "content_length": _RFC + "6.2",
    "transfer_encoding": _RFC + "6.1",
    "chunked": _RFC + "7.1",
    "expect": "RFC 9110 section 10.1.1",
    "header_map": "the setting header_map",
    "secure_scheme_headers": "the setting secure_scheme_headers",
    "limit_request_line": "the setting limit_request_line",
    "limit_request_fields": "the setting limit_request_fields",
    "limit_request_field_size": "the setting limit_request_field_size",
    "limit_request_body": "the setting limit_request_body",
    "header_timeout": "the setting header_timeout",
    "body_timeout": "the settings body_timeout and body_min_rate",
    "worker_connections": "the setting worker_connections",
    "queue_timeout": "the setting queue_timeout",
    "proxy_protocol": "the setting proxy_protocol",
    "storage": "the setting tmp_upload_dir",
    "other": "RFC 9112",
}
"""All rules by which requests are refused, each with its source. They are labels of metrics: their number is
bounded, and scoreboard.layout has the same."""


class ProtocolViolation(Exception):
    """The request can't be served; the client gets `status` and the connection is closed.

    Args:
        text: what is wrong with it, without any text of the client's but tokens.
        rule: by which it is refused, one of RULES; by default the one of the class.
    """

    status = "400 Bad Request"
    rule = "other"
    text = ""

    def __init__(self, text: str = "", rule: str = "") -> None:
        super().__init__(text or self.text)
        if rule:
            self.rule = rule

    @property
    def reason(self) -> str:
        """What is wrong with it, and which text says so."""
        return f"{self} ({RULES[self.rule]})"

    def without_traceback(self) -> Self:
        """The exception itself without its traceback, to be stored in an object which that refers to.

        A traceback refers to frames and their local variables: the connection, its parser, the last 64 KiB
        read. Such a reference cycle would stay in memory until the next run of Python's garbage collector,
        and for ever where an app has turned that off.
        """
        self.__traceback__ = self.__context__ = self.__cause__ = None
        return self


class RequestTimeout(ProtocolViolation):
    """A request has begun and was not received completely in time."""

    status = "408 Request Timeout"
    rule = "header_timeout"
    text = "it came too slowly"


class BodyTooLarge(ProtocolViolation):
    """The body is, or is announced to be, larger than `limit_request_body`."""

    status = "413 Content Too Large"
    rule = "limit_request_body"
    text = "the body is too large"


class LineTooLong(ProtocolViolation):
    """The request line is longer than `limit_request_line`."""

    status = "414 URI Too Long"
    rule = "limit_request_line"
    text = "the request line is too long"


class ExpectationFailed(ProtocolViolation):
    """The client sends an expectation other than `100-continue` (RFC 9110 section 10.1.1)."""

    status = "417 Expectation Failed"
    rule = "expect"
    text = "an expectation other than 100-continue"


class HeadTooLarge(ProtocolViolation):
    """Too many header fields, one that is too long, or too many bytes of them (RFC 6585 section 5)."""

    status = "431 Request Header Fields Too Large"
    rule = "limit_request_field_size"


class NotSupported(ProtocolViolation):
    """A method or a transfer coding that this server does not implement (RFC 9110 section 15.6.2)."""

    status = "501 Not Implemented"
    rule = "method"


class VersionNotSupported(ProtocolViolation):
    """An unsupported version of HTTP, e.g. the connection preface of HTTP/2 (RFC 9113 section 3.4)."""

    status = "505 HTTP Version Not Supported"
    rule = "version"


class BodyNotStored(ProtocolViolation):
    """The request body can't be stored: no space is left, which is no fault of the client."""

    status = "507 Insufficient Storage"
    rule = "storage"


class ResponseError(Exception):
    """The app's response is no valid HTTP response; the message says what is wrong with it."""
