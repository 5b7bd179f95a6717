#!/usr/bin/env python3
"""What threads cost and what they gain, with one worker.

- `trivial`: trivial requests from eight keep-alive connections (wrk) with 1, 4 and 8 threads: CPU time per
  request and p99, as multiples of the values with one thread. Threads can only cost here.
- `sleep`: 16 threads, 64 connections, an app that sleeps 1 ms: requests per second, as a share of the 16,000
  that 16 threads could answer at best.
- `burn`: 4 threads; two connections whose requests burn 5 ms of CPU in Python, without a pause, and beside
  them 200 quick requests a second on four other connections (open loop): p50 and p99 of the quick ones. The
  interpreter switches between threads that want its lock every 5 ms, so a quick request may have to wait
  that long.
"""

import argparse
import statistics
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import drive
import peers
import servers
import traffic
from drive import percentile

PARTS = ("trivial", "sleep", "burn")
SERVERS = ("ostler gthread", "gunicorn gthread", "granian", "waitress", "cheroot")
TRIVIAL_THREADS = (1, 4, 8)
TRIVIAL_CONNECTIONS = 8
SLEEP_THREADS, SLEEP_CONNECTIONS = 16, 64
IDEAL = SLEEP_THREADS / 0.001  # requests per second, of an app that sleeps 1 ms
BURN_THREADS, BURNERS, QUICK_CONNECTIONS, QUICK_RATE = 4, 2, 4, 200


@dataclass(frozen=True)
class Quick:
    """The quick requests beside the burning ones; seconds."""

    answered: int
    failed: int
    p50: float
    p99: float
    late: float
    """p99 of the client's own delay, which is contained in the others."""
    burned: float
    """Burning requests answered per second."""

    def __str__(self) -> str:
        return f"p50 {self.p50 * 1000:.2f} ms, p99 {self.p99 * 1000:.2f} ms"


