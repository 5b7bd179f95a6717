#!/usr/bin/env python3
"""Throughput and server CPU time per request, side by side in one run.

CPU time is what a server costs. Requests per second also depend on the load generator and on how the two
share the cores. It is read from /proc for the server's whole process tree before and after wrk's run and
divided by the requests that wrk counted. Because the absolute numbers depend on the machine and its kernel,
they are given as a ratio, too, to a bare C epoll loop that answers a constant (floor.c), measured in the same
run; with a framework's app, also as what is left when the CPU time of the bare call of the app is taken off.
Rounds are interleaved, so that a machine that gets slower does so for all, and medians are printed.
"""

import argparse
import datetime as dt
import itertools
import os
import statistics
import subprocess
import sys
import tempfile
from dataclasses import asdict, dataclass
from pathlib import Path

import drive
import peers
import servers
import traffic

FLOOR, BARE = "C floor", "bare call"
PEERS = [
    "gunicorn sync",
    "gunicorn sync h1c",
    "gunicorn gthread",
    "gunicorn gthread h1c",
    "gunicorn gevent",
    "gunicorn gevent h1c",
    "uwsgi http-socket",
    "uwsgi http11-socket",
    "granian",
    "waitress",
    "bjoern",
    "fastpysgi",
    "fastwsgi",
    "meinheld",
    "cheroot",
]


@dataclass(frozen=True)
class Workload:
    """An app, and what it is sent."""

    app: str
    """MODULE:APP."""
    post: bool = False
    """A POST of 1 KB of JSON instead of a GET."""
    framework: str | None = None
    """What must be installed. The bare call of the app is then measured, too."""


WORKLOADS = {
    "hello": Workload("apps:hello"),
    "flask": Workload("apps_flask:app", framework="flask"),
    "flask-post": Workload("apps_flask:app", post=True, framework="flask"),
    "django": Workload("apps_django:app", framework="django"),
}


def compile_floor(folder: Path) -> list[peers.Candidate]:
    """Compile floor.c. Without a compiler return nothing and print a line that says so."""
    if servers.missing_command("cc"):
        print(f"{FLOOR}: skipped, there is no C compiler (cc)", file=sys.stderr)
        return []
    binary = folder / "floor"
    subprocess.run(["cc", "-O2", "-Wall", "-o", binary, servers.HERE / "floor.c"], check=True)
    return [peers.Candidate(FLOOR, [str(binary), "PORT"])]


def candidates(options: argparse.Namespace, field: peers.Field, folder: Path) -> list[peers.Candidate]:
    """The servers that can be measured here."""
    app = WORKLOADS[options.app].app
    found = compile_floor(folder)
    logs = (False, True) if options.access_log else (False,)
    cores = field.cores()
    for log, native in itertools.product(logs, cores):
        found += field.pick(["ostler sync"], peers.Shape(app=app, access_log=log, native=native))
    for native in cores:
        found += field.pick(["ostler gthread"], peers.Shape(app=app, threads=4, native=native))
    for name in PEERS:
        found += field.pick([name], peers.Shape(app=app, threads=4 if "gthread" in name else 1))
    return found


def bare_call(options: argparse.Namespace, python: str, requests: Path) -> float:
    """CPU microseconds of one call of the app in a loop, without a server."""
    app = WORKLOADS[options.app].app
    run = subprocess.run(
        [python, str(servers.HERE / "barecall.py"), app, str(requests), str(options.seconds)],
        capture_output=True,
        text=True,
        check=False,
    )
    if run.returncode:
        raise servers.BenchError(f"{BARE}: {run.stderr.strip().splitlines()[-1:]}")
    return float(run.stdout)


