#!/usr/bin/env python3
"""Serve an app with a server that has no command line, or whose command line lacks what is needed.

All other settings are the server's defaults. SIGTERM keeps its default action and ends it at once, because
most of these run in C, where a handler in Python would never be called.
"""

import argparse
from collections.abc import Callable
from typing import Any

import apps


def bjoern(app: Any, port: int, *_: int) -> None:
    """One thread; keep-alive is always on and has no time-out."""
    import bjoern as server

    server.run(app, "127.0.0.1", port, listen_backlog=2048)


def fastwsgi(app: Any, port: int, *_: int) -> None:
    """One thread; keep-alive is on by default and has no time-out."""
    import fastwsgi as server

    server.server.backlog = 2048
    server.run(app, "127.0.0.1", port)


def fastpysgi(app: Any, port: int, *_: int) -> None:
    """One thread; keep-alive is on by default and has no time-out."""
    import fastpysgi as server

    server.run(app, "127.0.0.1", port)


def meinheld(app: Any, port: int, threads: int, connections: int, keep_alive: int) -> None:  # noqa: ARG001
    """One thread; keep-alive is off unless a time-out is set, and the access log on."""
    from meinheld import server

    server.set_access_logger(None)
    server.set_backlog(2048)
    server.set_picoev_max_fd(connections + 200)
    server.listen(("127.0.0.1", port))
    server.set_keepalive(keep_alive)
    server.run(app)


def cheroot(app: Any, port: int, threads: int, connections: int, keep_alive: int) -> None:
    """A thread pool; by default not more than ten connections are kept alive."""
    from cheroot import wsgi

    server = wsgi.Server(
        ("127.0.0.1", port),
        app,
        numthreads=threads,
        max=threads,
        timeout=keep_alive,
        request_queue_size=2048,
        server_name="bench",
    )
    server.keep_alive_conn_limit = connections
    server.start()


SERVE: dict[str, Callable[..., None]] = {
    "bjoern": bjoern,
    "fastwsgi": fastwsgi,
    "fastpysgi": fastpysgi,
    "meinheld": meinheld,
    "cheroot": cheroot,
}


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("server", choices=SERVE)
    parser.add_argument("app", metavar="MODULE:APP")
    for name in ("port", "threads", "connections", "keep_alive"):
        parser.add_argument(name, type=int)
    options = parser.parse_args()
    app = apps.load(options.app)
    SERVE[options.server](app, options.port, options.threads, options.connections, options.keep_alive)


if __name__ == "__main__":
    main()
