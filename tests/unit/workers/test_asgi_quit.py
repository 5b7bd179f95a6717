"""QuitWorker in a callback of the loop: a signal handler raises it at any point of the loop."""

import asyncio

import pytest

pytest.importorskip("uvicorn")

from ostler.workers.asgi.worker import _log_unless_quitting
from ostler.wsgi.interruption import QuitWorker


def fail(error: BaseException) -> None:
    raise error


@pytest.mark.parametrize("error", [QuitWorker(), LookupError("a defect")], ids=["quit", "defect"])
def test_what_a_callback_raises(error: BaseException, caplog: pytest.LogCaptureFixture) -> None:
    """The end of the worker is not logged as an error; any other exception is."""
    loop = asyncio.new_event_loop()
    try:
        loop.set_exception_handler(_log_unless_quitting)
        loop.call_soon(fail, error)
        loop.run_until_complete(asyncio.sleep(0))
    finally:
        loop.close()
    assert ("a defect" in caplog.text) == isinstance(error, LookupError)
    assert bool(caplog.records) == isinstance(error, LookupError)
