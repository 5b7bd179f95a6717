#!/usr/bin/env python3
"""How much slower fast clients are while slow clients are served as well.

Two workers; ten fast keep-alive clients in a closed loop (wrk), alone and beside slow clients of one of three
modes: `drip` sends the body of a POST at one byte each 100 ms, `read` takes a 1 MB answer at 10 KB/s, `both`
is both at once. Each measurement beside slow clients is compared with the mean of those without, right before
and right after it. A slow client whose connection is closed connects again. The slow clients share one
process and cost some CPU, so even a server that they do not affect may have a little less than its full
throughput.
"""

import argparse
import statistics
import tempfile
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import drive
import peers
import servers
import traffic

FAST = 10
MODES = {"drip": (1, 0), "read": (0, 1), "both": (1, 1)}
OURS = [("ostler sync", 1), ("ostler gthread", 4)]
# waitress, bjoern and cheroot have one process with more CPU for itself: only the ratios can be compared.
PEERS = [
    ("gunicorn sync", 1),
    ("gunicorn gthread", 4),
    ("uwsgi http-socket", 1),
    ("granian", 1),
    ("waitress", 4),
    ("bjoern", 1),
    ("cheroot", 4),
]
ONE_PROCESS = {"waitress", "bjoern", "cheroot"}


@dataclass(frozen=True)
class Sample:
    """One server in one mode."""

    before: drive.Sample
    """Alone."""
    beside: drive.Sample
    after: drive.Sample
    """Alone again."""
    connected: int
    """Slow clients that had a connection at the end."""
    dripped_per_second: float
    read_per_second: float
    """Bytes."""
    losses: int
    """How often a slow client lost its connection."""

    @property
    def alone(self) -> list[drive.Sample]:
        """The measurement without slow clients, without requests that failed because the server had not
        recovered yet.
        """
        return [sample for sample in (self.before, self.after) if sample.requests]

    @property
    def throughput(self) -> float:
        """The share of their throughput that the fast clients kept."""
        return self.beside.rate / drive.mean(sample.rate for sample in self.alone)

    @property
    def p99_ratio(self) -> float:
        return self.beside.p99 / drive.mean(sample.p99 for sample in self.alone)

    @property
    def cpu_ratio(self) -> float:
        """Server CPU time per fast request, including the cost of the slow ones, as a ratio."""
        return self.beside.cpu_us / drive.mean(sample.cpu_us for sample in self.alone)

    def __str__(self) -> str:
        return f"{self.throughput:.0%}, p99 x {self.p99_ratio:.2f}"


def measure(
    server: servers.Server, requests: Path, modes: Sequence[str], clients: int, seconds: float
) -> dict[str, Sample]:
    """Measure one server in all modes."""
    drive.warm_up(server, requests, FAST)
    before = drive.wrk(server, seconds, FAST, requests)
    found = {}
    for mode in modes:
        drip, read = (clients * part for part in MODES[mode])
        with drive.client("slow", server, drip=drip, read=read) as client:
            client.wait_ready()
            beside = drive.wrk(server, seconds, FAST, requests)
            result = client.result()
        after = drive.wrk(server, seconds, FAST, requests)
        found[mode] = Sample(before, beside, after, **result)
        before = after if after.requests else before
    return found


def table(results: dict[str, list[dict[str, Sample]]], modes: Sequence[str]) -> str:
    lines = [
        (
            f"{'':28}{'mode':>5}{'kept %':>8}{'p99 ratio':>11}{'CPU ratio':>11}{'req/s alone':>13}"
            f"{'p99 ms alone':>14}{'connected':>11}{'lost':>6}"
        )
    ]
    for name, rounds in results.items():
        for mode in modes:
            samples = [found[mode] for found in rounds]
            middle = sorted(samples, key=lambda sample: sample.throughput)[len(samples) // 2]
            p99_ratio = statistics.median(sample.p99_ratio for sample in samples)
            cpu_ratio = statistics.median(sample.cpu_ratio for sample in samples)
            lines.append(
                f"{name:28}{mode:>5}{100 * middle.throughput:>8.1f}{p99_ratio:>11.2f}{cpu_ratio:>11.2f}"
                f"{drive.mean(sample.rate for sample in middle.alone):>13.0f}"
                f"{1000 * drive.mean(sample.p99 for sample in middle.alone):>14.2f}"
                f"{middle.connected:>11}{middle.losses:>6}"
            )
    return "\n".join(lines)


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument(
        "--mode", choices=MODES, action="append", help="may be given several times (default: all)"
    )
    parser.add_argument(
        "--clients", type=int, default=200, help="slow ones of each kind (default: %(default)s)"
    )
    parser.add_argument("--workers", type=int, default=2, help="default: %(default)s")
    return drive.parse_arguments(parser, rounds=1, seconds=2)


def main() -> int:
    options = parse_arguments()
    field = peers.Field(options)
    found = []
    for name, threads in OURS + PEERS:
        workers = 1 if name in ONE_PROCESS else options.workers
        found += field.pick([name], peers.Shape(app="apps:site", workers=workers, threads=threads))
    modes = options.mode or list(MODES)
    with tempfile.TemporaryDirectory(prefix="ostler-bench-") as name:
        folder = Path(name)
        requests = traffic.prepare(options.traffic, folder / "requests")
        results = drive.interleaved(
            found,
            options.rounds,
            folder,
            lambda server: measure(server, requests, modes, options.clients, options.seconds),
            lambda sample: "; ".join(f"{mode} {found}" for mode, found in sample.items()),
        )
    print(f"{options.clients} slow clients of each kind, {FAST} fast ones")
    print(table(results, modes))
    rows = {
        name: [{mode: asdict(sample) for mode, sample in found.items()} for found in rounds]
        for name, rounds in results.items()
    }
    drive.write_json(options, {"samples": rows})
    return 0 if results else 1


if __name__ == "__main__":
    servers.run(main)
