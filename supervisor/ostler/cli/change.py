"""The commands of `ctl` that change something.

Each sends its request, waits for the outcome, and exits with 0 only if the wanted outcome was reached.
"""

import sys
import time

import click

from ostler.cli import output, waiting
from ostler.cli.output import duration, print_json, print_line
from ostler.cli.progress import Meter, Roll
from ostler.cli.reloading import check_reload
from ostler.cli.target import Target, pass_target, with_target, with_waiting
from ostler.control.routes import (
    DRAIN,
    EVENTS,
    PAUSE,
    RECYCLE,
    REFORK,
    RESUME,
    SCALE,
    STATUS,
    STOP,
    UPGRADE,
    WORKERS,
)
from ostler.control.views import ReforkBody, Scale, StatusView, Stop
from ostler.errors import OstlerError


# -1 is an amount here, not an option.
@click.command(context_settings={"ignore_unknown_options": True})
@click.argument("amount", metavar="N|+N|-N|auto")
@with_waiting
@with_target
@pass_target
def scale(target: Target, amount: str, timeout: float, no_wait: bool) -> None:
    """Set the number of workers (5), change it (+2, -1), or give up what was set so (auto)."""
    ask = Scale(auto=True) if amount == "auto" else _scale(amount)
    client = target.client()
    before = client.call(STATUS).wanted
    began = time.monotonic()
    after = client.call(SCALE, ask)
    if not no_wait:
        with Meter(f"{before} -> {after.wanted} workers", wanted=not target.json) as meter:
            number = None if ask.auto else after.wanted
            after = waiting.scaled(client, number, meter, waiting.WaitLimit(timeout))
    if target.json:
        print_json(after)
        return
    outcome = "asked" if no_wait else f"all ready ({duration(time.monotonic() - began)})"
    if ask.delta is not None and before + ask.delta < after.wanted == 1:
        outcome += f"; {ask.delta} stopped at 1, the least (ctl stop ends the daemon)"
    print_line(f"{before} -> {after.wanted} workers, {outcome}")


def _scale(amount: str) -> Scale:
    digits = amount.lstrip("+-") if amount[:1] in "+-" and amount[1:2].isdigit() else amount
    if not (digits.isascii() and digits.isdigit() and len(digits) < 10):
        kind = "no such option" if amount.startswith("-") else "not a number of workers"
        raise click.UsageError(f"{kind}: {amount}")
    return Scale(workers=int(amount)) if amount == digits else Scale(delta=int(amount))


@click.command()
@click.argument("slot", type=click.IntRange(min=1), metavar="SLOT")
@with_waiting
@with_target
@pass_target
def recycle(target: Target, slot: int, timeout: float, no_wait: bool) -> None:
    """Replace one worker, its successor first."""
    client = target.client()
    began = time.monotonic()
    old = client.call(RECYCLE, slot=slot)
    new = old
    if not no_wait:
        with Meter(f"worker {slot}", wanted=not target.json) as meter:
            new = waiting.recycled(client, slot, old.pid, meter, waiting.WaitLimit(timeout))
    if target.json:
        print_json(new)
    elif no_wait:
        print_line(f"worker {slot}: recycling of pid {old.pid} asked")
    else:
        print_line(f"worker {slot}: pid {old.pid} -> {new.pid}, ready ({duration(time.monotonic() - began)})")


@click.command()
@click.option(
    "--slot", type=click.IntRange(min=1), metavar="N", help="This worker; else the one that served most."
)
@click.option("--force", is_flag=True, help="Also if the worker is found unsafe to fork from.")
@with_waiting
@with_target
@pass_target
def refork(target: Target, slot: int | None, force: bool, timeout: float, no_wait: bool) -> None:
    """Make a warmed-up worker the one that new workers are forked from, and replace the others."""
    client, limit = target.client(), waiting.WaitLimit(timeout)
    old = {worker.pid for worker in client.call(WORKERS)}
    began = time.monotonic()
    asked = client.call(REFORK, ReforkBody(slot, force))
    if no_wait:
        print_json(asked) if target.json else print_line("refork asked")
        return
    with Meter("refork", wanted=not target.json) as meter:
        outcome = waiting.happened(client, asked.after, ("refork_done", "refork_refused"), limit)
        if outcome.name == "refork_done":
            waiting.replaced(client, old, meter, limit)
    for event in client.call(EVENTS, after=asked.after):
        if event.name == "refork_warning" and event.id < outcome.id:
            output.print_problem(f"ctl: warning: {event.fields.get('problem')}")
    if target.json:
        print_json(outcome)
    if outcome.name == "refork_refused":
        hint = "" if force else " (--force does it all the same)"
        raise OstlerError(f"the refork was refused: {outcome.fields.get('problem', 'see the log')}{hint}")
    if not target.json:
        fields, took = outcome.fields, duration(time.monotonic() - began)
        print_line(
            f"generation {fields.get('generation')}: forked from worker {fields.get('slot')}, "
            f"pid {fields.get('pid')}, from now on; all others replaced ({took})"
        )


