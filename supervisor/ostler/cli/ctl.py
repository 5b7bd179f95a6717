"""`ctl` (also `ostler ctl`): drives and inspects a running Ostler over its control socket.

A command asks, waits for the outcome and exits 0 only if it is reached. Everything goes through the public
API; `--json` prints its views unchanged and never loads rich.
"""

import os
import pwd
import re
import sys
import time
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn, TypeVar

import click

from ostler import __version__
from ostler.cli import output, waiting
from ostler.cli.output import duration, print_json, print_line
from ostler.control.client import Client, Discovery, StrangerError, discover
from ostler.control.routes import (
    CONFIG,
    EVENTS,
    EXITS,
    LOGIN_LINK,
    RECYCLE,
    REFORK,
    RELOAD,
    SCALE,
    STATUS,
    STOP,
    UPGRADE,
    WORKERS,
)
from ostler.control.sockets import UntrustedFolder, trusted_owners
from ostler.control.views import ReforkBody, ReloadView, Scale, Stop
from ostler.errors import ExitCode, OstlerError
from ostler.osapi.peers import account_name
from ostler.osapi.process import fill_standard_descriptors
from ostler.terminal import encode_anything

Command = TypeVar("Command", bound=Callable[..., object])

INTERRUPTED = 130  # 128 + SIGINT, as shells say it
_ALL = 1000
_MOST_STRANGERS = 5
_ADDRESS = re.compile(r"http://[!-~]{1,200}")


class NotClear(OstlerError):
    """Several daemons may be meant; each of `known` is a line for people."""

    def __init__(self, message: str, known: list[str]) -> None:
        super().__init__(message)
        self.known = known


@dataclass(slots=True)
class Aim:
    """Which daemon is meant and how it is shown; options before and after the command both land here."""

    socket: str | None = None
    name: str | None = None
    url: str | None = None
    owner: str | None = None
    json: bool = False

    def client(self) -> Client:
        """The one daemon that is meant; closed when the command ends.

        What the command line says goes before the environment. Raises OstlerError if there is none, or it is
        not clear which.
        """
        client = self._connect()
        click.get_current_context().call_on_close(client.close)
        return client

    def _connect(self) -> Client:
        socket, url = self.socket, self.url
        if not (socket or url or self.name):
            socket, url = os.environ.get("OSTLER_SOCKET"), os.environ.get("OSTLER_URL")
        owner = _uid(self.owner or os.environ.get("OSTLER_OWNER"))
        if socket:
            path = Path(socket)
            return Client.unix(path, judge=Named(path, owner))
        if url:
            token = os.environ.get("OSTLER_TOKEN")
            if not token:
                raise OstlerError("set OSTLER_TOKEN to the daemon's bearer token")
            if not (token.isascii() and token.isprintable()) or " " in token:
                raise OstlerError(
                    "OSTLER_TOKEN is no bearer token: that is one word of printable ASCII characters"
                )
            return Client.tcp(url, token, trusted=_trusted(owner))
        return _the_one(discover(), self.name)


class Named:
    """Judges who serves a control socket that the user has named: it may be anybody's, but that is said.

    Not of the user that root has given the socket's folder to: a service's account, mostly.

    Args:
        path: the socket's; owner: the uid that the user expects there, if that was said.
    """

    def __init__(self, path: Path, owner: int | None) -> None:
        self._path = path
        self._owner = owner

    def __call__(self, uid: int) -> None:
        """Raises StrangerError."""
        if uid in _trusted(self._owner) or (self._owner is None and uid in self._of_folder()):
            return
        served = f"{self._path} is served by a process of {account_name(uid)}"
        if self._owner is not None:
            raise StrangerError(f"{served}, not of {account_name(self._owner)}; nothing was sent to it")
        output.complain(f"ctl: warning: {served}, not yours or root's (--owner USER accepts it)")
        self._owner = uid  # and no other from now on

    def _of_folder(self) -> Collection[int]:
        try:
            return trusted_owners(self._path.absolute().parent)
        except (UntrustedFolder, OSError):
            return ()


