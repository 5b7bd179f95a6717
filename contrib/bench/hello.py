#!/usr/bin/env python3
"""Throughput and server CPU time per request, side by side in one run.

CPU time is what a server costs. Requests per second also depend on the load generator and on how the two
share the cores. It is read from /proc for the server's whole process tree before and after wrk's run and
divided by the requests that wrk counted. Because the absolute numbers depend on the machine and its kernel,
they are given as a ratio, too, to a bare C epoll loop that answers a constant (floor.c), measured in the same
run; with `--app flask`, also as what is left when the CPU time of the bare call of the app is taken off.
Rounds are interleaved, so that a machine that gets slower does so for all, and medians are printed.
"""

import argparse
import os
import statistics
import subprocess
import sys
import tempfile
from dataclasses import asdict
from pathlib import Path

import drive
import peers
import servers

FLOOR, BARE = "C floor", "bare call"
PEERS = [
    "gunicorn sync",
    "gunicorn gthread",
    "gunicorn gevent",
    "uwsgi http-socket",
    "uwsgi http11-socket",
    "granian",
    "waitress",
    "bjoern",
    "fastwsgi",
    "meinheld",
    "cheroot",
]
BROWSER_HEADERS = {
    "User-Agent": "Mozilla/5.0 (X11; Linux x86_64) AppleWebKit/537.36 (KHTML, like Gecko) Chrome/131.0.0.0 "
    "Safari/537.36",
    "Accept": "text/html,application/xhtml+xml,application/xml;q=0.9,image/avif,image/webp,*/*;q=0.8",
    "Accept-Language": "en-GB,en;q=0.9,de;q=0.8",
    "Accept-Encoding": "gzip, deflate, br, zstd",
    "Cache-Control": "max-age=0",
    "Upgrade-Insecure-Requests": "1",
    "Sec-Fetch-Dest": "document",
    "Sec-Fetch-Mode": "navigate",
    "Sec-Fetch-Site": "same-origin",
    "Sec-Fetch-User": "?1",
    "Sec-CH-UA-Platform": '"Linux"',
    "Referer": "http://127.0.0.1/shop/list?page=2",
    "Cookie": "session=eyJ1c2VyX2lkIjoxMjM0NX0.Zx1abc.0123456789abcdefghijklmnopqrstuvwxyz; theme=dark; "
    "consent=1",
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
    shape = peers.Shape(app="flask_json" if options.app == "flask" else "hello")
    threads = peers.Shape(app=shape.app, threads=4)
    found = compile_floor(folder) + field.pick(["ostler sync"], shape)
    if options.access_log:
        found += field.pick(["ostler sync"], peers.Shape(app=shape.app, access_log=True))
    found += field.pick(["ostler gthread"], threads)
    for name in PEERS:
        found += field.pick([name], threads if name == "gunicorn gthread" else shape)
    return found


def bare_call(options: argparse.Namespace, python: str) -> float:
    """CPU microseconds of one call of the Flask app in a loop, without a server."""
    run = subprocess.run(
        [python, str(servers.HERE / "barecall.py"), "flask_json", str(options.seconds)],
        input="\n".join(f"{name}: {value}" for name, value in headers(options).items()),
        capture_output=True,
        text=True,
        check=False,
    )
    if run.returncode:
        raise servers.BenchError(f"{BARE}: {run.stderr.strip().splitlines()[-1:]}")
    return float(run.stdout)


def headers(options: argparse.Namespace) -> dict[str, str]:
    return BROWSER_HEADERS if options.headers == "browser" else {}


def table(results: dict[str, list[drive.Sample]], bare: float | None) -> str:
    """The medians, as text."""
    cpu = {name: statistics.median(sample.cpu_us for sample in samples) for name, samples in results.items()}
    floor = cpu.get(FLOOR)
    lines = [
        (
            f"{'':28}{'CPU us/req':>11}{'x floor':>9}{'- bare us' if bare else '':>10}"
            f"{'req/s':>10}{'p99 ms':>9}{'errors':>8}"
        )
    ]
    for name, samples in results.items():
        ratio = f"{cpu[name] / floor:.2f}" if floor else "-"
        over = f"{cpu[name] - bare:.1f}" if bare and name != FLOOR else ""
        lines.append(
            f"{name:28}{cpu[name]:>11.2f}{ratio:>9}{over:>10}"
            f"{statistics.median(sample.rate for sample in samples):>10.0f}"
            f"{statistics.median(sample.p99 for sample in samples) * 1000:>9.2f}"
            f"{sum(sample.errors for sample in samples):>8}"
        )
    if bare:
        lines.append(f"{BARE:28}{bare:>11.2f}{f'{bare / floor:.2f}' if floor else '-':>9}")
    lines += [
        f"{name}: the access log adds {mine - cpu[silent]:.2f} us"
        for name, mine in cpu.items()
        if (silent := name.replace(" +log", "")) != name and silent in cpu
    ]
    return "\n".join(lines)


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--app", choices=["hello", "flask"], default="hello", help="default: %(default)s")
    parser.add_argument("--headers", choices=["plain", "browser"], default="plain", help="of each request")
    parser.add_argument("--access-log", action="store_true", help="add Ostler with an access log in a file")
    parser.add_argument("--connections", type=int, default=32, help="default: %(default)s")
    parser.add_argument("--wrk-threads", type=int, choices=[1, 2], default=1, help="default: %(default)s")
    parser.add_argument("--pin", action="store_true", help="servers on CPU 0, wrk on the others")
    return drive.parse_arguments(parser, rounds=3, seconds=2)


def main() -> int:
    options = parse_arguments()
    if options.pin:
        os.sched_setaffinity(0, os.sched_getaffinity(0) - {0} or {0})
    bare: list[float] = []

    def measure(server: servers.Server) -> drive.Sample:
        if options.pin:
            for pid in servers.tree(server.pid):
                os.sched_setaffinity(pid, {0})
        drive.warm_up(server, options.connections)
        sample = drive.wrk(
            server,
            options.seconds,
            options.connections,
            threads=options.wrk_threads,
            headers=headers(options),
        )
        if sample.requests == 0:
            raise servers.BenchError("no answers")
        return sample

    with tempfile.TemporaryDirectory(prefix="ostler-bench-") as name:
        folder = Path(name)
        field = peers.Field(options)
        if options.app == "flask":
            if "flask" not in field.python.modules:
                raise servers.BenchError("flask is not installed")
            bare = [bare_call(options, field.python.path) for _ in range(options.rounds)]
        results = drive.interleaved(
            candidates(options, field, folder),
            options.rounds,
            folder,
            measure,
            lambda sample: f"{sample.cpu_us:.2f} us",
        )
        if bare:  # measured again at the end, because the machine may have changed meanwhile
            bare += [bare_call(options, field.python.path) for _ in range(options.rounds)]
    print(
        f"{options.app}, {options.connections} connections, {options.headers} headers, "
        f"median of {options.rounds} x {options.seconds:g} s"
    )
    print(table(results, statistics.median(bare) if bare else None))
    rows = {server: [asdict(sample) for sample in samples] for server, samples in results.items()}
    drive.write_json(options, {"samples": rows, "bare_us": bare})
    return 0


if __name__ == "__main__":
    servers.run(main)
