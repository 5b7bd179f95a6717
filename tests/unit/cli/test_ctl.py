"""`ctl` with a fake daemon whose fleet advances by one step at each request."""

import os
import re
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import msgspec
import pytest

from ostler.cli import ctl, output, progress, waiting
from ostler.control import client, sockets
from ostler.control.client import Client
from ostler.control.routes import RELOAD, RELOAD_STATUS
from ostler.control.views import (
    ChangeView,
    ConfigView,
    EventView,
    ExitView,
    FleetState,
    ReloadView,
    RequestView,
    StatusView,
    WorkerView,
)
from ostler.fleet.events import Event, RecycleAsked, ReloadAsked, ResizeAsked, StopAsked
from tests.kit.terminal import terminal
from tests.unit.control.fake import TOKEN, FakeBackend, FakeWorker, Served, an_exit, served


class Done(NamedTuple):
    code: int
    out: str
    err: str


Ctl = Callable[..., Done]


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The only folder where `ctl` looks; polling takes no time."""
    for name in ("OSTLER_SOCKET", "OSTLER_URL", "OSTLER_TOKEN", "DISPLAY", "WAYLAND_DISPLAY"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(client, "candidate_dirs", lambda: [tmp_path])
    monkeypatch.setattr(waiting, "POLL_SECONDS", 0.0)
    return tmp_path


@pytest.fixture
def daemon(place: Path) -> Iterator[Served]:
    with served(place / "shop.sock") as running:
        yield running


@pytest.fixture
def run(place: Path, capsys: pytest.CaptureFixture[str]) -> Ctl:
    def run(*argv: str, prog: str = "ctl") -> Done:
        with pytest.raises(SystemExit) as caught:
            ctl.main(list(argv), prog)
        out, err = capsys.readouterr()
        return Done(int(caught.value.code or 0), out, err)

    return run


# -- reading ---------------------------------------------------------------------------------------------


def test_status_for_people(daemon: Served, run: Ctl) -> None:
    """Name, app, health and addresses are shown; brackets of an IPv6 address are no markup."""
    done = run("status")
    assert done.code == 0
    for words in (
        "shop",
        "flaskapp:app",
        "3 of 3 workers are ready.",
        "http://[::1]:8000",
        "pid 4242, up 1h02m",
    ):
        assert words in done.out


@pytest.mark.parametrize(
    ("command", "view"),
    [
        ("status", StatusView),
        ("workers", list[WorkerView]),
        ("requests", list[RequestView]),
        ("config", ConfigView),
        ("exits", list[ExitView]),
    ],
)
def test_json_is_the_apis_own(daemon: Served, run: Ctl, command: str, view: Any) -> None:
    """--json, before or after the command, prints the view with the API's names."""
    after, before = run(command, "--json"), run("--json", command)
    assert after.code == 0
    msgspec.json.decode(after.out, type=view)
    assert after.out == before.out
    if command == "workers":
        assert [w["slot"] for w in msgspec.json.decode(after.out)] == [1, 2, 3]


def in_flight(path: str, age: float = 4.25) -> RequestView:
    return RequestView(2, 102, 0, "GET", path, age, 25.75)


def test_workers_are_not_cut_off(daemon: Served, run: Ctl) -> None:
    """Without a terminal the longest path is complete and each worker is one line;
    control characters are escaped.
    """
    path = "/" + "long/" * 80 + "\x1b[31mred"
    daemon.backend.fleet[1].in_flight = [in_flight(path)]
    lines = run("workers").out.splitlines()
    assert len(lines) == 4
    assert lines[0].split() == "slot pid gen state age requests conns in flight cpu rss uss deadline".split()
    assert f"GET {path[:-8]}" in lines[2]
    assert "\\x1b[31mred 4.2s" in lines[2]
    assert "40.0 MiB" in lines[2]
    assert lines[2].rstrip().endswith("25s")


def test_requests_the_oldest_first(daemon: Served, run: Ctl) -> None:
    """The request that has run longest is first."""
    daemon.backend.fleet[0].in_flight = [in_flight("/young", 0.5)]
    daemon.backend.fleet[1].in_flight = [in_flight("/old", 500.0)]
    out = run("requests").out
    assert out.index("/old") < out.index("/young")
    assert "8m20s" in out


def test_upgraded_requests(daemon: Served, run: Ctl) -> None:
    """They are named, have no deadline, and hide no other request of a worker."""
    websocket = msgspec.structs.replace(in_flight("/ws", 9000.0), deadline_in=None, upgraded=True)
    daemon.backend.fleet[1].in_flight = [websocket, in_flight("/slow")]
    out = run("workers").out
    assert out.index("GET /slow") < out.index("GET /ws upgraded")
    assert [words.split()[-1] for words in run("requests").out.splitlines()[1:]] == ["upgraded", "25s"]