def _trusted(owner: int | None) -> set[int]:
    return {0, os.geteuid()} if owner is None else {0, os.geteuid(), owner}


def _uid(user: str | None) -> int | None:
    """The number of a user by name or number. Raises OstlerError if there is no such user."""
    if not user:
        return None
    try:
        return pwd.getpwnam(user).pw_uid
    except (KeyError, ValueError):
        if user.isascii() and user.isdecimal() and len(user) < 11:
            return int(user)
        raise OstlerError(f"--owner: there is no user {user!r}") from None


def _the_one(discovery: Discovery, name: str | None) -> Client:
    for stranger in discovery.untrusted[:_MOST_STRANGERS]:
        output.complain(f"ctl: warning: {stranger}; it is left alone")
    found = [one for one in discovery.found if name is None or name in (one.status.name, one.path.stem)]
    if len(found) == 1:
        return found[0].client()
    if found:
        known = [
            f"{one.status.name}: pid {one.status.pid}, {one.status.app}, "
            f"{', '.join(one.status.listeners) or 'no listener'}, --socket {one.path}"
            for one in found
        ]
        option = "--name" if len({one.status.name for one in found}) == len(found) else "--socket"
        raise NotClear(f"{len(found)} instances run; choose one with {option}", known)
    if name is not None and discovery.found:
        names = ", ".join(sorted(one.status.name for one in discovery.found))
        raise OstlerError(f"no instance is named {name!r}; there is {names}")
    if discovery.denied:
        raise OstlerError(
            f"another user's instance may be at {discovery.denied[0]}: try as that user or root"
        )
    folders = ", ".join(map(str, discovery.looked_in))
    raise OstlerError(
        f"no running Ostler found in {folders}; start one with `ostler MODULE:APP`, or give --socket PATH"
    )


def _remember(context: click.Context, parameter: click.Parameter, value: object) -> None:
    if value and parameter.name:
        setattr(context.ensure_object(Aim), parameter.name, value)


def _aimed(command: Command) -> Command:
    """Options that are understood before and after the command's name."""
    for decorate in (
        _option("--json", is_flag=True, help="Print the API's own JSON."),
        _option(
            "--owner",
            metavar="USER",
            help="With --url or --socket: the daemon's user, if neither you nor root. [OSTLER_OWNER]",
        ),
        _option(
            "--url",
            metavar="URL",
            help="Use TCP, e.g. http://127.0.0.1:9000, with OSTLER_TOKEN. [OSTLER_URL]",
        ),
        _option("--name", metavar="NAME", help="The instance of this name."),
        _option("--socket", metavar="PATH", help="The instance with this control socket. [OSTLER_SOCKET]"),
    ):
        command = decorate(command)
    return command


def _option(*names: str, **settings: Any) -> Callable[[Command], Command]:
    return click.option(*names, callback=_remember, expose_value=False, **settings)


def _waits(command: Command) -> Command:
    command = click.option("--no-wait", is_flag=True, help="Only ask; do not wait for the outcome.")(command)
    return click.option(
        "--timeout",
        type=click.FloatRange(min=0, min_open=True),
        default=120.0,
        show_default=True,
        metavar="SECONDS",
        help="How long to wait for the outcome.",
    )(command)


@click.group(
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
    no_args_is_help=False,  # click 8.1 exits with 0 then, later versions raise an error of their own
)
@click.version_option(__version__, message="ctl of Ostler %(version)s")
@_aimed
def cli() -> None:
    """Drive and inspect a running Ostler."""


@cli.command()
@_aimed
@click.make_pass_decorator(Aim, ensure=True)
def status(aim: Aim) -> None:
    """How the fleet is."""
    client = aim.client()
    if aim.json:
        print_json(client.raw(STATUS))
    else:
        output.print_status(client.call(STATUS))


@cli.command()
@_aimed
@click.make_pass_decorator(Aim, ensure=True)
def workers(aim: Aim) -> None:
    """All workers and what they do right now."""
    client = aim.client()
    if aim.json:
        print_json(client.raw(WORKERS))
    else:
        table = client.call(WORKERS)
        output.print_workers(table)


