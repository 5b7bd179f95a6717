"""Driving the servers under test with load; shared by the benchmarks.

Every load generator is a process of its own. In the benchmark's process it would share the interpreter lock,
and its own delay would be counted as the server's.
"""

import argparse
import contextlib
import json
import math
import os
import re
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import peers
import servers
import traffic

UNITS = {"us": 1e-6, "ms": 1e-3, "s": 1.0, "m": 60.0}
READY_WITHIN = 60.0  # seconds for a client's connections
END_WITHIN = 45.0  # seconds for a client, when its time is over

DISTURBING = 0.05  # share of the CPUs

T = TypeVar("T")


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


def wrk(
    server: servers.Server, seconds: float, connections: int, requests: Path, *, threads: int = 1
) -> Sample:
    """Weigh one run of wrk; a server that answers nothing gives a rate of 0 and nan for the rest.

    Args:
        server: it is weighed.
        seconds: length of the run.
        connections: kept open all the time.
        requests: a file of traffic.py.
        threads: of wrk; two at most.

    Raises:
        BenchError: wrk failed.
    """
    before = servers.cpu_seconds(server.pid)
    run = subprocess.run(
        [
            "wrk", "--latency", f"-t{threads}", f"-c{connections}", f"-d{max(1, round(seconds))}s",
            "-s", str(servers.HERE / "replay.lua"), f"http://127.0.0.1:{server.port}/", "--", str(requests),
        ],
        capture_output=True,
        text=True,
        timeout=seconds + 60,
        check=False,
    )  # fmt: skip
    cpu = servers.cpu_seconds(server.pid) - before
    if run.returncode:
        raise servers.BenchError(f"wrk failed: {(run.stderr or run.stdout).strip()}")
    return parse_wrk(run.stdout, cpu)


def parse_wrk(output: str, cpu_seconds: float) -> Sample:
    """Read wrk's report.

    Raises:
        BenchError: it is not one.
    """
    count = re.search(r"(\d+) requests in", output)
    rate = re.search(r"Requests/sec:\s+([\d.]+)", output)
    p99 = re.search(r"\s99%\s+([\d.]+)(us|ms|s|m)\b", output)
    if not (count and rate and p99):
        raise servers.BenchError(f"wrk measured nothing: {output.strip().splitlines()[-1:]}")
    socket_errors = re.search(r"Socket errors: (.*)", output)
    other = re.search(r"Non-2xx or 3xx responses: (\d+)", output)
    requests = int(count[1])
    return Sample(
        cpu_us=cpu_seconds / requests * 1e6 if requests else math.nan,
        rate=float(rate[1]),
        p99=float(p99[1]) * UNITS[p99[2]] if requests else math.nan,
        errors=(sum(map(int, re.findall(r"\d+", socket_errors[1]))) if socket_errors else 0)
        + (int(other[1]) if other else 0),
        requests=requests,
    )


def warm_up(server: servers.Server, requests: Path, connections: int = 8) -> None:
    """A second of load, so that nothing measured is done for the first time."""
    if wrk(server, 1, connections, requests).requests == 0:
        raise servers.BenchError(f"no answer under load: {servers.last_line(server.log)}")


def warm_run(
    server: servers.Server, seconds: float, connections: int, requests: Path, *, threads: int = 1
) -> Sample:
    """`wrk` after a second of the same load.

    Raises:
        BenchError: wrk failed, or the server answered nothing.
    """
    warm_up(server, requests, connections)
    sample = wrk(server, seconds, connections, requests, threads=threads)
    if sample.requests == 0:
        raise servers.BenchError("no answers")
    return sample


@contextlib.contextmanager
def client(mode: str, server: servers.Server, **arguments: float | str) -> Iterator["Client"]:
    """Run clients.py for the length of a block; kill it at the end if it still runs."""
    flags = [word for name, value in arguments.items() for word in (f"--{name}", str(value))]
    process = subprocess.Popen(
        [sys.executable, str(servers.HERE / "clients.py"), mode, "--port", str(server.port), *flags],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        bufsize=0,
    )
    try:
        yield Client(process)
    finally:
        process.kill()
        process.wait()
        for pipe in (process.stdin, process.stdout):
            if pipe:
                pipe.close()


