"""A stand-in for an OpenTelemetry collector and for Sentry: it takes what is posted to it and answers 200."""

import gzip
import http.server
import re
from collections import Counter
from typing import Any

from tests.kit.threaded_server import ThreadedServer

_NAME = re.compile(rb"\d+ [0-9a-f]{32}")


class Collector(ThreadedServer):
    """A context manager.

    Attributes:
        received: path and body of each request, in order.
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

        super().__init__(http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler))

    def names(self) -> Counter[str]:
        """How often each name `PID HEX` has come; a request counts once."""
        found: Counter[str] = Counter()
        for _, body in list(self.received):
            found.update({name.decode() for name in _NAME.findall(body)})
        return found
