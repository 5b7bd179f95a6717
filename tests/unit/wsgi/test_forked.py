"""A process that the app forks knows that it is no worker, and ends like a Python program."""

import subprocess
import sys

import pytest

from ostler.wsgi import forked


def ended(code: str) -> "subprocess.CompletedProcess[str]":
    """How a process that runs `code` has ended."""
    program = f"from ostler.wsgi import forked\n{code}\n"
    return subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)


def test_a_process_is_noted_once_and_for_all() -> None:
    """Before the note it is a worker."""
    code = "assert not forked.is_forked(); forked.note_fork(); assert forked.is_forked()"
    assert ended(code).returncode == 0
    assert not forked.is_forked()


@pytest.mark.parametrize(
    ("error", "code"),
    [
        ("SystemExit()", 0),
        ("SystemExit(0)", 0),
        ("SystemExit(7)", 7),
        ("SystemExit('a text')", 1),
        ("KeyboardInterrupt()", 1),
    ],
)
def test_exit_codes(error: str, code: int) -> None:
    """As of a Python program that ends by the same exception; the app's atexit functions do not run."""
    process = ended(f"import atexit; atexit.register(print, 'ran'); forked.leave({error})")
    assert process.returncode == code
    assert process.stdout == ""


def test_an_exception_is_printed() -> None:
    """With its traceback, on standard error, as no other code will log it."""
    process = ended("try:\n    1 / 0\nexcept ZeroDivisionError as error:\n    forked.leave(error)")
    assert process.returncode == 1
    assert process.stderr.startswith("Traceback")
    assert process.stderr.endswith("ZeroDivisionError: division by zero\n")
