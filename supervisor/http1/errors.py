"""What a client can do wrong, each with its answer."""


class ProtocolViolation(Exception):
    """The client's bytes can't be served; it is answered with `status` and the connection closes."""

    status = "400 Bad Request"


class HeadTooLarge(ProtocolViolation):
    status = "431 Request Header Fields Too Large"


class BodyNotStored(ProtocolViolation):
    """Not the client's fault: there is no room for the body it sends."""

    status = "507 Insufficient Storage"


class ResponseError(Exception):
    """The app's answer is no valid HTTP response; the text says what is wrong with it."""
