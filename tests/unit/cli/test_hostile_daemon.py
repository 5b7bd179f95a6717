"""`ctl` with a daemon that answers with texts that harm a terminal, in every text of every view.

The answers are made from the types of the route table, so that future routes and fields are covered as well.
No command may let a control character through, fail with a traceback, or print without bounds.
"""

import itertools
import json
import re
import socketserver
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler
from pathlib import Path
from typing import Any, NamedTuple

import msgspec
import pytest
from rich.cells import cell_len

from ostler.cli import ctl, waiting
from ostler.control import client
from ostler.control.routes import ROUTES, SSE, Route
from ostler.control.views import ErrorView
from tests.kit.terminal import terminal

# A window title, a query that the terminal answers as if typed, C1, bidirectional and zero-width
# controls, a line that looks like ours, markup of rich's, a wide character.
EVIL = (
    "\x1b]0;owned\x07\x1b[6n\x9b31m\x90q\x9c\x7f\x00\x08\u202e\u2066\u200b\u200f\u2028\u2029\x85\r"
    "\nctl: error: forged\n\t[red]r[/red]:skull:\u6f22"
)
HUGE = EVIL * 1000
"""Some 100 KB; there are many of it in an answer."""

# Sequences that rich itself sends to a terminal: colours, bars that are drawn again.
OWN_SEQUENCES = re.compile(r"\x1b\[[0-9;]*m|\x1b\[\?25[lh]|\x1b\[2K|\x1b\[1A|\r")

COMMANDS: dict[str, list[list[str]]] = {
    "status": [["status"]],
    "workers": [["workers"]],
    "requests": [["requests"]],
    "config": [["config"]],
    "exits": [["exits"], ["exits", "1"], ["exits", "--last"]],
    "events": [["events"]],
    "scale": [["scale", "1"], ["scale", "+1", "--no-wait"]],
    "reload": [
        ["reload"],
        ["reload", "--no-wait"],
        ["reload", "--wait-probation"],
        ["reload", "--abort"],
    ],
    "wait": [["wait"], ["wait", "--wait-probation"]],
    "rollback": [["rollback"], ["rollback", "--no-wait"]],
    "recycle": [["recycle", "1"], ["recycle", "1", "--no-wait"]],
    "refork": [["refork"], ["refork", "--no-wait"]],
    "upgrade": [["upgrade"], ["upgrade", "--no-wait"]],
    "pause": [["pause"], ["pause", "--no-wait"]],
    "drain": [["drain"]],
    "resume": [["resume"], ["resume", "--no-wait"]],
    "stop": [["stop"], ["stop", "--no-wait"]],
    "open": [["open"]],
}
ALL = [argv for ways in COMMANDS.values() for argv in ways]


class Filling(NamedTuple):
    """Values for views. `given`: values of fields by `View.field`, which have precedence."""

    text: str = EVIL
    number: int = 1
    real: float = 1.5
    given: Mapping[str, Any] = {}


def filled(kind: msgspec.inspect.Type, filling: Filling, place: str = "") -> Any:
    """Data of a type as decoded JSON."""
    inspect = msgspec.inspect
    if place in filling.given:
        given = filling.given[place]
        return given() if callable(given) else given
    match kind:
        case inspect.StructType():
            path = f"{place}." if place.startswith("StatusView.") else f"{kind.cls.__name__}."
            return {
                field.encode_name: filled(field.type, filling, path + field.name) for field in kind.fields
            }
        case inspect.ListType():
            return [filled(kind.item_type, filling, place)]
        case inspect.TupleType():
            return [filled(item, filling, place) for item in kind.item_types]
        case inspect.DictType():
            return {filling.text: filled(kind.value_type, filling, place), "problem": filling.text}
        case inspect.UnionType():
            return filled(next(t for t in kind.types if not isinstance(t, inspect.NoneType)), filling, place)
        case inspect.LiteralType():
            return kind.values[0]
        case inspect.StrType() | inspect.AnyType():
            return filling.text
        case inspect.BoolType():
            return True
        case inspect.IntType():
            return filling.number
        case inspect.FloatType():
            return filling.real
    raise AssertionError(f"the views have a type that this test does not know: {kind}")


def fields() -> dict[str, Any]:
    """Fields that let commands end their wait: each request finds other processes and a newer program."""
    pids, times = itertools.count(1), itertools.count(1)
    return {
        "StatusView.state": "ready",
        "StatusView.booting": 0,
        "StatusView.draining": 0,
        "StatusView.reload.generation": 1,
        "StatusView.program_since": lambda: float(next(times)),
        "WorkerView.state": "ready",
        "WorkerView.pid": lambda: next(pids),
        "WorkerView.generation": 2,
        "ReloadView.generation": 2,
        "ReloadView.phase": "done",
    }


