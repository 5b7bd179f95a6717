"""WsgiDAV under litmus, Debian's WebDAV test suite: methods, headers and bodies that browsers never send."""

import re
import shutil

import pytest

from tests.kit.daemon import Daemon, Place

pytest.importorskip("wsgidav", reason="WsgiDAV is not installed")

pytestmark = [
    pytest.mark.thorough,
    pytest.mark.system,
    pytest.mark.skipif(not shutil.which("litmus"), reason="there is no litmus (apt install litmus)"),
]

SUITES = {"basic": 16, "copymove": 13, "props": 30, "locks": 41, "http": 4}
"""Each with the number of its tests in litmus 0.13."""


def litmus(daemon: Daemon, *suites: str) -> str:
    """Its output, without the lines that it overwrites."""
    # It writes its logs into its working folder.
    folder = daemon.place.folder / "litmus"
    folder.mkdir()
    done = daemon.place.run(
        "-k", f"{daemon.url}/", argv=("litmus",), cwd=folder, within=60, TESTS=" ".join(suites)
    )
    said = "\n".join(line.rpartition("\r")[2] for line in done.out.split("\n"))
    assert done.code == 0, said + done.err
    assert "WARNING" not in said, said
    return said


@pytest.mark.parametrize(
    ("workers", "suites"),
    [
        pytest.param(["--threads", "4"], ["basic", "copymove", "props", "locks", "http"], id="threads"),
        # WsgiDAV keeps locks and properties in memory: tests that need them must have a single worker.
        pytest.param(["-w", "2"], ["basic", "copymove", "http"], id="workers"),
    ],
)
def test_litmus(place: Place, workers: list[str], suites: list[str]) -> None:
    """Every test of every suite passes, without warnings, and none is skipped."""
    daemon = place.start(*workers, "dav:app")
    said = litmus(daemon, *suites)
    summaries = re.findall(r"summary for `(\w+)': of (\d+) tests run: (\d+) passed, (\d+) failed", said)
    assert [suite for suite, *_ in summaries] == suites
    for suite, run, passed, failed in summaries:
        assert (run, failed) == (passed, "0"), said
        assert int(run) >= SUITES[suite], said
    assert daemon.events("request_failed") == []
    assert daemon.events("worker_died") == []
