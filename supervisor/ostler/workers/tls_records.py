"""How much of what a TLS client sends is given to OpenSSL at once.

OpenSSL reads on by itself for as long as records come that have no data for us, such as key updates (RFC 8446
section 4.6.3), which cost it more than their sender: seconds of work, while all other clients wait. So it
gets some records at a time, and a connection with too many in a row that have no data is ended.
"""

import errno
from collections.abc import Iterator

# A client has no reason for more records in a row that have no data.
MOST_USELESS = 32
_HEAD = 5


class Records:
    """Finds where records end in what comes on one connection (RFC 8446 section 5.1)."""

    __slots__ = ("_head", "_left", "_useless")

    def __init__(self) -> None:
        self._head = b""
        self._left = 0
        self._useless = 0

    def parts(self, data: bytes) -> Iterator[tuple[bytes, int]]:
        """`data` in parts, each with how many records end in it: `MOST_USELESS` at most."""
        begin = at = count = 0
        while at < len(data):
            if self._left:
                step = min(self._left, len(data) - at)
                self._left -= step
                at += step
            else:
                piece = data[at : at + _HEAD - len(self._head)]
                self._head += piece
                at += len(piece)
                if len(self._head) < _HEAD:
                    break
                self._left = self._head[3] << 8 | self._head[4]
                self._head = b""
            if not self._left:
                count += 1
                if count == MOST_USELESS:
                    yield data[begin:at], count
                    begin, count = at, 0
        if begin < len(data):
            yield data[begin:], count

    def note(self, count: int, useful: bool) -> None:
        """Count records whose part had data (useful), or had none.

        Raises:
            OSError: too many in a row had none.
        """
        self._useless = 0 if useful else self._useless + count
        if self._useless > MOST_USELESS:
            raise OSError(errno.EPROTO, "too many TLS records without data")
