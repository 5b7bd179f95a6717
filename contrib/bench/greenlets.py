#!/usr/bin/env python3
"""What greenlets cost: one worker with 500 keep-alive connections, and an app that waits 10 ms, or does not.

The output is the server's CPU time for a request, and the requests per CPU second as a multiple of those of
gunicorn's gevent worker. With an app that waits, the clients keep the worker busy all the time, so requests
per second show the same if no other process uses the processor.
"""

import argparse
import statistics
import tempfile
from pathlib import Path

import drive
import peers
import servers
import traffic

SERVERS = ("ostler gevent", "ostler eventlet", "gunicorn gevent")
BASE = "gunicorn gevent"
PARTS = {"an app that waits 10 ms": "/wait", "a trivial app": "/items"}


def measure(options: argparse.Namespace, folder: Path, path: str) -> dict[str, list[drive.Sample]]:
    requests = traffic.prepare(options.traffic, folder / "requests", path)

    def run(server: servers.Server) -> drive.Sample:
        drive.wrk(server, 1, options.connections, requests, threads=2)
        return drive.wrk(server, options.seconds, options.connections, requests, threads=2)

    shape = peers.Shape(app="apps:site", connections=max(1000, 2 * options.connections))
    found = peers.Field(options).pick(SERVERS, shape)
    return drive.interleaved(
        found, options.rounds, folder, run, lambda sample: f"{sample.cpu_us:.1f} us, {sample.rate:.0f}/s"
    )


def show(title: str, connections: int, results: dict[str, list[drive.Sample]]) -> None:
    print(f"{title}, {connections} connections")
    print(f"{'':24}{'CPU us/req':>12}{'x ' + BASE:>20}{'req/s':>9}{'p99 ms':>9}{'errors':>8}")
    cost = {name: statistics.median(sample.cpu_us for sample in samples) for name, samples in results.items()}
    for name, samples in results.items():
        ratio = f"{cost[BASE] / cost[name]:.2f}" if BASE in cost else "-"
        print(
            f"{name:24}{cost[name]:>12.1f}{ratio:>20}"
            f"{statistics.median(sample.rate for sample in samples):>9.0f}"
            f"{1000 * statistics.median(sample.p99 for sample in samples):>9.1f}"
            f"{sum(sample.errors for sample in samples):>8}"
        )


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--connections", type=int, default=500, help="default: %(default)s")
    return drive.parse_arguments(parser, rounds=3, seconds=4)


def main() -> int:
    options = parse_arguments()
    found = {}
    with tempfile.TemporaryDirectory(prefix="ostler-bench-") as folder:
        for title, path in PARTS.items():
            found[title] = measure(options, Path(folder), path)
            show(title, options.connections, found[title])
    drive.write_json(
        options,
        {
            "samples": {
                title: {name: [vars(sample) for sample in samples] for name, samples in results.items()}
                for title, results in found.items()
            }
        },
    )
    return 0 if any(found.values()) else 1


if __name__ == "__main__":
    servers.run(main)
