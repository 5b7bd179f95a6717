#!/usr/bin/env python3
"""Reloads under steady load: what clients lose, how late they are answered, and whether new code is served.

Two workers serve an app that burns 0.3 s of CPU when it is imported and answers with a version and its pid.
The load client (tests/kit/load.py) sends 400 requests a second over 16 keep-alive connections on an open-loop
schedule. Meanwhile the app's file gets a new version, the server a SIGHUP, again and again. A reload lasts
from the signal until all the server's old children are gone and as many new workers have answered; it is
measured from pidfds and from the pids in the answers, the same way for every server.

Exit status: 0 when nothing was lost (no failed request, no stale connection) and each new version was served.
"""

import argparse
import contextlib
import itertools
import json
import math
import os
import signal
import statistics
import sys
import tempfile
import time
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from pathlib import Path

import servers

sys.path.insert(0, str(servers.ROOT))
from tests.kit.load import Load
from tests.kit.report import Record, Report, percentile

SETTLE_WITHIN = 20.0  # seconds for one reload
ANSWER_WITHIN = 1.0  # and for all new workers to have answered, once the old ones are gone
WARM_UP = 1.0  # at the run's start, not part of "before"

APP = """\
import os
import time

end = time.thread_time() + {import_seconds}
while time.thread_time() < end:
    pass


def app(environ, start_response):
    body = b"{version} %d" % os.getpid()
    start_response("200 OK", [("Content-Type", "text/plain"), ("Content-Length", str(len(body)))])
    return [body]
"""


@dataclass(frozen=True)
class Window:
    """One reload; times on the monotonic clock."""

    version: str
    began: float
    ended: float
    settled: bool
    """The old processes went, and as many new workers answered, in time."""


def write_app(folder: Path, version: str, import_seconds: float) -> None:
    """Put a version in place in one step, so that no worker imports half a file."""
    fresh = folder / "versioned.py.new"
    fresh.write_text(APP.format(version=version, import_seconds=import_seconds))
    fresh.rename(folder / "versioned.py")


def version_and_pid(record: Record) -> tuple[str, int] | None:
    """Version and pid from an answer of the app; None for answers that are not the app's."""
    version, _, pid = record.body.decode("latin-1").partition(" ")
    return (version, int(pid)) if record.status == 200 and pid.isdigit() else None


def first_answers(records: Iterable[Record]) -> dict[int, float]:
    """When each worker in these records first answered."""
    first: dict[int, float] = {}
    for record in records:
        if said := version_and_pid(record):
            first.setdefault(said[1], record.ended)
    return first


def reload(server: servers.Server, load: Load, options: argparse.Namespace, version: str) -> Window:
    """Send SIGHUP and watch the reload to its end."""
    # All children, not only those that have answered: a worker may have had no connection so far.
    pidfds = {}
    for pid in servers.tree(server.pid)[1:]:
        with contextlib.suppress(ProcessLookupError):
            pidfds[pid] = os.pidfd_open(pid)
    seen = load.ended
    began = time.monotonic()
    try:
        os.kill(server.pid, signal.SIGHUP)
        gone = servers.wait_exit(list(pidfds.values()), SETTLE_WITHIN)
        ended = time.monotonic()
    finally:
        for pidfd in pidfds.values():
            os.close(pidfd)
    deadline = ended + ANSWER_WITHIN
    # With few connections one worker may have all of them, so that the others answer nothing. The window
    # then ends with the last first answer, not with the wait for an answer that never comes.
    while True:
        fresh = first_answers(load.records(seen))
        answered = sorted(at for pid, at in fresh.items() if pid not in pidfds)[: options.workers]
        if len(answered) == options.workers or time.monotonic() > deadline:
            break
        load.wait_for(load.ended + options.workers, within=SETTLE_WITHIN)
    settled = gone and len(answered) == options.workers
    return Window(version, began, max([ended, *answered]), settled)


def drive(server: servers.Server, load: Load, options: argparse.Namespace, folder: Path) -> list[Window]:
    """Spread the reloads over the run, the first after a part without any."""
    windows: list[Window] = []
    part = options.requests // (options.reloads + 1)
    for number in range(1, options.reloads + 1):
        load.wait_for(part * number, within=part / options.rate + 3 * SETTLE_WITHIN)
        version = f"v{number + 1}"
        write_app(folder, version, options.import_seconds)
        windows.append(reload(server, load, options, version))
        print(f"reload {number}: {windows[-1].ended - windows[-1].began:.2f} s", file=sys.stderr)
    load.wait_for(options.requests, within=2 * part / options.rate + 3 * SETTLE_WITHIN)
    return windows


def not_served(report: Report, windows: list[Window]) -> list[str]:
    """The versions that were not the only one in the answers after their reload, as they should be."""
    wrong = []
    for window, following in itertools.zip_longest(windows, windows[1:]):
        part = report.due_within(window.ended, following.began if following else math.inf)
        said = filter(None, map(version_and_pid, part.records))
        if {version for version, _ in said} != {window.version}:
            wrong.append(window.version)
    return wrong


@dataclass(frozen=True)
class Latency:
    """Of the answered requests in a part of the run; seconds."""

    requests: int
    p50: float
    p99: float
    longest: float

    @classmethod
    def of(cls, part: Report) -> "Latency":
        return cls(len(part), part.latency(0.5), part.latency(0.99), part.latency(1.0))

    def row(self, name: str) -> str:
        figures = (self.p50, self.p99, self.longest)
        return f"{name:8}{self.requests:>10}" + "".join(f"{figure * 1000:>10.2f}" for figure in figures)


