"""Units of time."""

from typing import Final

SECOND: Final = 1_000_000_000
"""A second in nanoseconds."""
