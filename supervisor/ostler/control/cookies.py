"""Drops the Cookie fields of requests before they are parsed.

The API uses no cookies, and browsers send the cookies of all ports of a host to each of them: an app can set
so many (browsers keep some 700 KB per host) that requests for the dashboard would exceed every limit for a
head. So these fields are dropped as they come in, without being stored.
"""

_COOKIE = b"cookie"
_BODY = frozenset({b"content-length", b"transfer-encoding"})
_LONGEST = max(map(len, (_COOKIE, *_BODY))) + 1
"""Bytes of a line that are needed to decide, including the colon."""


class CookieFilter:
    """Takes the bytes of a connection piece by piece and returns them without Cookie fields.

    It parses lines and heads, but no bodies: after a head that announces a body, all bytes pass. No browser
    sends cookies on such a connection, since the dashboard's scripts send requests without them and browsers
    use other connections for those (Fetch standard, section 2.6); at worst a later head is too large and is
    refused.
    """

    def __init__(self) -> None:
        self._start: bytes | None = b""
        """The beginning of a line that is not decided yet; None: it is decided."""
        self._dropped = False
        """The current line, or the last one, is dropped."""
        self._body_follows = False
        self._all_passes = False

    def feed(self, data: bytes) -> bytes:
        """The part of `data`, and of bytes held back before, that passes now. Holds back at most 18 bytes."""
        passed: list[bytes] = []
        at = 0
        while at < len(data) and not self._all_passes:
            if self._start is None:
                end = data.find(b"\n", at) + 1
                stop = end or len(data)
                if not self._dropped:
                    passed.append(data[at:stop])
                if end:
                    self._start = b""
            else:
                stop = min(len(data), at + _LONGEST - len(self._start))
                if end := data.find(b"\n", at, stop) + 1:
                    stop = end
                self._start += data[at:stop]
                if end or len(self._start) == _LONGEST:
                    self._decide(self._start)
                    if not self._dropped:
                        passed.append(self._start)
                    self._start = b"" if end else None
            at = stop
        if self._all_passes:
            passed.append(data[at:])
        return b"".join(passed)

    def _decide(self, start: bytes) -> None:
        """Decide whether the line with this beginning is dropped."""
        if start in (b"\n", b"\r\n"):
            # The end of a head.
            self._dropped = False
            self._all_passes = self._body_follows
        elif start[:1] in (b" ", b"\t"):
            pass  # a folded line (RFC 9112, section 5.2) is handled like the field that it belongs to
        else:
            name, colon, _ = start.lower().partition(b":")
            self._dropped = bool(colon) and name == _COOKIE
            self._body_follows |= bool(colon) and name in _BODY
