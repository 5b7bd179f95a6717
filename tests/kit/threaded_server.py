"""Runs a server of the standard library in a thread."""

import socketserver
import threading
from types import TracebackType
from typing import Self


class ThreadedServer:
    """A context manager: `server` serves within it.

    Attributes:
        port: on 127.0.0.1.
    """

    def __init__(self, server: socketserver.TCPServer) -> None:
        self._server = server
        self._thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05})
        self.port: int = server.server_address[1]

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()
