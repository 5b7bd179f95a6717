"""`ctl` against a served fake whose fleet moves on by a step at each look."""

import os
import pty
import re
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import msgspec
import pytest

from supervisor.cli import ctl, output, waiting
from supervisor.control import client, sockets
from supervisor.control.routes import RELOAD
from supervisor.control.views import ConfigView, ReloadView, RequestView, StatusView, WorkerView
from supervisor.fleet.events import RecycleAsked, ReloadAsked, ResizeAsked, StopAsked
from tests.unit.control.fake import TOKEN, FakeBackend, Served, served


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
    """Name, app, health and addresses are told; brackets of an IPv6 address are no markup."""
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
    ],
)
def test_json_is_the_apis_own(daemon: Served, run: Ctl, command: str, view: Any) -> None:
    """--json, before or after the command, prints the view by the API's names."""
    after, before = run(command, "--json"), run("--json", command)
    assert after.code == 0
    msgspec.json.decode(after.out, type=view)
    assert after.out == before.out
    if command == "workers":
        assert [w["slot"] for w in msgspec.json.decode(after.out)] == [1, 2, 3]


def in_flight(path: str, age: float = 4.25) -> RequestView:
    return RequestView(2, 102, 0, "GET", path, age, 25.75)


def test_workers_are_not_cut_off(daemon: Served, run: Ctl) -> None:
    """Without a terminal the longest path is whole and each worker one line; control characters are shown."""
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
    """What has been running longest is what one looks for."""
    daemon.backend.fleet[0].in_flight = [in_flight("/young", 0.5)]
    daemon.backend.fleet[1].in_flight = [in_flight("/old", 500.0)]
    out = run("requests").out
    assert out.index("/old") < out.index("/young")
    assert "8m20s" in out


def test_no_requests(daemon: Served, run: Ctl) -> None:
    """An idle fleet is told in words, or as an empty array."""
    assert run("requests").out == "no request is in flight\n"
    assert run("requests", "--json").out == "[]\n"


def test_config_for_people(daemon: Served, run: Ctl) -> None:
    """Each setting with value and origin; lists as JSON."""
    out = run("config").out
    assert re.search(r"workers +3 +command line +live", out)
    assert re.search(r'bind +\["127.0.0.1:8000"\] +default +restart', out)


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
    """All spellings; the command ends when exactly so many workers are there and ready."""
    done = run(*argv)
    assert done.code == 0, done.err
    assert re.fullmatch(rf"3 -> {wanted} workers, all ready \(\d+ ms\)\n", done.out)
    (event,) = daemon.backend.submitted
    assert isinstance(event, ResizeAsked)
    assert {"workers": event.workers, "delta": event.delta} == {"workers": None, "delta": None} | ask
    assert [worker.state for worker in daemon.backend.fleet] == ["ready"] * wanted


def test_scale_without_waiting(daemon: Served, run: Ctl) -> None:
    """--no-wait only asks."""
    daemon.backend.stuck = True
    assert run("scale", "+2", "--no-wait").out == "3 -> 5 workers, asked\n"


def test_scale_as_json(daemon: Served, run: Ctl) -> None:
    """With --json a command that waits prints the view at the end, and nothing else."""
    view = msgspec.json.decode(run("scale", "+1", "--json").out, type=StatusView)
    assert (view.wanted, view.ready) == (4, 4)


def test_scale_gives_up(daemon: Served, run: Ctl) -> None:
    """A fleet that does not get there: exit 1 after the time-out, with its health as the reason."""
    daemon.backend.stuck = True
    done = run("scale", "5", "--timeout", "0.05")
    assert done == Done(1, "", "ctl: error: not done after 0.05 s; 3 of 5 workers are ready.\n")


