"""Logging every line: the app's, and no others."""

import sys
import threading
from pathlib import Path
from typing import Any

import pytest

from supervisor.logs.lean import Log
from supervisor.settings.table import Settings
from supervisor.workers import spew


class Told(Log):
    def __init__(self) -> None:
        self.lines: list[dict[str, Any]] = []

    def event(self, level: str, name: str, **fields: Any) -> None:
        assert (level, name) == ("info", "line")
        self.lines.append(fields)


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [str(tmp_path), str(tmp_path / "site-packages"), *sys.path])
    monkeypatch.setattr(sys, "modules", dict(sys.modules))
    (tmp_path / "site-packages").mkdir()
    (tmp_path / "site-packages/foreign_page.py").write_text("def f():\n    return 1\n")
    (tmp_path / "site-packages/spewed_page.py").write_text("def f():\n    return 1\n")
    (tmp_path / "own_page.py").write_text(
        "import json, foreign_page, spewed_page\n\n"
        "def app():\n    json.dumps([foreign_page.f()])\n    return spewed_page.f()\n"
    )
    return tmp_path


def test_lines(here: Path) -> None:
    """File, line, function and source of the app's own modules and its package, threads included."""
    log = Told()
    before, before_threads = sys.gettrace(), threading.gettrace()
    try:
        spew.spew(log, Settings(wsgi_app="spewed_page:app"))

        def run() -> None:
            import own_page  # type: ignore[import-not-found]

            own_page.app()

        thread = threading.Thread(target=run)
        thread.start()
        thread.join()
    finally:
        sys.settrace(before)
        threading.settrace(before_threads)  # type: ignore[arg-type]
    own = [line for line in log.lines if line["file"].endswith("_page.py")]
    shown = [(line["file"], line["line"], line["function"], line["source"]) for line in own]
    assert ("own_page.py", 4, "app", "json.dumps([foreign_page.f()])") in shown
    assert ("site-packages/spewed_page.py", 2, "f", "return 1") in shown
    assert {file for file, *_ in shown} == {"own_page.py", "site-packages/spewed_page.py"}
    assert not any("json" in line["file"] or "supervisor/" in line["file"] for line in log.lines)
