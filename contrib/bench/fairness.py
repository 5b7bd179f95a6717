#!/usr/bin/env python3
"""Whether quick requests wait behind slow ones while other workers are idle.

Four workers, 64 keep-alive connections; 95 of 100 requests sleep 1 ms, the others 200 ms, drawn by the app.
Latency is that of the short ones. Open loop: requests are due at fixed times, at a rate that the fleet could
carry easily, and latency counts from then. Closed loop: 64 requests are always under way, so that the fleet
is always full.

The row "one queue" is what the best possible scheduler would do with as many threads: all wait in one queue,
and each free worker takes the first. It is computed, without a network.
"""

import argparse
import functools
import heapq
import random
import statistics
import tempfile
from collections import Counter
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import apps
import drive
import peers
import servers
from drive import percentile

WORKERS, CONNECTIONS = 4, 64
SERVERS = [
    ("ostler sync", 1),
    ("ostler gthread", 4),
    ("gunicorn sync", 1),
    ("gunicorn gthread", 4),
    ("granian", 4),
]
MEAN = apps.LONG_SHARE * apps.LONG + (1 - apps.LONG_SHARE) * apps.SLEEP  # seconds of a request


@dataclass(frozen=True)
class Sample:
    """The short requests of one run (seconds), and which worker served it."""

    answered: int
    failed: int
    rate: float
    p50: float
    p99: float
    longest: float
    spread: float
    """Requests of the busiest worker, as a multiple of the average worker's."""
    connections: list[int]
    """How many connections each worker had at the end, in ascending order."""
    moved: int
    """How many connections were served by more than one worker."""
    late: float
    """p99 of the client's own delay."""

    @classmethod
    def of(cls, result: dict[str, Any], seconds: float) -> "Sample":
        short: list[float] = []
        requests: Counter[str] = Counter()
        pids: dict[int, list[str]] = {}
        for latency, connection, body in result["records"]:
            kind, _, pid = body.partition(" ")
            requests[pid] += 1
            pids.setdefault(connection, []).append(pid)
            if kind == "short":
                short.append(latency)
        if not short:
            raise servers.BenchError("no short request was answered")
        short.sort()
        last = Counter(served[-1] for served in pids.values())
        return cls(
            answered=requests.total(),
            failed=result["failed"],
            rate=requests.total() / seconds,
            p50=percentile(short, 0.5),
            p99=percentile(short, 0.99),
            longest=short[-1],
            spread=max(requests.values()) * WORKERS / requests.total(),
            connections=[0] * (WORKERS - len(last)) + sorted(last.values()),
            moved=sum(len(set(served)) > 1 for served in pids.values()),
            late=percentile(sorted(result.get("lags", ())), 0.99),
        )

    def __str__(self) -> str:
        return f"p50 {1000 * self.p50:.2f} ms, p99 {1000 * self.p99:.1f} ms"


def one_queue(arrivals: Iterable[float], threads: int) -> list[float]:
    """Latencies of the short requests, ascending, if all these arrivals wait in one queue for all threads."""
    dice = random.Random(1)
    free = [0.0] * threads
    short = []
    for arrival in arrivals:
        start = max(arrival, heapq.heappop(free))
        long = dice.random() < apps.LONG_SHARE
        end = start + (apps.LONG if long else apps.SLEEP)
        heapq.heappush(free, end)
        if not long:
            short.append(end - arrival)
    return sorted(short)


def head(title: str) -> str:
    return (
        f"{title}\n{'':26}{'p50 ms':>9}{'p99 ms':>9}{'longest':>9}{'req/s':>8}{'failed':>8}{'busiest':>9}"
        f"{'moved':>7}  connections per worker"
    )


def ideal_row(threads: int, latencies: list[float], rate: float) -> str:
    return (
        f"{f'one queue, {threads} threads':26}{1000 * percentile(latencies, 0.5):>9.2f}"
        f"{1000 * percentile(latencies, 0.99):>9.1f}{1000 * latencies[-1]:>9.1f}{rate:>8.0f}"
    )


def row(name: str, samples: list[Sample]) -> str:
    middle = sorted(samples, key=lambda sample: sample.p99)[len(samples) // 2]
    return (
        f"{name:26}{1000 * statistics.median(sample.p50 for sample in samples):>9.2f}"
        f"{1000 * middle.p99:>9.1f}{1000 * middle.longest:>9.1f}{middle.rate:>8.0f}"
        f"{sum(sample.failed for sample in samples):>8}{middle.spread:>9.2f}{middle.moved:>7}"
        f"  {' '.join(map(str, middle.connections))}"
    )


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument(
        "--rate",
        type=float,
        action="append",
        help="requests per second of the open loop, 0 for the closed one; may be given several times "
        "(default: 100, 200, 0)",
    )
    peers.add_options(parser, rounds=1, seconds=8)
    return parser.parse_args()


def main() -> int:
    options = parse_arguments()
    field = peers.Field(options)
    found = []
    for name, threads in SERVERS:
        found += field.pick([name], peers.Shape(app="apps:site", workers=WORKERS, threads=threads))
    results = {}

    def measure(rate: float, server: servers.Server) -> Sample:
        if rate:
            load: dict[str, float | str] = {"rate": rate}
            mode = "open"
        else:
            load, mode = {}, "closed"
        with drive.client(
            mode, server, connections=CONNECTIONS, path="/mix", seconds=options.seconds, **load
        ) as client:
            return Sample.of(client.result(options.seconds), options.seconds)

    with tempfile.TemporaryDirectory(prefix="ostler-bench-") as folder:
        for rate in options.rate or (100.0, 200.0, 0.0):
            samples = drive.interleaved(
                found, options.rounds, Path(folder), functools.partial(measure, rate), str
            )
            results[f"{rate:g}"] = {
                name: [asdict(sample) for sample in taken] for name, taken in samples.items()
            }
            fleet = f"{WORKERS} workers, {CONNECTIONS} connections"
            if rate:
                print(head(f"open loop, {rate:g} requests/s, {fleet}"))
                for threads in (WORKERS, 4 * WORKERS):
                    arrivals = (number / rate for number in range(int(rate * 1000)))
                    print(ideal_row(threads, one_queue(arrivals, threads), rate))
            else:
                best = ", ".join(f"{threads / MEAN:.0f} with {threads} threads" for threads in (4, 16))
                print(head(f"closed loop, {fleet} (best possible req/s: {best})"))
            for name, taken in samples.items():
                print(row(name, taken))
    drive.write_json(options, {"samples": results})
    return 0 if any(results.values()) else 1


if __name__ == "__main__":
    servers.run(main)
