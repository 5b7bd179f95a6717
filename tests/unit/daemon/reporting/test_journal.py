"""The journal of events, and how the next program of an upgrade continues it."""

import msgspec

from ostler.daemon.reporting.journal import Journal, JournalState
from tests.unit.control.fake import captured_log


def a_journal() -> Journal:
    log, _ = captured_log()
    return Journal(log)


def test_the_newest_thousand() -> None:
    """Numbers continue, old events are dropped."""
    journal = a_journal()
    for number in range(1500):
        journal.record("info", "tick", {"number": number})
    assert [event.id for event in journal.recent] == list(range(501, 1501))


def test_long_texts_are_kept_short() -> None:
    """Only the two ends of a very long stack are kept; the log has all of it."""
    log, records = captured_log()
    journal = Journal(log)
    stack = "first\n" + "x" * 100_000 + "\nlast"
    journal.record("error", "worker_crashed", {"stack": stack, "slot": 1})
    kept = journal.recent[0].fields["stack"]
    assert len(kept) < 10_000
    assert kept.startswith("first\n")
    assert kept.endswith("\nlast")
    assert records[0]["stack"] == stack


def test_another_program_goes_on() -> None:
    """Events and numbers continue, also if an event was recorded before they arrived."""
    before = a_journal()
    before.record("info", "one", {"slot": 1})
    before.record("debug", "nothing", {})
    before.record("info", "two", {})
    after = a_journal()
    after.record("info", "early", {})
    after.restore(msgspec.json.decode(msgspec.json.encode(before.snapshot()), type=JournalState))
    after.record("info", "three", {})
    assert [(event.id, event.name) for event in after.recent] == [
        (1, "one"),
        (2, "two"),
        (3, "early"),
        (4, "three"),
    ]
