"""`ctl` (also `ostler ctl`): drives and inspects a running Ostler over its control socket.

Everything goes through the public API; `--json` prints its views unchanged and never loads rich. The commands
are in `show`, `change` and `reloading`, and which daemon is meant in `target`.
"""

import os
import sys
from collections.abc import Sequence
from typing import NoReturn

import click

from ostler import __version__
from ostler.cli import change, output, reloading, show
from ostler.cli.target import AmbiguousTarget, with_target
from ostler.errors import ExitCode, OstlerError
from ostler.osapi.process import fill_standard_descriptors
from ostler.terminal import encode_anything

INTERRUPTED = 130  # 128 + SIGINT, as in shells


@click.group(
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
    epilog="Exit codes: 0 the wanted outcome was reached (with --no-wait: it was asked for); 1 it was not, "
    "or no daemon can be reached; 2 the command line is wrong; 130 interrupted, what was asked for goes on.",
    no_args_is_help=False,  # click 8.1 exits with 0 then, later versions raise an error of their own
)
@click.version_option(__version__, message="ctl of Ostler %(version)s")
@with_target
def cli() -> None:
    """Drive and inspect a running Ostler."""


for _command in (*show.COMMANDS, *change.COMMANDS, *reloading.COMMANDS):
    cli.add_command(_command)


def main(argv: list[str] | None = None, prog: str = "ctl") -> None:
    """Run one command and exit.

    Args:
        argv: without the program's name; None for sys.argv's.
        prog: how the program calls itself: `ctl` or `ostler ctl`.
    """
    fill_standard_descriptors()
    encode_anything(sys.stdout)
    try:
        if not (sys.argv[1:] if argv is None else argv):
            click.echo(cli.get_help(click.Context(cli, info_name=prog, **cli.context_settings)), err=True)
            sys.exit(ExitCode.USAGE)
        code = cli.main(argv, prog_name=prog, standalone_mode=False)
        sys.stdout.flush()
    except BrokenPipeError:
        # The reader of the pipe has closed it (`ctl workers | head -1`).
        _drop_output()
        sys.exit(ExitCode.FAILED)  # as click and rich do where they notice it first
    except click.UsageError as error:
        command = error.ctx.command_path if error.ctx else prog
        message = " ".join(error.format_message().split()).rstrip(".")
        _fail(prog, f"{message} (see `{command} --help`)", ExitCode.USAGE)
    except click.ClickException as error:
        _fail(prog, error.format_message(), ExitCode.FAILED)
    except (KeyboardInterrupt, click.Abort):
        _fail(prog, "interrupted; what was asked for goes on", INTERRUPTED)
    except AmbiguousTarget as error:
        _fail(prog, str(error), error.exit_code, error.known)
    except OstlerError as error:
        _fail(prog, str(error), error.exit_code)
    except OSError as error:
        # All problems with the daemon are OstlerErrors; what is left is our own output.
        _drop_output()
        _fail(prog, f"can't write the output: {error.strerror or error}", ExitCode.FAILED)
    # With standalone_mode off, click hands back the code of --help and --version and a command's own result.
    sys.exit(code if isinstance(code, int) else ExitCode.OK)


def _drop_output() -> None:
    """What is left in the buffer must go nowhere, or the interpreter complains about it at exit."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _fail(prog: str, message: str, code: int, more: Sequence[str] = ()) -> NoReturn:
    output.print_problem(f"{prog}: error: {message}", *more)
    sys.exit(code)