class Client:
    """A running clients.py."""

    def __init__(self, process: "subprocess.Popen[bytes]") -> None:
        self._process = process

    def wait_ready(self) -> str:
        """Its line that says that its connections are as they should be.

        Raises:
            BenchError: it did not come.
        """
        assert self._process.stdout is not None
        line = servers.read_line(self._process.stdout, time.monotonic() + READY_WITHIN)
        if not line:
            raise servers.BenchError("the client failed")
        return line.decode()

    def result(self, seconds: float = 0.0) -> Any:
        """Its result, `seconds` from now at the latest but for the time that ending takes.

        Raises:
            BenchError: it failed or did not end.
        """
        try:
            output, _ = self._process.communicate(timeout=seconds + END_WITHIN)
        except subprocess.TimeoutExpired:
            raise servers.BenchError("the client did not end") from None
        if self._process.returncode or not output.strip():
            raise servers.BenchError("the client failed")
        return json.loads(output.splitlines()[-1])


def interleaved(
    candidates: Sequence[peers.Candidate],
    rounds: int,
    folder: Path,
    measure: Callable[[servers.Server], T],
    show: Callable[[T], str],
) -> dict[str, list[T]]:
    """Start, measure and end each server once per round, so that a machine that becomes slower affects all of
    them.

    A server that fails is left out from then on, with a line that says why; its samples so far stay.
    """
    samples: dict[str, list[T]] = {}
    alive = list(candidates)
    others = measured = 0.0
    for number in range(1, rounds + 1):
        # Every other round in the opposite order, so that no server always comes after the same one.
        for candidate in list(alive) if number % 2 else list(reversed(alive)):
            port = servers.free_port()
            busy, at = others_cpu_seconds(), time.monotonic()
            try:
                command = candidate.command(port, folder)
                with servers.running(command, port, folder, environment=candidate.environment) as server:
                    sample = measure(server)
                    others += others_cpu_seconds() - busy
                    measured += time.monotonic() - at
            except (servers.BenchError, OSError) as error:
                print(f"{candidate.name}: skipped, {error}", file=sys.stderr)
                alive.remove(candidate)
                continue
            samples.setdefault(candidate.name, []).append(sample)
            print(f"round {number}: {candidate.name}: {show(sample)}", file=sys.stderr)
    if measured and (share := others / measured / (os.cpu_count() or 1)) > DISTURBING:
        print(
            f"others used {share:.0%} of this machine's CPU time meanwhile: trust CPU figures and ratios only"
        )
    return samples


def others_cpu_seconds() -> float:
    """CPU time since boot of everything but this process, its servers and its clients (proc(5), stat)."""
    fields = Path("/proc/stat").read_text().splitlines()[0].split()[1:]
    idle = int(fields[3]) + int(fields[4])
    # Only the first eight: user time already contains the time of guests.
    busy = (sum(map(int, fields[:8])) - idle) / os.sysconf("SC_CLK_TCK")
    return busy - servers.cpu_seconds(os.getpid())


def percentile(ordered: Sequence[float], share: float) -> float:
    """Nearest rank in ascending numbers; nan if there are none."""
    return ordered[max(0, math.ceil(share * len(ordered)) - 1)] if ordered else math.nan


def mean(numbers: Iterable[float]) -> float:
    """nan if there are none."""
    found = list(numbers)
    return sum(found) / len(found) if found else math.nan


def add_options(parser: argparse.ArgumentParser, *, rounds: int, seconds: float) -> None:
    """The options of a benchmark that uses wrk, with those that all benchmarks have."""
    peers.add_options(parser, rounds=rounds, seconds=seconds)
    parser.add_argument(
        "--traffic",
        choices=traffic.KINDS,
        default=traffic.KINDS[0],
        help="whether the requests differ (default: %(default)s)",
    )


def parse_arguments(parser: argparse.ArgumentParser, *, rounds: int, seconds: float) -> argparse.Namespace:
    """The options of a benchmark that can't do without wrk; those of `add_options` are added."""
    add_options(parser, rounds=rounds, seconds=seconds)
    options = parser.parse_args()
    if servers.missing_command("wrk"):
        parser.exit(1, f"{parser.prog}: wrk is not installed (apt-get install wrk)\n")
    return options


def write_json(options: argparse.Namespace, results: Mapping[str, Any]) -> None:
    """Write options and results to the file of --json, if there is one."""
    if options.json:
        settings = {key: value for key, value in vars(options).items() if key != "json"}
        options.json.write_text(
            json.dumps(plain({"options": settings, **results}), indent=2, default=str) + "\n"
        )


def plain(value: Any) -> Any:
    """The same data with None for NaN and infinity, which JSON does not have (RFC 8259, section 6)."""
    if isinstance(value, dict):
        return {key: plain(inner) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [plain(inner) for inner in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
