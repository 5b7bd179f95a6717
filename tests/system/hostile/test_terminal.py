"""An app and its clients try to reach the administrator's terminal: through `ctl`, through the daemon's last
lines, and through its log.

tests/unit/cli/test_hostile_daemon.py does the same for each command and each field of the API's views.
"""

import json
import os
import re
import signal
import socket
from pathlib import Path

import pytest

from tests.kit.daemon import OSTLER, Daemon, Done, Place
from tests.kit.terminal import terminal

pytestmark = pytest.mark.system

# A window title, a query that a terminal answers as if typed, C1 controls, bidirectional controls and line
# separators, rich's markup.
EVIL = "\x1b]0;owned\x07\x1b[6n\x9b31m\x9c\x7f\u202e\u2066\u2028\x85\r[red]r[/red]"
IN_PATH = b"/\xc2\x9b31m\xe2\x80\xae\x9b6n"
"""A client may send these bytes: they are no ASCII controls. What is read of them is percent-encoded."""

APP = f"""\
import logging, os, time

EVIL = {EVIL!r}

def app(environ, start_response):
    if environ["PATH_INFO"] == "/raise":
        raise RuntimeError(EVIL + "\\nforged\\n\\tline")
    if environ["PATH_INFO"] == "/log":
        logging.getLogger("gunicorn.error").warning("%s\\n%s", EVIL, EVIL)
        logging.getLogger("gunicorn.error").error("bad", exc_info=ValueError(EVIL))
    if environ["PATH_INFO"] != "/log" and not os.path.exists("open"):
        time.sleep(30)
    start_response("200 OK", [])
    return [b"one"]
"""
BROKEN = f"raise RuntimeError({EVIL!r} + '\\nforged\\n')\n"
OWN_COLOURS = re.compile(r"\x1b\[[0-9;]*m")


def assert_harmless(text: str) -> None:
    for line in text.split("\n"):
        assert line.isprintable(), ascii(line)


def assert_done(done: Done, code: int) -> None:
    assert done.code == code, done
    assert_harmless(done.out + done.err)


def hang(daemon: Daemon) -> socket.socket:
    """Send a request with control characters in its target, which is in the app when this returns."""
    sock = socket.create_connection(daemon.address)
    sock.sendall(b"GET " + IN_PATH + b" HTTP/1.1\r\nHost: x\r\n\r\n")
    daemon.until(lambda: daemon.status().in_flight, "in the app")
    return sock


def test_ctl_shows_an_apps_texts(place: Place) -> None:
    """Paths, the instance's name, settings, the last request of a dead worker, events,
    a reload's reason and traceback: all are shown escaped. --json is ASCII and has the same texts.
    """
    place.add("evil.py", APP)
    place.add("gunicorn.conf.py", f"proc_name = {EVIL!r}\nraw_env = [{'A=' + EVIL!r}]\ncanary_time = 0\n")
    daemon = place.start("evil:app")
    with hang(daemon):
        for command, part in (
            ("status", r"\x1b]0;owned\x07"),
            ("config", r"\x1b]0;owned\x07"),
            ("workers", "/%C2%9B31m%E2%80%AE%9B6n"),
            ("requests", "/%C2%9B31m%E2%80%AE%9B6n"),
        ):
            shown = daemon.ctl(command)
            assert_done(shown, 0)
            assert part in shown.out
        listed = daemon.ctl("workers", "--json")
        assert_done(listed, 0)
        assert listed.out.isascii()
        assert json.loads(listed.out)[0]["in_flight"][0]["path"] == "/%C2%9B31m%E2%80%AE%9B6n"
        os.kill(daemon.pids()[0], signal.SIGKILL)
        daemon.event("worker_died")
    for args in (["exits"], ["exits", "--last"]):
        done = daemon.ctl(*args)
        assert_done(done, 0)
        assert "%9B31m" in done.out
    place.add("evil.py", BROKEN)
    for args in (["reload"], ["reload", "--json"]):
        done = daemon.ctl(*args)
        assert_done(done, 1)
        assert r"\x1b]0;owned\x07\x1b[6n" in done.err
        assert done.err.splitlines()[-1].startswith("ostler ctl: error: the reload failed")
    assert_done(daemon.ctl("events"), 0)


