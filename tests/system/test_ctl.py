"""`ctl` with a real daemon: every command, its exit code and its effect."""

import json
import os
import signal
import socket
from collections.abc import Iterator
from pathlib import Path

import msgspec
import pytest

from ostler import __version__, native
from ostler.control.views import ConfigView, RequestView, StatusView, WorkerView
from tests.kit.daemon import Daemon, Done, Place
from tests.kit.http_client import ask
from tests.kit.tiers import thorough

pytestmark = pytest.mark.system


@pytest.fixture(scope="module")
def shared(shared_place: Place) -> Daemon:
    return shared_place.start("-w", "2", "-n", "till", "--control-bind", "127.0.0.1:0", "shop:app")


@pytest.fixture
def daemon(shared: Daemon) -> Iterator[Daemon]:
    """Two workers before and after each test."""
    yield shared
    assert shared.ctl("scale", "2").code == 0


def test_status(daemon: Daemon) -> None:
    """For people: name, app, health, addresses; for programs: the API's view."""
    daemon.settled(2)
    out = daemon.ctl("status").out
    for words in ("till", "shop:app", "Healthy: all 2 workers are ready.", daemon.url, f"pid {daemon.pid}"):
        assert words in out
    status = msgspec.json.decode(daemon.ctl("status", "--json").out, type=StatusView)
    assert (status.name, status.app, status.pid, status.version) == (
        "till",
        "shop:app",
        daemon.pid,
        __version__,
    )
    assert (status.wanted, status.ready, status.worker_class) == (2, 2, "sync")
    assert status.core == native.CORE
    assert f"requests in {'C' if native.module is not None else 'Python'}" in out


def test_workers_json(daemon: Daemon) -> None:
    """An array of worker views with the API's names, with correct pids, memory and ages."""
    text = daemon.ctl("workers", "--json").out
    assert {"slot", "pid", "generation", "state", "requests", "in_flight"} <= json.loads(text)[0].keys()
    first, second = msgspec.json.decode(text, type=list[WorkerView])
    assert [first.slot, second.slot] == [1, 2]
    for worker in (first, second):
        assert worker.state == "ready"
        assert worker.leaving is None
        assert Path(f"/proc/{worker.pid}").exists()
        assert 2**20 < (worker.uss or 0) <= (worker.rss or 0) < 2**30
        assert worker.age > 0
        assert (worker.threads, worker.in_flight, worker.deadline_in) == (1, [], None)


def test_counts_are_true(daemon: Daemon) -> None:
    """Every request is counted once, errors separately, including those of workers that have ended."""

    def replace_all() -> None:
        """Requests that a worker has not counted yet are counted when it has ended."""
        for slot in ("1", "2"):
            assert daemon.ctl("recycle", slot).code == 0

    replace_all()
    before = daemon.status().totals
    for path in ("/", "/forbidden", "/fail", "/"):
        daemon.get(path)
    replace_all()
    daemon.counted(
        requests=before.requests + 4,
        errors=before.errors + 1,
        connections=before.connections + 4,
        deaths=before.deaths,
    )


def test_scale(daemon: Daemon) -> None:
    """A number sets, +N and -N change; with and without `--`; each waits until the number is reached."""
    amounts = (["5"], 5), (["+2"], 7), (["-1"], 6), (["--", "-1"], 5), (["1"], 1), (["-1"], 1), (["3"], 3)
    for args, wanted in (*amounts, (["auto"], 2)):
        done = daemon.ctl("scale", *args)
        assert (done.code, done.err) == (0, "")
        assert f"-> {wanted} workers" in done.out
        workers = daemon.workers()
        assert [worker.slot for worker in workers] == list(range(1, wanted + 1))
        assert {worker.state for worker in workers} == {"ready"}


def test_scale_below_one(daemon: Daemon) -> None:
    """A decrease that would leave no worker stops at one, and command and log say so."""
    assert daemon.ctl("scale", "3").code == 0
    done = daemon.ctl("scale", "-9")
    assert (done.code, done.err) == (0, "")
    assert done.out.startswith("3 -> 1 workers, all ready (")
    assert "; -9 stopped at 1, the least" in done.out
    note = daemon.event("scale", before=3, workers=1)["note"]
    assert note == "stopped at 1, the least"
    assert daemon.ctl("scale", "auto").code == 0


