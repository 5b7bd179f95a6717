"""Upgrades in place: check the new program, become it, and then reload."""

from ostler.fleet import actions, events, reloads
from ostler.fleet.step import FleetStep


def asked(step: FleetStep, event: events.UpgradeAsked) -> None:
    state = step.state
    problem = None
    if state.stopping or state.stop_at is not None or not state.announced:
        problem = "the fleet stops or has not started yet"
    elif state.upgrading is not None:
        problem = "another upgrade is running"
    elif state.reload is not None and state.reload.running:
        problem = "a reload is running"
    if problem is not None:
        step.report("warning", "upgrade_failed", {"problem": problem, "by": event.by})
        return
    state.upgrading = "checking"
    step.report("info", "upgrade", {"by": event.by})
    step.do(actions.CheckUpgrade())


def checked(step: FleetStep, event: events.UpgradeChecked) -> None:
    state = step.state
    if state.upgrading is None:
        return
    if event.problem is not None:
        state.upgrading = None
        step.report("error", "upgrade_failed", {"problem": event.problem})
    elif state.upgrading == "checking":
        state.upgrading = "replacing"
        step.do(actions.Upgrade())


def done(step: FleetStep, event: events.UpgradeDone) -> None:
    state = step.state
    state.upgrading = None
    step.report("info", "upgraded", {"version": event.version})
    if not state.stopping:
        reloads.begin(step, "upgrade", events.UpgradeDone)
