"""An nginx in front of a daemon: without privileges, and with all its files in the test's folder."""

import os
import re
import shutil
import signal
import subprocess
from types import TracebackType
from typing import NamedTuple, Self

from tests.kit.daemon import Place
from tests.kit.http_client import ask
from tests.kit.waiting import PATIENCE, until

# Debian installs it in a folder that is only on root's PATH.
PROGRAM = shutil.which("nginx", path=f"{os.environ.get('PATH', os.defpath)}:/usr/sbin:/usr/local/sbin")

# Buffering off in both directions: if a client sends or reads slowly, the daemon receives or sends slowly.
# One attempt per request: nginx would repeat a GET that a daemon has dropped, and the test would not notice.
_CONFIGURATION = """
{user}
daemon off;
worker_processes 1;
pid {folder}/nginx.pid;
error_log {log} notice;
events {{
    worker_connections 512;
}}
http {{
    log_format request '$status $upstream_status $request_method $uri $upstream_addr';
    access_log {folder}/access request;
    client_body_temp_path {folder}/body;
    proxy_temp_path {folder}/proxy;
    fastcgi_temp_path {folder}/fastcgi;
    uwsgi_temp_path {folder}/uwsgi;
    scgi_temp_path {folder}/scgi;
    client_max_body_size 0;
    upstream app {{
        server {upstream};
        keepalive {keepalive};
    }}
    server {{
        listen unix:{socket};
        keepalive_requests 1000000;
        location / {{
            proxy_pass http://app;
            proxy_http_version 1.1;
            proxy_set_header Connection "";
            proxy_set_header Host $http_host;
            proxy_set_header X-Forwarded-For $proxy_add_x_forwarded_for;
            proxy_set_header X-Forwarded-Proto https;
            proxy_buffering off;
            proxy_request_buffering off;
            proxy_next_upstream off;
        }}
    }}
}}
"""


class Passed(NamedTuple):
    """A request as nginx has logged it."""

    status: int
    upstream_status: str
    method: str
    path: str
    upstream: str
    """One address for each attempt."""


class Nginx:
    """A context manager; `url` is for `tests.kit.daemon.Connection`, `socket` for `tests.kit.load`.

    Args:
        place: whose folder it uses; the log is there when a test fails.
        upstream: of the daemon, `http://HOST:PORT` or `unix:PATH`.
        keepalive: so many idle connections to the daemon are kept.
    """

    def __init__(self, place: Place, upstream: str, keepalive: int = 16) -> None:
        number = sum(path.name.startswith("nginx") for path in place.folder.iterdir())
        self.folder = place.folder / f"nginx{number}"
        self.folder.mkdir()
        self.log = place.folder / f"nginx{number}.log"
        self.socket = str(self.folder / "socket")
        self.url = f"unix:{self.socket}"
        configuration = self.folder / "nginx.conf"
        configuration.write_text(
            _CONFIGURATION.format(
                # Started by root, its workers would run as an account that may not enter the folder.
                user="user root;" if os.geteuid() == 0 else "",
                folder=self.folder,
                log=self.log,
                upstream=upstream.removeprefix("http://"),
                keepalive=keepalive,
                socket=self.socket,
            )
        )
        self._argv = [PROGRAM, "-p", str(self.folder), "-c", str(configuration), "-e", str(self.log)]

    def __enter__(self) -> Self:
        self._process = subprocess.Popen(self._argv, stdin=subprocess.DEVNULL, cwd=self.folder)

        def accepts() -> bool:
            assert self._process.poll() is None, self.log.read_text()
            try:
                return ask(self.url).status == 200
            except (FileNotFoundError, ConnectionRefusedError):
                return False  # the socket exists a moment before it listens

        try:
            until(accepts, "nginx passes a request on")
        except BaseException:
            self._stop()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stop()

    def _stop(self) -> None:
        self._process.send_signal(signal.SIGTERM)
        try:
            self._process.wait(PATIENCE)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
            raise AssertionError("SIGTERM did not end nginx") from None

    def passed(self) -> list[Passed]:
        """The requests that it has passed on;
        logged before the client has the end of an answer or soon after.
        """
        found = []
        for line in (self.folder / "access").read_text().splitlines():
            status, *rest = line.split(" ", 4)
            found.append(Passed(int(status), *rest))
        return found

    def complaints(self) -> list[str]:
        """The errors in its log, e.g. that an upstream closed a connection too early."""
        grave = re.compile(r"\[(error|crit|alert|emerg)\]")
        return [line for line in self.log.read_text().splitlines() if grave.search(line)]