def test_scale_down_a_paused_fleet(daemon: Daemon) -> None:
    """There is nothing to take away; the fleet stays paused."""
    assert daemon.ctl("pause").code == 0
    done = daemon.ctl("scale", "-1")
    assert done.code == 1
    assert done.error.endswith("error: the fleet is paused and has no workers; resume it, or set a number")
    assert daemon.status().state == "paused"
    assert daemon.ctl("resume").code == 0


@pytest.mark.parametrize("amount", ["many", "1000000", *thorough("1.5", "+", "0")])
def test_scale_to_nonsense(daemon: Daemon, amount: str) -> None:
    """One line says what was wrong, exit code 1 or 2, and nothing has changed."""
    done = daemon.ctl("scale", amount)
    assert done.code in (1, 2)
    assert done.error.startswith("ostler ctl: error: ")
    assert daemon.status().wanted == 2


def test_recycle(daemon: Daemon) -> None:
    """The worker in the slot is a new one afterwards, the other worker is the same."""
    before = daemon.pids()
    done = daemon.ctl("recycle", "2")
    assert (done.code, done.err) == (0, "")
    after = daemon.pids()
    assert after[0] == before[0]
    assert after[1] != before[1]
    assert f"pid {before[1]} -> {after[1]}" in done.out


def test_recycle_an_empty_slot(daemon: Daemon) -> None:
    """No such worker: exit code 1 and one line."""
    done = daemon.ctl("recycle", "9")
    assert done.code == 1
    assert "9" in done.error


def test_requests(daemon: Daemon, shared_place: Place) -> None:
    """A slow request is listed with method, path, age and deadline while it runs, and not afterwards."""
    slow = daemon.connect().asked("/gate/listed?token=secret")
    seen = daemon.in_app("/gate/listed")
    daemon.until(lambda: daemon.status().in_flight == 1, "one request in flight")
    out = daemon.ctl("requests").out
    assert "GET" in out
    assert "/gate/listed" in out
    assert "secret" not in out
    (listed,) = msgspec.json.decode(daemon.ctl("requests", "--json").out, type=list[RequestView])
    assert (listed.slot, listed.pid, listed.method) == (seen.slot, seen.pid, "GET")
    assert 0 < listed.age < 30
    assert 29 < listed.age + (listed.deadline_in or 0) < 31
    assert "/gate/listed" in daemon.ctl("workers").out
    (shared_place.app_folder / "listed.open").touch()
    assert slow.answer().status == 200
    assert daemon.ctl("requests").out == "no request is in flight\n"


def test_config(daemon: Daemon) -> None:
    """Every setting, with its origin."""
    view = msgspec.json.decode(daemon.ctl("config", "--json").out, type=ConfigView)
    settings = {row.name: row for row in view.settings}
    assert (settings["workers"].value, settings["workers"].origin) == (2, "command line")
    assert settings["workers"].takes_effect == "live"
    assert settings["keepalive"].origin == "default"
    assert "command line" in daemon.ctl("config").out


def test_reload(daemon: Daemon) -> None:
    """The command waits, prints the generation, and none of the old workers is left."""
    before = daemon.status().generation
    done = daemon.ctl("reload")
    assert (done.code, done.err) == (0, "")
    assert f"generation {before + 1}: 2 workers replaced" in done.out
    assert {worker.generation for worker in daemon.settled(2)} == {before + 1}


def test_reload_prints_each_worker_and_what_has_changed(place: Place) -> None:
    """A line for each worker, then the settings that changed; those that need a restart are marked."""
    place.add("gunicorn.conf.py", "workers = 1\ntimeout = 30\nraw_env = ['TOKEN=one']\n")
    daemon = place.start("plain:app")
    (before,) = daemon.settled(1)
    place.add(
        "gunicorn.conf.py",
        f"workers = 1\ntimeout = 7\nraw_env = ['TOKEN=two']\npidfile = '{place.folder}/pid'\n",
    )
    done = daemon.ctl("reload")
    (after,) = daemon.settled(1)
    first, second, third = done.out.splitlines()
    assert first == f"worker 1: pid {before.pid} -> {after.pid}"
    assert second.startswith("generation 2: 1 worker replaced")
    assert third == (
        "changed: timeout 30 -> 7; raw_env changed; "
        f"pidfile not set -> {place.folder}/pid, which takes effect only after a restart"
    )


