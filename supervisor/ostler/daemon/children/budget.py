"""How much a child may send."""

# What a child may send unasked, at once and then in a second. An app of 50,000 files under `reload` sends 200
# messages of 20 KB when it boots, others less than ten in all.
_MESSAGES, _MESSAGES_A_SECOND = 1000.0, 50.0
_BYTES, _BYTES_A_SECOND = 8.0 * 1024 * 1024, 128.0 * 1024
# Answers to a message of ours (a hook has begun, a hook is done), and how much all of this may add up to.
_ANSWERS, _MOST_MESSAGES = 2, 3 * _MESSAGES


class Allowance:
    """How much a child may still send (a token bucket)."""

    def __init__(self, now: float) -> None:
        self._messages, self._bytes = _MESSAGES, _BYTES
        self._at = now
        self._asked = 0

    def spend(self, size: int, asked: int, now: float) -> bool:
        """Take note of a message; False if it is too much.

        Args:
            size: in bytes.
            asked: how many messages the child was sent so far.
            now: CLOCK_MONOTONIC, seconds.
        """
        passed, self._at = now - self._at, now
        self._messages = max(self._messages, min(_MESSAGES, self._messages + passed * _MESSAGES_A_SECOND))
        self._messages = min(_MOST_MESSAGES, self._messages + _ANSWERS * (asked - self._asked)) - 1
        self._asked = asked
        self._bytes = min(_BYTES, self._bytes + passed * _BYTES_A_SECOND) - size
        return self._messages >= 0 and self._bytes >= 0
