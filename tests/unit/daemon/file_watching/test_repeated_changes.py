"""When files that change because of reloads cause further ones."""

from ostler.daemon.file_watching.repeated_changes import DELAYS, TOLERATED, RepeatedChanges


def caught(repeated: RepeatedChanges, *files: str) -> float:
    """Change files during each reload that they cause until no reload follows; returns the time."""
    now = 100.0
    assert repeated.changed(files, False, now)
    for _ in range(TOLERATED - 1):
        now += 0.1
        assert repeated.changed(files, True, now)
    for delay in DELAYS:
        now += 0.1
        assert not repeated.changed(files, True, now)
        assert repeated.due == now + delay
        assert not repeated.take_due(now)
        now += delay
        assert repeated.take_due(now) == set(files)
    now += 0.1
    assert not repeated.changed(files, True, now)
    assert repeated.due is None
    assert all(map(repeated.is_left_out, files))
    return now


def test_reloads_end() -> None:
    """A file that changes during each reload reloads ten times, then after delays, then no more."""
    caught(RepeatedChanges(), "made")
    caught(RepeatedChanges(), "made", "made too")


def test_left_alone() -> None:
    """A delayed reload waits until the file has not changed for so long."""
    repeated = RepeatedChanges()
    now = 100.0
    for _ in range(TOLERATED):
        assert repeated.changed(["log"], True, now)
        now += 0.5
    for number in range(100):
        assert not repeated.changed(["log"], not number, now)
        assert not repeated.take_due(now)
        now += 0.5
    assert repeated.take_due(now + DELAYS[0]) == {"log"}


def test_edits_count() -> None:
    """Edits of other files, and edits after a reload, reload at once; so do first edits during a reload."""
    repeated = RepeatedChanges()
    now = caught(repeated, "made")
    assert repeated.changed(["page", "made"], True, now)
    assert not repeated.changed(["made"], True, now)
    repeated.reload_ended(now)
    assert not repeated.changed(["made"], False, now + 0.5), "written at the reload's end"
    assert repeated.changed(["made"], False, now + 5)
    assert not repeated.changed(["made"], True, now + 5.1)
    for number in range(30):  # by hand, each after the reload
        repeated.reload_ended(now + 10 * number + 1)
        assert repeated.changed(["page"], False, now + 10 * number + 5)
        assert repeated.delay("page") == 0


def test_no_longer_written() -> None:
    """A file that a whole reload has not changed counts as any other again."""
    repeated = RepeatedChanges()
    now = caught(repeated, "made")
    repeated.reload_ended(now)
    assert repeated.changed(["page"], False, now + 5)
    repeated.reload_ended(now + 6)
    assert repeated.changed(["page"], False, now + 10)
    assert not repeated.is_left_out("made")
    assert repeated.changed(["made"], True, now + 10.1)


def test_superseded_reload() -> None:
    """A reload that another one has replaced says nothing about what it would have written."""
    repeated = RepeatedChanges()
    now = caught(repeated, "made")
    for _ in range(3):
        assert repeated.changed(["page"], True, now)
    assert repeated.is_left_out("made")