def test_no_requests(daemon: Served, run: Ctl) -> None:
    """An idle fleet is shown in words, or as an empty array."""
    assert run("requests").out == "no request is in flight\n"
    assert run("requests", "--json").out == "[]\n"


def test_config_for_people(daemon: Served, run: Ctl) -> None:
    """Each setting with value and origin; lists as JSON; an unset value is a dash, but null in JSON."""
    out = run("config").out
    assert re.search(r"pidfile +- +default +restart", out)
    assert '"value": null' in run("config", "--json").out
    assert re.search(r"workers +3 +command line +live", out)
    assert re.search(r'bind +\["127.0.0.1:8000"\] +default +restart', out)


def test_status_shows_a_number_set_by_hand(daemon: Served, run: Ctl) -> None:
    """The status shows that the number of workers was set by hand."""
    assert "by hand" not in run("status").out
    daemon.backend.override = 3
    assert "3 ready of 3 wanted, 0 booting, 0 draining; the number was set by hand" in run("status").out


def test_status_shows_an_upgrade(daemon: Served, run: Ctl) -> None:
    """The status shows when a new program has taken over."""
    assert "upgraded" not in run("status").out
    daemon.backend.program_since += 60
    assert "upgraded in place at 2023-11-1" in run("status").out


def test_exits(daemon: Served, run: Ctl) -> None:
    """One line for each end, newest first: when, which, why, how; -n is how many."""
    daemon.backend.ends = [
        an_exit(4, cause="crashed", status="signal 11 (SEGV)", last_requests=["GET /\x1b[31m"], slot=1),
        an_exit(3, kind="fork server", slot=None, cause="rolled", requests=0, last_requests=[]),
        *(an_exit(number) for number in (2, 1)),
    ]
    head, *lines = run("exits").out.splitlines()
    assert head.split() == "id when process pid age cause status requests peak memory last request".split()
    assert len(lines) == 4
    for words in ("4  2023-11-1", "worker 1", "104", "1h02m", "crashed", "signal 11 (SEGV)", "41.0 MiB"):
        assert words in lines[0]
    assert lines[0].endswith("GET /\\x1b[31m")
    assert re.search(r"fork server +103 .* rolled .* 41.0 MiB +-$", lines[1].rstrip())
    assert len(run("exits", "-n", "2").out.splitlines()) == 3
    view = msgspec.json.decode(run("exits", "--json").out, type=list[ExitView])
    assert [one.id for one in view] == [4, 3, 2, 1]


def test_one_exit(daemon: Served, run: Ctl) -> None:
    """One entry by its id, or the newest: all fields, and the stack at the end."""
    daemon.backend.ends = [
        an_exit(2, cause="deadline", last_requests=["GET /slow", "POST /x"], stack='File "app.py"\n  in f'),
        an_exit(1),
    ]
    done = run("exits", "--last")
    assert done.out.endswith('File "app.py"\n  in f\n')
    for words in ("worker 2, pid 102, generation 1", "deadline", "GET /slow", "POST /x"):
        assert words in done.out
    assert "recycled" in run("exits", "1").out
    assert msgspec.json.decode(run("exits", "2", "--json").out, type=ExitView).cause == "deadline"
    assert run("exits", "9") == Done(1, "", "ctl: error: no exit has the id 9\n")
    assert run("exits", "9", "--last").code == 2


def test_no_exits(daemon: Served, run: Ctl) -> None:
    """A daemon whose processes are all alive."""
    assert run("exits").out == "no process has ended since the daemon's start\n"
    assert run("exits", "--last") == Done(1, "", "ctl: error: no process has ended yet\n")


# -- changing --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("argv", "ask", "wanted"),
    [
        (["scale", "5"], {"workers": 5}, 5),
        (["scale", "+2"], {"delta": 2}, 5),
        (["scale", "-1"], {"delta": -1}, 2),
        (["scale", "--", "-1"], {"delta": -1}, 2),
        (["scale", "-1", "--timeout", "9"], {"delta": -1}, 2),
        (["scale", "--timeout=9", "-12"], {"delta": -12}, 1),
        (["scale", "3"], {"workers": 3}, 3),
    ],
)
def test_scale_waits_until_it_is_so(
    daemon: Served, run: Ctl, argv: list[str], ask: dict[str, int], wanted: int
) -> None:
    """With all spellings the command ends when exactly this number of workers is ready."""
    done = run(*argv)
    assert done.code == 0, done.err
    stopped = "" if ask.get("delta", 0) > -3 else "; -12 stopped at 1, the least (ctl stop ends the daemon)"
    assert re.fullmatch(rf"3 -> {wanted} workers, all ready \(\d+ ms\){re.escape(stopped)}\n", done.out)
    (event,) = daemon.backend.submitted
    assert isinstance(event, ResizeAsked)
    assert {"workers": event.workers, "delta": event.delta} == {"workers": None, "delta": None} | ask
    assert [worker.state for worker in daemon.backend.fleet] == ["ready"] * wanted


