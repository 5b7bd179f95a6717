#!/usr/bin/env python3
"""Does a request cost more than before? Compares the working tree with a base commit, within two minutes.

The base is the newest tag that the working tree descends from; without tags, the commit that base_commit.txt
names. Both are measured on this machine, in turns, under varied traffic, with the C extension and without it.
What decides is the median of the rounds' ratios of CPU time per request. No ratio is recorded: that of Python
to C differs between processors by a factor of two.

If the working tree needs more than 25 % more CPU time for a request, as many rounds are measured again,
because other processes may be the reason; the exit status is 1 if that is still so in all of them together.
If there is nothing to compare with (no git, no history, no wrk), one line says so and the exit status is 0.
"""

import argparse
import statistics
import subprocess
import sys
import tarfile
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import drive
import peers
import servers
import traffic

LIMIT = 1.25
CONNECTIONS = 32
RECORDED = servers.HERE / "base_commit.txt"

# Arguments: a checkout. Builds the C extension as the installation does, if it is older than its sources.
BUILD = """\
import sys
from pathlib import Path

root = Path(sys.argv[1])
sys.path.insert(0, str(root / "supervisor/native"))
import build_native

sys.exit(build_native.build(root, print) is None)
"""


class NothingToCompareError(Exception):
    """`str()` is a part of a line for the user."""


@dataclass(frozen=True)
class Verdict:
    """What the rounds say about one way to run Ostler."""

    ratios: Sequence[float]
    """CPU time per request of the working tree over the base's, of each round."""
    median: float
    passed: bool

    @classmethod
    def of(cls, tree: Sequence[float], base: Sequence[float]) -> "Verdict":
        """Judge the CPU times per request of the same rounds.

        Raises:
            ValueError: there are none, or not as many of both.
        """
        ratios = [mine / other for mine, other in zip(tree, base, strict=True)]
        if not ratios:
            raise ValueError("no rounds")
        # The ratio of each round first: a machine that becomes slower affects both sides of a round.
        median = statistics.median(ratios)
        return cls(ratios, median, median <= LIMIT)

    def __str__(self) -> str:
        rounds = " ".join(f"{ratio:.2f}" for ratio in self.ratios)
        return f"ratio {self.median:.2f} (rounds {rounds})"


def git(root: Path, *arguments: str) -> str:
    """What a git command prints.

    Raises:
        NothingToCompareError: there is no git, or it fails.
    """
    try:
        run = subprocess.run(["git", "-C", root, *arguments], capture_output=True, text=True, check=True)
    except OSError:
        raise NothingToCompareError("git is not installed") from None
    except subprocess.CalledProcessError as error:
        reason = (error.stderr.strip().splitlines() or [f"exit status {error.returncode}"])[-1]
        raise NothingToCompareError(f"git {arguments[0]}: {reason}") from None
    return run.stdout.strip()


def find_base(root: Path, recorded: Path, wanted: str | None = None) -> str:
    """The revision to compare with: `wanted`, or the newest tag, or the first word of the file `recorded`.

    Raises:
        NothingToCompareError: there is none, or this is no checkout of the project.
    """
    # An unpacked release may lie in a repository of something else.
    if Path(git(root, "rev-parse", "--show-toplevel")).resolve() != root.resolve():
        raise NothingToCompareError(f"{root} is no git checkout")
    if wanted is None:
        try:
            wanted = git(root, "describe", "--tags", "--abbrev=0")
        except NothingToCompareError:
            words = recorded.read_text().split() if recorded.exists() else []
            if not words:
                raise NothingToCompareError("there is no tag and no recorded base commit") from None
            wanted = words[0]
    # A shallow clone does not have it.
    try:
        git(root, "cat-file", "-e", f"{wanted}^{{commit}}")
    except NothingToCompareError:
        raise NothingToCompareError(f"the base commit {wanted} is not in this clone") from None
    return wanted


def export(root: Path, revision: str, folder: Path) -> None:
    """Unpack the package of a revision, and the sources of its C extension."""
    folder.mkdir()
    archive = folder / "archive.tar"
    git(root, "archive", "--output", str(archive), revision, "supervisor")
    with tarfile.open(archive) as tar:
        tar.extractall(folder, filter="data")
    archive.unlink()


