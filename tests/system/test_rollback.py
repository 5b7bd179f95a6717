"""`ctl rollback`, `reload --abort`, `reload --wait-probation`, `wait`, while the code on the disk changes."""

from concurrent.futures import ThreadPoolExecutor

import pytest

from ostler.control.routes import ROLLBACK
from tests.kit.daemon import Daemon, Place
from tests.kit.tiers import thorough
from tests.system.test_signals import page

pytestmark = pytest.mark.system


def versions(place: Place, *args: str) -> Daemon:
    """A daemon whose app is at its second version; the first one is kept."""
    place.add("page.py", page("one"))
    daemon = place.start("-w", "2", *args, "page:app")
    place.add("page.py", page("two"))
    assert daemon.ctl("reload").code == 0
    assert daemon.get().text == "two"
    return daemon


@pytest.mark.parametrize("preload", [[], *thorough(["--preload"])])
def test_rollback(place: Place, preload: list[str]) -> None:
    """The old code serves again, although the new one is on the disk, long after the probation."""
    daemon = versions(place, "--probation", "0.1", "--keep-generations", "1", *preload)
    daemon.until(lambda: not (reload := daemon.status().reload) or not reload.on_probation, "its end")
    assert daemon.status().rollback_to == 1
    done = daemon.ctl("rollback")
    assert (done.code, done.out) == (0, "roll-back from generation 2 to generation 1 done\n")
    assert {daemon.get().text for _ in range(8)} == {"one"}
    again = daemon.ctl("rollback")
    assert (again.code, "no older generation is kept" in again.err) == (1, True)


def test_wait_probation(place: Place) -> None:
    """A roll-back on probation is a failure for a command that waits for that; `ctl wait` attaches again."""
    place.add("page.py", page("one"))
    daemon = place.start("-w", "2", "--probation", "600", "--rollback-crashes", "1", "page:app")
    place.add("page.py", page("two"))
    assert daemon.ctl("reload").code == 0
    late = daemon.ctl("wait", "--wait-probation", "--timeout", "0.1")
    assert (late.code, "not done after" in late.err) == (1, True)
    assert daemon.ctl("wait").code == 0
    daemon.client.call(ROLLBACK)
    done = daemon.ctl("wait", "--wait-probation")
    assert (done.code, "the reload was rolled back" in done.err) == (1, True)


def test_a_reload_that_waits_for_its_probation(place: Place) -> None:
    """A roll-back meanwhile is a failure of the command, although the reload itself was done."""
    place.add("page.py", page("one"))
    daemon = place.start("-w", "2", "--probation", "600", "page:app")
    place.add("page.py", page("two"))
    with ThreadPoolExecutor(1) as pool:
        waiting = pool.submit(daemon.ctl, "reload", "--wait-probation")
        daemon.until(lambda: (reload := daemon.status().reload) and reload.on_probation, "the probation")
        assert not waiting.done()
        daemon.client.call(ROLLBACK)
        done = waiting.result()
    assert (done.code, "the reload was rolled back" in done.err) == (1, True)
    daemon.until(lambda: daemon.get().text == "one", "the old code serves")


def test_abort(place: Place) -> None:
    """A reload whose app takes long to load is given up, and the old workers serve on."""
    place.add("page.py", page("one"))
    daemon = place.start("page:app")
    place.add("page.py", f"import time\ntime.sleep(600)\n{page('two')}")
    asked = daemon.ctl("reload", "--no-wait")
    assert asked.code == 0
    done = daemon.ctl("reload", "--abort")
    assert (done.code, done.out) == (0, "the reload to generation 2 was aborted\n")
    assert daemon.get().text == "one"
    again = daemon.ctl("reload", "--abort")
    assert (again.code, "no reload is running" in again.err) == (1, True)