class Answers(NamedTuple):
    """filling: for the views; events: names of events, one each; error: an ErrorView answers everything."""

    filling: Filling
    events: tuple[str, ...] = (EVIL,)
    error: bool = False
    raw: bytes | None = None
    """Sent in place of any answer."""


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    answers: Answers

    def do_GET(self) -> None:
        self._answer()

    def do_POST(self) -> None:
        self.rfile.read(int(self.headers.get("Content-Length", 0)))
        self._answer()

    def _answer(self) -> None:
        answers = self.answers
        if answers.raw is not None:
            self.wfile.write(answers.raw)
            self.close_connection = True
            return
        route = route_of(self.command, self.path.partition("?")[0])
        status = 418 if answers.error else route.status
        body = msgspec.json.encode(view_of(ErrorView if answers.error else route.view, answers, route))
        self.send_response(status)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def address_string(self) -> str:
        return "unix"

    def log_message(self, *_: Any) -> None:
        pass


def route_of(method: str, path: str) -> Route[Any, Any]:
    def fits(route: Route[Any, Any]) -> bool:
        return bool(re.fullmatch(re.sub(r"\{\w+\}", r"\\d+", route.path), path)) and route.method == method

    return next(route for route in ROUTES if fits(route))


def view_of(view: Any, answers: Answers, route: Route[Any, Any]) -> Any:
    if route.name == "events":
        kind = msgspec.inspect.type_info(view.__args__[0])
        return [
            filled(kind, answers.filling) | {"id": number, "name": name}
            for number, name in enumerate(answers.events, 1)
        ]
    return filled(msgspec.inspect.type_info(view), answers.filling)


class _Server(socketserver.ThreadingMixIn, socketserver.UnixStreamServer):
    daemon_threads = True
    block_on_close = False

    def handle_error(self, *_: Any) -> None:
        pass  # clients close the connection in the middle of an answer that is too large


@contextmanager
def hostile(path: Path, answers: Answers) -> Iterator[None]:
    handler = type("Handler", (_Handler,), {"answers": answers})
    with _Server(str(path), handler) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        try:
            yield
        finally:
            server.shutdown()
            thread.join()
    path.unlink()


class Done(NamedTuple):
    code: int
    out: str
    err: str