def build(python: str, checkout: Path) -> None:
    """Build the C extension in place; print a line if that fails."""
    run = subprocess.run([python, "-c", BUILD, str(checkout)], capture_output=True, text=True, check=False)
    if run.returncode:
        lines = (run.stderr + run.stdout).strip().splitlines()
        print(f"{checkout}: the C extension can't be built: {lines[-1] if lines else ''}", file=sys.stderr)


def compare(options: argparse.Namespace, folder: Path) -> bool:
    """Measure and report; whether the working tree passes.

    Raises:
        NothingToCompareError: there is no base, or it does not run here.
        BenchError: the working tree does not run.
    """
    revision = find_base(servers.ROOT, RECORDED, options.base)
    base = folder / "base"
    export(servers.ROOT, revision, base)
    for checkout in (servers.ROOT, base):
        build(options.python, checkout)
    options.also.append(base)
    field = peers.Field(options)
    found = [
        candidate
        for native in field.cores()
        for candidate in field.pick(["ostler sync"], peers.Shape(native=native))
    ]
    requests = traffic.prepare(options.traffic, folder / "requests")
    results: dict[str, list[drive.Sample]] = {}

    def measure() -> None:
        more = drive.interleaved(
            found,
            options.rounds,
            folder,
            lambda server: drive.warm_run(server, options.seconds, CONNECTIONS, requests),
            lambda sample: f"{sample.cpu_us:.2f} us",
        )
        for name, samples in more.items():
            results.setdefault(name, []).extend(samples)

    measure()
    passed = report(found, results, options.rounds, f" @{base.name}", revision)
    if not passed:
        print("measuring as many rounds again: all of them count")
        measure()
        passed = report(found, results, 2 * options.rounds, f" @{base.name}", revision)
    drive.write_json(
        options, {"samples": {name: [asdict(sample) for sample in of] for name, of in results.items()}}
    )
    return passed


def report(
    found: Sequence[peers.Candidate],
    results: Mapping[str, Sequence[drive.Sample]],
    rounds: int,
    suffix: str,
    revision: str,
) -> bool:
    """Print the verdicts, and return whether the working tree passes; the base's rows end in `suffix`.

    Raises:
        NothingToCompareError: the base did not run in all rounds.
        BenchError: the working tree did not, or there is nothing to judge.
    """
    verdicts = []
    for name in [candidate.name for candidate in found if "@" not in candidate.name]:
        tree, base = ([sample.cpu_us for sample in results.get(label, ())] for label in (name, name + suffix))
        if len(tree) < rounds:
            raise servers.BenchError(f"{name} failed")
        if len(base) < rounds:
            raise NothingToCompareError(f"the base, {revision}, does not run here")
        verdicts.append(Verdict.of(tree, base))
        print(
            f"{name}: {statistics.median(tree):.2f} us of CPU time per request, base "
            f"{statistics.median(base):.2f}: {verdicts[-1]}"
        )
    if not verdicts:
        raise servers.BenchError("there is no row to compare")
    passed = all(verdict.passed for verdict in verdicts)
    ratios = ", ".join(f"{verdict.median:.2f}" for verdict in verdicts)
    print(f"{'passed' if passed else 'FAILED'}: {ratios} x the CPU time of {revision} (limit {LIMIT})")
    return passed


def parse_arguments(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--base", metavar="REVISION", help="compare with this one")
    drive.add_options(parser, rounds=7, seconds=2)
    options = parser.parse_args(arguments)
    if options.rounds < 1:
        parser.error("--rounds must be at least 1")
    return options


def main() -> int:
    options = parse_arguments()
    try:
        if servers.missing_command("wrk"):
            raise NothingToCompareError("wrk is not installed (apt-get install wrk)")
        with tempfile.TemporaryDirectory(prefix="ostler-bench-") as folder:
            return 0 if compare(options, Path(folder)) else 1
    except NothingToCompareError as reason:
        print(f"compare.py: skipped, {reason}")
        return 0


if __name__ == "__main__":
    servers.run(main)
