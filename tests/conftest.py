"""How the tests are spread over processes (pytest-xdist), and which examples Hypothesis chooses.

System tests mostly wait for a daemon of their own, and some take ten times as long as others, so
each is scheduled by itself. A file whose tests share a daemon, and a file of quick tests, stays together.
"""

import functools
from pathlib import Path
from typing import Any

import pytest
from hypothesis import settings

# A run tries the same examples as the one before, for as long as a busy machine takes.
# `--hypothesis-profile new` looks for new ones.
settings.register_profile("repeatable", derandomize=True, deadline=None)
settings.register_profile("new", deadline=None)
settings.load_profile("repeatable")

ROOT = Path(__file__).parents[1]


@functools.cache
def _stays_together(path: str) -> bool:
    if not path.startswith("tests/system/"):
        return True
    source = (ROOT / path).read_text()
    return 'scope="module"' in source or "shared_place" in source


def work_unit(test: str) -> str:
    """What is scheduled with this test: its file, or the test alone. Both are node ids of pytest."""
    path = test.partition("::")[0]
    return path if _stays_together(path) else test


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> Any:
    from xdist.scheduler import LoadScopeScheduling

    class ByWorkUnit(LoadScopeScheduling):
        def _split_scope(self, nodeid: str) -> str:
            return work_unit(nodeid)

    # In the order of collection. The unit tests are last and quick, so that all processes end at about the
    # same time.
    config.option.loadscopereorder = False
    return ByWorkUnit(config, log)