def test_scale_does_not_wait_for_a_degraded_fleet(
    daemon: Served, run: Ctl, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Workers that keep failing at boot end the waiting long before the time-out."""
    monkeypatch.setattr(waiting, "DEGRADED_SECONDS", 0.0)
    daemon.backend.stuck, daemon.backend.state = True, "degraded"
    done = run("scale", "5")
    assert done.code == 1
    assert done.err.startswith("ctl: error: the fleet is degraded: 3 of 5 workers are ready.")


@pytest.mark.parametrize("amount", ["five", "--five", "+", "-", "1.5", "²", "+-1", "", "99999999999"])
def test_scale_refuses_what_is_no_number(daemon: Served, run: Ctl, amount: str) -> None:
    """A slip is a usage error: exit 2, one line, nothing asked."""
    done = run("scale", amount)
    assert (done.code, done.out, done.err.count("\n")) == (2, "", 1)
    assert done.err.startswith("ctl: error: ")
    assert daemon.backend.submitted == []


def test_the_daemons_refusal_is_one_line(daemon: Served, run: Ctl) -> None:
    """An ErrorView is told as it is, exit 1."""
    assert run("scale", "0") == Done(1, "", "ctl: error: workers must be from 1 to 512, not 0\n")
    assert run("recycle", "9") == Done(1, "", "ctl: error: there is no worker in slot '9'\n")


def test_reload(daemon: Served, run: Ctl) -> None:
    """The command ends when the reload is done and says how it went."""
    assert run("reload") == Done(0, "generation 2: 3 workers replaced (250 ms)\n", "")
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


def test_a_superseded_reload(daemon: Served, run: Ctl, monkeypatch: pytest.MonkeyPatch) -> None:
    """Another reload that takes over makes ours fail."""
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
    """The command ends when the old process is gone and the new one is ready."""
    done = run("recycle", "2")
    assert re.fullmatch(r"worker 2: pid 102 -> 1102, ready \(\d+ ms\)\n", done.out)
    assert [w.pid for w in daemon.backend.fleet] == [101, 1102, 103]
    (event,) = daemon.backend.submitted
    assert isinstance(event, RecycleAsked)


@pytest.mark.parametrize(("argv", "how"), [(["stop"], "graceful"), (["stop", "--quick"], "quick")])
def test_stop_waits_until_nobody_answers(daemon: Served, run: Ctl, argv: list[str], how: str) -> None:
    """The command ends when the socket is gone."""
    done = run(*argv)
    assert re.fullmatch(r"pid 4242 stopped \(.*\)\n", done.out), done
    assert not daemon.path.exists()
    (event,) = daemon.backend.submitted
    assert isinstance(event, StopAsked)
    assert event.how == how


def test_stop_waits_for_the_process_too(place: Path, run: Ctl) -> None:
    """If the peer is the process that it says to be, its end is waited for, not only the socket's."""
    script = (
        "import sys, os, pathlib; from tests.unit.control.fake import *\n"
        "b = FakeBackend(); b.pid = os.getpid()\n"
        "with served(pathlib.Path(sys.argv[1]), b) as s:\n"
        "    print('up', flush=True); s._thread.join()\n"
        "sys.stdin.read()\n"  # the socket is gone, the process is not
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
    """Without a display only the address is printed; without a TCP listener the reason why not."""
    with served(place / "shop.sock", tcp=True) as running:
        done = run("open")
        assert re.fullmatch(rf"{running.url}/#login=[\w-]{{32}}\n", done.out)
    with served(place / "shop.sock"):
        done = run("open")
        assert done.code == 1
        assert "--control-bind" in done.err


def test_open_uses_the_browser_of_a_display(place: Path, run: Ctl, monkeypatch: pytest.MonkeyPatch) -> None:
    """With a display the standard library's webbrowser gets the same address."""
    opened: list[str] = []
    monkeypatch.setenv("DISPLAY", ":0")
    monkeypatch.setattr("webbrowser.open", opened.append)
    with served(place / "shop.sock", tcp=True):
        assert run("open").out == f"{opened[0]}\n"
        run("open", "--no-browser")
    assert len(opened) == 1


# -- finding ---------------------------------------------------------------------------------------------


def test_none_is_running(place: Path, run: Ctl) -> None:
    """One line: where it looked, and how to start one. Dead sockets do not count."""
    sockets.OwnedSocket.claim(place / "dead.sock").socket.close()
    done = run("status")
    assert done.code == 1
    assert done.err == (
        f"ctl: error: no running Ostler found in {place}; "
        "start one with `ostler MODULE:APP`, or give --socket PATH\n"
    )


def test_several_are_listed(place: Path, run: Ctl) -> None:
    """With two instances `ctl` does not guess: it lists them and asks; --name chooses, on either side."""
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
    """--socket and OSTLER_SOCKET name one that is elsewhere; the command line wins."""
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    with served(elsewhere / "x"):
        assert run("--socket", str(elsewhere / "x"), "status").code == 0
        monkeypatch.setenv("OSTLER_SOCKET", str(elsewhere / "x"))
        assert run("status").code == 0
        done = run("status", "--socket", str(elsewhere / "none"))
        assert done.err == f"ctl: error: no Ostler answers at {elsewhere}/none (no such file or directory)\n"


def test_over_tcp(place: Path, run: Ctl, monkeypatch: pytest.MonkeyPatch) -> None:
    """--url with OSTLER_TOKEN does the same over TCP; without the token, or with a wrong one, it says so."""
    with served(place / "shop.sock", tcp=True) as running:
        assert "OSTLER_TOKEN" in run("--url", running.url, "status").err
        monkeypatch.setenv("OSTLER_TOKEN", TOKEN)
        assert run("scale", "4", "--url", running.url).code == 0
        monkeypatch.setenv("OSTLER_TOKEN", "wrong")
        assert run("--url", running.url, "status") == Done(1, "", "ctl: error: the bearer token is wrong\n")
    assert "is no control address" in run("--url", "localhost", "status").err


# -- manners ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("argv", [["nonsense"], ["status", "--nonsense"], ["recycle"], ["recycle", "x"]])
def test_usage_errors(run: Ctl, argv: list[str]) -> None:
    """One line that begins with the program's name; exit 2."""
    done = run(*argv, prog="ostler ctl")
    assert (done.code, done.out, done.err.count("\n")) == (2, "", 1)
    assert done.err.startswith("ostler ctl: error: ")


def test_help(run: Ctl) -> None:
    """--help is help and exit 0; no command at all is help and exit 2."""
    assert run("--help").code == run("scale", "-h").code == 0
    done = run()
    assert done.code == 2
    assert "recycle" in done.err


def command(daemon: Served, *argv: str) -> list[str]:
    script = "import sys; from supervisor.cli.ctl import main; main(sys.argv[1:])"
    return [sys.executable, "-c", script, "--socket", str(daemon.path), *argv]


def test_a_broken_pipe_is_silent(daemon: Served) -> None:
    """`ctl workers | head -1`: no traceback, no complaint at exit."""
    reading, writing = os.pipe()
    os.close(reading)
    done = subprocess.run(
        command(daemon, "workers"), stdout=writing, stderr=subprocess.PIPE, check=False, timeout=20
    )
    os.close(writing)
    assert done.stderr == b""
    assert done.returncode == 1


def test_json_does_not_load_rich(daemon: Served) -> None:
    """Programs do not pay for tables."""
    script = (
        "import sys, atexit; from supervisor.cli.ctl import main;"
        "atexit.register(lambda: print('rich' in sys.modules)); main(sys.argv[1:])"
    )
    argv = [sys.executable, "-c", script, "--socket", str(daemon.path), "scale", "+1", "--json"]
    done = subprocess.run(argv, capture_output=True, text=True, check=True, timeout=20)
    assert done.stdout.endswith("False\n")


def test_a_terminal_gets_a_progress_bar(daemon: Served) -> None:
    """With stderr on a terminal the steps are shown there; stdout has the outcome alone."""
    master, slave = pty.openpty()
    argv = command(daemon, "scale", "+2")
    done = subprocess.run(
        argv,
        stdout=subprocess.PIPE,
        stderr=slave,
        check=True,
        timeout=20,
        env={**os.environ, "TERM": "xterm"},
    )
    os.close(slave)
    shown = os.read(master, 65536).decode()
    os.close(master)
    assert "3 -> 5 workers" in shown
    assert re.fullmatch(rb"3 -> 5 workers, all ready \(.*\)\n", done.stdout)


def test_how_numbers_are_told() -> None:
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