Run = Callable[..., Done]


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    for name in ("OSTLER_SOCKET", "OSTLER_URL", "OSTLER_TOKEN", "OSTLER_OWNER"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("DISPLAY", ":0")
    monkeypatch.setattr("webbrowser.open", lambda _: pytest.fail("it is no address"))
    monkeypatch.setattr(client, "candidate_dirs", lambda: [tmp_path])
    monkeypatch.setattr(waiting, "POLL_SECONDS", 0.0)
    monkeypatch.setattr(waiting, "DEGRADED_SECONDS", 0.0)
    return tmp_path


@pytest.fixture
def run(place: Path, capsys: pytest.CaptureFixture[str]) -> Run:
    def run(*argv: str) -> Done:
        began = time.monotonic()
        with pytest.raises(SystemExit) as caught:
            ctl.main(list(argv))
        assert time.monotonic() - began < 20
        out, err = capsys.readouterr()
        return Done(int(caught.value.code or 0), out, err)

    return run


def waits(argv: list[str]) -> list[str]:
    """A command that may wait for ever waits only a moment."""
    prompt = ("status", "workers", "requests", "config", "exits", "events", "drain", "open")
    return argv if argv[0] in prompt else [*argv, "--timeout", "0.2"]


def assert_harmless(text: str) -> None:
    for line in text.split("\n"):
        assert line.isprintable(), ascii(line[:2000])


def test_every_command_is_here() -> None:
    """Every command of `ctl` is attacked here, also new ones, and the type of each route is known."""
    assert COMMANDS.keys() == ctl.cli.commands.keys()
    for route in ROUTES:
        if route.media != SSE and route.view is not None:
            filled(msgspec.inspect.type_info(route.view), Filling())


OUTCOMES = {
    "well": Answers(Filling(given=fields())),
    "reload failed": Answers(Filling(given=fields() | {"ReloadView.phase": "failed"})),
    "rolled back": Answers(Filling(given=fields() | {"ReloadView.phase": "rolled back"})),
    "degraded": Answers(Filling(given=fields() | {"StatusView.state": "degraded", "StatusView.ready": 0})),
    "refork done": Answers(Filling(given=fields()), ("refork_warning", "refork_done", "upgraded")),
    "refused": Answers(Filling(given=fields()), ("refork_refused", "upgrade_failed")),
    "restart": Answers(Filling(given=fields() | {"ChangeView.takes_effect": "restart"})),
    "error": Answers(Filling(), error=True),
    "no JSON": Answers(Filling(), raw=b'HTTP/1.1 200 OK\r\nConnection: close\r\n\r\n{"\x1b[6n\x9b\xc2\x9b"'),
    "no UTF-8": Answers(Filling(), raw=b'HTTP/1.1 200 OK\r\nConnection: close\r\n\r\n"\x1b\x9b\xff"'),
    "deep": Answers(Filling(), raw=b"HTTP/1.1 200 OK\r\nConnection: close\r\n\r\n" + b"[" * 200_000),
    "no HTTP": Answers(Filling(), raw=b"HTTP/1.1 \x1b[6n\xc2\x9b \x1b]0;x\x07\r\n\r\n"),
    "no status": Answers(Filling(), raw=b"\x1b[6n\xc2\x9b\r\n\r\n"),
}


@pytest.mark.parametrize("outcome", OUTCOMES)
def test_nothing_gets_through(place: Path, run: Run, outcome: str) -> None:
    """Into a pipe: no control character on either stream for any answer; JSON is ASCII and complete."""
    with hostile(place / "shop.sock", OUTCOMES[outcome]):
        for argv in ALL:
            done = run("--socket", str(place / "shop.sock"), *waits(argv))
            assert_harmless(done.out + done.err)
            assert "Traceback" not in done.err
            done = run("--socket", str(place / "shop.sock"), *waits(argv), "--json")
            assert_harmless(done.out + done.err)
            assert done.out.isascii()
            if done.out:
                assert "\\u202e" in done.out or "--no-wait" in argv, argv
                if "--no-wait" not in argv:
                    assert EVIL in texts(json.loads(done.out))
            assert bool(done.code) == done.err.rpartition("\n")[0].rpartition("\n")[2].startswith(
                "ctl: error"
            )


def test_the_attack_reaches_the_output(place: Path, run: Run) -> None:
    """The texts are shown, escaped; otherwise the other tests would prove nothing."""
    with hostile(place / "shop.sock", OUTCOMES["well"]):
        for argv in (
            ["status"],
            ["workers"],
            ["requests"],
            ["config"],
            ["exits"],
            ["exits", "1"],
            ["events"],
        ):
            done = run("--socket", str(place / "shop.sock"), *argv)
            assert (done.code, done.err) == (0, "")
            assert r"\x1b]0;owned\x07\x1b[6n\x9b31m" in done.out, argv
            assert "[red]r[/red]:skull:\u6f22" in done.out, argv
        done = run("--socket", str(place / "shop.sock"), "reload")
        assert r"\x9b31m" in done.out
    with hostile(place / "shop.sock", OUTCOMES["reload failed"]):
        done = run("--socket", str(place / "shop.sock"), "reload")
        assert done.code == 1
        assert done.err.count(r"\x1b]0;owned\x07") == 2  # traceback and reason
    with hostile(place / "shop.sock", OUTCOMES["refused"]):
        done = run("--socket", str(place / "shop.sock"), "refork")
        assert done.err.startswith(r"ctl: error: the refork was refused: \x1b]0;owned\x07")
        assert done.err.count("\n") == 1


def test_names_in_the_usual_places(place: Path, run: Run) -> None:
    """Several instances are listed, none with the requested name: each on a line of its own."""
    with hostile(place / "a.sock", OUTCOMES["well"]), hostile(place / "b.sock", OUTCOMES["well"]):
        for argv in (["status"], ["--name", EVIL, "status"], ["--name", "\x1b[6n", "status"]):
            done = run(*argv)
            assert_harmless(done.err)
            assert done.code == 1
        assert run("status").err.count("\n") == 3


def test_arguments(run: Run) -> None:
    """Arguments from a user or a script are shown escaped as well."""
    for argv in (
        [EVIL],
        ["scale", EVIL],
        ["--socket", EVIL, "status"],
        ["--url", EVIL, "status"],
        [f"--{EVIL}"],
    ):
        done = run(*argv)
        assert_harmless(done.err)
        assert done.code in (1, 2)
        assert done.err.count("\n") == 1


def texts(data: Any) -> list[str]:
    """All texts in decoded JSON."""
    if isinstance(data, dict):
        return [*data, *(text for value in data.values() for text in texts(value))]
    if isinstance(data, list):
        return [text for value in data for text in texts(value)]
    return [data] if isinstance(data, str) else []


# -- numbers and sizes -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("number", "real"),
    [(10**30, 1e308), (-(10**30), -1e308), (10**4000, 0.0), (0, 1e308)],
    ids=["large", "negative", "huge", "0"],
)
def test_numbers_that_can_not_be(place: Path, run: Run, number: int, real: float) -> None:
    """Impossible times and sizes are shown in some form, or are an error in one line."""
    filling = Filling("x", number, real)
    with hostile(place / "shop.sock", Answers(filling)):
        for argv in ALL:
            done = run("--socket", str(place / "shop.sock"), *waits(argv))
            assert "Traceback" not in done.err
            assert done.code == 0 or done.err.startswith("ctl: error: ")


