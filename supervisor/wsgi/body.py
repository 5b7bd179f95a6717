"""A request's body: in memory, and beyond a limit in an unlinked temporary file."""

import tempfile
from typing import IO

IN_MEMORY = 512 * 1024


class _Body(tempfile.SpooledTemporaryFile[bytes]):
    """Ends with its last reference: a client may go away before its request reaches an app."""

    def __del__(self) -> None:
        self.close()


def new_body() -> IO[bytes]:
    """A sink for a body that begins; `seek(0)` makes it a `wsgi.input`."""
    return _Body(IN_MEMORY)
