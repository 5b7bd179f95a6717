#!/usr/bin/env python3
"""Throughput and server CPU time per request, side by side in one run.

CPU time is what a server really costs: requests per second also measure the load generator and how the two
share the cores. It is read from /proc for the server's whole process tree before and after wrk's run and
divided by the requests that wrk counted. Because the absolute numbers depend on the machine and its kernel,
they are given as a ratio, too, to a bare C epoll loop that answers a constant (floor.c), measured in the same
run. Rounds are interleaved, so that a machine that gets slower does so for all, and medians are printed.
"""

import argparse
import json
import os
import re
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

import servers

UNITS = {"us": 1e-6, "ms": 1e-3, "s": 1.0, "m": 60.0}
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


@dataclass(frozen=True)
class Sample:
    """One run of wrk against one server."""

    cpu_us: float
    """Server CPU microseconds per request."""
    rate: float
    p99: float
    """Seconds."""
    errors: int
    """Socket errors and answers other than 2xx and 3xx."""
    requests: int


def parse_wrk(output: str, cpu_seconds: float) -> Sample:
    """Read wrk's report.

    Raises:
        BenchError: it has no request in it.
    """
    count = re.search(r"(\d+) requests in", output)
    rate = re.search(r"Requests/sec:\s+([\d.]+)", output)
    p99 = re.search(r"\s99%\s+([\d.]+)(us|ms|s|m)\b", output)
    if not (count and rate and p99) or count[1] == "0":
        raise servers.BenchError(f"wrk measured nothing: {output.strip().splitlines()[-1:]}")
    socket_errors = re.search(r"Socket errors: (.*)", output)
    other = re.search(r"Non-2xx or 3xx responses: (\d+)", output)
    errors = sum(map(int, re.findall(r"\d+", socket_errors[1]))) if socket_errors else 0
    return Sample(
        cpu_us=cpu_seconds / int(count[1]) * 1e6,
        rate=float(rate[1]),
        p99=float(p99[1]) * UNITS[p99[2]],
        errors=errors + (int(other[1]) if other else 0),
        requests=int(count[1]),
    )


def wrk(options: argparse.Namespace, server: servers.Server, seconds: float) -> str:
    command = ["wrk", "--latency", f"-t{options.wrk_threads}", f"-c{options.connections}", f"-d{seconds:g}s"]
    if options.headers == "browser":
        for name, value in BROWSER_HEADERS.items():
            command += ["-H", f"{name}: {value}"]
    run = subprocess.run(
        [*command, f"http://127.0.0.1:{server.port}/"],
        capture_output=True,
        text=True,
        timeout=seconds + 60,
        check=False,
    )
    if run.returncode:
        raise servers.BenchError(f"wrk failed: {(run.stderr or run.stdout).strip()}")
    return run.stdout


def measure(options: argparse.Namespace, command: list[str], port: int, folder: Path) -> Sample:
    """Start a server, warm it up, and weigh one run."""
    with servers.running(command, port, folder) as server:
        if options.pin:
            for pid in servers.tree(server.pid):
                os.sched_setaffinity(pid, {0})
        wrk(options, server, 1)
        before = servers.cpu_seconds(server.pid)
        output = wrk(options, server, options.seconds)
        return parse_wrk(output, servers.cpu_seconds(server.pid) - before)


def compile_floor(folder: Path) -> list[str] | None:
    """Compile floor.c; None, and a line that says so, without a compiler."""
    if servers.missing_command("cc"):
        print("floor: skipped, there is no C compiler (cc)", file=sys.stderr)
        return None
    binary = folder / "floor"
    subprocess.run(["cc", "-O2", "-Wall", "-o", binary, servers.HERE / "floor.c"], check=True)
    return [str(binary)]


