#!/usr/bin/env python3
"""What planned operations cost a fleet's clients: lost requests and latency, compared with quiet times.

One daemon with four workers, one steady load in an open loop (tests/kit/load.py): latency counts from the
moment a request was due. A quiet time precedes each operation, so that a machine that gets
slower affects both. An operation is repeated until its share of the requests was sent. Client,
workers and booting processes share the machine's processors, so the rate is moderate, and p99 is given in its
parts, too: from the sending to the answer, and how late requests were sent.

Exit status: 0 if no request failed and none met a closed connection.
"""

import argparse
import contextlib
import gc
import json
import os
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

import servers

sys.path.insert(0, str(servers.ROOT))
from ostler.control.client import Client, UnreachableError
from ostler.control.routes import EVENTS, REFORK, RELOAD, RELOAD_STATUS, SCALE, STATUS, UPGRADE
from ostler.control.views import ReforkBody, ReloadBody, Scale
from tests.kit.daemon import Daemon, Place
from tests.kit.load import Load
from tests.kit.report import Report, percentile
from tests.kit.waiting import until

WORKERS, MOST = 4, 8
WITHIN = 60.0  # seconds for one operation
RECYCLE_EVERY = 100
PAUSE = 0.2  # seconds between two operations of a kind

APP = """\
import os
import time

end = time.thread_time() + {import_seconds}
while time.thread_time() < end:
    pass


def app(environ, start_response):
    start_response("200 OK", [("Content-Length", "2"), ("X-Worker", str(os.getpid()))])
    return [b"ok"]
"""
CONFIGURATION = """\
wsgi_app = "steady:app"
workers = {workers}
preload_app = {preload}
max_requests = {max_requests}
max_requests_jitter = {max_requests} // 5
keepalive = 75
canary_time = 0.1
probation = 1
"""


@dataclass(frozen=True)
class Times:
    """Latencies of some requests, in seconds."""

    requests: int
    p50: float
    p99: float
    longest: float
    answer: float
    """p99 from the moment a request was sent."""
    late: float
    """p99 of how late they were sent, a wait for the answer before on the same connection included."""

    @classmethod
    def of(cls, part: Report) -> "Times":
        return cls(
            len(part),
            part.latency(0.5),
            part.latency(0.99),
            part.latency(1.0),
            percentile(sorted(record.ended - record.sent for record in part.records), 0.99),
            percentile(sorted(record.sent - record.due for record in part.records), 0.99),
        )


@dataclass(frozen=True)
class Row:
    """One operation, done several times; failed and stale count all requests since its quiet time began."""

    name: str
    times: int
    quiet: Times
    during: Times
    failed: int
    stale: int

    @property
    def ratio(self) -> float:
        return self.during.p99 / self.quiet.p99

    def line(self) -> str:
        quiet, during = self.quiet, self.during
        figures = (
            quiet.p99,
            during.p99,
            quiet.answer,
            during.answer,
            quiet.late,
            during.late,
            during.longest,
        )
        cells = "".join(f"{1000 * figure:>9.2f}" for figure in figures)
        counts = f"{self.name:10}{self.times:>6}{self.quiet.requests:>9}{self.during.requests:>9}"
        return f"{counts}{self.failed:>8}{self.stale:>7}{cells}{self.ratio:>8.2f}"


HEAD = (
    f"{'operation':10}{'times':>6}{'quiet':>9}{'during':>9}{'failed':>8}{'stale':>7}"
    f"{'p99 ms':>9}{'during':>9}{'answer':>9}{'during':>9}{'late':>9}{'during':>9}{'longest':>9}{'ratio':>8}"
)