def test_scale_without_waiting(daemon: Served, run: Ctl) -> None:
    """--no-wait returns after the request was accepted."""
    daemon.backend.stuck = True
    assert run("scale", "+2", "--no-wait").out == "3 -> 5 workers, asked\n"


class Overtaken(FakeBackend):
    """A fleet in which something else happens while `ctl` waits.

    Args:
        change: does it; nothing moves before.
    """

    def __init__(self, change: Callable[["Overtaken"], object]) -> None:
        super().__init__()
        self._change = change
        self._looks = 0

    def submit(self, event: Event) -> None:
        super().submit(event)
        if not self._looks:
            self._looks, self.stuck = 1, True
            self.fleet[0].state = "booting"  # so that there is something to wait for

    def status(self) -> StatusView:
        if self._looks:
            self._looks += 1
        if self._looks == 4:  # the first status is the answer to the command
            self.stuck = False
            self._change(self)
        return super().status()


def resize(
    workers: int, override: int | None = None, state: FleetState = "ready"
) -> Callable[[Overtaken], object]:
    def change(fleet: Overtaken) -> None:
        fleet.submit(ResizeAsked("another", workers=workers))
        fleet.override, fleet.state = override, state

    return change


def test_scale_auto_follows_the_autoscaler(place: Path, run: Ctl) -> None:
    """If the load decides on another number while the command waits, the command waits for that number."""
    with served(place / "shop.sock", Overtaken(resize(6))):
        done = run("scale", "auto")
    assert (done.code, done.err) == (0, "")
    assert done.out.startswith("3 -> 6 workers, all ready")


@pytest.mark.parametrize(
    ("argv", "change", "reason"),
    [
        ("auto", resize(6, 6), "another command has set the wanted number of workers to 6"),
        ("auto", resize(0, state="paused"), "the fleet was paused meanwhile"),
        ("5", resize(6, 6), "another command has set the wanted number of workers to 6"),
        ("5", resize(6), "the number of workers is the configuration's again, 6: see `ctl events`"),
        ("5", resize(0, state="paused"), "the fleet was paused meanwhile"),
    ],
)
def test_scale_that_is_overtaken(
    place: Path, run: Ctl, argv: str, change: Callable[[Overtaken], object], reason: str
) -> None:
    """The command fails, with the real reason why another number is wanted."""
    with served(place / "shop.sock", Overtaken(change)):
        assert run("scale", argv) == Done(1, "", f"ctl: error: {reason}\n")


def test_recycle_of_a_slot_that_is_given_up(place: Path, run: Ctl) -> None:
    """A fleet that was scaled down meanwhile has no successor for the worker:
    the command does not wait for the time-out.
    """

    def change(fleet: Overtaken) -> None:
        fleet.wanted = 2
        fleet.fleet = [worker for worker in fleet.fleet if worker.slot < 3]

    with served(place / "shop.sock", Overtaken(change)):
        done = run("recycle", "3", "--timeout", "9")
    reason = "worker 3 has left and has no successor: 2 are wanted"
    assert done == Done(1, "", f"ctl: error: {reason}\n")


@pytest.mark.parametrize("name", ["reload_done", "reload_failed", None])
def test_a_reload_that_ends_just_before_another_begins(
    daemon: Served, run: Ctl, monkeypatch: pytest.MonkeyPatch, name: str | None
) -> None:
    """The command takes the end of its own reload from the events, even if a newer one already runs."""
    waited_for = waiting.reloaded

    def meanwhile(*arguments: Any) -> ReloadView:
        daemon.backend.stuck = True
        if name:
            daemon.backend.happen(name, generation=2, seconds=0.1, workers=3, reason="no app")
        daemon.backend.submit(ReloadAsked("another"))
        return waited_for(*arguments)

    monkeypatch.setattr(waiting, "reloaded", meanwhile)
    done = run("reload")
    assert (done.code == 0) == (name == "reload_done"), done
    if name == "reload_failed":
        assert done.err.endswith("the reload failed, the old generation serves on: no app\n")


def test_scale_as_json(daemon: Served, run: Ctl) -> None:
    """With --json a command that waits prints the view at the end, and nothing else."""
    view = msgspec.json.decode(run("scale", "+1", "--json").out, type=StatusView)
    assert (view.wanted, view.ready) == (4, 4)


