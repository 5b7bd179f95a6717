"""Runs the daemon: in the foreground or detached, as itself or as the successor of an older program."""

import asyncio
import gc
from dataclasses import replace

from ostler.daemon import upgrade_state
from ostler.daemon.main import Daemon
from ostler.daemon.process.detach import detach, is_wanted, reason_to_stay
from ostler.daemon.process.signals import release
from ostler.daemon.start_request import RunRequest
from ostler.daemon.successor import is_successor
from ostler.daemon.upgrade_state import Carried
from ostler.errors import ExitCode, OstlerError
from ostler.osapi.needed import check_calls, refused


def run(request: RunRequest) -> int:
    """Run the daemon; returns the exit code.

    Raises:
        OstlerError: it could not start because of a mistake the user can correct.
    """

    if not is_successor():  # what is in use already stays in use
        check_calls()
    stay = reason_to_stay()
    request = replace(request, stay=stay)
    detaches = is_wanted(request.command_line)

    def serve(carried: Carried | None) -> int:
        if carried is None and detaches:
            return _run_detached(request)
        now = replace(request, detached=carried is not None and stay is None)
        if carried is not None and carried.command is not None:
            # What the old program has found for it may lead elsewhere by now.
            now = replace(now, command=carried.command)
        code, must_detach = _run_once(now, carried)
        return _run_detached(replace(request, first=None)) if must_detach else code

    return upgrade_state.taking_over(serve)


def _run_detached(request: RunRequest) -> int:
    gc.collect()  # closes what a first run in the foreground has left open
    launcher = detach()
    code: int = ExitCode.FAILED
    try:
        code, _ = _run_once(replace(request, detached=True, launcher=launcher), None)
    except OstlerError as error:
        code = error.exit_code
        raise
    finally:
        launcher.failing(code)
    return code


def _run_once(request: RunRequest, carried: Carried | None) -> tuple[int, bool]:
    """One run of the supervisor; its exit code, and whether it has ended only to be run detached."""

    async def main() -> tuple[int, bool]:
        try:
            daemon = Daemon(request, carried)
        except OSError as error:
            if carried is not None:
                raise
            raise refused("what a start opens", error) from None
        return await daemon.run(), daemon.must_detach

    try:
        return asyncio.run(main())
    finally:
        release()
