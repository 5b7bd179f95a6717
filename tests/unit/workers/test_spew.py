"""Logging every line that the app runs, and no others."""

import json
import subprocess
import sys
from pathlib import Path

# In a process of its own, because a trace function would also trace the tests.
_PROGRAM = """
import json, sys, threading
from ostler.settings.table import Settings
from ostler.workers import spew

class Recorder:
    lines = []
    def info(self, name, **fields):
        assert name == "line"
        self.lines.append(fields)

log = Recorder()
sys.path[:0] = [".", "site-packages"]
spew.spew(log, Settings(wsgi_app="spewed_page:app"))

def run():
    import own_page
    own_page.app()

thread = threading.Thread(target=run)
thread.start()
thread.join()
sys.settrace(None)
json.dump(log.lines, sys.stdout)
"""


def test_lines(tmp_path: Path) -> None:
    """File, line, function and source of the app's own modules and its package, including threads."""
    (tmp_path / "site-packages").mkdir()
    (tmp_path / "site-packages/foreign_page.py").write_text("def f():\n    return 1\n")
    (tmp_path / "site-packages/spewed_page.py").write_text("def f():\n    return 1\n")
    (tmp_path / "own_page.py").write_text(
        "import json, foreign_page, spewed_page\n\n"
        "def app():\n    json.dumps([foreign_page.f()])\n    return spewed_page.f()\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", _PROGRAM],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=30,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    lines = [line for line in json.loads(done.stdout) if line["file"] != "<string>"]
    shown = {(line["file"], line["line"], line["function"], line["source"]) for line in lines}
    assert ("own_page.py", 4, "app", "json.dumps([foreign_page.f()])") in shown
    assert ("site-packages/spewed_page.py", 2, "f", "return 1") in shown
    assert {file for file, *_ in shown} == {"own_page.py", "site-packages/spewed_page.py"}
