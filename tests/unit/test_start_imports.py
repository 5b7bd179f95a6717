"""What is imported at each stage of a start. That is most of a start's time, and can be counted."""

import json
import subprocess
import sys

import pytest

SUPERVISORS = {"asyncio", "ssl", "structlog", "psutil"}
CONTROL_SERVERS = {"aiohttp", "prometheus_client"}

_COUNT = """
import importlib, json, sys
before = set(sys.modules)
for name in sys.argv[1:]:
    importlib.import_module(name)
print(json.dumps(sorted(set(sys.modules) - before)))
"""


def imported(*modules: str) -> list[str]:
    run = subprocess.run([sys.executable, "-P", "-c", _COUNT, *modules], capture_output=True, check=True)
    found: list[str] = json.loads(run.stdout)
    return found


@pytest.mark.parametrize(
    ("modules", "most", "without"),
    [
        pytest.param(["ostler.cli.main"], 175, SUPERVISORS | CONTROL_SERVERS, id="ostler --version"),
        pytest.param(
            ["ostler.cli.main", "ostler.daemon.first_fork_server"],
            195,
            SUPERVISORS | CONTROL_SERVERS,
            id="until the first fork server is started",
        ),
        pytest.param(
            ["ostler.cli.main", "ostler.daemon.first_fork_server", "ostler.daemon.run"],
            420,
            CONTROL_SERVERS | {"rich", "http"},
            id="the supervisor, until it loads the control server",
        ),
        pytest.param(
            ["ostler.forkserver.main"],
            325,
            SUPERVISORS | CONTROL_SERVERS | {"click", "rich"},
            id="a fork server",
        ),
        pytest.param(
            ["ostler.cli.ctl", "ostler.cli.show"],
            195,
            SUPERVISORS - {"ssl"} | CONTROL_SERVERS,
            id="ctl status",
        ),
    ],
)
def test_modules_of_a_stage(modules: list[str], most: int, without: set[str]) -> None:
    """A few more than now, for other versions of Python and of libraries. To be raised for what is needed."""
    found = imported(*modules)
    assert without.isdisjoint(found)
    assert len(found) <= most, found
