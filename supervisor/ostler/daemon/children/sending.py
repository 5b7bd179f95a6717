"""Sending messages to children."""

from typing import Any

import msgspec

from ostler.ipc.channel import Channel


def send(chan: Channel[Any], message: msgspec.Struct, descriptors: list[int] | None = None) -> bool:
    """Send a message; False if the child has ended or does not read: its death or a deadline reports that."""
    try:
        chan.send(message, descriptors)
    except OSError:
        return False
    return True