def candidates(options: argparse.Namespace, folder: Path) -> Iterator[tuple[str, list[str]]]:
    """The servers that can be measured here, each with its command line but for the port."""
    app = f"apps:{'flask_json' if options.app == 'flask' else 'hello'}"
    threads = ["-k", "gthread", "--threads", "4"]
    floor = compile_floor(folder)
    if floor:
        yield "C floor", floor
    yield "ostler sync", servers.ostler("-w", "1", "--no-control-socket", app, "-b")
    yield "ostler gthread 1x4", servers.ostler("-w", "1", *threads, "--no-control-socket", app, "-b")
    if servers.missing("gunicorn"):
        print("gunicorn: skipped, it is not installed", file=sys.stderr)
    else:
        yield "gunicorn sync", servers.gunicorn("-w", "1", app, "-b")
        yield "gunicorn gthread 1x4", servers.gunicorn("-w", "1", *threads, app, "-b")


def table(results: dict[str, list[Sample]]) -> str:
    """The medians, as text."""
    floor = (
        statistics.median(sample.cpu_us for sample in results.get("C floor", ()))
        if "C floor" in results
        else None
    )
    lines = [f"{'':22}{'CPU us/req':>11}{'x floor':>9}{'req/s':>10}{'p99 ms':>9}{'errors':>8}"]
    for name, samples in results.items():
        cpu = statistics.median(sample.cpu_us for sample in samples)
        ratio = f"{cpu / floor:.2f}" if floor else "-"
        lines.append(
            f"{name:22}{cpu:>11.2f}{ratio:>9}"
            f"{statistics.median(sample.rate for sample in samples):>10.0f}"
            f"{statistics.median(sample.p99 for sample in samples) * 1000:>9.2f}"
            f"{sum(sample.errors for sample in samples):>8}"
        )
    return "\n".join(lines)


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--app", choices=["hello", "flask"], default="hello", help="default: %(default)s")
    parser.add_argument("--headers", choices=["plain", "browser"], default="plain", help="of each request")
    parser.add_argument("--seconds", type=float, default=5, help="length of each run (default: %(default)s)")
    parser.add_argument("--rounds", type=int, default=3, help="default: %(default)s")
    parser.add_argument("--connections", type=int, default=32, help="default: %(default)s")
    parser.add_argument("--wrk-threads", type=int, choices=[1, 2], default=1, help="default: %(default)s")
    parser.add_argument("--only", metavar="WORD", help="only the floor and servers with WORD in their names")
    parser.add_argument("--pin", action="store_true", help="servers on CPU 0, wrk on the others")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write every sample, too")
    options = parser.parse_args()
    if servers.missing_command("wrk"):
        parser.exit(1, "hello.py: wrk is not installed (apt-get install wrk)\n")
    if options.app == "flask" and servers.missing("flask"):
        parser.exit(1, "hello.py: flask is not installed\n")
    return options


def main() -> int:
    options = parse_arguments()
    servers.end_on_sigterm()
    results: dict[str, list[Sample]] = {}
    if options.pin:
        os.sched_setaffinity(0, os.sched_getaffinity(0) - {0} or {0})
    with tempfile.TemporaryDirectory(prefix="ostler-bench-") as name:
        folder = Path(name)
        chosen = {
            server: command
            for server, command in candidates(options, folder)
            if server == "C floor" or not options.only or options.only in server
        }
        for number in range(1, options.rounds + 1):
            for server, command in list(chosen.items()):
                port = servers.free_port()
                where = str(port) if server == "C floor" else f"127.0.0.1:{port}"
                try:
                    sample = measure(options, [*command, where], port, folder)
                except servers.BenchError as error:
                    print(f"{server}: skipped, {error}", file=sys.stderr)
                    del chosen[server]
                    continue
                results.setdefault(server, []).append(sample)
                print(f"round {number}: {server}: {sample.cpu_us:.2f} us", file=sys.stderr)
    print(
        f"{options.app}, {options.connections} connections, {options.headers} headers, "
        f"median of {options.rounds} x {options.seconds:g} s, Python {sys.version.split()[0]}"
    )
    print(table(results))
    if options.json:
        rows = {server: [asdict(sample) for sample in samples] for server, samples in results.items()}
        settings = {key: value for key, value in vars(options).items() if key != "json"}
        options.json.write_text(json.dumps({"options": settings, "samples": rows}, indent=2) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
