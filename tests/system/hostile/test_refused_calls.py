"""A daemon that is refused system calls, or has few resources: it serves, or one line says why not."""

import errno
import re
import resource
import time
from collections.abc import Callable

import pytest

from tests.kit.daemon import Daemon, Place, end_with_parent
from tests.kit.http_client import ask
from tests.kit.seccomp import can_refuse, refusing
from tests.kit.tiers import thorough, tiers
from tests.kit.waiting import until

pytestmark = [
    pytest.mark.thorough,
    pytest.mark.system,
    pytest.mark.skipif(not can_refuse(), reason="no seccomp filters here"),
]

PR_SET_CHILD_SUBREAPER, PR_SET_TIMERSLACK = 36, 29  # linux/prctl.h

# Calls for which Ostler has a substitute, or which it can do without.
SPARED = (
    *("sendfile", "flock", "getpriority", "setpriority", "sched_getaffinity", "sched_setaffinity"),
    *("sched_getscheduler", "sched_setattr", "eventfd2", "signalfd4", "timerfd_create", "pidfd_open"),
    *("prlimit64", "sigaltstack", "setitimer", "tgkill", "statx", "close_range", "inotify_init1"),
    *("listxattr", "llistxattr", "copy_file_range", "splice"),
)
NEEDED = "pipe2 epoll_create1 epoll_ctl waitid clock_gettime getsockname getsockopt".split()
"""Beside those that the usual tests try."""

ERRORS = pytest.mark.parametrize(
    "number", tiers({"EPERM": errno.EPERM, "ENOSYS": errno.ENOSYS}.items(), ["EPERM"])
)
# It catches the exception that would end only the overdue request, so that its worker must end.
HANG = """\
import time

def request(path):
    while path == "/hang":
        try:
            time.sleep(600)
        except BaseException:
            pass
"""


def serves_or_says(daemon: Daemon) -> str:
    """The one line with which it ends; empty if it serves, and stops at SIGTERM."""
    until(lambda: daemon.process.poll() is not None or daemon.events("serving"), "serving or its end")
    text = daemon.log.read_text()
    if daemon.process.poll() is None:
        assert ask(daemon.url).status == 200
        assert daemon.stop(within=30) == 0
        text = daemon.log.read_text()
        assert "Traceback" not in text
        return ""
    assert daemon.process.returncode in (1, 3)
    assert daemon.place.leftovers() == []
    (line,) = [line for line in text.splitlines() if not line.startswith("{")]
    assert line.startswith("ostler: error: "), line
    assert "Traceback" not in text
    return line


@ERRORS
def test_calls_that_can_be_spared(hostile_place: Place, number: int) -> None:
    """All optional calls are refused at once: it serves, and replaces a worker that hangs."""
    hostile_place.add("attack.py", HANG)
    before = refusing("prctl", number=number, argument=(0, PR_SET_TIMERSLACK))
    others = refusing(*SPARED, number=number)

    def refuse() -> None:
        before()
        others()

    words = ("--threads", "2", "-t", "0.5", "--timeout-grace", "0.2", "attacked:app")
    daemon = hostile_place.start(*words, popen={"preexec_fn": refuse})
    first = ask(daemon.url).text
    daemon.connect().asked("/hang").ended_by_server()
    until(lambda: _pid(daemon) not in ("", first), "another worker")
    assert daemon.stop() == 0
    assert "Traceback" not in daemon.log.read_text()
    assert daemon.events("control_unavailable") == []


@ERRORS
def test_signals_without_pidfds(hostile_place: Place, number: int) -> None:
    """Only pidfd_send_signal(2) is refused: a worker that hangs is ended by its pid."""
    hostile_place.add("attack.py", HANG)
    daemon = hostile_place.start(
        *("-t", "0.5", "--timeout-grace", "0.2", "attacked:app"),
        popen={"preexec_fn": refusing("pidfd_send_signal", number=number)},
    )
    first = ask(daemon.url).text
    daemon.connect().asked("/hang").ended_by_server()
    until(lambda: _pid(daemon) not in ("", first), "another worker")
    assert daemon.stop() == 0
    assert daemon.events("internal_error") == []


def _pid(daemon: Daemon) -> str:
    try:
        return ask(daemon.url).text
    except OSError:
        return ""