@click.command()
@with_waiting
@with_target
@pass_target
def upgrade(target: Target, timeout: float, no_wait: bool) -> None:
    """Replace the supervisor's own program, keeping pid, listeners and workers; then reload."""
    client, limit = target.client(), waiting.WaitLimit(timeout)
    before = client.call(STATUS)
    roll = Roll(client.call(WORKERS), wanted=not target.json)
    process = waiting.open_process(client, before.pid)
    asked = client.call(UPGRADE)
    if no_wait:
        print_json(asked) if target.json else print_line(f"upgrade of pid {before.pid} asked")
        return
    with Meter("upgrade", wanted=not target.json):
        began = time.monotonic()
        after = waiting.upgraded(client, before, asked.after, process, limit)
        took = time.monotonic() - began
    if not target.json:
        print_line(f"pid {before.pid}: Ostler {before.version} -> {after.version} ({duration(took)})")
        sys.stdout.flush()
    newest = before.reload.generation if before.reload else 0
    generation = waiting.reload_after(client, max(newest, before.generation), limit).generation
    with roll:
        view = waiting.reloaded(client, generation, roll, limit)
    after = client.call(STATUS)
    if target.json:
        print_json(after)
    check_reload(view, generation)
    if not target.json:
        output.print_reload(view, before, after)


@click.command()
@click.option("--quick", is_flag=True, help="Do not let requests in flight finish.")
@with_waiting
@with_target
@pass_target
def stop(target: Target, quick: bool, timeout: float, no_wait: bool) -> None:
    """End the daemon."""
    client = target.client()
    pid = client.call(STATUS).pid
    process = waiting.open_process(client, pid)
    began = time.monotonic()
    view = client.call(STOP, Stop(graceful=not quick))
    if not no_wait:
        with Meter("stopping", wanted=not target.json) as meter:
            waiting.stopped(client, process, meter, waiting.WaitLimit(timeout))
    if target.json:
        print_json(view)
    elif no_wait:
        print_line(f"stop of pid {pid} asked")
    else:
        print_line(f"pid {pid} stopped ({duration(time.monotonic() - began)})")


@click.command()
@with_waiting
@with_target
@pass_target
def pause(target: Target, timeout: float, no_wait: bool) -> None:
    """Drain all workers and keep the daemon; connections wait until `ctl resume`."""
    client = target.client()
    view = client.call(PAUSE)
    if not no_wait:
        with Meter("pausing", wanted=not target.json) as meter:
            view = waiting.paused(client, meter, waiting.WaitLimit(timeout))
    _print_state(target, view, "pause asked" if no_wait else "paused; `ctl resume` serves again")


@click.command()
@with_target
@pass_target
def drain(target: Target) -> None:
    """Answer /readyz with 503 so that load balancers send nothing new; the workers serve on."""
    _print_state(target, target.client().call(DRAIN), "draining; `ctl resume` takes it back")


@click.command()
@with_waiting
@with_target
@pass_target
def resume(target: Target, timeout: float, no_wait: bool) -> None:
    """End a pause and a drain."""
    client = target.client()
    view = client.call(RESUME)
    if not no_wait:
        with Meter("resuming", wanted=not target.json) as meter:
            view = waiting.scaled(client, view.override, meter, waiting.WaitLimit(timeout))
    _print_state(target, view, "resume asked" if no_wait else f"{view.ready} of {view.wanted} workers ready")


def _print_state(target: Target, view: StatusView, outcome: str) -> None:
    if target.json:
        print_json(view)
    else:
        print_line(outcome)


COMMANDS = (scale, recycle, refork, upgrade, pause, drain, resume, stop)
