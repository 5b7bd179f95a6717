#!/usr/bin/env python3
"""What requests leave in memory, in whatever way they end: resident memory of a worker and of the supervisor.

For each worker class and each kind of request a new daemon with one worker is started. The app has turned
the garbage collector off, so that reference cycles stay in memory. Paths, fields, cookies and client
addresses are different in each request, so that caches keyed by them grow. After a tenth of the
requests and after all of them, when all connections have ended, resident memory is read. The growth in
between is printed in MB.

Kinds that must wait for a time-out are asked for less often, in proportion: see `Kind.share` in
growth/kinds.py. So are those under TLS, which cost a handshake each (`--tls-share`).

- worker kinds: requests that are served, refused, reset by the client, or too late;
- `control`: refused requests to the control API, by its Unix socket and by TCP; the supervisor's memory;
- `churn`: workers replaced one after another; the supervisor's memory, descriptors and threads.

Exit status: 1 if a worker grew by more than 5 MB or the supervisor by more than 2 MB, or a run failed. The
supervisor remembers the newest 1,000 events, so that requests that are overdue, which have stacks, fill up to
some megabytes.
"""

import argparse
import contextlib
import itertools
import json
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict
from pathlib import Path

import servers

sys.path.insert(0, str(servers.ROOT))
from growth.app import APP, CLASSES
from growth.client import play
from growth.control import CONTROL, TCP_ALONE, run_control, title
from growth.figures import Figures, sample, sockets
from growth.kinds import KINDS, MANY, NOT_FOR_ASGI, SILENT_IN_ASGI, TLS_KINDS, WEBSOCKETS, Kind

from ostler.errors import OstlerError
from tests.kit.certificates import Authority
from tests.kit.daemon import Place
from tests.kit.waiting import until

CHURNED = 300  # workers


def run_kind(worker_class: str, name: str, kind: Kind, options: argparse.Namespace) -> Figures:
    secure, silent = worker_class.endswith("tls"), worker_class.startswith("asgi")
    count = int(options.requests * kind.share * (options.tls_share if secure else 1))
    connections = max(10, count // kind.per_connection)
    with Place() as place:
        place.add("grown.py", APP)
        words = ["--worker-connections", str(2 * MANY), "--limit-connections-per-address", "100"]
        words += ["--backlog", str(2 * MANY), "--access-logfile", str(place.folder / "access.log")]
        tls = None
        if secure:
            authority = Authority(place.folder)
            server = authority.issue("localhost")
            words += ["--certfile", server.cert, "--keyfile", server.key]
            if name not in TLS_KINDS:
                tls = authority.client_context()
        daemon = place.start(*words, *kind.words, *CLASSES[worker_class])
        worker = daemon.pids()[0]
        open_before = sockets(worker)

        def settled() -> None:
            until(lambda: sockets(worker) <= open_before, "all connections are closed")

        # The first sample already contains the memory for connections that are open at the same time.
        tenth = max(connections // 10, min(2 * kind.at_once, connections // 2))
        play(daemon.address, kind, range(tenth), tls)
        settled()
        first, began = sample(daemon, worker), time.monotonic()
        found = play(daemon.address, kind, range(tenth, connections), tls)
        settled()
        seconds = time.monotonic() - began
        problem = ""
        if daemon.pids() != [worker]:
            problem = "the worker was replaced"
        elif (
            kind.status
            and not (silent and name in SILENT_IN_ASGI)
            and found.get(kind.status, 0) < 0.9 * (connections - tenth)
        ):
            problem = f"not answered with {kind.status.decode()}"
        if problem:
            place.keep = True
        return Figures(
            worker_class,
            name,
            (connections - tenth) * kind.per_connection,
            seconds,
            first,
            sample(daemon, worker),
            {status.decode("latin-1"): number for status, number in found.items()},
            problem,
        )


def run_churn(options: argparse.Namespace) -> Figures:
    with Place() as place:
        place.add("grown.py", APP)
        daemon = place.start("-w", "4", "--max-requests", "1", *CLASSES["sync"])
        daemon.settled(4)

        def run(number: int) -> None:
            """Each answer is the last one of a worker."""
            end = len(daemon.events("worker_ready")) + number
            while (left := end - len(daemon.events("worker_ready"))) > 0:
                for _ in range(left):
                    with contextlib.suppress(OSError):
                        daemon.get()
            daemon.settled(4)

        run(options.churned // 3)
        first, began = sample(daemon, None), time.monotonic()
        run(options.churned)
        seconds = time.monotonic() - began
        return Figures("sync", "churn", options.churned, seconds, first, sample(daemon, None), {})


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--requests", type=int, default=100_000, metavar="N", help="default: %(default)s")
    parser.add_argument(
        "--tls-share",
        type=float,
        default=0.2,
        metavar="PART",
        help="of the requests, under TLS; default: %(default)s",
    )
    parser.add_argument(
        "--control-requests", type=int, default=20_000, metavar="N", help="default: %(default)s"
    )
    parser.add_argument(
        "--churned", type=int, default=CHURNED, metavar="N", help="workers; default: %(default)s"
    )
    parser.add_argument(
        "--classes",
        default=",".join([*CLASSES, "control", "churn"]),
        metavar="NAMES",
        help="default: %(default)s",
    )
    parser.add_argument(
        "--kinds", default="", metavar="WORDS", help="kinds that have one of these in their name"
    )
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the figures, too")
    options = parser.parse_args()
    found: list[Figures] = []
    good = True
    for worker_class, name, run in runs(options):
        try:
            figures = run()
        except (AssertionError, OSError, OstlerError, subprocess.CalledProcessError) as error:
            print(f"{worker_class:10} {name:18}  FAILED: {str(error).splitlines()[0]}", flush=True)
            good = False
            continue
        print(figures.row(), flush=True)
        found.append(figures)
        good = good and figures.good
    if options.json:
        options.json.write_text(json.dumps([asdict(figures) for figures in found], indent=2) + "\n")
    return 0 if found and good else 1


def runs(options: argparse.Namespace) -> Iterator[tuple[str, str, Callable[[], Figures]]]:
    """Worker class, kind, and what measures it."""
    words = options.kinds.split(",")
    for worker_class in options.classes.split(","):
        if worker_class == "control":
            for name, tcp in itertools.product(CONTROL, (False, True)):
                shown = title(name, tcp)
                if (tcp or name not in TCP_ALONE) and any(word in shown for word in words):
                    yield "control", shown, lambda n=name, t=tcp: run_control(n, t, options.control_requests)
            continue
        if worker_class == "churn":
            yield "sync", "churn", lambda: run_churn(options)
            continue
        kinds = KINDS | TLS_KINDS if worker_class.endswith("tls") else KINDS
        if worker_class.startswith("asgi"):
            kinds = kinds | WEBSOCKETS
        for name, kind in kinds.items():
            if (worker_class.startswith("asgi") and name in NOT_FOR_ASGI) or not any(
                w in name for w in words
            ):
                continue
            yield worker_class, name, lambda c=worker_class, n=name, k=kind: run_kind(c, n, k, options)


if __name__ == "__main__":
    servers.run(main)
