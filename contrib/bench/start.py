#!/usr/bin/env python3
"""How long a server takes from exec to its first answer, and what short commands take.

The app is a route of Flask. Its bare import, in an interpreter of its own, is measured in the same round and
taken off: what is left is the server's. CPU time is that of the server's whole process tree until the answer.
Rounds are interleaved, with the opposite order in every other one. Medians are printed, with the range.
"""

import argparse
import datetime as dt
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import drive
import peers
import servers

APP = "apps_flask:app"
BARE = "bare import"
PEERS = ["gunicorn sync", "gunicorn gthread", "uwsgi http-socket", "granian", "bjoern", "fastpysgi"]
PAUSE = 0.001  # seconds between two attempts to connect


@dataclass(frozen=True)
class Start:
    """One start. Milliseconds: until the answer or the end, CPU time until then, and without the import."""

    wall: float
    cpu: float
    over: float


def first_answer(candidate: peers.Candidate, folder: Path) -> tuple[float, float]:
    """Milliseconds until a new server answers, and its CPU time.

    Raises:
        BenchError: it ended, or did not answer in time.
    """
    port = servers.free_port()
    began = time.monotonic()
    running = servers.running(
        candidate.command(port, folder), port, folder, environment=candidate.environment, pause=PAUSE
    )
    with running as server:
        return (time.monotonic() - began) * 1000, servers.cpu_seconds(server.pid) * 1000


def command(argv: Sequence[str]) -> tuple[float, float]:
    """Milliseconds that a command takes, and its CPU time. Raises BenchError if it fails."""
    before, began = resource.getrusage(resource.RUSAGE_CHILDREN), time.monotonic()
    environ = servers.inherited_environment()
    run = subprocess.run(argv, cwd=servers.HERE, env=environ, capture_output=True, text=True, check=False)
    wall, after = (time.monotonic() - began) * 1000, resource.getrusage(resource.RUSAGE_CHILDREN)
    if run.returncode:
        raise servers.BenchError(f"{' '.join(argv)}: {run.stderr.strip().splitlines()[-1:]}")
    return wall, (after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime) * 1000


def rounds(
    options: argparse.Namespace, python: str, found: Sequence[peers.Candidate], folder: Path
) -> Iterator[tuple[str, Start]]:
    """What is measured, in the order in which it is."""
    left = list(found)
    for number in range(options.rounds + 1):
        bare = command([python, "-c", f"import {APP.partition(':')[0]}"])
        version = command([python, "-m", "ostler", "--version"])
        measured = {BARE: Start(*bare, 0.0), "ostler --version": Start(*version, 0.0)}
        for candidate in left[:: 1 if number % 2 else -1]:
            try:
                wall, cpu = first_answer(candidate, folder)
            except servers.BenchError as error:
                print(f"{candidate.name}: left out: {error}", file=sys.stderr)
                left.remove(candidate)
                continue
            measured[candidate.name] = Start(wall, cpu, wall - bare[0])
        if number:  # in the first round bytecode is written, and files come into the page cache
            yield from measured.items()


def table(results: dict[str, list[Start]]) -> str:
    lines = [f"{'':28}{'over import ms':>16}{'range':>14}{'in all ms':>11}{'CPU ms':>9}"]
    for name, starts in results.items():
        wall, cpu = (statistics.median(getattr(one, what) for one in starts) for what in ("wall", "cpu"))
        over = [one.over for one in starts]
        shown = f"{statistics.median(over):.0f}" if any(over) else ""
        between = f"{min(over):.0f} - {max(over):.0f}" if any(over) else ""
        lines.append(f"{name:28}{shown:>16}{between:>14}{wall:>11.0f}{cpu:>9.0f}")
    return "\n".join(lines)


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument(
        "--preload", action="store_true", help="Ostler and gunicorn load the app before they fork"
    )
    peers.add_options(parser, rounds=9, seconds=0)
    options = parser.parse_args()
    field = peers.Field(options)
    if "flask" not in field.python.modules:
        raise servers.BenchError("flask is not installed")
    shape = peers.Shape(app=APP)
    found = field.pick(["ostler sync", "ostler gthread", *PEERS], shape)
    if options.preload:
        found = [
            peers.Candidate(f"{one.name} --preload", [*one.arguments, "--preload"], one.environment)
            for one in found
            if one.name.startswith(("ostler", "gunicorn"))
        ]
    results: dict[str, list[Start]] = {}
    with tempfile.TemporaryDirectory(prefix="ostler-bench-") as name:
        for title, start in rounds(options, field.python.path, found, Path(name)):
            results.setdefault(title, []).append(start)
    print(f"{dt.datetime.now(dt.UTC):%Y-%m-%d}, {field.python.describe()}")
    print(f"{APP}, one worker, median of {options.rounds} starts")
    print(table(results))
    drive.write_json(options, {title: [asdict(one) for one in starts] for title, starts in results.items()})
    return 0


if __name__ == "__main__":
    servers.run(main)