@ERRORS
@pytest.mark.parametrize("call", ["socketpair", "epoll_wait", *thorough(*NEEDED)])
def test_calls_that_are_needed(hostile_place: Place, call: str, number: int) -> None:
    """One line names the call, at a start and with --check-config."""
    refuse = {"preexec_fn": refusing(call, number=number)}
    for words in (("attacked:app",), ("--check-config", "attacked:app")):
        line = serves_or_says(hostile_place.start(*words, serving=False, popen=refuse))
        assert f"the system refuses {call}(2)" in line


@ERRORS
def test_no_subreaper(hostile_place: Place, number: int) -> None:
    """Without it workers would not be children of the supervisor."""
    refuse = refusing("prctl", number=number, argument=(0, PR_SET_CHILD_SUBREAPER))
    daemon = hostile_place.start("attacked:app", serving=False, popen={"preexec_fn": refuse})
    assert "prctl(PR_SET_CHILD_SUBREAPER)" in serves_or_says(daemon)


def test_no_accept(hostile_place: Place) -> None:
    """A daemon that can't accept must not look as if it serves. For ENOSYS there is accept(2)."""
    daemon = hostile_place.start("attacked:app", serving=False, popen={"preexec_fn": refusing("accept4")})
    assert "accept4(2)" in serves_or_says(daemon)
    no_call = {"preexec_fn": refusing("accept4", number=errno.ENOSYS)}
    assert serves_or_says(hostile_place.start("attacked:app", popen=no_call)) == ""


@ERRORS
@pytest.mark.parametrize("call", ["memfd_create", "ftruncate"])
def test_no_memory_file(hostile_place: Place, call: str, number: int) -> None:
    """It serves nevertheless, or the line names the call."""
    refuse = {"preexec_fn": refusing(call, number=number)}
    line = serves_or_says(hostile_place.start("attacked:app", serving=False, popen=refuse))
    assert not line or call in line


def limited(which: int, value: int) -> Callable[[], None]:
    def limit() -> None:
        end_with_parent()
        resource.setrlimit(which, (value, value))

    return limit


@pytest.mark.parametrize(
    ("which", "value"),
    [
        (resource.RLIMIT_NOFILE, 8),
        (resource.RLIMIT_FSIZE, 64 << 10),
        (resource.RLIMIT_DATA, 128 << 20),
        *thorough((resource.RLIMIT_NOFILE, 16), (resource.RLIMIT_NOFILE, 32)),
        *thorough((resource.RLIMIT_STACK, 256 << 10), (resource.RLIMIT_MEMLOCK, 0)),
        *thorough((resource.RLIMIT_SIGPENDING, 0), (resource.RLIMIT_CORE, 0)),
    ],
)
def test_limits(hostile_place: Place, which: int, value: int) -> None:
    """Few descriptors, small files, little memory."""
    daemon = hostile_place.start("attacked:app", serving=False, popen={"preexec_fn": limited(which, value)})
    line = serves_or_says(daemon)
    assert not line or re.search(r"\(2\)|Too many open files|File too large|RLIMIT_NOFILE", line), line


def test_full_log_files(hostile_place: Place) -> None:
    """Logs that have reached RLIMIT_FSIZE: lines are lost and counted, requests are answered."""
    log = hostile_place.add("small.log", "x" * (1 << 20))
    daemon = hostile_place.start("--error-logfile", "small.log", "--access-logfile", "small.log", "-b",
                                 f"unix:{hostile_place.folder}/app.sock", "attacked:app", bind=None,
                                 serving=False)  # fmt: skip
    until((hostile_place.folder / "app.sock").exists, "the socket")
    resource.prlimit(daemon.pid, resource.RLIMIT_FSIZE, (1 << 20, 1 << 20))
    for worker in daemon.settled(1):
        assert worker.pid is not None
        resource.prlimit(worker.pid, resource.RLIMIT_FSIZE, (1 << 20, 1 << 20))
    before = time.monotonic()
    for _ in range(20):
        assert ask(f"unix:{hostile_place.folder}/app.sock").status == 200
    assert time.monotonic() - before < 10
    assert log.stat().st_size < 2 << 20
    assert daemon.stop() == 0
