"""The command line, made from the settings table, and the environment variables that hold more arguments.

The parser accepts what gunicorn's own parser accepts: abbreviated flags that are unambiguous, `-w=4`, and
further arguments after the app, which are ignored with a warning. Values are checked here but passed on as
they were written; the fork server merges and parses them.
"""

import os
import shlex
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import click

from ostler.cli.flag_hints import for_one_dash, for_unknown
from ostler.settings.ignored import IGNORED, Ignored
from ostler.settings.kinds.kind import Kind
from ostler.settings.table import Setting, not_in_gunicorn, rows

# They may hold more arguments. The command line takes precedence over both, and the first over the second.
VARIABLES = ("OSTLER_CMD_ARGS", "GUNICORN_CMD_ARGS")

_EPILOG = (
    "The variables OSTLER_CMD_ARGS and GUNICORN_CMD_ARGS may hold more arguments. See also: ctl --help (the "
    "same as ostler ctl --help), which drives a running daemon.\n\n"
    "Exit codes: 0 stopped, or the check has found nothing; 1 something can't be used as it is now, e.g. a "
    "file, an address or an account; 2 a flag or a value is wrong, wherever it is from; 3 the app can't be "
    "loaded, or no worker has booted."
)


@dataclass(frozen=True, slots=True)
class CommandLine:
    """What was given on the command line and in the variables.

    Args:
        values: raw settings by name, including those of gunicorn that have no effect here.
        variables: for each value that comes from a variable, the variable's name.
        remarks: warnings.
    """

    app: str | None
    config: str | None
    check_config: bool
    print_config: bool
    strict: bool
    demo: bool
    values: dict[str, Any]
    variables: dict[str, str] = field(default_factory=dict)
    remarks: list[str] = field(default_factory=list)


if TYPE_CHECKING:
    _ParamType = click.ParamType[Any]
else:
    _ParamType = click.ParamType  # generic only from click 8.4 on


class _Value(_ParamType):
    """Checks a value with the parser of its setting, and passes on the text as written."""

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
    if switch:
        # A switch that is on by default has a flag that turns it off.
        return _switch([*row.flags, f"_{row.name}"], "false" if row.default else True, help=row.help)
    return click.Option(
        [*row.flags, f"_{row.name}"],
        help=row.help + default,
        default=None,
        multiple=row.kind.several,
        type=_Value(row),
        metavar=row.kind.metavar,
    )


def _switch(names: list[str], value: Any, **more: Any) -> click.Option:
    # flag_value only here: for any other option click would take it to mean that the value may be missing.
    return click.Option(names, is_flag=True, flag_value=value, default=None, **more)


def _hidden(ignored: Ignored) -> click.Option:
    names = [*ignored.flags, f"_{ignored.name}"]
    if ignored.switch:
        return _switch(names, True, hidden=True)
    return click.Option(names, hidden=True, default=None, multiple=ignored.several, type=str)


def _shown(row: Setting) -> str:
    if isinstance(row.default, float):
        return f"{row.default:g}"
    if isinstance(row.default, tuple) and row.kind.several:
        return ", ".join(row.default)
    return row.kind.shown(row.default)


class _Command(click.Command):
    """Accepts the spellings of flags that gunicorn's parser accepts and click's does not."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        params = [param for param in self.get_params(ctx) if isinstance(param, click.Option)]
        options = {flag: param for param in params for flag in param.opts}
        typed = list(args)
        try:
            return super().parse_args(ctx, _spelled_out(args, options))
        except click.NoSuchOption as error:
            hint = for_unknown(error.option_name, typed, options)
            raise _with_hint(f"No such option '{error.option_name}'", hint, ctx) from None
        except click.UsageError as error:
            hint = for_one_dash(typed, options)
            raise _with_hint(error.format_message(), hint, ctx) if hint else error from None


def _with_hint(message: str, hint: str, ctx: click.Context) -> click.UsageError:
    return click.UsageError(f"{message}; {hint}" if hint else message, ctx)


def _spelled_out(args: list[str], options: Mapping[str, click.Option]) -> list[str]:
    """The arguments with complete flags, `-w=4` as `-w 4`, and the value that a bare flag means."""
    out: list[str] = []
    waiting = args[::-1]
    while waiting:
        arg = waiting.pop()
        if arg == "--":
            return [*out, arg, *waiting[::-1]]
        if arg[:2] == "--":
            flag, equals, value = arg.partition("=")
            flag = _whole(flag, options)
            out.append(flag + equals + value)
            missing = not equals and _needs_value(options.get(flag))
        elif arg[:1] == "-":
            flag, value = _cluster(arg, options)
            out += [flag, value[1:]] if value[:1] == "=" else [flag + value]
            missing = not value and _needs_value(options.get(f"-{flag[-1]}"))
        else:
            out.append(arg)
            missing = False
        if missing:
            bare = _bare(flag)
            if bare is not None and not _is_value(bare, *waiting[-1:]):
                out[-1] = f"{flag}={bare.bare}"
            elif waiting:
                out.append(waiting.pop())  # a value, also if it looks like a flag
    return out


def _whole(flag: str, options: Mapping[str, click.Option]) -> str:
    """The only flag that begins like this, or the only one of gunicorn's; else the text itself."""
    if flag in options:
        return flag
    longer = [name for name in options if name.startswith(flag)]
    ours = {"strict", "demo", *(f"_{name}" for name in not_in_gunicorn())}
    for names in (longer, [name for name in longer if options[name].name not in ours]):
        if len({options[name].name for name in names}) == 1:
            return names[0]
    return flag


