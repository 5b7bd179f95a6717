"""The commands of `ctl` about reloads: start one, give it up, take it back, wait for it.

The exit code is 0 only if the new generation serves (or the old one, if that was wanted).
"""

import click
from click.core import ParameterSource

from ostler.cli import output, waiting
from ostler.cli.output import print_json, print_line
from ostler.cli.progress import Meter, Roll
from ostler.cli.target import Target, pass_target, with_target, with_timeout, with_waiting
from ostler.control.client import Client
from ostler.control.routes import ABORT_RELOAD, CONFIG, RELOAD, RELOAD_STATUS, ROLLBACK, STATUS, WORKERS
from ostler.control.views import ReloadView, StatusView
from ostler.errors import OstlerError

_probation = click.option(
    "--wait-probation",
    is_flag=True,
    help="Wait until the probation is over, too: a roll-back by then is a failure. Without --timeout "
    "the probation is waited for in any case.",
)


@click.command()
@click.option("--abort", is_flag=True, help="Give up the reload that is running instead.")
@_probation
@with_waiting
@with_target
@pass_target
def reload(target: Target, timeout: float, no_wait: bool, wait_probation: bool, abort: bool) -> None:
    """Load configuration and app again and replace all workers, without a pause."""
    client = target.client()
    if abort:
        _abort(target, client, timeout, no_wait)
        return
    before, roll = client.call(STATUS), _roll(target, client, no_wait)
    view = client.call(RELOAD)
    if no_wait:
        if target.json:
            print_json(view)
        check_reload(view, view.generation)
        if not target.json:
            print_line(f"reload to generation {view.generation} asked")
        return
    _follow(target, client, before, view.generation, roll, waiting.WaitLimit(timeout), wait_probation)


@click.command()
@_probation
@with_timeout
@with_target
@pass_target
def wait(target: Target, timeout: float, wait_probation: bool) -> None:
    """Wait for the newest reload; return at once if it has ended. The exit code is that of `ctl reload`."""
    client = target.client()
    before, roll = client.call(STATUS), _roll(target, client, no_wait=False)
    generation = client.call(RELOAD_STATUS).generation
    _follow(target, client, before, generation, roll, waiting.WaitLimit(timeout), wait_probation)


@click.command()
@with_waiting
@with_target
@pass_target
def rollback(target: Target, timeout: float, no_wait: bool) -> None:
    """Serve with the generation before again, as long as it is kept (--keep-generations)."""
    client = target.client()
    bad = client.call(STATUS).generation
    view = client.call(ROLLBACK)
    if not no_wait:
        view = _all_of_current(target, client, "rolling back", timeout)
    if target.json:
        print_json(view)
    else:
        outcome = "asked" if no_wait else "done"
        print_line(f"roll-back from generation {bad} to generation {view.generation} {outcome}")


def _roll(target: Target, client: Client, no_wait: bool) -> Roll:
    return Roll(client.call(WORKERS), wanted=not (target.json or no_wait))


def _follow(
    target: Target,
    client: Client,
    before: StatusView,
    generation: int,
    roll: Roll,
    limit: waiting.WaitLimit,
    wait_probation: bool,
) -> None:
    """Wait for the end of a reload, print it, and fail if it has failed."""
    with roll:
        view = waiting.reloaded(client, generation, roll, limit)
    if wait_probation and view.phase == "done":
        if click.get_current_context().get_parameter_source("timeout") is ParameterSource.DEFAULT:
            limit.extend(_probation_seconds(client))
        with Meter("probation", wanted=not target.json):
            view = waiting.probation_over(client, generation, limit)
    if target.json:
        print_json(view)
    check_reload(view, generation)
    if not target.json:
        output.print_reload(view, before, client.call(STATUS))


def _probation_seconds(client: Client) -> float:
    """How long the current generation is on probation at most."""
    values = {setting.name: setting.value for setting in client.call(CONFIG).settings}
    seconds = values.get("probation")
    return float(seconds) if isinstance(seconds, int | float) else 0.0


def _abort(target: Target, client: Client, timeout: float, no_wait: bool) -> None:
    view = client.call(ABORT_RELOAD)
    if not no_wait:
        _all_of_current(target, client, "aborting", timeout)
    if target.json:
        print_json(view)
    else:
        print_line(f"the reload to generation {view.generation} was aborted")


def _all_of_current(target: Target, client: Client, title: str, timeout: float) -> StatusView:
    """Wait until only workers of the generation that is current now are left, and all are ready."""
    current = client.call(STATUS).generation
    others = {worker.pid for worker in client.call(WORKERS) if worker.generation != current}
    with Meter(title, wanted=not target.json) as meter:
        waiting.replaced(client, others, meter, waiting.WaitLimit(timeout))
    return client.call(STATUS)


def check_reload(view: ReloadView, generation: int) -> None:
    """Raise OstlerError for a reload that did not succeed, after printing its traceback."""
    if view.generation != generation or view.phase == "superseded":
        raise OstlerError(f"the reload to generation {generation} was superseded by another")
    if view.phase in ("failed", "rolled back"):
        if view.traceback:
            output.show_traceback(view.traceback)
        reason = " ".join((view.reason or "no reason given").split())
        how = "the reload failed" if view.phase == "failed" else "the reload was rolled back"
        raise OstlerError(f"{how}, the old generation serves on: {reason}")


COMMANDS = (reload, wait, rollback)
