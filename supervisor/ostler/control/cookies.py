"""Drops the Cookie fields of requests before they are parsed.

Nothing here reads a cookie, and browsers send those of every port of a host to every other: an app can set so
many (browsers keep some 700 KB a host) that the dashboard's page could not be asked for any more, because no
limit for a request's head is that large. So the fields go as they come in, without being kept.
"""

_COOKIE = b"cookie"
_BODY = frozenset({b"content-length", b"transfer-encoding"})
_LONGEST = max(map(len, (_COOKIE, *_BODY))) + 1
"""Bytes of a line that decide: with its colon."""


class CookieFilter:
    """Takes the bytes of a connection piece by piece and gives them back without Cookie fields.

    It knows lines and heads, but no bodies: from a request on that announces one, all bytes pass. No browser
    sends cookies on such a connection, since the dashboard's scripts ask without them and browsers keep those
    connections apart (Fetch standard, section 2.6); at worst that head is too large and is refused.
    """

    def __init__(self) -> None:
        self._start: bytes | None = b""
        """What is there of a line that is not decided yet; None: it is decided."""
        self._dropped = False
        """The line at hand, or the last one, is dropped."""
        self._body_follows = False
        self._all_passes = False

    def feed(self, data: bytes) -> bytes:
        """The part of `data`, and of what was held back, that passes now. Never holds back over 18 bytes."""
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
        """Whether the line that begins so is dropped."""
        if start in (b"\n", b"\r\n"):
            # The end of a head.
            self._dropped = False
            self._all_passes = self._body_follows
        elif start[:1] in (b" ", b"\t"):
            pass  # a folded line (RFC 9112, section 5.2) goes the way of the field that it belongs to
        else:
            name, colon, _ = start.lower().partition(b":")
            self._dropped = bool(colon) and name == _COOKIE
            self._body_follows |= bool(colon) and name in _BODY
