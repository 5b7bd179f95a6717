"""What can be wrong with a request or a response; each error of a client has its status."""

from typing import Self


class ProtocolViolation(Exception):
    """The request can't be served; the client gets `status` and the connection is closed."""

    status = "400 Bad Request"

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


class BodyTooLarge(ProtocolViolation):
    """The body is, or is announced to be, larger than `limit_request_body`."""

    status = "413 Content Too Large"


class LineTooLong(ProtocolViolation):
    """The request line is longer than `limit_request_line`."""

    status = "414 URI Too Long"


class ExpectationFailed(ProtocolViolation):
    """The client sends an expectation other than `100-continue` (RFC 9110 section 10.1.1)."""

    status = "417 Expectation Failed"


class HeadTooLarge(ProtocolViolation):
    """Too many header fields, one that is too long, or too many bytes of them (RFC 6585 section 5)."""

    status = "431 Request Header Fields Too Large"


class NotSupported(ProtocolViolation):
    """A method or a transfer coding that this server does not implement (RFC 9110 section 15.6.2)."""

    status = "501 Not Implemented"


class VersionNotSupported(ProtocolViolation):
    """An unsupported version of HTTP, e.g. the connection preface of HTTP/2 (RFC 9113 section 3.4)."""

    status = "505 HTTP Version Not Supported"


class BodyNotStored(ProtocolViolation):
    """The request body can't be stored: no space is left, which is no fault of the client."""

    status = "507 Insufficient Storage"


class ResponseError(Exception):
    """The app's response is no valid HTTP response; the message says what is wrong with it."""
