"""For ASGI apps: waiting for a file, and files that show what was called."""

import asyncio
import os
from pathlib import Path


async def opened(name: str) -> None:
    """Wait until the file NAME.open appears in the folder the daemon was started in."""
    while not Path(f"{name}.open").exists():  # noqa: ASYNC110, ASYNC240
        await asyncio.sleep(0.01)


def note(what: str) -> None:
    """Leave a file that has the worker's pid in its name."""
    Path(f"{what}-{os.getpid()}").touch()
