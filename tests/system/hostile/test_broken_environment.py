"""The environment of the daemon is broken: no /proc, too few threads, too little memory, wrong variables.
It serves, or gives the reason in one line.
"""

import os
import resource
import sys

import pytest

from tests.kit.accounts import second_account, shown
from tests.kit.daemon import OSTLER, Place, end_with_parent
from tests.kit.hostile import CLASSES, each_class
from tests.kit.http_client import ask
from tests.kit.processes import Process
from tests.kit.tiers import thorough

pytestmark = [pytest.mark.system, pytest.mark.thorough]

UID = 54322
"""Has no account; only this module counts its processes."""
needs_mounts = pytest.mark.skipif(not second_account(), reason="needs root and mount namespaces")
NO_PROC = "sh -c 'mount -t tmpfs tmpfs /proc; exec \"$@\"' sh"


def without_proc() -> list[str]:
    return [*shown(NO_PROC), *OSTLER]


@needs_mounts
@each_class
def test_no_proc(hostile_place: Place, words: tuple[str, ...]) -> None:
    """As in a chroot(2): it serves, replaces, reloads, and logs that no worker can be kept for roll-back."""
    daemon = hostile_place.start(*words, argv=without_proc())
    first = int(ask(daemon.url).text)
    Process(first).send(9)
    daemon.event("worker_died", status="signal 9")
    daemon.settled(1)
    assert int(ask(daemon.url).text) != first
    daemon.send(1)
    daemon.event("reload_done")
    assert "/proc is not mounted" in daemon.event("template_refused")["problems"]
    assert ask(daemon.url).status == 200
    assert daemon.stop() == 0
    text = daemon.log.read_text()
    assert "Traceback" not in text
    assert "internal_error" not in text


@needs_mounts
def test_no_proc_for_a_socket_with_an_owner(hostile_place: Place) -> None:
    """The socket's owner can't be set safely: the line gives that reason, not a missing folder."""
    for folder in (hostile_place.folder, hostile_place.app_folder):
        folder.chmod(0o755)
    done = hostile_place.run("-b", "unix:app.sock", "--user", "nobody", "attacked:app", argv=without_proc())
    assert done.code == 1
    assert "/proc is not mounted" in done.error


@pytest.mark.parametrize("text", ["1", *thorough("3", "99999999999", "9" * 5000)])
@pytest.mark.parametrize("descriptor", ["/etc", "", *thorough("/dev/null")])
def test_wrong_listen_fds(hostile_place: Place, text: str, descriptor: str) -> None:
    """LISTEN_FDS names this process, but the descriptors are not listening sockets, or are closed."""
    redirected = f"exec 3<{descriptor};" if descriptor else "exec 3<&-;"
    script = f'export LISTEN_PID=$$ LISTEN_FDS="$COUNT"; {redirected} exec "$@"'
    done = hostile_place.run("attacked:app", argv=["sh", "-c", script, "sh", *OSTLER], COUNT=text)
    assert done.code == 1
    assert "LISTEN_FDS" in done.error
    assert "descriptor 3" in done.error
    assert len(done.error) < 300


@needs_mounts
def test_no_threads(hostile_place: Place) -> None:
    """RLIMIT_NPROC allows the processes, but not the threads of a worker: it is never ready."""
    for folder in (hostile_place.folder, hostile_place.app_folder):
        folder.chmod(0o755)
    os.chown(hostile_place.runtime, UID, UID)
    limited = shown(f"setpriv --reuid {UID} --regid {UID} --clear-groups prlimit --nproc=5:5 --")
    done = hostile_place.run("-b", "127.0.0.1:0", *CLASSES["threads"], argv=[*limited, *OSTLER], within=60)
    assert done.code == 3
    loading, error = done.err.strip().splitlines()
    assert '"loading"' in loading
    assert "can't make 4 threads" in error
    assert "ulimit -a" in error


