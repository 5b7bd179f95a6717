"""When files that change because of reloads cause further ones."""

from ostler.daemon.file_watching.repeated_changes import DELAYS, PAUSES, TOLERATED, RepeatedChanges


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


def written_after(repeated: RepeatedChanges, reloads: int, now: float = 100.0) -> tuple[float, list[float]]:
    """A program writes a file 2 s after each of so many reloads, and reloads take 1 s; returns the time, and
    for how long each reload was delayed.
    """
    delays = []
    for _ in range(reloads):
        now += 2
        if repeated.changed(["made"], False, now):
            delays.append(0.0)
        else:
            assert repeated.due is not None
            assert not repeated.take_due(repeated.due - 0.1)
            delays.append(repeated.due - now)
            now = repeated.due
            assert repeated.take_due(now) == {"made"}
        now += 1
        repeated.reload_ended(now)
    return now, delays


def test_written_after_each_reload() -> None:
    """Reloads by a file that changes again after each of them wait longer and longer, and do not end."""
    _, delays = written_after(RepeatedChanges(), 30)
    first = [0.0] * TOLERATED
    assert delays == [*first, *PAUSES, *[PAUSES[-1]] * (30 - TOLERATED - len(PAUSES))]


def test_left_alone_after_a_reload() -> None:
    """A pause begins again with each change; a file that was left alone, or another one, reloads at once."""
    repeated = RepeatedChanges()
    now, _ = written_after(repeated, TOLERATED + 3)
    for _ in range(9):
        now += 1.5
        assert not repeated.changed(["made"], False, now)
        assert repeated.due == now + PAUSES[3]
    assert repeated.changed(["page"], False, now + 1), "an edit meanwhile takes it along"
    assert repeated.due is None
    repeated.reload_ended(now + 2)
    assert not repeated.changed(["made"], False, now + 4)
    assert repeated.take_due(now + 40) == {"made"}
    repeated.reload_ended(now + 41)
    assert repeated.changed(["made"], False, now + 50), "it was left alone"
    repeated.reload_ended(now + 51)
    assert written_after(repeated, 3, now + 51)[1] == [0.0] * 3
    now, _ = written_after(repeated, TOLERATED, now + 80)
    assert repeated.changed(["page"], False, now + 1)
    repeated.reload_ended(now + 2)
    assert written_after(repeated, 3, now + 2)[1] == [0.0] * 3
