"""A container as strict orchestrators run it: nothing can be written, an arbitrary uid without an account,
no home, no runtime directory. (Kubernetes: readOnlyRootFilesystem, runAsNonRoot, runAsUser.)
"""

import json
import os
import signal
from pathlib import Path

import pytest

from ostler.control.client import Client
from ostler.control.routes import STATUS
from tests.kit.accounts import second_account, shown
from tests.kit.daemon import OSTLER, Daemon, Place
from tests.kit.hostile import each_class
from tests.kit.http_client import ask
from tests.kit.tiers import thorough

pytestmark = [
    pytest.mark.thorough,
    pytest.mark.system,
    pytest.mark.skipif(not second_account(), reason="needs root and mount namespaces"),
]

UID = 54321
"""Has no account."""
ROOT = ("/", "/tmp", "/var/tmp", "/run", "/dev/shm")
READER = """\
import sys
def app(environ, start_response):
    sent = len(environ["wsgi.input"].read())
    start_response("200 OK", [])
    return [str(sent).encode()]
"""


def contained(*but: str, uid: int = UID) -> list[str]:
    """The program with a read-only file system, except for the folders in `but`,
    which are empty and in memory.
    """
    steps = [
        "set -e",
        f"for d in {' '.join(ROOT)}; do mount --bind $d $d; mount -o remount,bind,ro $d; done",
        *(f"mount -t tmpfs -o mode=1777 tmpfs {folder}" for folder in but),
    ]
    without = " ".join(f"-u {name}" for name in ("XDG_RUNTIME_DIR", "TMPDIR", "HOME", "USER", "LOGNAME"))
    user = f"setpriv --reuid {uid} --regid {uid} --clear-groups"
    return [*shown(f"sh -c '{'; '.join(steps)}; exec \"$@\"' sh env {without} {user}"), *OSTLER]


@pytest.fixture
def open_place(hostile_place: Place) -> Place:
    """A place whose files any user may read."""
    for folder in (hostile_place.folder, hostile_place.app_folder):
        folder.chmod(0o755)
    hostile_place.add("reader.py", READER)
    return hostile_place


def token_file(place: Place) -> Path:
    """As an orchestrator mounts a secret."""
    path = place.folder / "token"
    path.write_text("s3cret-and-long-enough\n")
    path.chmod(0o400)
    os.chown(path, UID, UID)
    return path


def over_tcp(daemon: Daemon, target: str) -> dict[str, object]:
    url = str(daemon.event("control")["url"])
    answer = ask(url, target, headers={"Authorization": "Bearer s3cret-and-long-enough"})
    assert answer.status == 200
    return json.loads(answer.body)  # type: ignore[no-any-return]


@each_class
def test_nothing_can_be_written(open_place: Place, words: tuple[str, ...]) -> None:
    """The app is served and TCP control works. One warning says that there is no Unix socket and what to do.
    A killed worker is replaced as usual.
    """
    options = ("--control-bind", "127.0.0.1:0", "--control-token-file", str(token_file(open_place)))
    daemon = open_place.start(*options, *words, argv=contained())
    warning = daemon.event("control_unavailable")
    for part in (
        "/tmp/ostler-54321 (read-only file system)",
        "/dev/shm/ostler-54321",
        "--control-socket PATH",
    ):
        assert part in str(warning["problem"])
    pid = int(daemon.get().text)
    assert over_tcp(daemon, "/v1/status")["pid"] == daemon.pid
    os.kill(pid, signal.SIGTERM)
    daemon.event("worker_ready", after=1)
    assert int(daemon.get().text) != pid
    unusual = [event["event"] for event in daemon.events() if event["level"] != "info"]
    assert unusual == ["control_unavailable", "worker_died"]
    assert daemon.stop() == 0


def test_a_token_that_would_be_written_beside_the_socket(open_place: Place) -> None:
    """Without a token file the warning also says that one is needed."""
    daemon = open_place.start("--control-bind", "127.0.0.1:0", "attacked:app", argv=contained())
    assert "--control-token-file" in str(daemon.event("control_unavailable")["problem"])
    daemon.event("control")
    assert daemon.stop() == 0


@pytest.mark.parametrize("uid", [UID, *thorough(0)])
def test_only_shared_memory_can_be_written(open_place: Place, uid: int) -> None:
    """Containers usually have that: the control socket exists, for its owner and root, without a warning."""
    daemon = open_place.start("attacked:app", argv=contained("/dev/shm", uid=uid))
    found = Path(f"/proc/{daemon.pid}/root/dev/shm/ostler-{uid}")
    daemon.until(lambda: found.exists() and any(found.glob("*.sock")), "the socket")
    assert found.stat().st_mode & 0o777 == 0o700
    client = Client.unix(next(found.glob("*.sock")))
    assert client.call(STATUS).pid == daemon.pid
    client.close()
    assert daemon.events(level="warning") == []
    assert daemon.stop() == 0


def test_large_bodies(open_place: Place) -> None:
    """A body that fits into memory is served. One that would go to a file is refused with 507,
    and the log gives the reason; with --tmp-upload-dir in a writable folder it is served.
    """
    daemon = open_place.start("reader:app", argv=contained())
    assert daemon.get("/", method="POST", body=b"x" * 400_000).text == "400000"
    assert daemon.get("/", method="POST", body=b"x" * 2_000_000).status == 507
    assert "temporary" in str(daemon.event("body_not_stored")["reason"])
    assert daemon.get("/", method="POST", body=b"x").text == "1"
    assert daemon.stop() == 0
    daemon = open_place.start("--tmp-upload-dir", "/dev/shm", "reader:app", argv=contained("/dev/shm"))
    assert daemon.get("/", method="POST", body=b"x" * 2_000_000).text == "2000000"
    assert daemon.stop() == 0


def test_files_that_were_asked_for(open_place: Place) -> None:
    """A pid file or a log was asked for explicitly: if it can't be written, one line and exit code 1."""
    for options in (("--pid", "/run/x.pid"), ("--error-logfile", "/tmp/x.log"), ("--tmp-upload-dir", "/tmp")):
        done = open_place.run("-b", "127.0.0.1:0", *options, "attacked:app", argv=contained())
        assert done.code == 1
        assert done.err.splitlines()[-1].startswith("ostler: error: ")
        assert "Traceback" not in done.err
        assert options[1] in done.err.splitlines()[-1]
