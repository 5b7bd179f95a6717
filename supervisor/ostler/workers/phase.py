"""What a connection is for: its phases, and which phase may follow each."""

from enum import Enum
from typing import Final


class Phase(Enum):
    """What a connection is for, from now on."""

    PROXY_HEADER = "a PROXY header must come first"
    OPEN = "requests are received and answered"
    UPGRADED = "the app has taken it, e.g. for a websocket; nothing but its end is ours"
    CLOSING = "the last answer was given; the connection ends when all of it is sent"
    LINGERING = "all is sent; what still comes is discarded until the client closes"
    """A plain close would answer what still comes with a reset, which takes the answer away from the client
    (RFC 9112 section 9.6)."""
    CLOSED = "its descriptor is closed, or was handed off to a sibling"


PROXY_HEADER: Final = Phase.PROXY_HEADER
OPEN: Final = Phase.OPEN
UPGRADED: Final = Phase.UPGRADED
CLOSING: Final = Phase.CLOSING
LINGERING: Final = Phase.LINGERING
CLOSED: Final = Phase.CLOSED

TRANSITIONS: Final = {
    PROXY_HEADER: {OPEN, CLOSING, CLOSED},
    OPEN: {UPGRADED, CLOSING, CLOSED},
    UPGRADED: {LINGERING, CLOSED},
    CLOSING: {LINGERING, CLOSED},
    LINGERING: {CLOSED},
    CLOSED: set[Phase](),
}
"""Which phases may follow each one. A connection begins in PROXY_HEADER or in OPEN."""


class IllegalPhaseChange(AssertionError):
    """A defect of ours: a connection was to enter a phase that can't follow its own."""