@pytest.mark.thorough
def test_the_daemons_last_lines(place: Place) -> None:
    """The errors of an app that does not load and of a configuration that does not,
    and the output of --print-config.
    """
    place.add("broken.py", BROKEN)
    failed = place.run("-b", "127.0.0.1:0", "broken:app")
    assert_done(failed, 3)
    last = failed.err.splitlines()[-1]
    assert last.startswith(r"ostler: error: can't load 'broken:app': RuntimeError: \x1b]0;owned\x07")
    checked = place.run("--check-config", "broken:app")
    assert_done(checked, 3)
    place.add("gunicorn.conf.py", BROKEN)
    assert_done(place.run("-b", "127.0.0.1:0", "broken:app"), 1)
    place.add(
        "gunicorn.conf.py", f"proc_name = {EVIL!r}\nraw_env = [{'A=' + EVIL!r}]\nworker_tmp_dir = {EVIL!r}\n"
    )
    printed = place.run("--print-config", "broken:app")
    assert_done(printed, 0)
    assert r"\x1b]0;owned\x07" in printed.out
    # A file's name is shown as an origin; an argument is quoted in the usage error.
    name = "\x1b[6n\x9b.py"
    place.add(name, "workers = 1\n")
    assert_done(place.run("-c", name, "--print-config", "broken:app"), 0)
    assert_done(place.run(f"--no-such{EVIL}"), 2)


@pytest.mark.parametrize("format_", ["auto", "json"])
def test_the_log_on_a_terminal(place: Place, format_: str) -> None:
    """Tracebacks, log records of the app, and the access log with data from a client:
    only our own colours are sent.
    """
    place.add("evil.py", APP)
    (place.app_folder / "open").touch()
    with terminal() as (fd, sent):
        daemon = place.start(
            *("--log-format", format_, "--access-logfile", "-", "--no-control-socket", "evil:app"),
            argv=["sh", "-c", f'exec "$@" >{os.ttyname(fd)} 2>&1', "sh", *OSTLER],
            serving=False,
            NO_COLOR="",
        )

        def shown() -> str:
            return b"".join(sent).decode()

        daemon.until(lambda: "serving" in shown(), "serving")
        found = re.search(r"http://127\.0\.0\.1:(\d+)", shown())
        assert found is not None
        for target in (IN_PATH, b"/raise", b"/log"):
            with socket.create_connection(("127.0.0.1", int(found[1]))) as sock:
                agent = EVIL.replace("\r", "").encode("utf-8").replace(b"\x1b", b"").replace(b"\x07", b"")
                head = b"GET " + target + b" HTTP/1.1\r\nHost: x\r\nConnection: close\r\n"
                sock.sendall(head + b"User-Agent: " + agent.replace(b"\x7f", b"") + b"\r\n\r\n")
                while sock.recv(65536):
                    pass
        daemon.until(lambda: "/log HTTP/1.1" in shown(), "the last request's line")
        daemon.send(signal.SIGTERM)
        daemon.wait()
    text = shown()
    for line in OWN_COLOURS.sub("", text).split("\n"):
        assert line.removesuffix("\r").isprintable(), ascii(line)  # the terminal itself adds the CR
    assert "owned" in text
    assert ("\x1b[" in text) == (format_ == "auto")


def test_a_log_file(place: Place) -> None:
    """The same in a file, which may be read with `tail -f`."""
    place.add("evil.py", APP)
    (place.app_folder / "open").touch()
    for format_ in ("console", "json"):
        log: Path = place.folder / f"{format_}.txt"
        daemon = place.start(
            *("--log-format", format_, "--error-logfile", str(log), "--no-control-socket", "evil:app"),
            serving=False,
        )
        daemon.until(lambda log=log: log.exists() and "serving" in log.read_text(), "serving")
        found = re.search(r"http://127\.0\.0\.1:(\d+)", log.read_text())
        assert found is not None
        for target in (b"/raise", b"/log"):
            with socket.create_connection(("127.0.0.1", int(found[1]))) as sock:
                sock.sendall(b"GET " + target + b" HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")
                while sock.recv(65536):
                    pass
        daemon.send(signal.SIGTERM)
        daemon.wait()
        assert_harmless(log.read_text())
        assert log.read_text().count("owned") >= 4