class Life:
    """One daemon and the operations on it. Each operation returns when it has ended."""

    def __init__(self, place: Place, options: argparse.Namespace) -> None:
        self._place = place
        self._options = options
        place.add("steady.py", APP.format(import_seconds=options.import_seconds))
        self.configure(0)
        self.daemon: Daemon = place.start("-c", "conf.py", *options.flags)
        self.daemon.settled(WORKERS)
        self._client = Client.unix(self.daemon.socket, WITHIN)

    def close(self) -> None:
        self._client.close()

    def configure(self, max_requests: int) -> None:
        self._place.add(
            "conf.py",
            CONFIGURATION.format(workers=WORKERS, preload=self._options.preload, max_requests=max_requests),
        )

    def reload(self) -> None:
        view = self._client.call(RELOAD, ReloadBody(wait=True))
        if view.phase != "done":
            raise servers.BenchError(f"the reload ended as {view.phase}: {view.reason}")

    def scale(self) -> None:
        for workers in (1, MOST, WORKERS):
            self._client.call(SCALE, Scale(workers=workers))
            self._settled(workers)

    def recycling(self) -> None:
        """Workers are recycled all the time while this block runs; it lasts a second."""
        time.sleep(1.0)

    def refork(self) -> None:
        asked = self._client.call(REFORK, ReforkBody())
        after = asked.after

        def outcome() -> str:
            nonlocal after
            for event in self._client.call(EVENTS, after=after):
                after = event.id
                if event.name == "refork_refused":
                    raise servers.BenchError(f"the refork was refused: {event.fields}")
                if event.name == "refork_done":
                    return event.name
            return ""

        until(outcome, "the refork's end", WITHIN)
        self._settled(WORKERS)

    def upgrade(self) -> None:
        """Upgrade, and wait until the new program answers and its reload has ended."""
        before = self._client.call(STATUS)
        newest = before.reload.generation if before.reload else before.generation
        asked = self._client.call(UPGRADE)

        def replaced() -> bool:
            try:
                failed = [
                    e for e in self._client.call(EVENTS, after=asked.after) if e.name == "upgrade_failed"
                ]
                if failed:
                    raise servers.BenchError(f"the upgrade failed: {failed[0].fields}")
                status = self._client.call(STATUS)
            except UnreachableError:
                return False
            return status.program_since != before.program_since and self._rolled(newest)

        until(replaced, "the upgrade and its reload", WITHIN)
        self._settled(WORKERS)

    def _rolled(self, newest: int) -> bool:
        view = self._client.call(RELOAD_STATUS)
        return view.generation > newest and view.phase == "done"

    def _settled(self, workers: int) -> None:
        def look() -> bool:
            status = self._client.call(STATUS)
            return status.ready == status.wanted == workers and not (status.booting or status.draining)

        until(look, f"{workers} workers", WITHIN)

    @contextlib.contextmanager
    def recycling_on(self) -> Iterator[None]:
        """Each worker is replaced after RECYCLE_EVERY requests for the length of a block."""
        self.configure(RECYCLE_EVERY)
        self.reload()
        yield
        self.configure(0)
        self.reload()


def measure(life: Life, load: Load, name: str, options: argparse.Namespace) -> Row:
    """Measure a quiet time, and then the repeated operation."""
    share = options.requests // len(options.operations)
    life.daemon.settled(WORKERS, within=WITHIN)
    time.sleep(PAUSE)  # wait until the effects of the operation before have ended
    quiet = time.monotonic()
    load.wait_for(load.ended + share // 3, within=share / options.rate + WITHIN)
    quiet_end = time.monotonic()
    windows: list[tuple[float, float]] = []
    first = load.ended
    act: Callable[[], None] = getattr(life, name)
    with life.recycling_on() if name == "recycling" else contextlib.nullcontext():
        while load.ended < first + share * 2 // 3 or len(windows) < options.times:
            began = time.monotonic()
            act()
            windows.append((began, time.monotonic()))
            load.wait_for(load.ended + int(PAUSE * options.rate), within=WITHIN)
    end = time.monotonic()
    report = load.report()
    during = Report([r for began, ended in windows for r in report.due_within(began, ended).records])
    whole = report.due_within(quiet, end)
    row = Row(
        name,
        len(windows),
        Times.of(report.due_within(quiet, quiet_end)),
        Times.of(during),
        whole.failed,
        whole.stale,
    )
    print(row.line(), flush=True)
    return row


OPERATIONS = ("reload", "recycling", "scale", "refork", "upgrade")


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--requests", type=int, default=200_000, help="default: %(default)s")
    parser.add_argument("--rate", type=float, default=1500, help="requests per second (default: %(default)s)")
    parser.add_argument("--connections", type=int, default=32, help="default: %(default)s")
    parser.add_argument("--close-every", type=int, default=20, metavar="N", help="default: %(default)s")
    parser.add_argument(
        "--times", type=int, default=20, help="of each operation at least (default: %(default)s)"
    )
    parser.add_argument("--import-seconds", type=float, default=0.1, help="CPU time (default: %(default)s)")
    parser.add_argument("--preload", action="store_true", help="load the app before forking")
    parser.add_argument(
        "--only", dest="operations", action="append", choices=OPERATIONS, help="may be given several times"
    )
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the figures, too")
    parser.add_argument("flags", nargs="*", metavar="FLAG", help="more flags of the daemon, after --")
    options = parser.parse_args()
    options.operations = options.operations or list(OPERATIONS)
    return options


def main() -> int:
    options = parse_arguments()
    # A pass over some hundred thousand records would make the client late for what is due meanwhile.
    gc.disable()
    with Place() as place:
        place.environ["PYTHONPATH"] = os.pathsep.join(
            [str(servers.ROOT), *filter(None, [os.environ.get("PYTHONPATH")])]
        )
        life = Life(place, options)
        print(HEAD)
        with Load(
            life.daemon.address,
            rate=options.rate,
            connections=options.connections,
            close_every=options.close_every,
        ) as load:
            load.wait_for(int(options.rate), within=WITHIN)
            rows = [measure(life, load, name, options) for name in options.operations]
            report = load.finish()
        life.close()
        print(report.summary())
        if lost := life.daemon.status().totals.deaths:
            print(f"{lost} workers died")
    late = percentile(sorted(report.lags), 0.99)
    print(f"the client's own delay, p99 over the whole run: {1000 * late:.2f} ms")
    if options.json:
        options.json.write_text(json.dumps([asdict(row) for row in rows], indent=2) + "\n")
    return 1 if report.lost or report.unasked or lost else 0


if __name__ == "__main__":
    servers.run(main, TimeoutError)
