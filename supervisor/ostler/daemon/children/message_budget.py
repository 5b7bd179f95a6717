"""How much a child may send."""

from ostler.token_bucket import TokenBucket

# What a child may send unasked, at once and then in a second. An app of 50,000 files under `reload` sends 200
# messages of 20 KB when it boots, others less than ten in all.
_MESSAGES, _MESSAGES_A_SECOND = 1000, 50
_BYTES, _BYTES_A_SECOND = 8 * 1024 * 1024, 128 * 1024
# Answers to one message of ours (a hook has begun, a hook is done), and how many messages this may add up to.
_ANSWERS, _MOST_MESSAGES = 2, 3 * _MESSAGES


class MessageBudget:
    """How many messages and bytes a child may still send."""

    def __init__(self, now: float) -> None:
        self._messages = TokenBucket(_MESSAGES_A_SECOND, _MESSAGES, now)
        self._bytes = TokenBucket(_BYTES_A_SECOND, _BYTES, now)
        self._asked = 0

    def spend(self, size: int, asked: int, now: float) -> bool:
        """Count a message; False if it is too much.

        Args:
            size: in bytes.
            asked: how many messages the child was sent so far.
            now: CLOCK_MONOTONIC, seconds.
        """
        self._messages.grant(_ANSWERS * (asked - self._asked), _MOST_MESSAGES, now)
        self._asked = asked
        return self._messages.take(now) and self._bytes.take(now, size)
