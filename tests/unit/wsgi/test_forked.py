"""A process that the app forks knows that it is no worker, and ends like a Python program."""

import os
from collections.abc import Callable
from pathlib import Path

import pytest

from ostler.wsgi import forked


def exit_code(child: Callable[[], None]) -> int:
    """The exit code of a forked process that runs `child`; 99: it returned."""
    pid = os.fork()
    if not pid:
        try:
            child()
        finally:
            os._exit(99)
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


def test_only_the_forked_process_is_noted() -> None:
    """The worker itself goes on serving."""

    def child() -> None:
        before = forked.is_forked()
        forked.note_fork()
        os._exit(0 if forked.is_forked() and not before else 1)

    assert exit_code(child) == 0
    assert not forked.is_forked()


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (SystemExit(), 0),
        (SystemExit(None), 0),
        (SystemExit(0), 0),
        (SystemExit(7), 7),
        (SystemExit("a text"), 1),
        (ValueError("a defect"), 1),
        (KeyboardInterrupt(), 1),
    ],
)
def test_exit_codes(error: BaseException, code: int) -> None:
    """As of a Python program that ends by the same exception."""
    assert exit_code(lambda: forked.leave(error)) == code


def test_an_exception_is_printed(tmp_path: Path) -> None:
    """With its traceback, on standard error, as no other code will log it."""
    path = tmp_path / "stderr"

    def child() -> None:
        import sys

        with path.open("w", buffering=1) as sys.stderr:
            try:
                raise ValueError("a defect")
            except ValueError as error:
                forked.leave(error)

    assert exit_code(child) == 1
    text = path.read_text()
    assert text.startswith("Traceback")
    assert text.endswith("ValueError: a defect\n")