@cli.command()
@_aimed
@click.make_pass_decorator(Aim, ensure=True)
def requests(aim: Aim) -> None:
    """The requests that are in the app right now, the oldest first."""
    in_flight = [request for worker in aim.client().call(WORKERS) for request in worker.in_flight]
    in_flight.sort(key=lambda request: -request.age)
    if aim.json:
        print_json(in_flight)
    else:
        output.print_requests(in_flight)


@cli.command()
@_aimed
@click.make_pass_decorator(Aim, ensure=True)
def config(aim: Aim) -> None:
    """All settings, and where each value comes from."""
    client = aim.client()
    if aim.json:
        print_json(client.raw(CONFIG))
    else:
        output.print_config(client.call(CONFIG))


@cli.command()
@click.argument("number", required=False, type=click.IntRange(min=1), metavar="[ID]")
@click.option(
    "-n", "count", type=click.IntRange(min=1), default=20, show_default=True, metavar="N", help="How many."
)
@click.option("--last", is_flag=True, help="Show the newest one with all that is known of it.")
@_aimed
@click.make_pass_decorator(Aim, ensure=True)
def exits(aim: Aim, number: int | None, count: int, last: bool) -> None:
    """How processes ended, the newest first; with an ID or --last all of one, with its stack."""
    if number is not None and last:
        raise click.UsageError("give an ID or --last, not both")
    client = aim.client()
    if number is None and not last:
        if aim.json:
            print_json(client.raw(EXITS, limit=count))
        else:
            table = client.call(EXITS, limit=count)
            output.print_exits(table)
        return
    found = client.call(EXITS, limit=1 if last else _ALL)
    view = next((view for view in found if number in (None, view.id)), None)
    if view is None:
        raise OstlerError("no process has ended yet" if last else f"no exit has the id {number}")
    (print_json if aim.json else output.print_exit)(view)


@cli.command()
@click.option(
    "-n", "count", type=click.IntRange(min=1), default=20, show_default=True, metavar="N", help="How many."
)
@_aimed
@click.make_pass_decorator(Aim, ensure=True)
def events(aim: Aim, count: int) -> None:
    """What happened to the fleet, the newest last."""
    newest = aim.client().call(EVENTS)[-count:]
    if aim.json:
        print_json(newest)
    else:
        output.print_events(newest)


# -1 is an amount here, not an option.
@cli.command(context_settings={"ignore_unknown_options": True})
@click.argument("amount", metavar="N|+N|-N|auto")
@_waits
@_aimed
@click.make_pass_decorator(Aim, ensure=True)
def scale(aim: Aim, amount: str, timeout: float, no_wait: bool) -> None:
    """Set the number of workers (5), change it (+2, -1), or give up what was set so (auto)."""
    ask = Scale(auto=True) if amount == "auto" else _scale(amount)
    client = aim.client()
    before = client.call(STATUS).wanted
    began = time.monotonic()
    after = client.call(SCALE, ask)
    if not no_wait:
        with waiting.Meter(f"{before} -> {after.wanted} workers", wanted=not aim.json) as meter:
            after = waiting.scaled(client, after.wanted, meter, waiting.Patience(timeout))
    if aim.json:
        print_json(after)
        return
    outcome = "asked" if no_wait else f"all ready ({duration(time.monotonic() - began)})"
    print_line(f"{before} -> {after.wanted} workers, {outcome}")


def _scale(amount: str) -> Scale:
    digits = amount.lstrip("+-") if amount[:1] in "+-" and amount[1:2].isdigit() else amount
    if not (digits.isascii() and digits.isdigit() and len(digits) < 10):
        kind = "no such option" if amount.startswith("-") else "not a number of workers"
        raise click.UsageError(f"{kind}: {amount}")
    return Scale(workers=int(amount)) if amount == digits else Scale(delta=int(amount))