@dataclass(frozen=True)
class Figures:
    """The figures of a run."""

    requests: int
    failed: int
    stale: int
    unasked: int
    outcomes: dict[str, int]
    before: Latency
    during: Latency
    after: Latency
    p99_ratio: float
    client_late_p99: float
    reloads: list[Window]
    not_served: list[str]
    """Versions that were not the only one in the answers after their reload."""

    @classmethod
    def of(cls, report: Report, windows: list[Window]) -> "Figures":
        # The second worker may still import the app when the first one answers.
        start = min(record.due for record in report.records) + WARM_UP
        before = Latency.of(report.due_within(start, windows[0].began))
        within = [
            record for window in windows for record in report.due_within(window.began, window.ended).records
        ]
        during = Latency.of(Report(within))
        return cls(
            requests=len(report),
            failed=report.failed,
            stale=report.stale,
            unasked=report.unasked,
            outcomes={outcome.name: count for outcome, count in report.outcomes.items()},
            before=before,
            during=during,
            after=Latency.of(report.due_within(windows[-1].ended, math.inf)),
            p99_ratio=during.p99 / before.p99,
            client_late_p99=percentile(sorted(report.lags), 0.99),
            reloads=windows,
            not_served=not_served(report, windows),
        )

    @property
    def clean(self) -> bool:
        return not (self.failed or self.stale or self.unasked or self.not_served)

    def table(self, options: argparse.Namespace, report: Report) -> str:
        """For people."""
        took = [window.ended - window.began for window in self.reloads]
        slow = sum(not window.settled for window in self.reloads)
        served = f"no: {', '.join(self.not_served)}" if self.not_served else "yes, each"
        fleet = f"{options.workers} {options.worker_class} workers x {options.threads} threads"
        load = f"{options.rate:g} requests/s on {options.connections} connections"
        return "\n".join(
            [
                f"{options.server}{' --preload' * options.preload}, {fleet}, {load}, {len(took)} reloads",
                report.summary(),
                f"{'':8}{'requests':>10}{'p50 ms':>10}{'p99 ms':>10}{'longest':>10}",
                self.before.row("before"),
                self.during.row("during"),
                self.after.row("after"),
                f"p99 during / before: {self.p99_ratio:.2f}",
                f"the client's own delay, p99: {self.client_late_p99 * 1000:.2f} ms",
                f"a reload took {statistics.median(took):.2f} s (longest {max(took):.2f} s)"
                + (f"; in {slow} not every new worker answered" if slow else ""),
                f"new version served: {served}",
            ]
        )


def command_line(options: argparse.Namespace, port: int) -> list[str]:
    arguments = ["-w", str(options.workers), "-b", f"127.0.0.1:{port}", "-k", options.worker_class]
    arguments += ["--threads", str(options.threads)]
    arguments += ["--preload"] * options.preload
    if options.server == "ostler":
        return servers.ostler("--no-control-socket", *arguments, "versioned:app")
    return servers.gunicorn(*arguments, "versioned:app")


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument(
        "--server", choices=["ostler", "gunicorn"], default="ostler", help="default: %(default)s"
    )
    parser.add_argument("--requests", type=int, default=50_000, help="default: %(default)s")
    parser.add_argument("--reloads", type=int, default=10, help="default: %(default)s")
    parser.add_argument("--rate", type=float, default=400, help="requests per second (default: %(default)s)")
    parser.add_argument("--connections", type=int, default=16, help="default: %(default)s")
    parser.add_argument("--workers", type=int, default=2, help="default: %(default)s")
    parser.add_argument(
        "--worker-class", choices=["sync", "gthread"], default="sync", help="default: %(default)s"
    )
    parser.add_argument("--threads", type=int, default=1, help="default: %(default)s")
    parser.add_argument("--import-seconds", type=float, default=0.3, help="CPU time (default: %(default)s)")
    parser.add_argument("--preload", action="store_true", help="load the app before forking")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the figures, too")
    options = parser.parse_args()
    if options.server == "gunicorn" and servers.missing("gunicorn"):
        parser.exit(1, "reload.py: gunicorn is not installed\n")
    if options.reloads < 1 or options.requests < 100 * (options.reloads + 1):
        parser.error("at least one reload, and 100 requests for each part of the run")
    return options


def main() -> int:
    options = parse_arguments()
    with tempfile.TemporaryDirectory(prefix="ostler-bench-") as name:
        folder = Path(name)
        # No bytecode is kept (see below). It is matched by the file's size and the second it was written in,
        # so Python would not notice a version that was written in the same second as the one before.
        write_app(folder, "v1", options.import_seconds)
        port = servers.free_port()
        with (
            servers.running(
                command_line(options, port), port, folder, environment={"PYTHONDONTWRITEBYTECODE": "1"}
            ) as server,
            Load(
                server.address,
                rate=options.rate,
                connections=options.connections,
                requests=options.requests,
            ) as load,
        ):
            windows = drive(server, load, options, folder)
            report = load.finish()
            if report.failed:
                tail = server.log.read_text(errors="replace").splitlines()[-10:]
                print("the end of the server's log:", *tail, sep="\n", file=sys.stderr)
    figures = Figures.of(report, windows)
    print(figures.table(options, report))
    if options.json:
        settings = {key: value for key, value in vars(options).items() if key != "json"}
        options.json.write_text(json.dumps({"options": settings, **asdict(figures)}, indent=2) + "\n")
    return 0 if figures.clean else 1


if __name__ == "__main__":
    servers.run(main, TimeoutError)