def _cluster(arg: str, options: Mapping[str, click.Option]) -> tuple[str, str]:
    """One-letter flags up to the first that takes a value, and the rest of the argument, its value."""
    for place, letter in enumerate(arg[1:], 2):
        if _needs_value(options.get(f"-{letter}")):
            return arg[:place], arg[place:]
    return arg, ""


def _needs_value(option: click.Option | None) -> bool:
    return option is not None and not option.is_flag and not option.count


def _bare(flag: str) -> Kind | None:
    """The kind of a setting whose flag may stand alone."""
    return next((row.kind for row in rows().values() if row.kind.bare and flag in row.flags), None)


def _is_value(kind: Kind, text: str = "") -> bool:
    try:
        kind.parse(text)
    except ValueError:
        return False
    return True


def command(run: Callable[[CommandLine], None]) -> click.Command:
    """The command; it calls `run` with everything that was given, including the arguments in variables."""

    def started(**params: Any) -> None:
        run(_merged(made, params))

    options: list[click.Parameter] = [
        click.Argument(["app"], required=False, metavar="[MODULE:APP]"),
        click.Argument(["others"], nargs=-1, required=False, metavar=""),
        click.Option(
            ["-c", "--config", "config"],
            metavar="FILE",
            help="Configuration file: Python as gunicorn's, TOML, or python:MODULE. By default "
            "ostler.conf.py, ostler.toml, gunicorn.conf.py or [tool.ostler] in pyproject.toml.",
        ),
        click.Option(
            ["--check-config", "check_config"], is_flag=True, help="Load configuration and app, then exit."
        ),
        click.Option(
            ["--strict", "strict"], is_flag=True, help="With --check-config: warnings are errors, too."
        ),
        click.Option(
            ["--print-config", "print_config"],
            is_flag=True,
            help="Print all settings and where each came from.",
        ),
        click.Option(["--demo", "demo"], is_flag=True, help="Run a built-in demo app with a dashboard."),
    ]
    options += [_option(row) for row in rows().values() if row.flags]
    options += [_hidden(ignored) for ignored in IGNORED.values() if ignored.flags]
    made = _Command(
        "ostler",
        params=options,
        callback=started,
        help="Serve a WSGI app with a fleet of supervised workers.",
        epilog=_EPILOG,
        context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110},
    )
    return made


def _merged(made: click.Command, params: dict[str, Any]) -> CommandLine:
    """The arguments of the command line and, where it says nothing, those in the variables."""
    values = _values(params)
    variables: dict[str, str] = {}
    remarks = []
    if params["others"]:
        remarks.append(f"command line: one app is served; ignored: {' '.join(params['others'])}")
    for variable in VARIABLES:
        more = _in_variable(made, variable)
        if more is None:
            continue
        for name, value in _values(more).items():
            if name not in values:
                values[name], variables[name] = value, f"environment {variable}"
        for name in ("config", "check_config", "print_config", "strict"):
            params[name] = params[name] or more[name]
        if more["app"]:
            remarks.append(f"{variable}: the app must be named on the command line; ignored: {more['app']}")
    if params["strict"] and not params["check_config"]:
        raise click.UsageError("--strict is for --check-config")
    return CommandLine(
        params["app"],
        params["config"],
        params["check_config"],
        params["print_config"],
        params["strict"],
        params["demo"],
        values,
        variables,
        remarks,
    )


def _values(params: Mapping[str, Any]) -> dict[str, Any]:
    """Raw settings by name; only those that were given."""
    return {
        name.removeprefix("_"): list(value) if isinstance(value, tuple) else value
        for name, value in params.items()
        if name.startswith("_") and value not in (None, (), False)
    }


def _in_variable(made: click.Command, variable: str) -> dict[str, Any] | None:
    """The parameters in an environment variable; None if it has none.

    Raises:
        click.UsageError: it names the variable.
    """
    try:
        args = shlex.split(os.environ.get(variable, ""))
        return made.make_context("ostler", args).params if args else None
    except click.UsageError as error:
        raise click.UsageError(f"{variable}: {error.format_message()}") from None
    except ValueError as error:
        raise click.UsageError(f"{variable}: {error}") from None