class Run:
    """One run of the benchmark."""

    def __init__(self, options: argparse.Namespace, folder: Path) -> None:
        self._options = options
        self._folder = folder
        self._field = peers.Field(options)

    def _interleaved(
        self,
        app: str,
        threads: tuple[int, ...],
        measure: Callable[[servers.Server], Any],
        show: Callable[[Any], str] = str,
    ) -> dict[str, list[Any]]:
        found = [
            candidate
            for name in SERVERS
            for count in threads
            for candidate in self._field.pick([name], peers.Shape(app=app, threads=count))
        ]
        return drive.interleaved(found, self._options.rounds, self._folder, measure, show)

    def _requests(self, path: str = "/items") -> Path:
        return traffic.prepare(self._options.traffic, self._folder / "requests", path)

    def trivial(self) -> dict[str, list[drive.Sample]]:
        """CPU time and p99 with more and more threads."""
        requests = self._requests()

        def measure(server: servers.Server) -> drive.Sample:
            drive.warm_up(server, requests, TRIVIAL_CONNECTIONS)
            return drive.wrk(server, self._options.seconds, TRIVIAL_CONNECTIONS, requests)

        results = self._interleaved(
            "apps:hello",
            TRIVIAL_THREADS,
            measure,
            lambda sample: f"{sample.cpu_us:.1f} us, p99 {1000 * sample.p99:.2f} ms",
        )
        print(f"trivial requests on {TRIVIAL_CONNECTIONS} connections, by threads")
        print(f"{'':32}{'CPU us/req':>11}{'x one':>8}{'p99 ms':>9}{'x one':>8}{'req/s':>9}")
        for name, samples in results.items():
            base = name.replace(" 1x4", "").replace(" 1x8", "")
            line = f"{name if name != base else name + ' 1x1':32}"
            for width, scale, value in ((11, 1, _cpu), (9, 1000, _p99)):
                mine = statistics.median(map(value, samples))
                one = statistics.median(map(value, results[base])) if base in results else float("nan")
                line += f"{scale * mine:>{width}.2f}{mine / one:>8.2f}"
            print(f"{line}{statistics.median(sample.rate for sample in samples):>9.0f}")
        return results

    def sleep(self) -> dict[str, list[drive.Sample]]:
        """How much runs at the same time."""
        requests = self._requests("/sleep")

        def measure(server: servers.Server) -> drive.Sample:
            drive.wrk(server, 1, SLEEP_CONNECTIONS, requests)
            return drive.wrk(server, self._options.seconds, SLEEP_CONNECTIONS, requests)

        results = self._interleaved(
            "apps:site", (SLEEP_THREADS,), measure, lambda sample: f"{sample.rate / IDEAL:.0%} of the ideal"
        )
        print(f"an app that sleeps 1 ms, {SLEEP_THREADS} threads, {SLEEP_CONNECTIONS} connections")
        print(f"{'':32}{'req/s':>9}{'% of ideal':>12}{'CPU us/req':>12}{'p99 ms':>9}")
        for name, samples in results.items():
            rate = statistics.median(sample.rate for sample in samples)
            print(
                f"{name:32}{rate:>9.0f}{100 * rate / IDEAL:>12.1f}"
                f"{statistics.median(map(_cpu, samples)):>12.2f}"
                f"{1000 * statistics.median(map(_p99, samples)):>9.2f}"
            )
        return results

    def burn(self) -> dict[str, list[Quick]]:
        """Latency of quick requests beside requests that need the interpreter lock all the time."""
        seconds = 2 * self._options.seconds
        requests = self._requests()

        def measure(server: servers.Server) -> Quick:
            drive.warm_up(server, requests)
            with (
                drive.client(
                    "closed", server, connections=BURNERS, path="/burn", seconds=seconds + 1
                ) as burners,
                drive.client(
                    "open", server, connections=QUICK_CONNECTIONS, rate=QUICK_RATE, seconds=seconds
                ) as quick,
            ):
                quickly = quick.result(seconds)
                burned = burners.result(seconds)
            latencies = sorted(latency for latency, _, _ in quickly["records"])
            return Quick(
                answered=len(latencies),
                failed=quickly["failed"],
                p50=percentile(latencies, 0.5),
                p99=percentile(latencies, 0.99),
                late=percentile(sorted(quickly["lags"]), 0.99),
                burned=len(burned["records"]) / burned["seconds"],
            )

        results = self._interleaved("apps:site", (BURN_THREADS,), measure)
        print(f"{QUICK_RATE} quick requests/s beside {BURNERS} that burn 5 ms, {BURN_THREADS} threads")
        print(f"{'':32}{'p50 ms':>9}{'p99 ms':>9}{'failed':>8}{'client late ms':>16}{'burned/s':>10}")
        for name, samples in results.items():
            middle = sorted(samples, key=lambda sample: sample.p99)[len(samples) // 2]
            print(
                f"{name:32}{1000 * middle.p50:>9.2f}{1000 * middle.p99:>9.2f}{middle.failed:>8}"
                f"{1000 * middle.late:>16.2f}{middle.burned:>10.0f}"
            )
        return results


def _cpu(sample: drive.Sample) -> float:
    return sample.cpu_us


def _p99(sample: drive.Sample) -> float:
    return sample.p99


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument(
        "--part", choices=PARTS, action="append", help="may be given several times (default: all)"
    )
    return drive.parse_arguments(parser, rounds=1, seconds=2)


def main() -> int:
    options = parse_arguments()
    results = {}
    with tempfile.TemporaryDirectory(prefix="ostler-bench-") as folder:
        run = Run(options, Path(folder))
        for part in options.part or PARTS:
            measured = getattr(run, part)()
            results[part] = {name: [vars(sample) for sample in samples] for name, samples in measured.items()}
    drive.write_json(options, {"samples": results})
    return 0 if any(results.values()) else 1


if __name__ == "__main__":
    servers.run(main)