def test_the_log_names_what_a_reload_changed(place: Place) -> None:
    """A reload by a signal is reported in the log; a change that needs a restart is a warning."""
    place.add("gunicorn.conf.py", "timeout = 30\n")
    daemon = place.start("--canary-time", "0", "plain:app")
    place.add("gunicorn.conf.py", "timeout = 7\n")
    daemon.send(signal.SIGHUP)
    changed = daemon.event("settings_changed", generation=2, level="info")
    assert changed["changes"] == "timeout 30 -> 7"
    place.add("gunicorn.conf.py", "timeout = 7\nproc_name = 'other'\n")
    daemon.send(signal.SIGHUP)
    changed = daemon.event("settings_changed", generation=3, level="warning")
    assert changed["changes"] == "proc_name not set -> other, which takes effect only after a restart"


@pytest.mark.thorough
def test_a_number_set_by_hand(place: Place) -> None:
    """It survives a reload unless the configuration's number changes,
    and `ctl` shows where the number is from.
    """
    place.add("gunicorn.conf.py", "workers = 1\n")
    daemon = place.start("--canary-time", "0", "plain:app")
    assert daemon.ctl("scale", "2").code == 0
    assert "the number was set by hand" in daemon.ctl("status").out
    assert "the number of workers that was set by hand stays: 2" in daemon.ctl("reload").out
    place.add("gunicorn.conf.py", "workers = 3\n")
    out = daemon.ctl("reload").out
    assert "changed: workers 1 -> 3" in out
    assert "the configuration's 3 workers replace the 2 set by hand" in out
    daemon.settled(3)


def test_refork(place: Place) -> None:
    """All workers are children of the chosen worker afterwards, which serves no more."""
    daemon = place.start("-w", "2", "plain:app")
    before = daemon.settled(2)
    done = daemon.ctl("refork", "--slot", "2")
    assert (done.code, done.err) == (0, "")
    assert f"forked from worker 2, pid {before[1].pid}" in done.out
    assert not {worker.pid for worker in before} & set(daemon.pids())
    assert daemon.ctl("refork", "--slot", "9").error == "ostler ctl: error: no worker is ready in slot 9"


def test_no_wait(daemon: Daemon) -> None:
    """--no-wait returns after the request was accepted."""
    assert "asked" in daemon.ctl("scale", "3", "--no-wait").out
    daemon.settled(3)
    assert "asked" in daemon.ctl("recycle", "1", "--no-wait").out
    generation = daemon.status().generation
    assert "asked" in daemon.ctl("reload", "--no-wait").out
    daemon.event("reload_done", generation=generation + 1)


def test_timeout_of_the_wait(daemon: Daemon, shared_place: Place) -> None:
    """--timeout: exit code 1 with what is missing; the operation continues."""
    slow = daemon.connect().asked("/gate/held")
    old = daemon.in_app("/gate/held")
    done = daemon.ctl("recycle", str(old.slot), "--timeout", "0.3")
    assert done.code == 1
    assert "not done after 0.3 s" in done.error
    (shared_place.app_folder / "held.open").touch()
    assert slow.answer().status == 200
    daemon.until(lambda: old.pid not in daemon.pids(), "recycled")


def test_open(daemon: Daemon) -> None:
    """Prints an address that logs in a browser, once."""
    done = daemon.ctl("open", "--no-browser")
    assert (done.code, done.err) == (0, "")
    url = done.out.strip()
    assert url.startswith("http://127.0.0.1:")
    base, _, _ = url.partition("#")
    assert ask(base.partition("?")[0]).status == 200


def test_unknown_command(daemon: Daemon) -> None:
    """Exit code 2, one line."""
    done = daemon.ctl("scael", "3")
    assert done.code == 2
    assert "scael" in done.error


def test_wrong_socket(place: Place) -> None:
    """No listener: exit code 1, one line with the path."""
    path = place.folder / "no.sock"
    done = place.run("ctl", "--socket", str(path), "status")
    assert done.code == 1
    assert str(path) in done.error


def test_dead_socket(place: Place) -> None:
    """A socket file of a daemon that was killed: exit code 1, one line, no traceback."""
    daemon = place.start("plain:app")
    path = daemon.socket
    daemon.kill()
    done = place.run("ctl", "--socket", str(path), "status")
    assert done.code == 1
    assert str(path) in done.error


