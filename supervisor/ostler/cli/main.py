"""`ostler`: the daemon's command."""

import gc
import os
import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from errno import ENOMEM
from typing import TYPE_CHECKING, Any, NoReturn

import click

from ostler import __version__, native
from ostler.cli.arguments import CommandLine, command
from ostler.errors import ExitCode, OstlerError
from ostler.osapi.needed import LIMITS, look_at_variables
from ostler.osapi.process import fill_standard_descriptors
from ostler.terminal import encode_anything, one_line
from ostler.text import name_and_text

if TYPE_CHECKING:
    from ostler.daemon.environment.command import TypedCommand
    from ostler.daemon.process.fork_server_process import ForkServerProcess

_CORE = "with" if native.CORE == "c" else "without"
_PYTHON = sys.version.split()[0]
_VERSION = f"ostler %(version)s (Python {_PYTHON}, {_CORE} the C extension)"


def _command() -> click.Command:
    version = click.version_option(__version__, "-v", "--version", message=_VERSION)
    return version(command(_run))


def _run(given: CommandLine) -> None:
    with _loading():
        from ostler.daemon.environment.command import as_typed
        from ostler.daemon.environment.command import folder as typed_folder
        from ostler.daemon.successor import HANDLED, HANDLED_BY_FLEET, is_successor
        from ostler.osapi.inherited import set_right

    set_right(HANDLED_BY_FLEET, HANDLED if is_successor() else ())
    command_line, app, demo = given.values, given.app, given.demo
    if demo:
        command_line = {"workers": "3", "log_format": "auto", "proc_name": "demo"} | command_line
        app = app or "ostler.demo:app"
    if app:
        command_line["wsgi_app"] = app
    folder = typed_folder()
    if given.check_config or given.print_config:
        with _loading():
            from ostler.daemon.check import check
            from ostler.ipc import messages

        ask = messages.Configure(
            messages.VERSION,
            0,
            command_line,
            given.config,
            folder,
            cause="check",
            variables=given.variables,
            remarks=given.remarks,
        )
        sys.exit(check(ask, show=given.print_config, load_app=given.check_config, strict=given.strict))
    with _loading():
        from ostler.daemon.environment.environments import checked
        from ostler.daemon.first_fork_server import start_first

    command = checked(as_typed(folder))
    first = start_first(command_line, command)
    if first is not None:
        # Until they have handlers: the first fork server has to be ended with this process.
        signal.pthread_sigmask(signal.SIG_BLOCK, HANDLED)
    try:
        _serve(given, command_line, folder, command, first)
    finally:
        if first is not None:
            first.end_if_unused()


def _serve(
    given: CommandLine,
    command_line: dict[str, Any],
    folder: str,
    command: "TypedCommand | None",
    first: "ForkServerProcess | None",
) -> NoReturn:
    with _loading():
        from ostler.daemon.run import run
        from ostler.daemon.start_request import RunRequest

    demo = given.demo
    own_choice = demo and "control_bind" not in command_line
    if own_choice:
        command_line["control_bind"] = "127.0.0.1:8001"
    sys.exit(
        run(
            RunRequest(
                command_line,
                given.config,
                folder,
                given.variables,
                given.remarks,
                demo,
                any_control_port=own_choice,
                command=command,
                first=first,
            )
        )
    )


@contextmanager
def _loading() -> Iterator[None]:
    """For imports of what the supervisor needs until its end: the garbage collector leaves it out.

    Raises:
        OstlerError: a library can't be imported: that is no defect of ours.
    """
    collects = gc.isenabled()
    gc.disable()
    try:
        yield
        gc.freeze()
    except (OSError, ImportError) as error:
        if isinstance(error, OSError) and error.errno == ENOMEM:
            raise OstlerError(f"out of memory; {LIMITS}") from None
        raise OstlerError(
            f"can't load what Ostler needs: {name_and_text(error)}{look_at_variables()}"
        ) from None
    finally:
        if collects:
            gc.enable()


def fail(error: OstlerError, prog: str = "ostler") -> NoReturn:
    click.echo(f"{prog}: error: {one_line(str(error))}", err=True)
    sys.exit(error.exit_code)


def main() -> None:
    """Entry point of `ostler`."""
    fill_standard_descriptors()
    encode_anything(sys.stdout)
    try:
        if sys.argv[1:2] == ["ctl"]:
            from ostler.cli.ctl import main as ctl_main

            ctl_main(sys.argv[2:], prog="ostler ctl")
            return
        _command().main(prog_name="ostler", standalone_mode=False)
    except click.exceptions.Exit as end:
        sys.exit(end.exit_code)
    except click.Abort:
        sys.exit(128 + 2)
    except click.ClickException as error:
        message = one_line(" ".join(error.format_message().split()))
        click.echo(f"ostler: error: {message} (see ostler --help)", err=True)
        sys.exit(ExitCode.USAGE)
    except OstlerError as error:
        fail(error)
    except MemoryError:
        fail(OstlerError(f"out of memory; {LIMITS}"))
    except BrokenPipeError:
        # The reader of our output has closed it; Python's own flush at exit must not fail.
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
        sys.exit(ExitCode.FAILED)
