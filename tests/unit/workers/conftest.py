"""Fixtures of these tests; they leave nothing behind."""

import socket
import sys
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest

from ostler.workers.handoff import HandOff
from ostler.wsgi.exchange import App
from tests.kit.certificates import Authority
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


@pytest.fixture(scope="module")
def authority(tmp_path_factory: pytest.TempPathFactory) -> Authority:
    """Issues certificates."""
    return Authority(tmp_path_factory.mktemp("authority"))


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The current folder, from which modules are imported; they are forgotten afterwards."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [str(tmp_path), *sys.path])
    monkeypatch.setattr(sys, "modules", dict(sys.modules))
    return tmp_path