def table(results: dict[str, list[drive.Sample]], bare: float | None) -> str:
    """The medians, as text; ratios are those of samples of the same round, with their range."""
    cpu = {name: statistics.median(sample.cpu_us for sample in samples) for name, samples in results.items()}
    floors = results.get(FLOOR, [])
    floor = cpu.get(FLOOR)
    lines = [
        (
            f"{'':32}{'CPU us/req':>11}{'x floor':>9}{'range':>16}{'- bare us' if bare else '':>10}"
            f"{'req/s':>10}{'p99 ms':>9}{'errors':>8}"
        )
    ]
    for name, samples in results.items():
        # A server that was left out after some rounds has fewer samples.
        ratios = [mine.cpu_us / its.cpu_us for mine, its in zip(samples, floors, strict=False)]
        ratio, between = "-", ""
        if ratios:
            ratio, between = f"{statistics.median(ratios):.2f}", f"{min(ratios):.2f}-{max(ratios):.2f}"
        over = f"{cpu[name] - bare:.1f}" if bare and name != FLOOR else ""
        lines.append(
            f"{name:32}{cpu[name]:>11.2f}{ratio:>9}{between:>16}{over:>10}"
            f"{statistics.median(sample.rate for sample in samples):>10.0f}"
            f"{statistics.median(sample.p99 for sample in samples) * 1000:>9.2f}"
            f"{sum(sample.errors for sample in samples):>8}"
        )
    if bare:
        lines.append(f"{BARE:32}{bare:>11.2f}{f'{bare / floor:.2f}' if floor else '-':>9}")
    lines += [
        f"{name}: the access log adds {mine - cpu[silent]:.2f} us"
        for name, mine in cpu.items()
        if (silent := name.replace(" +log", "")) != name and silent in cpu
    ]
    return "\n".join(lines)


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--app", choices=WORKLOADS, default="hello", help="default: %(default)s")
    parser.add_argument(
        "--headers",
        choices=["plain", "browser"],
        default="plain",
        help="of identical requests (default: %(default)s); varied ones have a browser's and a proxy's",
    )
    parser.add_argument("--access-log", action="store_true", help="add Ostler with an access log in a file")
    parser.add_argument("--connections", type=int, default=32, help="default: %(default)s")
    parser.add_argument("--wrk-threads", type=int, choices=[1, 2], default=1, help="default: %(default)s")
    parser.add_argument("--pin", action="store_true", help="servers on CPU 0, wrk on the others")
    options = drive.parse_arguments(parser, rounds=3, seconds=2)
    if options.headers == "browser" and options.traffic != "identical":
        parser.error("--headers browser needs --traffic identical")
    return options


def main() -> int:
    options = parse_arguments()
    workload = WORKLOADS[options.app]
    if options.pin:
        os.sched_setaffinity(0, os.sched_getaffinity(0) - {0} or {0})
    bare: list[float] = []

    with tempfile.TemporaryDirectory(prefix="ostler-bench-") as name:
        folder = Path(name)
        requests = traffic.prepare(
            options.traffic,
            folder / "requests",
            post=workload.post,
            fields=traffic.BROWSER_FIELDS if options.headers == "browser" else None,
        )

        def measure(server: servers.Server) -> drive.Sample:
            if options.pin:
                for pid in servers.tree(server.pid):
                    os.sched_setaffinity(pid, {0})
            return drive.warm_run(
                server, options.seconds, options.connections, requests, threads=options.wrk_threads
            )

        field = peers.Field(options)
        if workload.framework:
            if workload.framework not in field.python.modules:
                raise servers.BenchError(f"{workload.framework} is not installed")
            bare = [bare_call(options, field.python.path, requests) for _ in range(options.rounds)]
        results = drive.interleaved(
            candidates(options, field, folder),
            options.rounds,
            folder,
            measure,
            lambda sample: f"{sample.cpu_us:.2f} us",
        )
        if bare:  # measured again at the end, because the machine may have changed meanwhile
            bare += [bare_call(options, field.python.path, requests) for _ in range(options.rounds)]
    print(f"{dt.datetime.now(dt.UTC):%Y-%m-%d}, {field.python.describe()}")
    print(
        f"{options.app}, {options.traffic} traffic, {options.connections} connections"
        f"{', browser headers' if options.headers == 'browser' else ''}, "
        f"median of {options.rounds} x {options.seconds:g} s"
    )
    print(table(results, statistics.median(bare) if bare else None))
    rows = {server: [asdict(sample) for sample in samples] for server, samples in results.items()}
    drive.write_json(options, {"samples": rows, "bare_us": bare})
    return 0


if __name__ == "__main__":
    servers.run(main)
