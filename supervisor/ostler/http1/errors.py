"""What a client can do wrong, each with its answer."""

from typing import Self


class ProtocolViolation(Exception):
    """The client's bytes can't be served; it is answered with `status` and the connection closes."""

    status = "400 Bad Request"

    def without_traceback(self) -> Self:
        """The exception itself, to be stored in an object that its traceback leads to.

        A traceback holds frames and their local variables: the connection, its parser, the last 64 KiB read.
        Stored with it, both would stay in memory until the next run of Python's garbage collector, and for
        ever where an app has turned that off.
        """
        self.__traceback__ = self.__context__ = self.__cause__ = None
        return self


class RequestTimeout(ProtocolViolation):
    """The request has begun and did not get whole in time."""

    status = "408 Request Timeout"


class BodyTooLarge(ProtocolViolation):
    """The body is, or says it will be, larger than `limit_request_body`."""

    status = "413 Content Too Large"


class LineTooLong(ProtocolViolation):
    """The request line is longer than `limit_request_line`."""

    status = "414 URI Too Long"


class ExpectationFailed(ProtocolViolation):
    """The client expects something other than `100-continue` (RFC 9110 section 10.1.1)."""

    status = "417 Expectation Failed"


class HeadTooLarge(ProtocolViolation):
    """Too many fields, one too long, or too much of them in all (RFC 6585 section 5)."""

    status = "431 Request Header Fields Too Large"


class NotSupported(ProtocolViolation):
    """A method or a transfer coding that this server does not know (RFC 9110 section 15.6.2)."""

    status = "501 Not Implemented"


class VersionNotSupported(ProtocolViolation):
    """A version of HTTP that is not spoken here, e.g. the preface of HTTP/2 (RFC 9113 section 3.4)."""

    status = "505 HTTP Version Not Supported"


class BodyNotStored(ProtocolViolation):
    """Not the client's fault: there is no room for the body it sends."""

    status = "507 Insufficient Storage"


class ResponseError(Exception):
    """The app's answer is no valid HTTP response; the text says what is wrong with it."""
