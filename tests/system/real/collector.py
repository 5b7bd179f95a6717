"""A stand-in for an OpenTelemetry collector and for Sentry: it takes what is posted to it and answers 200."""

import gzip
import http.server
import re
import threading
from collections import Counter
from types import TracebackType
from typing import Any, Self

_NAME = re.compile(rb"\d+ [0-9a-f]{32}")


class Collector:
    """A context manager.

    Attributes:
        port: on 127.0.0.1; received: path and body of each request, in order.
    """

    def __init__(self) -> None:
        self.received: list[tuple[str, bytes]] = []
        collector = self

        class Handler(http.server.BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers["Content-Length"]))
                if self.headers.get("Content-Encoding") == "gzip":
                    body = gzip.decompress(body)
                collector.received.append((self.path, body))
                answer = b"" if self.path.startswith("/v1/") else b"{}"  # no protobuf, or Sentry's JSON
                self.send_response(200)
                self.send_header("Content-Length", str(len(answer)))
                if self.close_connection:
                    self.send_header("Connection", "close")
                self.end_headers()
                self.wfile.write(answer)

            def log_message(self, *_: Any) -> None:
                pass

        self._server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._thread = threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.05})
        self.port: int = self._server.server_address[1]

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()

    def names(self) -> Counter[str]:
        """How often each name `PID HEX` has come; a request counts once."""
        found: Counter[str] = Counter()
        for _, body in list(self.received):
            found.update({name.decode() for name in _NAME.findall(body)})
        return found
