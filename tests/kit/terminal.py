"""A terminal whose output is read all the time."""

import os
import pty
import threading
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def terminal() -> Iterator[tuple[int, list[bytes]]]:
    """A terminal's descriptor, and what it is sent."""
    master, slave = pty.openpty()
    sent: list[bytes] = []

    def read() -> None:
        try:
            while data := os.read(master, 65536):
                sent.append(data)
        except OSError:
            pass  # EIO: the other end is closed

    reader = threading.Thread(target=read)
    reader.start()
    try:
        yield slave, sent
    finally:
        os.close(slave)
        reader.join()
        os.close(master)
