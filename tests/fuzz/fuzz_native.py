#!/usr/bin/env python3
"""Fuzzes the C extension under sanitizers: python tests/fuzz/fuzz_native.py --seconds 60

The Python code gets the same inputs. A finding is a request that only one of both accepts, or for which they
make different environs; an app for which they send, count or log different things; or a fault that
AddressSanitizer or UndefinedBehaviorSanitizer reports. The inputs follow from the seed.

Exit status: 0 nothing found, or there is no compiler with sanitizers here; anything else: a finding, whose
input is in a file named crash-* in the current directory. The file can be given as an argument.
"""

import argparse
import hashlib
import os
import subprocess
import sys
import time
from pathlib import Path
from tempfile import TemporaryDirectory

sys.path.insert(0, str(Path(__file__).parents[2]))

from tests.fuzz import sanitized

# How long an input may take, and the end of the process that tries them.
_PATIENCE = 120


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--seconds", type=int, default=60, help="default: %(default)s")
    parser.add_argument("--seed", type=int, default=1, help="default: %(default)s")
    parser.add_argument(
        "--in-folder", type=Path, help=argparse.SUPPRESS
    )  # the process that has the sanitizers
    parser.add_argument("crash", nargs="*", type=Path, help="files to try instead of fuzzing")
    options = parser.parse_args()
    if options.in_folder is not None:
        fuzz(options.in_folder, options.seconds, options.seed, options.crash)
        return 0
    with TemporaryDirectory(prefix="ostler-fuzz-") as name:
        folder = Path(name)
        try:
            _, variables = sanitized.build(folder)
        except sanitized.Unavailable as problem:
            print(f"fuzz_native: skipped, {problem}")
            return 0
        code = run_again(folder, variables, options.seconds)
        if code and not options.crash and (data := (folder / "input").read_bytes()):
            crash = Path(f"crash-{hashlib.sha1(data).hexdigest()[:12]}")
            crash.write_bytes(data)
            print(f"fuzz_native: the input is in {crash}")
        return code


def run_again(folder: Path, variables: dict[str, str], seconds: int) -> int:
    """Run this program in a process with the sanitizers; returns its exit status."""
    command = [sys.executable, *sys.argv, "--in-folder", str(folder)]
    child = subprocess.Popen(command, env=os.environ | variables | {"TMPDIR": str(folder)})
    try:
        return child.wait(seconds + _PATIENCE)
    except subprocess.TimeoutExpired:
        print("fuzz_native: an input takes too long")
        return 1
    finally:
        child.kill()
        child.wait()


def fuzz(folder: Path, seconds: int, seed: int, files: list[Path]) -> None:
    """Try inputs. Before each, it is written to a file, which says what it was if this process ends.

    Raises:
        AssertionError: a finding.
    """
    (library,) = folder.glob("_native*.so")
    sanitized.load(library)
    # Imported here: they import the extension.
    from tests.fuzz.native_inputs import REQUESTS, AppChecker, Mutator, check_request

    mutator, apps = Mutator(seed), AppChecker()
    descriptor = os.open(folder / "input", os.O_WRONLY | os.O_CREAT)
    counts = [0, 0, 0]
    ends = time.monotonic() + seconds
    given = iter([file.read_bytes() for file in files])
    while (data := next(given, b"")) if files else time.monotonic() < ends:
        data = data if files else mutator.make()
        os.truncate(descriptor, 0)
        os.pwrite(descriptor, data, 0)
        if data[0] < REQUESTS:
            counts[0] += 1
            if check_request(data):
                counts[1] += 1
                mutator.keep(data)
        else:
            apps.check(data)
            counts[2] += 1
    apps.close()
    os.truncate(descriptor, 0)
    print(
        f"fuzz_native: seed {seed}, {counts[0]} requests, of which the extension recognized {counts[1]}, and "
        f"{counts[2]} apps in {time.process_time():.0f} s of CPU: no difference, and no fault"
    )


if __name__ == "__main__":
    sys.exit(main())
