"""What the apps of test_fork_safety share."""

import json
import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs

Outcome = dict[str, Any]


def app_of(work: Callable[[], Outcome]) -> Callable[..., list[bytes]]:
    """An app that answers with what `work` returns, and the process.

    `/?meeting=FOLDER&guests=N` waits after the work until N requests have done theirs: a sync worker has one
    request at a time, so they are in N workers.
    """

    def app(environ: dict[str, Any], start_response: Callable[..., Any]) -> list[bytes]:
        asked = parse_qs(environ["QUERY_STRING"])
        outcome = {"pid": os.getpid(), **work()}
        if "meeting" in asked:
            _meet(Path(asked["meeting"][0]), int(asked["guests"][0]))
        body = json.dumps(outcome).encode()
        start_response("200 OK", [("Content-Type", "application/json"), ("Content-Length", str(len(body)))])
        return [body]

    return app


def _meet(folder: Path, guests: int) -> None:
    (folder / str(os.getpid())).touch()
    deadline = time.monotonic() + 60
    while len(list(folder.iterdir())) < guests:
        if time.monotonic() > deadline:
            raise TimeoutError(f"{sorted(folder.iterdir())} of {guests}")
        time.sleep(0.01)
