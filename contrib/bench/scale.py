#!/usr/bin/env python3
"""The time until eight more workers are ready, with a Flask app, with and without preload.

Ostler is asked over its control socket (POST /v1/scale) and reports when all are ready (GET /v1/status
until ready == wanted). Its workers are then looked up in /proc, to verify that report. gunicorn
gets eight SIGTTIN, each sent once the worker of the one before exists, as pending signals of one number merge
into one; its post_worker_init hook, called when a worker is about to serve, writes a line into a pipe. Each
round starts a fresh server with one worker.
"""

import argparse
import contextlib
import http.client
import json
import os
import select
import signal
import socket
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import servers

WITHIN = 60.0  # seconds for all workers to be ready
PAUSE = 0.01  # often enough to measure 10 ms, seldom enough to leave the CPUs to the booting workers

HOOK = """\
import os

def post_worker_init(worker):
    os.write({descriptor}, b"%d\\n" % worker.pid)
"""


class ControlConnection(http.client.HTTPConnection):
    """HTTP over the control socket."""

    def __init__(self, path: Path) -> None:
        super().__init__("localhost", timeout=WITHIN)
        self._path = path

    def connect(self) -> None:
        self.sock = socket.socket(socket.AF_UNIX)
        self.sock.settimeout(self.timeout)
        self.sock.connect(str(self._path))

    def ask(self, method: str, target: str, body: dict[str, Any] | None = None) -> Any:
        """The decoded answer; `BenchError` for a refusal."""
        content = None if body is None else json.dumps(body)
        self.request(method, target, content, {"Content-Type": "application/json"} if content else {})
        answer = self.getresponse()
        data = answer.read()
        if answer.status >= 400:
            raise servers.BenchError(f"{method} {target}: {answer.status} {data.decode(errors='replace')}")
        return json.loads(data)


def connects(path: Path) -> bool:
    """Whether a Unix socket has a listener."""
    with socket.socket(socket.AF_UNIX) as sock:
        return sock.connect_ex(str(path)) == 0


def wait_until(reached: Callable[[], bool], pid: int) -> None:
    """Call `condition` again and again until it is true.

    Raises:
        BenchError: it is not in time, or the server has ended.
    """
    deadline = time.monotonic() + WITHIN
    gone = os.pidfd_open(pid)
    try:
        while not reached():
            if select.select([gone], [], [], PAUSE)[0]:
                raise servers.BenchError("the server ended")
            if time.monotonic() > deadline:
                raise servers.BenchError(f"not ready within {WITHIN:g} s")
    finally:
        os.close(gone)


def scale_ostler(folder: Path, more: int, *, preload: bool) -> float:
    """Seconds until Ostler reports that all are ready."""
    port = servers.free_port()
    control = folder / f"control-{port}.sock"
    flags = ["-w", "1", "-b", f"127.0.0.1:{port}", "--control-socket", str(control)]
    command = servers.ostler(*flags, *["--preload"] * preload, "apps_flask:app")
    with (
        servers.running(command, port, folder) as server,
        contextlib.closing(ControlConnection(control)) as api,
    ):
        # The control plane may open a moment after the first answer.
        wait_until(lambda: connects(control), server.pid)
        wanted = api.ask("GET", "/v1/status")["wanted"] + more

        def ready() -> bool:
            status = api.ask("GET", "/v1/status")
            return bool(status["wanted"] == status["ready"] == wanted)

        began = time.monotonic()
        api.ask("POST", "/v1/scale", {"delta": more})
        wait_until(ready, server.pid)
        took = time.monotonic() - began
        said = {worker["pid"] for worker in api.ask("GET", "/v1/workers") if worker["state"] == "ready"}
        if len(said & servers.children(server.pid)) != wanted:
            raise servers.BenchError(f"said to be ready: {sorted(said)}, but not all of them exist")
        return took


def scale_gunicorn(folder: Path, more: int, *, preload: bool) -> float:
    """Seconds until the hook of the last of the new workers has run."""
    port = servers.free_port()
    reading, writing = os.pipe()
    hook = folder / f"hook-{port}.py"
    hook.write_text(HOOK.format(descriptor=writing))
    flags = ["-w", "1", "-b", f"127.0.0.1:{port}", "-c", str(hook), *["--preload"] * preload]
    command = servers.gunicorn(*flags, "apps_flask:app")
    with (
        os.fdopen(reading, "rb", buffering=0) as pipe,
        os.fdopen(writing, "wb", buffering=0),
        servers.running(command, port, folder, pass_fds=[writing]) as server,
    ):
        servers.read_line(pipe, time.monotonic() + WITHIN)  # the line of the first worker
        began = time.monotonic()
        for number in range(more):
            os.kill(server.pid, signal.SIGTTIN)
            wait_until(lambda count=number + 2: len(servers.children(server.pid)) >= count, server.pid)  # type: ignore[misc]
        for _ in range(more):
            servers.read_line(pipe, began + WITHIN)
        return time.monotonic() - began


SCALE = {"ostler": scale_ostler, "gunicorn": scale_gunicorn}


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--rounds", type=int, default=5, help="default: %(default)s")
    parser.add_argument("--more", type=int, default=8, help="workers to add (default: %(default)s)")
    parser.add_argument("--server", choices=sorted(SCALE), help="only this one")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write every time, too")
    options = parser.parse_args()
    if servers.missing("flask"):
        parser.exit(1, "scale.py: flask is not installed\n")
    return options


def main() -> int:
    options = parse_arguments()
    names = [name for name in SCALE if options.server in (None, name)]
    if "gunicorn" in names and servers.missing("gunicorn"):
        print("gunicorn: skipped, it is not installed", file=sys.stderr)
        names.remove("gunicorn")
    times: dict[str, list[float]] = {}
    with tempfile.TemporaryDirectory(prefix="ostler-bench-") as folder:
        for _ in range(options.rounds):
            for name in names:
                for preload in (True, False):
                    label = f"{name}{' --preload' * preload}"
                    try:
                        took = SCALE[name](Path(folder), options.more, preload=preload)
                    except (servers.BenchError, OSError, http.client.HTTPException) as error:
                        print(f"{label}: skipped, {error}", file=sys.stderr)
                    else:
                        times.setdefault(label, []).append(took)
    print(f"+{options.more} workers, Flask, {len(os.sched_getaffinity(0))} CPUs, {options.rounds} rounds")
    print(f"{'':20}{'median ms':>11}{'least':>9}{'most':>9}")
    for label, taken in times.items():
        median, least, most = (1000 * figure for figure in (statistics.median(taken), min(taken), max(taken)))
        print(f"{label:20}{median:>11.0f}{least:>9.0f}{most:>9.0f}")
    if options.json:
        options.json.write_text(json.dumps({"more": options.more, "seconds": times}, indent=2) + "\n")
    return 0 if times else 1


if __name__ == "__main__":
    servers.run(main)
