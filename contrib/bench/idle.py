#!/usr/bin/env python3
"""What thousands of idle keep-alive connections cost one worker: memory, and speed of the active connections.

Each server first serves ten active connections alone. Then a client opens the idle ones (each has one answer
and sends nothing more), and the ten are measured again. They are measured once more without idle connections,
and the result beside idle ones is compared with the mean of both. Memory is the resident set of the process
that holds the connections (VmRSS in /proc/PID/status), before and after; what the kernel keeps for a socket
is not in it, and is the same for all.
"""

import argparse
import resource
import statistics
import sys
import tempfile
import time
from dataclasses import asdict, dataclass
from pathlib import Path

import drive
import peers
import servers
import traffic

ACTIVE = 10
EMPTY_WITHIN = 10.0  # seconds
KEEP_ALIVE = 3600  # seconds
SPARE = 500  # descriptors that a server or client needs besides its connections
OURS = [("ostler sync", 1), ("ostler gthread", 4)]
PEERS = [("gunicorn gthread", 4), ("gunicorn gevent", 1), ("granian", 4), ("waitress", 4), ("bjoern", 1),
         ("fastwsgi", 1), ("meinheld", 1), ("cheroot", 4)]  # fmt: skip


@dataclass(frozen=True)
class Sample:
    """One server, alone and with its idle connections."""

    before: drive.Sample
    """Alone."""
    beside: drive.Sample
    after: drive.Sample
    """Alone again."""
    asked: int
    made: int
    """Connections that had an answer."""
    kept: int
    """Connections that were still open after the measurement."""
    before_kb: int
    after_kb: int

    @property
    def each_kb(self) -> float:
        """Resident kilobytes (of 1024 bytes) per connection."""
        return (self.after_kb - self.before_kb) / self.made if self.made else float("nan")

    @property
    def throughput(self) -> float:
        return self.beside.rate / drive.mean((self.before.rate, self.after.rate))

    @property
    def cpu_ratio(self) -> float:
        """Server CPU time per request."""
        return self.beside.cpu_us / drive.mean((self.before.cpu_us, self.after.cpu_us))

    def __str__(self) -> str:
        return f"{self.each_kb:.2f} KB each, {self.throughput:.0%} of the throughput"


def allow_descriptors(wanted: int) -> int:
    """Raise the limit of this process, which servers and clients inherit; return the new limit."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft < wanted:
        if hard < wanted:
            try:
                resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, wanted))  # root may raise the hard limit
            except (ValueError, OSError):
                resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
        else:
            resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))
    return resource.getrlimit(resource.RLIMIT_NOFILE)[0]


def busiest(pid: int) -> int:
    """The process of a server's tree with the most descriptors: the one that holds the connections."""
    return max(servers.tree(pid), key=descriptors)


def resident(pid: int) -> int:
    """Kilobytes."""
    for line in Path(f"/proc/{pid}/status").read_text().splitlines():
        if line.startswith("VmRSS:"):
            return int(line.split()[1])
    raise servers.BenchError("the worker ended")


def measure(server: servers.Server, requests: Path, connections: int, seconds: float) -> Sample:
    """Measure one server."""
    drive.warm_up(server, requests, ACTIVE)
    before = drive.wrk(server, seconds, ACTIVE, requests)
    # Before the client comes, it is not known which process will hold its connections.
    memory = {pid: resident(pid) for pid in servers.tree(server.pid)}
    with drive.client("idle", server, connections=connections) as client:
        client.wait_ready()
        worker = busiest(server.pid)
        full = resident(worker)
        beside = drive.wrk(server, seconds, ACTIVE, requests)
        result = client.result()
    if worker not in memory:
        raise servers.BenchError("its worker was replaced")
    wait_empty(worker)
    after = drive.wrk(server, seconds, ACTIVE, requests)
    return Sample(before, beside, after, connections, result["made"], result["kept"], memory[worker], full)


def descriptors(pid: int) -> int:
    return sum(1 for _ in Path(f"/proc/{pid}/fd").iterdir())


def wait_empty(pid: int) -> None:
    """Wait until a worker has closed the connections that its idle clients have closed."""
    deadline = time.monotonic() + EMPTY_WITHIN
    while descriptors(pid) > SPARE and time.monotonic() < deadline:
        time.sleep(0.05)


def table(results: dict[str, list[Sample]]) -> str:
    lines = [f"{'':28}{'made':>7}{'kept':>7}{'KB each':>9}{'req/s alone':>13}{'kept %':>8}{'CPU ratio':>11}"]
    for name, samples in results.items():
        middle = sorted(samples, key=lambda sample: sample.throughput)[len(samples) // 2]
        lines.append(
            f"{name:28}{middle.made:>7}{middle.kept:>7}"
            f"{statistics.median(sample.each_kb for sample in samples):>9.2f}"
            f"{drive.mean((middle.before.rate, middle.after.rate)):>13.0f}{100 * middle.throughput:>8.1f}"
            f"{statistics.median(sample.cpu_ratio for sample in samples):>11.2f}"
        )
    return "\n".join(lines)


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--connections", type=int, default=10_000, help="default: %(default)s")
    options = drive.parse_arguments(parser, rounds=1, seconds=2)
    allowed = allow_descriptors(options.connections + SPARE)
    if allowed < options.connections + SPARE:
        options.connections = allowed - SPARE
        print(
            f"only {options.connections} connections: the limit of descriptors is {allowed}", file=sys.stderr
        )
        if options.connections < 100:
            parser.exit(1, "idle.py: too few for a measurement (ulimit -n)\n")
    return options


def main() -> int:
    options = parse_arguments()
    field = peers.Field(options)
    found = []
    for name, threads in OURS + PEERS:
        shape = peers.Shape(threads=threads, keep_alive=KEEP_ALIVE, connections=2 * options.connections)
        found += field.pick([name], shape)
    with tempfile.TemporaryDirectory(prefix="ostler-bench-") as name:
        folder = Path(name)
        requests = traffic.prepare(options.traffic, folder / "requests")
        results = drive.interleaved(
            found,
            options.rounds,
            folder,
            lambda server: measure(server, requests, options.connections, options.seconds),
            str,
        )
    print(f"{options.connections} idle connections on one worker, {ACTIVE} active ones")
    print(table(results))
    rows = {
        name: [{**asdict(sample), "each_kb": sample.each_kb} for sample in samples]
        for name, samples in results.items()
    }
    drive.write_json(options, {"samples": rows})
    return 0 if results else 1


if __name__ == "__main__":
    servers.run(main)