@cli.command()
@_waits
@_aimed
@click.make_pass_decorator(Aim, ensure=True)
def reload(aim: Aim, timeout: float, no_wait: bool) -> None:
    """Load configuration and app anew and replace all workers, without a pause."""
    client = aim.client()
    before, roll = client.call(STATUS), waiting.Roll(client.call(WORKERS), wanted=not (aim.json or no_wait))
    view = client.call(RELOAD)
    generation = view.generation
    if not no_wait:
        with roll:
            view = waiting.reloaded(client, generation, roll, waiting.Patience(timeout))
    if aim.json:
        print_json(view)
    _check_reload(view, generation)
    if aim.json:
        return
    if no_wait:
        print_line(f"reload to generation {generation} asked")
    else:
        output.print_reload(view, before, client.call(STATUS))


def _check_reload(view: ReloadView, generation: int) -> None:
    """Raises OstlerError, after its traceback is printed, for a reload that has not ended well."""
    if view.generation != generation or view.phase == "superseded":
        raise OstlerError(f"the reload to generation {generation} was superseded by another")
    if view.phase in ("failed", "rolled back"):
        if view.traceback:
            output.show_traceback(view.traceback)
        reason = " ".join((view.reason or "no reason given").split())
        how = "the reload failed" if view.phase == "failed" else "the reload was rolled back"
        raise OstlerError(f"{how}, the old generation serves on: {reason}")


@cli.command()
@click.argument("slot", type=click.IntRange(min=1), metavar="SLOT")
@_waits
@_aimed
@click.make_pass_decorator(Aim, ensure=True)
def recycle(aim: Aim, slot: int, timeout: float, no_wait: bool) -> None:
    """Replace one worker, its successor first."""
    client = aim.client()
    began = time.monotonic()
    old = client.call(RECYCLE, slot=slot)
    new = old
    if not no_wait:
        with waiting.Meter(f"worker {slot}", wanted=not aim.json) as meter:
            new = waiting.recycled(client, slot, old.pid, meter, waiting.Patience(timeout))
    if aim.json:
        print_json(new)
    elif no_wait:
        print_line(f"worker {slot}: recycling of pid {old.pid} asked")
    else:
        print_line(f"worker {slot}: pid {old.pid} -> {new.pid}, ready ({duration(time.monotonic() - began)})")


@cli.command()
@click.option(
    "--slot", type=click.IntRange(min=1), metavar="N", help="This worker; else the one that served most."
)
@click.option("--force", is_flag=True, help="Also if the worker is found unsafe to fork from.")
@_waits
@_aimed
@click.make_pass_decorator(Aim, ensure=True)
def refork(aim: Aim, slot: int | None, force: bool, timeout: float, no_wait: bool) -> None:
    """Make a warmed-up worker the one that new workers are forked from, and replace the others."""
    client, patience = aim.client(), waiting.Patience(timeout)
    old = {worker.pid for worker in client.call(WORKERS)}
    began = time.monotonic()
    asked = client.call(REFORK, ReforkBody(slot, force))
    if no_wait:
        print_json(asked) if aim.json else print_line("refork asked")
        return
    with waiting.Meter("refork", wanted=not aim.json) as meter:
        outcome = waiting.happened(client, asked.after, ("refork_done", "refork_refused"), patience)
        if outcome.name == "refork_done":
            waiting.replaced(client, old, meter, patience)
    for event in client.call(EVENTS, after=asked.after):
        if event.name == "refork_warning" and event.id < outcome.id:
            output.complain(f"ctl: warning: {event.fields.get('problem')}")
    if aim.json:
        print_json(outcome)
    if outcome.name == "refork_refused":
        hint = "" if force else " (--force does it all the same)"
        raise OstlerError(f"the refork was refused: {outcome.fields.get('problem', 'see the log')}{hint}")
    if not aim.json:
        fields, took = outcome.fields, duration(time.monotonic() - began)
        print_line(
            f"generation {fields.get('generation')}: forked from worker {fields.get('slot')}, "
            f"pid {fields.get('pid')}, from now on; all others replaced ({took})"
        )


