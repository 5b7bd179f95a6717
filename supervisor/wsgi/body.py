"""A request's body: in memory, and beyond a limit in an unlinked temporary file."""

import tempfile
from typing import IO

IN_MEMORY = 512 * 1024


def new_body() -> IO[bytes]:
    """A sink for a body that begins; `seek(0)` makes it a `wsgi.input`."""
    return tempfile.SpooledTemporaryFile(IN_MEMORY)