@pytest.mark.thorough
def test_two_instances(place: Place) -> None:
    """Same app, same user, no names: both serve; ctl lists both and asks for a choice."""
    first, second = place.start("plain:app"), place.start("plain:app")
    assert first.socket != second.socket
    assert first.get().text == second.get().text == "one"
    done = place.run("ctl", "scale", "2")
    assert done.code == 1
    for daemon in (first, second):
        assert f"pid {daemon.pid}" in done.err
        assert str(daemon.socket) in done.err
        assert daemon.status().wanted == 1
    assert "instances run; choose one with" in done.err.splitlines()[0]
    assert place.run("ctl", "--socket", str(second.socket), "scale", "2").code == 0
    second.settled(2)
    third = place.start("-n", "third", "plain:app")
    assert place.run("ctl", "--name", "third", "scale", "3").code == 0
    third.settled(3)
    assert first.status().wanted == 1


def test_finds_the_only_instance(place: Place) -> None:
    """Without any option, it finds the instance in the runtime directory."""
    if any(Path("/run/ostler").glob("*.sock")) and os.geteuid() == 0:
        pytest.skip("another instance runs on this machine")
    daemon = place.start("plain:app")
    assert str(daemon.socket.parent) == f"{place.runtime}/ostler"
    done = place.run("ctl", "status")
    assert done.code == 0
    assert f"pid {daemon.pid}" in done.out


def test_stop(place: Place) -> None:
    """`ctl stop` waits for the end; the request in flight is answered; no process is left."""
    daemon = place.start("-w", "2", "plain:app")
    slow = daemon.connect().asked("/gate/slow")
    daemon.in_app("/gate/slow")
    assert daemon.ctl("stop", "--no-wait").code == 0
    daemon.event("stop", how="graceful")
    (place.app_folder / "slow.open").touch()
    assert slow.answer().text == "slow passed"
    slow.close()
    assert daemon.wait() == 0
    assert place.leftovers() == []


@pytest.mark.thorough
def test_stop_waits(place: Place) -> None:
    """When it returns, the daemon has ended and its socket is removed."""
    daemon = place.start("-w", "2", "plain:app")
    done: Done = daemon.ctl("stop")
    assert (done.code, done.err) == (0, "")
    assert f"pid {daemon.pid} stopped" in done.out
    assert daemon.wait(1) == 0
    assert not daemon.socket.exists()


def test_stop_quickly(place: Place) -> None:
    """--quick does not wait for requests."""
    daemon = place.start("plain:app")
    slow = daemon.connect().asked("/gate/never")
    daemon.in_app("/gate/never")
    assert daemon.ctl("stop", "--quick").code == 0
    slow.ended_by_server()
    assert daemon.wait(1) == 0


@pytest.mark.thorough
def test_control_socket_mode(place: Place) -> None:
    """Mode 0600 in a folder of mode 0700; --control-socket changes the place."""
    daemon = place.start("plain:app")
    assert daemon.socket.stat().st_mode & 0o777 == 0o600
    assert daemon.socket.parent.stat().st_mode & 0o777 == 0o700
    path = place.folder / "else.sock"
    place.start("--control-socket", str(path), "plain:app")
    assert place.run("ctl", "--socket", str(path), "scale", "2").code == 0


@pytest.mark.thorough
def test_no_control_socket(place: Place) -> None:
    """--no-control-socket: there is no socket, and no warning."""
    daemon = place.start("--no-control-socket", "plain:app")
    assert daemon.get().text == "one"
    assert not list(place.runtime.rglob("*.sock"))
    daemon.stop()
    assert [event for event in daemon.events() if event["level"] != "info"] == []


@pytest.mark.thorough
def test_idle_control_clients(place: Place) -> None:
    """Idle and half-open control connections delay neither ctl nor the daemon's end."""
    daemon = place.start("plain:app")
    with socket.socket(socket.AF_UNIX) as idle, socket.socket(socket.AF_UNIX) as half:
        for sock in (idle, half):
            sock.connect(str(daemon.socket))
        half.send(b"GET /v1/status HTTP/1.1\r\nHo")
        assert daemon.ctl("scale", "2").code == 0
        assert daemon.stop(within=25) == 0