def test_threads_that_do_not_fit_into_memory(hostile_place: Place) -> None:
    """The same for RLIMIT_DATA, of which each thread's stack takes a part."""
    stack = resource.getrlimit(resource.RLIMIT_STACK)[0]
    if stack == resource.RLIM_INFINITY or stack < 1 << 20:
        pytest.skip("threads have no stacks of that size here")

    def limit() -> None:
        end_with_parent()
        resource.setrlimit(resource.RLIMIT_DATA, (64 << 20, 64 << 20))

    daemon = hostile_place.start(
        "--threads", "64", "attacked:app", serving=False, popen={"preexec_fn": limit}
    )
    assert daemon.wait(60) == 3
    assert "can't make 64 threads" in daemon.log.read_text()
    assert "Traceback" not in daemon.log.read_text()


def test_too_little_memory(hostile_place: Place) -> None:
    """Too little memory to load all modules: one line."""

    def limit() -> None:
        end_with_parent()
        resource.setrlimit(resource.RLIMIT_DATA, (16 << 20, 16 << 20))

    daemon = hostile_place.start("attacked:app", serving=False, popen={"preexec_fn": limit})
    assert daemon.wait(60) == 1
    (line,) = daemon.log.read_text().splitlines()
    assert line.startswith("ostler: error: out of memory")


def test_variables_of_libraries(hostile_place: Place) -> None:
    """SSLKEYLOGFILE in a folder that does not exist makes a library's import fail: the app is served all the
    same, without the control plane.
    """
    daemon = hostile_place.start("attacked:app", SSLKEYLOGFILE="/nowhere/keys")
    (warning,) = daemon.events("control_unavailable")
    assert "SSLKEYLOGFILE" in warning["problem"]
    assert ask(daemon.url).status == 200
    assert daemon.stop() == 0


@pytest.mark.parametrize("host", [os.fsdecode(b"\xff"), *thorough("a..b", "x" * 70)])
def test_names_that_no_host_can_have(hostile_place: Place, host: str) -> None:
    """A statsd or syslog host of such a name is treated as unreachable: it serves."""
    daemon = hostile_place.start(
        "--statsd-host", f"{host}:99", "--log-syslog", "--log-syslog-to", f"udp://{host}:99", "attacked:app"
    )
    assert ask(daemon.url).status == 200
    assert daemon.stop() == 0
    assert "Traceback" not in daemon.log.read_text(errors="replace")


def test_configuration_nested_too_deeply(hostile_place: Place) -> None:
    """The parser's MemoryError has no text; the line that reports it has one."""
    hostile_place.add("gunicorn.conf.py", f"x = {'-' * 100_000}1\n")
    done = hostile_place.run("--check-config", "attacked:app")
    assert done.code == 1
    assert not done.error.rstrip().endswith(":"), done.error


@pytest.mark.thorough
def test_ctl_with_closed_descriptors(hostile_place: Place) -> None:
    """Python sets a standard stream to None if its descriptor is closed at the start."""
    daemon = hostile_place.start("attacked:app")
    ctl = [sys.executable, "-c", "from ostler.__main__ import ctl; ctl()"]
    for command in ([*OSTLER, "ctl"], ctl):
        for closed in (">&-", "<&-", ">&- 2>&-", "<&- >&- 2>&-"):
            for words in (("status",), ("--json", "status"), ("events",)):
                script = ["sh", "-c", f'exec "$@" {closed}', "sh", *command]
                done = hostile_place.run(*words, argv=script, OSTLER_SOCKET=str(daemon.socket))
                assert (done.code, done.err) == (0, ""), (command, closed, words)
    assert daemon.stop() == 0


@pytest.mark.parametrize("url", ["http://[::1", "http://a..b:1", f"http://{'x' * 70}:1"])
def test_ctl_with_invalid_urls(hostile_place: Place, url: str) -> None:
    """Invalid URLs are an error in one line."""
    done = hostile_place.run("ctl", "--url", url, "status", OSTLER_TOKEN="token")
    assert done.code == 1
    assert "ctl: error: " in done.error


@pytest.mark.parametrize("flag", ["--log-file", *thorough("--access-logfile", "--log-config", "--chdir")])
def test_names_that_are_too_long(hostile_place: Place, flag: str) -> None:
    """A path that is too long is an error in one line of bounded length."""
    done = hostile_place.run("--check-config", f"{flag}={'x' * 100_000}", "attacked:app")
    assert done.code == 1
    assert len(done.error) < 6000
