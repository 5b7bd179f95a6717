"""`ostler`: the daemon's command line, made from the settings table."""

import os
import sys
from importlib import metadata
from pathlib import Path
from typing import Any, NoReturn

import click

from supervisor import __version__
from supervisor.errors import ExitCode, OstlerError
from supervisor.osapi.process import fill_standard_descriptors
from supervisor.settings.kinds import Kind
from supervisor.settings.table import Setting, rows

_EPILOG = "See also: ctl --help (the same as ostler ctl --help), which drives a running daemon."


class _Value(click.ParamType[Any]):
    """Checks a value as its row does and hands on what was written: the fork server merges and parses."""

    def __init__(self, row: Setting) -> None:
        self.name = row.kind.metavar.lower()
        self._row = row

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        try:
            self._row.kind.parse([value] if self._row.kind.several else value)
        except ValueError as error:
            self.fail(f"{self._row.name}: {error}", param, ctx)
        return value


def _option(row: Setting) -> click.Option:
    switch = not row.kind.metavar
    default = "" if switch or row.default in (None, ()) else f"  [default: {_shown(row)}]"
    if row.env and default:
        default = f"{default[:-1]}, or the environment's {row.env}]"
    return click.Option(
        [*row.flags, f"_{row.name}"],
        help=row.help + default,
        is_flag=switch,
        # What is on by default has a flag that turns it off.
        flag_value=("false" if row.default else True) if switch else None,
        default=None,
        multiple=row.kind.several,
        type=None if switch else _Value(row),
        metavar=row.kind.metavar or None,
    )


def _shown(row: Setting) -> str:
    if isinstance(row.default, float):
        return f"{row.default:g}"
    if isinstance(row.default, tuple) and row.kind.several:
        return ", ".join(row.default)
    return row.kind.shown(row.default)


class _Command(click.Command):
    """Takes a flag whose value may be left out without swallowing what comes behind it, the app perhaps."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        bare = {flag: row.kind for row in rows().values() if row.kind.bare for flag in row.flags}
        options = args[: args.index("--")] if "--" in args else args
        for place, arg in enumerate(options):
            if arg in bare and not _is_value(bare[arg], *args[place + 1 : place + 2]):
                args[place] = f"{arg}={bare[arg].bare}"
        return super().parse_args(ctx, args)


def _is_value(kind: Kind, text: str = "") -> bool:
    try:
        kind.parse(text)
    except ValueError:
        return False
    return True


def _command() -> click.Command:
    options: list[click.Parameter] = [
        click.Argument(["app"], required=False, metavar="[MODULE:APP]"),
        click.Option(
            ["-c", "--config", "config"], metavar="FILE", help="Configuration file (Python, as gunicorn's)."
        ),
        click.Option(
            ["--check-config", "check_config"], is_flag=True, help="Load configuration and app, then exit."
        ),
        click.Option(
            ["--print-config", "print_config"],
            is_flag=True,
            help="Print all settings and where each came from.",
        ),
        click.Option(["--demo", "demo"], is_flag=True, help="Run a built-in demo app with a dashboard."),
    ]
    options += [_option(row) for row in rows().values() if row.flags]
    command = _Command(
        "ostler",
        params=options,
        callback=_run,
        help="Serve a WSGI app with a fleet of supervised workers.",
        epilog=_EPILOG,
        context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110},
    )
    return click.version_option(__version__, "-v", "--version", message="ostler %(version)s")(command)


def _run(
    app: str | None, config: str | None, check_config: bool, print_config: bool, demo: bool, **given: Any
) -> None:
    values = {
        name.removeprefix("_"): value for name, value in given.items() if value not in (None, (), False)
    }
    command_line = {
        name: list(value) if isinstance(value, tuple) else value for name, value in values.items()
    }
    if demo:
        command_line = {"workers": "3", "log_format": "auto", "proc_name": "demo"} | command_line
        app = app or "supervisor.demo:app"
    if app:
        command_line["wsgi_app"] = app
    folder = _folder()
    if check_config or print_config:
        from supervisor.daemon.check import check

        sys.exit(check(command_line, config, folder, show=print_config, load_app=check_config))
    from supervisor.daemon.main import Order, run

    own_choice = demo and "control_bind" not in command_line
    if own_choice:
        command_line["control_bind"] = "127.0.0.1:8001"
    sys.exit(run(Order(command_line, config, folder, demo, any_control_port=own_choice)))


def _folder() -> str:
    """Where we were started, by the name it was entered by: that may be a link which a reload follows."""
    here = Path.cwd()
    name = os.environ.get("PWD", "")
    try:
        return name if Path(name).is_absolute() and here.samefile(name) else str(here)
    except OSError:
        return str(here)


def refuse_other_supervisor() -> None:
    """Stop if supervisord's distribution lies in the same environment: both have a package `supervisor`.

    Raises:
        OstlerError: it does, so that files of the one may be in the place of the other's.
    """
    here = Path(__file__).parents[1]
    for other in metadata.distributions(name="supervisor"):
        if Path(str(other.locate_file("supervisor"))).resolve() == here.resolve():
            raise OstlerError(
                f"supervisor {other.version} (supervisord) is installed in the same environment and has a "
                "package of the same name; install ostler into a virtual environment of its own"
            )


def fail(error: OstlerError, prog: str = "ostler") -> NoReturn:
    click.echo(f"{prog}: error: {error}", err=True)
    sys.exit(error.exit_code)


def main() -> None:
    """Entry point of `ostler`."""
    fill_standard_descriptors()
    try:
        refuse_other_supervisor()
        if sys.argv[1:2] == ["ctl"]:
            from supervisor.cli.ctl import main as ctl_main

            ctl_main(sys.argv[2:], prog="ostler ctl")
            return
        _command().main(prog_name="ostler", standalone_mode=False)
    except click.exceptions.Exit as end:
        sys.exit(end.exit_code)
    except click.Abort:
        sys.exit(128 + 2)
    except click.ClickException as error:
        message = " ".join(error.format_message().split())
        if isinstance(error, click.NoSuchOption) and error.option_name[1:2].isdigit():
            message = "No setting takes a negative number."  # Click takes it for a flag
        click.echo(f"ostler: error: {message} (see ostler --help)", err=True)
        sys.exit(ExitCode.USAGE)
    except OstlerError as error:
        fail(error)
    except BrokenPipeError:
        # Whoever read our output has enough; Python's own flush at exit must not complain.
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
        sys.exit(ExitCode.FAILED)