@cli.command()
@_waits
@_aimed
@click.make_pass_decorator(Aim, ensure=True)
def upgrade(aim: Aim, timeout: float, no_wait: bool) -> None:
    """Replace the supervisor's own program, keeping pid, listeners and workers; then reload."""
    client, patience = aim.client(), waiting.Patience(timeout)
    before = client.call(STATUS)
    roll = waiting.Roll(client.call(WORKERS), wanted=not aim.json)
    process = waiting.open_process(client, before.pid)
    asked = client.call(UPGRADE)
    if no_wait:
        print_json(asked) if aim.json else print_line(f"upgrade of pid {before.pid} asked")
        return
    with waiting.Meter("upgrade", wanted=not aim.json):
        began = time.monotonic()
        after = waiting.upgraded(client, before, asked.after, process, patience)
        took = time.monotonic() - began
    if not aim.json:
        print_line(f"pid {before.pid}: Ostler {before.version} -> {after.version} ({duration(took)})")
        sys.stdout.flush()
    newest = before.reload.generation if before.reload else 0
    generation = waiting.reload_after(client, max(newest, before.generation), patience).generation
    with roll:
        view = waiting.reloaded(client, generation, roll, patience)
    after = client.call(STATUS)
    if aim.json:
        print_json(after)
    _check_reload(view, generation)
    if not aim.json:
        output.print_reload(view, before, after)


@cli.command()
@click.option("--quick", is_flag=True, help="Do not let requests in flight finish.")
@_waits
@_aimed
@click.make_pass_decorator(Aim, ensure=True)
def stop(aim: Aim, quick: bool, timeout: float, no_wait: bool) -> None:
    """End the daemon."""
    client = aim.client()
    pid = client.call(STATUS).pid
    process = waiting.open_process(client, pid)
    began = time.monotonic()
    view = client.call(STOP, Stop(graceful=not quick))
    if not no_wait:
        with waiting.Meter("stopping", wanted=not aim.json) as meter:
            waiting.stopped(client, process, meter, waiting.Patience(timeout))
    if aim.json:
        print_json(view)
    elif no_wait:
        print_line(f"stop of pid {pid} asked")
    else:
        print_line(f"pid {pid} stopped ({duration(time.monotonic() - began)})")


@cli.command("open")
@click.option("--no-browser", is_flag=True, help="Only print the address.")
@_aimed
@click.make_pass_decorator(Aim, ensure=True)
def open_dashboard(aim: Aim, no_browser: bool) -> None:
    """Print an address that opens the dashboard once, and open it if there is a display."""
    link = aim.client().call(LOGIN_LINK)
    if aim.json:
        print_json(link)
        return
    print_line(link.url)
    sys.stdout.flush()
    if not _ADDRESS.fullmatch(link.url):
        # A browser takes options, and opens files and programs as well.
        raise OstlerError("what the daemon gave for an address is none")
    if not no_browser and (os.environ.get("DISPLAY") or os.environ.get("WAYLAND_DISPLAY")):
        from ostler.cli.browser import open_in_browser

        try:
            open_in_browser(link.url)
        except OSError as error:
            raise OstlerError(
                f"can't make a file for the browser: {error}; open the address yourself"
            ) from None


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
        # The reader has seen enough (`ctl workers | head -1`).
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
    except NotClear as error:
        _fail(prog, str(error), error.exit_code, error.known)
    except OstlerError as error:
        _fail(prog, str(error), error.exit_code)
    except OSError as error:
        # Whatever can go wrong with the daemon is an OstlerError; what is left is our own output.
        _drop_output()
        _fail(prog, f"can't write the output: {error.strerror or error}", ExitCode.FAILED)
    # With standalone_mode off, click hands back the code of --help and --version and a command's own result.
    sys.exit(code if isinstance(code, int) else ExitCode.OK)


def _drop_output() -> None:
    """What is left in the buffer must go nowhere, or the interpreter complains about it at exit."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _fail(prog: str, message: str, code: int, more: Sequence[str] = ()) -> NoReturn:
    output.complain(f"{prog}: error: {message}", *more)
    sys.exit(code)
