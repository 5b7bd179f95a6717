"""The commands of `ctl` that show something."""

import os
import re
import sys

import click

from ostler.cli import output
from ostler.cli.output import print_json, print_line
from ostler.cli.target import Target, pass_target, with_target
from ostler.control.routes import CONFIG, EVENTS, EXITS, LOGIN_LINK, STATUS, WORKERS
from ostler.errors import OstlerError

_ALL = 1000
_ADDRESS = re.compile(r"http://[!-~]{1,200}")


@click.command()
@with_target
@pass_target
def status(target: Target) -> None:
    """How the fleet is."""
    client = target.client()
    if target.json:
        print_json(client.raw(STATUS))
    else:
        output.print_status(client.call(STATUS))


@click.command()
@with_target
@pass_target
def workers(target: Target) -> None:
    """All workers and what they do right now."""
    client = target.client()
    if target.json:
        print_json(client.raw(WORKERS))
    else:
        table = client.call(WORKERS)
        output.print_workers(table)


@click.command()
@with_target
@pass_target
def requests(target: Target) -> None:
    """The requests that are in the app right now, the oldest first."""
    in_flight = [request for worker in target.client().call(WORKERS) for request in worker.in_flight]
    in_flight.sort(key=lambda request: -request.age)
    if target.json:
        print_json(in_flight)
    else:
        output.print_requests(in_flight)


@click.command()
@with_target
@pass_target
def config(target: Target) -> None:
    """All settings, and where each value comes from."""
    client = target.client()
    if target.json:
        print_json(client.raw(CONFIG))
    else:
        output.print_config(client.call(CONFIG))


@click.command()
@click.argument("number", required=False, type=click.IntRange(min=1), metavar="[ID]")
@click.option(
    "-n", "count", type=click.IntRange(min=1), default=20, show_default=True, metavar="N", help="How many."
)
@click.option("--last", is_flag=True, help="Show the newest one with all that is known of it.")
@with_target
@pass_target
def exits(target: Target, number: int | None, count: int, last: bool) -> None:
    """How processes ended, the newest first; with an ID or --last all of one, with its stack."""
    if number is not None and last:
        raise click.UsageError("give an ID or --last, not both")
    client = target.client()
    if number is None and not last:
        if target.json:
            print_json(client.raw(EXITS, limit=count))
        else:
            table = client.call(EXITS, limit=count)
            output.print_exits(table)
        return
    found = client.call(EXITS, limit=1 if last else _ALL)
    view = next((view for view in found if number in (None, view.id)), None)
    if view is None:
        raise OstlerError("no process has ended yet" if last else f"no exit has the id {number}")
    (print_json if target.json else output.print_exit)(view)


@click.command()
@click.option(
    "-n", "count", type=click.IntRange(min=1), default=20, show_default=True, metavar="N", help="How many."
)
@with_target
@pass_target
def events(target: Target, count: int) -> None:
    """What happened to the fleet, the newest last."""
    newest = target.client().call(EVENTS)[-count:]
    if target.json:
        print_json(newest)
    else:
        output.print_events(newest)


@click.command("open")
@click.option("--no-browser", is_flag=True, help="Only print the address.")
@with_target
@pass_target
def open_dashboard(target: Target, no_browser: bool) -> None:
    """Print an address that opens the dashboard once, and open it if there is a display."""
    link = target.client().call(LOGIN_LINK)
    if target.json:
        print_json(link)
        return
    print_line(link.url)
    sys.stdout.flush()
    if not _ADDRESS.fullmatch(link.url):
        # A browser takes options, and opens files and programs as well.
        raise OstlerError("the daemon sent an address that is not the dashboard's")
    if not no_browser and (os.environ.get("DISPLAY") or os.environ.get("WAYLAND_DISPLAY")):
        from ostler.cli.browser import open_in_browser

        try:
            open_in_browser(link.url)
        except OSError as error:
            raise OstlerError(
                f"can't make a file for the browser: {error}; open the address yourself"
            ) from None


COMMANDS = (status, workers, requests, config, exits, events, open_dashboard)