def test_huge_texts(place: Path, run: Run) -> None:
    """100 KB in each text: some lines are printed, with the length of the rest; --json has all of it."""
    with hostile(place / "shop.sock", Answers(Filling(HUGE, given=fields()), (HUGE,))):
        for argv in ALL:
            done = run("--socket", str(place / "shop.sock"), *waits(argv))
            assert_harmless(done.out + done.err)
            assert len(done.out) < 3_000_000, argv
            assert len(done.err) < 1_000_000, argv
        assert "characters in all)" in run("--socket", str(place / "shop.sock"), "status").out
        assert HUGE in texts(json.loads(run("--socket", str(place / "shop.sock"), "status", "--json").out))


def test_an_answer_of_ten_megabytes(place: Path, run: Run) -> None:
    """A single text, all of it to be escaped, is printed at once."""
    given = fields() | {"StatusView.health": "\x1b" * 10_000_000}
    with hostile(place / "shop.sock", Answers(Filling("x", given=given))):
        done = run("--socket", str(place / "shop.sock"), "status")
        assert (done.code, done.err) == (0, "")
        assert_harmless(done.out)
        assert "characters in all)" in done.out
        assert len(done.out) < 200_000


def test_an_answer_without_end(place: Path, run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    """`ctl` stops reading at a limit."""
    monkeypatch.setattr(client, "LARGEST_ANSWER", 1 << 20)
    body = b"HTTP/1.1 200 OK\r\nConnection: close\r\n\r\n" + b" " * (2 << 20)
    with hostile(place / "shop.sock", Answers(Filling(), raw=body)):
        done = run("--socket", str(place / "shop.sock"), "status")
    assert done.code == 1
    assert "its answer is larger than 1 MiB" in done.err


# -- on a terminal -----------------------------------------------------------------------------------------


@contextmanager
def output_on_a_terminal(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[bytes]]:
    """Standard output and error on a terminal; what it was sent."""
    with (
        terminal() as (fd, sent),
        open(fd, "w", closefd=False) as stream,
        monkeypatch.context() as patch,
    ):
        patch.setattr(sys, "stdout", stream)
        patch.setattr(sys, "stderr", stream)
        yield sent


@pytest.mark.parametrize("outcome", ["well", "reload failed", "refork done"])
@pytest.mark.parametrize("text", [EVIL, HUGE], ids=["", "huge"])
def test_a_terminal_gets_our_own_sequences_only(
    place: Path, monkeypatch: pytest.MonkeyPatch, outcome: str, text: str
) -> None:
    """Colours and bars, and nothing else; tables stay within the terminal's columns."""
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setenv("COLUMNS", "80")
    monkeypatch.setenv("LINES", "24")
    monkeypatch.delenv("NO_COLOR", raising=False)
    answers = OUTCOMES[outcome]
    filling = answers.filling._replace(text=text, given=dict(answers.filling.given) | fields_of(outcome))
    with hostile(place / "shop.sock", answers._replace(filling=filling)):
        for argv in ALL:
            with output_on_a_terminal(monkeypatch) as sent, pytest.raises(SystemExit):
                ctl.main(["--socket", str(place / "shop.sock"), *waits(argv)])
            shown = OWN_SEQUENCES.sub("", b"".join(sent).decode())
            assert_harmless(shown)
            assert "Traceback" not in shown.replace("Traceback (most recent call last)\\n", "")
            assert len(shown) < 1_000_000
            if argv[0] in ("status", "workers", "requests", "config") or argv == ["exits"]:
                assert max(cell_len(line) for line in shown.split("\n")) <= 80, argv


def fields_of(outcome: str) -> dict[str, Any]:
    return fields() | ({"ReloadView.phase": "failed"} if outcome == "reload failed" else {})