def test_scale_gives_up(daemon: Served, run: Ctl) -> None:
    """A fleet that does not reach the number:
    exit 1 after the time-out, with its health sentence as the reason.
    """
    daemon.backend.stuck = True
    done = run("scale", "5", "--timeout", "0.05")
    assert done == Done(1, "", "ctl: error: not done after 0.05 s; 3 of 5 workers are ready.\n")


def test_scale_does_not_wait_for_a_degraded_fleet(
    daemon: Served, run: Ctl, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Workers that repeatedly fail to boot end the wait long before the time-out."""
    monkeypatch.setattr(waiting, "DEGRADED_SECONDS", 0.0)
    daemon.backend.stuck, daemon.backend.state = True, "degraded"
    done = run("scale", "5")
    assert done.code == 1
    assert done.err.startswith("ctl: error: the fleet is degraded: 3 of 5 workers are ready.")


@pytest.mark.parametrize("amount", ["five", "--five", "+", "-", "1.5", "²", "+-1", "", "99999999999"])
def test_scale_refuses_invalid_numbers(daemon: Served, run: Ctl, amount: str) -> None:
    """A typing error is a usage error: exit 2, one line, no request."""
    done = run("scale", amount)
    assert (done.code, done.out, done.err.count("\n")) == (2, "", 1)
    assert done.err.startswith("ctl: error: ")
    assert daemon.backend.submitted == []


def test_the_daemons_refusal_is_one_line(daemon: Served, run: Ctl) -> None:
    """An ErrorView is printed as it is, exit 1."""
    assert run("scale", "0") == Done(1, "", "ctl: error: workers must be from 1 to 512, not 0\n")
    assert run("recycle", "9") == Done(1, "", "ctl: error: there is no worker in slot '9'\n")


def test_reload(daemon: Served, run: Ctl) -> None:
    """The command ends when the reload is done:
    a line for each worker, the outcome, and the changed settings.
    """
    lines = [f"worker {slot}: pid {100 + slot} -> {1100 + slot}" for slot in (1, 2, 3)]
    summary = ["generation 2: 3 workers replaced (250 ms)", "no setting changed"]
    done = run("reload")
    assert (done.code, done.out.splitlines(), done.err) == (0, [*lines, *summary], "")
    (event,) = daemon.backend.submitted
    assert isinstance(event, ReloadAsked)


def test_a_failed_reload(daemon: Served, run: Ctl) -> None:
    """The app's traceback, then one line with the reason; exit 1."""
    daemon.backend.broken = True
    done = run("reload")
    assert (done.code, done.out) == (1, "")
    *traceback, last = done.err.splitlines()
    assert traceback == ["Traceback (most recent call last):", "SyntaxError: invalid syntax"]
    assert last == (
        "ctl: error: the reload failed, the old generation serves on: "
        "SyntaxError: invalid syntax (app.py, line 3)"
    )
    assert msgspec.json.decode(run("reload", "--json").out, type=ReloadView).phase == "failed"


def test_what_a_reload_has_changed(daemon: Served, run: Ctl) -> None:
    """The changes in one line."""
    daemon.backend.changes = [
        ChangeView("workers", 4, "2..6", "live"),
        ChangeView("bind", ["127.0.0.1:8000"], ["127.0.0.1:8002", "127.0.0.1:8000"], "generation"),
        ChangeView("raw_env", ["TOKEN=..."], ["TOKEN=..."], "generation"),
        ChangeView("pidfile", None, "/run/shop.pid", "restart"),
    ]
    assert run("reload").out.splitlines()[-1] == (
        "changed: workers 4 -> 2..6; bind +127.0.0.1:8002; raw_env changed; "
        "pidfile not set -> /run/shop.pid, which takes effect only after a restart"
    )


def test_what_becomes_of_a_number_set_by_hand(daemon: Served, run: Ctl) -> None:
    """A reload reports whether the number set by hand stays."""
    daemon.backend.override = 3
    assert run("reload").out.splitlines()[-1] == "the number of workers that was set by hand stays: 3"
    daemon.backend.override_ends = True
    last = run("reload").out.splitlines()[-1]
    assert last == "the configuration's 3 workers replace the 3 set by hand"


def test_a_reload_that_is_rolled_back(daemon: Served, run: Ctl) -> None:
    """Exit 1 with the reason: the new code does not serve."""
    daemon.backend.broken, daemon.backend.failure = True, "rolled back"
    done = run("reload")
    assert done.code == 1
    assert done.err.splitlines()[-1].startswith("ctl: error: the reload was rolled back, the old generation")


def test_a_superseded_reload(daemon: Served, run: Ctl, monkeypatch: pytest.MonkeyPatch) -> None:
    """When another reload takes over, ours fails."""
    daemon.backend.stuck = True
    real = waiting.reloaded

    def meanwhile(*arguments: Any) -> ReloadView:
        another = client.Client.unix(daemon.path)
        another.call(RELOAD)
        another.close()
        return real(*arguments)

    monkeypatch.setattr(waiting, "reloaded", meanwhile)
    done = run("reload")
    assert done == Done(1, "", "ctl: error: the reload to generation 2 was superseded by another\n")


def test_recycle_waits_for_the_successor(daemon: Served, run: Ctl) -> None:
    """The command ends when the old process has ended and the new one is ready."""
    done = run("recycle", "2")
    assert re.fullmatch(r"worker 2: pid 102 -> 1102, ready \(\d+ ms\)\n", done.out)
    assert [w.pid for w in daemon.backend.fleet] == [101, 1102, 103]
    (event,) = daemon.backend.submitted
    assert isinstance(event, RecycleAsked)


def test_events(daemon: Served, run: Ctl) -> None:
    """One line each, the newest last. Texts of several lines follow below, escaped."""
    daemon.backend.happen("first")
    daemon.backend.happen("second", slot=2, problem="it\x1b[31m broke")
    daemon.backend.happen("third", traceback="Traceback:\n  boom\n")
    done = run("events", "-n", "2")
    assert (done.code, done.err) == (0, "")
    lines = done.out.splitlines()
    assert [line.split("  ", 1)[1].split()[0] for line in lines[:2]] == ["second", "third"]
    assert "slot=2" in lines[0]
    assert "\x1b" not in done.out
    assert lines[2:] == ["    Traceback:", "      boom"]
    named = msgspec.json.decode(run("events", "--json").out, type=list[EventView])
    assert [event.name for event in named][-3:] == ["first", "second", "third"]


def test_refork(daemon: Served, run: Ctl) -> None:
    """Waits for the event with the outcome, then until all workers are children of the zygote."""
    daemon.backend.happen("refork_refused", problem="of an earlier one")
    done = run("refork", "--slot", "2")
    assert (done.code, done.err) == (0, "")
    line = r"generation 1: forked from worker 2, pid 102, from now on; all others replaced \(.*\)\n"
    assert re.fullmatch(line, done.out)
    assert [(worker.pid, worker.state) for worker in daemon.backend.fleet] == [
        (1101, "ready"),
        (1102, "ready"),
        (1103, "ready"),
    ]
    assert daemon.backend.submitted[0].slot == 2  # type: ignore[union-attr]
    assert msgspec.json.decode(run("refork", "--json").out, type=EventView).name == "refork_done"


def test_a_refused_refork(daemon: Served, run: Ctl) -> None:
    """The audit's findings in one line; --force overrides them."""
    daemon.backend.broken = True
    assert run("refork") == Done(
        1,
        "",
        "ctl: error: the refork was refused: 2 threads are alive: poller, watcher "
        "(--force does it all the same)\n",
    )
    forced = run("refork", "--force")
    assert (forced.code, forced.err) == (0, "ctl: warning: 2 threads are alive: poller, watcher\n")


def test_refork_without_waiting(daemon: Served, run: Ctl) -> None:
    """--no-wait returns after the request was accepted; a wait without result ends at the time-out."""
    daemon.backend.stuck = True
    assert run("refork", "--no-wait").out == "refork asked\n"
    assert run("refork", "--timeout", "0.05").err.startswith("ctl: error: not done after 0.05 s")


def test_upgrade(daemon: Served, run: Ctl) -> None:
    """When another program answers, its reload is followed to the end."""
    done = run("upgrade")
    assert (done.code, done.err) == (0, "")
    first, *others = done.out.splitlines()
    assert re.fullmatch(r"pid 4242: Ostler 0.1.0 -> 0.2.0 \(.*\)", first)
    assert others[-2:] == ["generation 2: 3 workers replaced (250 ms)", "no setting changed"]
    assert others[:-2] == [f"worker {slot}: pid {100 + slot} -> {1100 + slot}" for slot in (1, 2, 3)]


def test_a_failed_upgrade(daemon: Served, run: Ctl) -> None:
    """The problem in one line, exit 1."""
    daemon.backend.broken = True
    assert run("upgrade") == Done(
        1,
        "",
        "ctl: error: the upgrade failed, everything goes on as before: "
        "the new program does not start: no module named x\n",
    )


def test_an_upgrade_survives_a_lost_connection(place: Path, run: Ctl) -> None:
    """Connections break while the program is replaced; the outcome is found nevertheless."""
    backend = FakeBackend()
    first = Served(place / "shop.sock", backend)
    first.start()
    second = Served(place / "shop.sock", backend)

    def replace() -> None:
        def later() -> None:
            first.stop()
            second.start()

        threading.Thread(target=later).start()

    backend.on_upgrade = replace
    try:
        done = run("upgrade", "--socket", str(place / "shop.sock"))
        assert done.code == 0, done.err
        assert "0.1.0 -> 0.2.0" in done.out
    finally:
        second.stop()


@pytest.mark.parametrize(("argv", "how"), [(["stop"], "graceful"), (["stop", "--quick"], "quick")])
def test_stop_waits_until_there_is_no_answer(daemon: Served, run: Ctl, argv: list[str], how: str) -> None:
    """The command ends when the socket is removed."""
    done = run(*argv)
    assert re.fullmatch(r"pid 4242 stopped \(.*\)\n", done.out), done
    assert not daemon.path.exists()
    (event,) = daemon.backend.submitted
    assert isinstance(event, StopAsked)
    assert event.how == how


def test_stop_waits_for_the_process_too(place: Path, run: Ctl) -> None:
    """If the peer is the process that the status names, the command also waits for its end,
    not only for the socket's.
    """
    script = (
        "import sys, os, pathlib; from tests.unit.control.fake import *\n"
        "b = FakeBackend(); b.pid = os.getpid()\n"
        "with served(pathlib.Path(sys.argv[1]), b) as s:\n"
        "    print('up', flush=True); s._thread.join()\n"
        "sys.stdin.read()\n"  # the socket is removed, the process still runs
    )
    with subprocess.Popen(
        [sys.executable, "-c", script, str(place / "a.sock")], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as process:
        assert process.stdout is not None
        assert process.stdin is not None
        assert process.stdout.readline() == b"up\n"
        late = run("stop", "--timeout", "0.5")
        assert late == Done(1, "", "ctl: error: the control socket is closed but the daemon still runs\n")
        process.stdin.close()


def test_open_prints_a_link_that_logs_in(place: Path, run: Ctl) -> None:
    """Without a display only the address is printed; without a TCP listener the reason."""
    with served(place / "shop.sock", tcp=True) as running:
        done = run("open")
        assert re.fullmatch(rf"{running.url}/#login=[\w-]{{32}}\n", done.out)
    with served(place / "shop.sock"):
        done = run("open")
        assert done.code == 1
        assert "--control-bind" in done.err


def test_open_uses_the_browser_of_a_display(
    place: Path, tmp_path: Path, run: Ctl, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With a display a browser opens the address, which is not visible to other users in the arguments of any
    process.
    """
    opened: list[str] = []
    monkeypatch.setenv("DISPLAY", ":0")
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(tmp_path))
    monkeypatch.setattr("webbrowser.open", opened.append)
    with served(place / "shop.sock", tcp=True):
        first = run("open", "--socket", str(place / "shop.sock")).out.strip()
        assert first not in opened[0]
        page = Path(opened[0].removeprefix("file://"))
        assert f"url={first}" in page.read_text()
        assert page.stat().st_mode & 0o777 == 0o600
        run("open", "--no-browser", "--socket", str(place / "shop.sock"))
        assert len(opened) == 1
        run("open", "--socket", str(place / "shop.sock"))
    assert len(opened) == 2
    assert not page.exists()


# -- finding ---------------------------------------------------------------------------------------------


def test_no_daemon_is_running(place: Path, run: Ctl) -> None:
    """One line: where it looked, and how to start one. Dead sockets do not count."""
    sockets.OwnedSocket.claim(place / "dead.sock").socket.close()
    done = run("status")
    assert done.code == 1
    assert done.err == (
        f"ctl: error: no running Ostler found in {place}; "
        "start one with `ostler MODULE:APP`, or give --socket PATH\n"
    )


def test_one_that_does_not_answer(place: Path, run: Ctl, monkeypatch: pytest.MonkeyPatch) -> None:
    """It counts as an instance: it may be busy, and a command must not go to another one in its place."""
    real = client.Client.unix
    limits = []

    def unix(path: Path, seconds: float = client.SECONDS, judge: client.Judge | None = None) -> Client:
        limits.append(seconds)
        return real(path, 0.05 if path.name == "busy.sock" else seconds, judge)

    monkeypatch.setattr(client.Client, "unix", unix)
    claimed = sockets.OwnedSocket.claim(place / "busy.sock")
    claimed.socket.listen()
    try:
        problem = f"ctl: error: the Ostler at {place}/busy.sock does not answer"
        for words in (("status",), ("stop",), ("stop", "--name", "busy")):
            assert run(*words) == Done(1, "", f"{problem}\n")
        with served(place / "shop.sock", FakeBackend(name="shop")):
            assert run("status") == Done(1, "", f"{problem}; choose another one with --socket\n")
            assert run("status", "--name", "shop").code == 0
        assert min(limits) >= 10
    finally:
        claimed.socket.close()


def test_several_are_listed(place: Path, run: Ctl) -> None:
    """With two instances `ctl` lists them and asks for a choice;
    --name chooses, before or after the command.
    """
    with served(place / "a.sock", FakeBackend(name="a")), served(place / "b.sock", FakeBackend(name="b")):
        done = run("status")
        assert done.code == 1
        first, *rest = done.err.splitlines()
        listeners = ["http://127.0.0.1:8000", "http://[::1]:8000"]
        assert first == "ctl: error: 2 instances run; choose one with --name"
        assert rest == [
            f"  {n}: pid 4242, flaskapp:app, {', '.join(listeners)}, --socket {place}/{n}.sock" for n in "ab"
        ]
        for argv in (["--name", "b", "status", "--json"], ["status", "--json", "--name", "b"]):
            assert msgspec.json.decode(run(*argv).out, type=StatusView).name == "b"
        assert "no instance is named 'c'; there is a, b" in run("status", "--name", "c").err


def test_a_socket_by_path(place: Path, run: Ctl, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """--socket and OSTLER_SOCKET name a socket elsewhere; the command line has precedence."""
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    with served(elsewhere / "x"):
        assert run("--socket", str(elsewhere / "x"), "status").code == 0
        monkeypatch.setenv("OSTLER_SOCKET", str(elsewhere / "x"))
        assert run("status").code == 0
        done = run("status", "--socket", str(elsewhere / "none"))
        assert done.err == f"ctl: error: no Ostler answers at {elsewhere}/none (no such file or directory)\n"


def test_over_tcp(place: Path, run: Ctl, monkeypatch: pytest.MonkeyPatch) -> None:
    """--url with OSTLER_TOKEN works over TCP; without the right token it fails."""
    with served(place / "shop.sock", tcp=True) as running:
        assert "OSTLER_TOKEN" in run("--url", running.url, "status").err
        monkeypatch.setenv("OSTLER_TOKEN", TOKEN)
        assert run("scale", "4", "--url", running.url).code == 0
        monkeypatch.setenv("OSTLER_TOKEN", "wrong")
        assert run("--url", running.url, "status") == Done(
            1, "", "ctl: error: the bearer token is wrong, or the session has ended\n"
        )
    assert "is no control address" in run("--url", "localhost", "status").err


# -- errors and output ----------------------------------------------------------------------------------


@pytest.mark.parametrize("argv", [["nonsense"], ["status", "--nonsense"], ["recycle"], ["recycle", "x"]])
def test_usage_errors(run: Ctl, argv: list[str]) -> None:
    """One line that begins with the program's name; exit 2."""
    done = run(*argv, prog="ostler ctl")
    assert (done.code, done.out, done.err.count("\n")) == (2, "", 1)
    assert done.err.startswith("ostler ctl: error: ")


def test_help(run: Ctl) -> None:
    """--help prints help and exits with 0; no command prints help and exits with 2."""
    assert run("--help").code == run("scale", "-h").code == 0
    done = run()
    assert done.code == 2
    assert "recycle" in done.err


def command(daemon: Served, *argv: str) -> list[str]:
    script = "import sys; from ostler.cli.ctl import main; main(sys.argv[1:])"
    return [sys.executable, "-c", script, "--socket", str(daemon.path), *argv]


def test_a_broken_pipe_is_silent(daemon: Served) -> None:
    """`ctl workers | head -1`: no traceback and no error message at exit."""
    reading, writing = os.pipe()
    os.close(reading)
    done = subprocess.run(
        command(daemon, "workers"), stdout=writing, stderr=subprocess.PIPE, check=False, timeout=20
    )
    os.close(writing)
    assert done.stderr == b""
    assert done.returncode == 1


@pytest.mark.parametrize("argv", [["workers"], ["status", "--json"], ["scale", "+1"]])
def test_a_full_disk_is_reported_in_one_line(daemon: Served, argv: list[str]) -> None:
    """`ctl workers > /dev/full`: one line, exit 1, no traceback."""
    buffered = {name: value for name, value in os.environ.items() if name != "PYTHONUNBUFFERED"}
    with Path("/dev/full").open("w") as full:
        done = subprocess.run(
            command(daemon, *argv),
            stdout=full,
            stderr=subprocess.PIPE,
            text=True,
            check=False,
            timeout=20,
            env=buffered,
        )
    assert (done.returncode, done.stderr) == (
        1,
        "ctl: error: can't write the output: No space left on device\n",
    )


def test_json_does_not_load_rich(daemon: Served) -> None:
    """With --json the library for tables is not imported."""
    script = (
        "import sys, atexit; from ostler.cli.ctl import main;"
        "atexit.register(lambda: print('rich' in sys.modules)); main(sys.argv[1:])"
    )
    argv = [sys.executable, "-c", script, "--socket", str(daemon.path), "scale", "+1", "--json"]
    done = subprocess.run(argv, capture_output=True, text=True, check=True, timeout=20)
    assert done.stdout.endswith("False\n")


def test_a_probation_is_waited_for(daemon: Served, run: Ctl, monkeypatch: pytest.MonkeyPatch) -> None:
    """It may be longer than the time-out that counts if none is given, but not than one that is."""
    left: list[float] = []

    def probation_over(client: Client, _generation: int, limit: waiting.WaitLimit) -> ReloadView:
        left.append(limit.left())
        return client.call(RELOAD_STATUS)

    monkeypatch.setattr(waiting, "probation_over", probation_over)
    assert run("reload", "--wait-probation").code == 0
    assert run("wait", "--wait-probation").code == 0
    assert run("wait", "--wait-probation", "--timeout", "100").code == 0
    assert left[0] > 600
    assert left[1] > 600
    assert left[2] <= 100


def in_a_terminal(daemon: Served, *args: str, **environ: str) -> tuple[str, bytes]:
    """What `ctl` shows where stderr is a terminal, and its stdout."""
    env = {**os.environ, "TERM": "xterm", **environ}
    with terminal() as (slave, sent):
        done = subprocess.run(
            command(daemon, *args), stdout=subprocess.PIPE, stderr=slave, check=True, timeout=20, env=env
        )
    return b"".join(sent).decode(), done.stdout


def test_a_terminal_gets_a_progress_bar(daemon: Served) -> None:
    """With stderr on a terminal the steps are shown there; stdout has the outcome alone."""
    shown, out = in_a_terminal(daemon, "scale", "+2")
    assert "3 -> 5 workers" in shown
    assert re.fullmatch(rb"3 -> 5 workers, all ready \(.*\)\n", out)


def test_a_terminal_sees_each_worker_of_a_reload(daemon: Served) -> None:
    """A bar for each worker with both pids and what happens to it; stdout has the outcome alone."""
    shown, out = in_a_terminal(daemon, "reload", COLUMNS="100", LINES="30")
    for words in ("generation 2", "worker 1", "pid 103 -> 1103"):
        assert words in shown
    assert out == b"generation 2: 3 workers replaced (250 ms)\nno setting changed\n"


def test_a_worker_that_is_replaced_is_shown_once(capsys: pytest.CaptureFixture[str]) -> None:
    """It is printed once, however often the reload is polled, also while others are still replaced."""
    with progress.Roll([FakeWorker(1, 7).view(), FakeWorker(2, 8).view()]) as roll:
        reload = ReloadView(2, "rolling", 1, 2, 0.1, "test", None, None)
        for second in (FakeWorker(2, 8), FakeWorker(2, 18, 2), FakeWorker(2, 18, 2)):
            roll.show(reload, [FakeWorker(1, 17, 2).view(), second.view()])
    assert capsys.readouterr().out == "worker 1: pid 7 -> 17\nworker 2: pid 8 -> 18\n"


@pytest.mark.parametrize(
    ("workers", "step"),
    [
        ([], (7, None, "waiting", 0)),
        ([FakeWorker(1, 7)], (7, None, "waiting", 0)),
        ([FakeWorker(1, 7), FakeWorker(1, 8, 2, "booting")], (7, 8, "booting", 1)),
        ([FakeWorker(1, 8, 2), FakeWorker(1, 7, 1, "draining")], (7, 8, "old one draining", 2)),
        ([FakeWorker(1, 8, 2)], (7, 8, "replaced", 3)),
        ([FakeWorker(1, 8, 2, "booting")], (7, 8, "booting", 1)),
    ],
)
def test_steps_of_a_replacement(workers: list[FakeWorker], step: tuple[int, int | None, str, int]) -> None:
    """The step that is shown for a slot, from the workers in it."""
    assert progress.step([worker.view() for worker in workers], 2, 7) == step


def test_how_numbers_are_shown() -> None:
    """Ages, durations and sizes in the units that people read."""
    assert [output.age(s) for s in (0.04, 9.96, 59.9, 61, 3725, 90000, -0.5, -75, None)] == [
        "0.0s",
        "10.0s",
        "59s",
        "1m01s",
        "1h02m",
        "1d01h",
        "-0.5s",
        "-1m15s",
        "-",
    ]
    assert [output.duration(s) for s in (0.084, 0.9999, 1.239, 125)] == [
        "84 ms",
        "1.00 s",
        "1.24 s",
        "2 min 5 s",
    ]
    assert [output.size(n) for n in (17, 2048, 34 << 20, 3 << 30, None)] == [
        "17 B",
        "2 KiB",
        "34.0 MiB",
        "3.00 GiB",
        "-",
    ]
