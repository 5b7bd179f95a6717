"""Fixtures with an engine, which end everything that they start."""

import socket
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest

from ostler.workers.handoff import HandOff
from ostler.wsgi.exchange import App
from tests.unit.workers.pieces import Pieces
from tests.unit.workers.rig import Rig, Serve


@pytest.fixture
def serve(tmp_path: Path) -> Iterator[Serve]:
    """Start an engine: `serve(app, threads=4, quota=0, access=False, handoff=None, tls=None, **settings)`."""
    with ExitStack() as stack:

        def start(app: App, **options: Any) -> Rig:
            return stack.enter_context(Rig(tmp_path, app, **options))

        yield start


@pytest.fixture
def handoff() -> Iterator[HandOff]:
    """The hand-off that the workers of one daemon share."""
    giving, taking = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    with giving, taking:
        yield HandOff(giving, taking)


@pytest.fixture
def pieces(tmp_path: Path) -> Iterator[Pieces]:
    """The parts of an engine without the engine."""
    with Pieces(tmp_path) as pieces:
        yield pieces
