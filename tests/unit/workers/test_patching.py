"""Monkey-patching: what the libraries warn of is not lost. In processes of their own."""

import os
import subprocess
import sys

import pytest

WARNED = """
import gc, ssl
from ssl import SSLContext
class Early(SSLContext): pass
{before}
from gevent import monkey
from ostler.workers.greenlets.patching import problems_of
found = problems_of(monkey.patch_all)
warned = "Early" in found[0] and "ssl after ssl" in found[0]
print(len(found), warned, gc.get_freeze_count() > 0, gc.isenabled())
"""


def output(source: str, *flags: str) -> str:
    environ = {name: value for name, value in os.environ.items() if name != "PYTEST_CURRENT_TEST"}
    argv = [sys.executable, *flags, "-c", source]
    done = subprocess.run(argv, capture_output=True, text=True, env=environ)
    assert (done.returncode, done.stderr) == (0, "")
    return done.stdout.strip()


@pytest.mark.parametrize(
    ("before", "frozen", "collects"),
    [("", False, True), ("gc.freeze()", True, True), ("gc.disable(); gc.freeze()", True, False)],
)
@pytest.mark.parametrize("flags", [[], ["-W", "ignore"]])
def test_frozen_objects_are_found(before: str, frozen: bool, collects: bool, flags: list[str]) -> None:
    """gevent finds early imports by asking the garbage collector, which does not know frozen objects; what
    was frozen is frozen again. Filters of warnings do not hide it.
    """
    # CPython 3.12 freezes objects itself when it starts.
    frozen = frozen or output("import gc; print(gc.get_freeze_count())") != "0"
    assert output(WARNED.format(before=before), *flags) == f"1 True {frozen} {collects}"


def test_without_early_imports() -> None:
    """Nothing is reported; the collector stays as it was."""
    source = (
        "import gc\nfrom gevent import monkey\nfrom ostler.workers.greenlets.patching import problems_of\n"
        "before = bool(gc.get_freeze_count())\n"
        "print(problems_of(monkey.patch_all), bool(gc.get_freeze_count()) == before)"
    )
    assert output(source) == "[] True"


def test_what_eventlet_logs() -> None:
    """eventlet logs what it could not convert; that is no line on standard error, but a problem."""
    source = (
        "import logging, warnings\nwarnings.simplefilter('ignore')\nimport eventlet, threading\n"
        "kept = [(threading.RLock(),)]\n"
        "from ostler.workers.greenlets.patching import problems_of\n"
        "found = problems_of(eventlet.monkey_patch)\n"
        "print(len(found), 'RLock(s) were not greened' in found[0], logging.lastResort.level)"
    )
    assert output(source) == "1 True 30"
