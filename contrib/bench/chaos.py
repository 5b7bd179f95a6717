#!/usr/bin/env python3
"""A soak test: random operations and failures that overlap, under load, with an account of each request.

One daemon serves `unruly.py` to a steady load on keep-alive connections (tests/kit/load.py). Meanwhile
operations are drawn at random with a seed: what an operator does (reload, scale, recycle, rotate logs), what
breaks (kill -9, SIGSTOP, bad releases, a deleted control socket), what apps do (hang, crash, leak) and
what clients do (garbage, slow requests, silence). They overlap: few wait for the end of the one before.

A request may be lost only on a connection that a process held which was killed, stopped, crashed or blocked
at that time. It is known exactly which process held which connection: a process that is
killed from outside is stopped first and looked at; one that crashes by itself writes it to a file first.
Everything else that is lost is unexplained, and a defect.

Exit status: 0 if nothing is unexplained, what the server counted fits what the client has seen, no zombie, no
process and no descriptor is left over, and the supervisor's memory has not run away.
"""

import argparse
import json
import os
import random
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

import servers

sys.path.insert(0, str(servers.ROOT))
from soak.operations import Operations
from soak.releases import WORKERS, Releases
from soak.result import Result
from soak.supervisor import kinds, left_over, resident

from ostler.control.client import UnreachableError
from ostler.control.routes import RELOAD
from ostler.control.views import ReloadBody
from tests.kit.daemon import Place
from tests.kit.load import Load
from tests.kit.report import Report

RATE, CONNECTIONS, CLOSE_EVERY = 300.0, 24, 11
QUIET = 5.0  # seconds without any operation, for comparison
TIMEOUT = 2.0  # the daemon's; an overloaded machine must not make quick requests overdue
# Beyond what caches and the history of events take.
MEMORY_GROWTH = 24 * 1024 * 1024

FLAGS = (
    *("--timeout", f"{TIMEOUT:g}", "--timeout-grace", "0.5", "--graceful-timeout", "5"),
    *("--max-requests", "500", "--max-requests-jitter", "300", "--max-memory", "50M"),
    *("--canary-time", "0.1", "--probation", "3", "--keep-alive", "75", "--header-timeout", "3"),
)  # fmt: skip


def within(report: Report, windows: list[tuple[float, float]]) -> Report:
    return Report([record for start, end in windows for record in report.due_within(start, end).records])


def soak(
    place: Place,
    seconds: float,
    dice: random.Random,
    *,
    without: Sequence[str] = (),
    flags: Sequence[str] = (),
) -> Result:
    """One whole run.

    Args:
        without: words in the names of operations that are left out.
        flags: more of the daemon's.
    """
    (place.folder / "notes").mkdir()
    releases = Releases(place)
    daemon = place.start(
        *("-c", "conf.py", "--access-logfile", str(place.folder / "access.log"), *FLAGS, *flags),
        PYTHONPATH=os.pathsep.join([str(servers.HERE), str(servers.ROOT)]),
        UNRULY_NOTES=str(place.folder / "notes"),
    )
    daemon.settled(WORKERS)
    operations = Operations(place, daemon, releases, dice, without)
    # What is opened once is open now, our own connection included.
    daemon.client.call(RELOAD, ReloadBody(wait=True))
    daemon.settled(WORKERS)
    before, memory = kinds(daemon.pid), resident(daemon.pid)
    aside_before = daemon.status().totals.requests
    with Load(
        daemon.address, rate=RATE, connections=CONNECTIONS, close_every=CLOSE_EVERY, timeout=20
    ) as load:
        load.wait_for(int(RATE), within=10)
        quiet = time.monotonic()
        load.wait_for(int(RATE * (1 + QUIET)), within=QUIET + 10)
        quiet_end = time.monotonic()
        operations.run(seconds - QUIET)
        report = load.finish()
    account = operations.account
    explained, lost = account.lost(report)
    problems = account.unexplained + lost
    served = daemon.status().totals.requests - aside_before
    answered = sum(record.status > 0 for record in report.records) + account.answered_aside
    # A process that ends may have sent an answer that it had not counted yet; and of what was lost no process
    # knows whether it was answered and the answer lost.
    least = answered - len(account.harms)
    most = answered + sum(len(record.losses) for record in report.lost) + account.lost_aside
    if not least <= served <= most:
        problems.append(f"the server counted {served} requests, the clients {least} to {most}")
    problems += left_over(daemon, before)
    grown = resident(daemon.pid)
    if grown - memory > MEMORY_GROWTH:
        problems.append(f"the supervisor grew from {memory / 1e6:.1f} to {grown / 1e6:.1f} MB")
    if report.unasked:
        problems.append(f"bytes without a request, {report.unasked} times")
    deaths = daemon.status().totals.deaths
    if code := daemon.stop(within=30):
        problems.append(f"the daemon ended with {code}")
    return Result(
        report,
        account,
        explained,
        within(report, [(quiet, quiet_end)]).latency(0.99),
        within(report, account.planned).latency(0.99),
        served,
        deaths,
        (memory, grown),
        problems,
    )


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--minutes", type=float, default=1.0, help="default: %(default)s")
    parser.add_argument("--seed", type=int, help="of a run to repeat; by default a new one, which is printed")
    parser.add_argument(
        "--without",
        action="append",
        default=[],
        metavar="WORD",
        help="leave out operations with this in their name",
    )
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the account, too")
    parser.add_argument("flags", nargs="*", metavar="FLAG", help="more flags of the daemon, after --")
    options = parser.parse_args()
    if options.seed is None:
        options.seed = random.SystemRandom().randrange(1_000_000)
    return options


def main() -> int:
    options = parse_arguments()
    print(f"chaos for {options.minutes:g} minutes, --seed {options.seed}", flush=True)
    with Place() as place:
        dice = random.Random(options.seed)
        result = soak(place, options.minutes * 60, dice, without=options.without, flags=options.flags)
        print(result.text())
        place.keep = bool(result.problems)
        if place.keep:
            print(f"the logs are in {place.folder}")
    if options.json:
        account = {
            "seed": options.seed,
            "operations": result.account.operations,
            "explained": result.explained,
            "problems": result.problems,
            "hurts": [asdict(harm) | {"ports": sorted(harm.ports)} for harm in result.account.harms],
        }
        options.json.write_text(json.dumps(account, indent=2) + "\n")
    return 1 if result.problems else 0


if __name__ == "__main__":
    servers.run(main, AssertionError, UnreachableError)
