"""The recipes of CONTRIBUTING.md, applied to a copy of the package.

Each example is data: the edits that it takes. It may touch four files at most. Then a program that uses the
copy proves that what was added works.
"""

import os
import re
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.kit.tiers import tiers

ROOT = Path(__file__).parents[2]
GUIDE = ROOT / "CONTRIBUTING.md"
MOST_FILES = 4


@dataclass(frozen=True)
class Edit:
    """Inserts `text` into the file `path` in front of `before`; None: at its end, or as a new file."""

    path: str
    text: str
    before: str | None = None


@dataclass(frozen=True)
class Example:
    """heading: of its section in the guide; proof: a program that fails if what was added does not work."""

    heading: str
    edits: tuple[Edit, ...]
    proof: str

    @property
    def files(self) -> list[str]:
        return list(dict.fromkeys(edit.path for edit in self.edits))


OWN_CLASS = Example(
    "A worker class of your own",
    (
        Edit(
            "myapp.py",
            """
from ostler.workers.base import BaseWorker

class Mine(BaseWorker):
    @classmethod
    def create(cls, context): return cls()
    def run(self): pass
    def drain(self, hand_over=False, seconds=None): pass
    def stop(self): pass
    def add_reader(self, fd, callback): pass
    def remove_reader(self, fd): pass
""",
        ),
    ),
    """
from ostler.settings import load
from ostler.workers.classes import worker_class

settings = load({"worker_class": "myapp.Mine"}, {}, None, lambda: 1).settings
found = worker_class(settings)
assert found.__module__ == "myapp", found
found.create(None)
""",
)

BUILT_IN_CLASS = Example(
    "A built-in worker class",
    (
        Edit(
            "supervisor/ostler/workers/echo.py",
            """
from ostler.workers.thread_engine import Engine

class EchoWorker(Engine):
    pass
""",
        ),
        Edit(
            "supervisor/ostler/workers/classes.py",
            '    "echo": ("ostler.workers.echo", "EchoWorker"),\n',
            before='    "asgi": ("ostler.workers.asgi',
        ),
        Edit("supervisor/ostler/settings/classes.py", '"echo", ', before='"sync", "gthread", "gevent"'),
    ),
    """
from ostler.settings import load
from ostler.settings.classes import names
from ostler.workers.classes import worker_class

settings = load({"worker_class": "Echo"}, {}, None, lambda: 1).settings
assert worker_class(settings).__name__ == "EchoWorker"
assert "echo" in names()
""",
)

SETTING = Example(
    "A setting",
    (
        Edit(
            "supervisor/ostler/settings/table/app.py",
            """    greeting: Annotated[
        str,
        Setting(
            texts.TEXT,
            "What workers call the client.",
            flags=("--greeting",),
            env="GREETING",
            gunicorn=None,
        ),
    ] = "stranger"
""",
            before="    chdir: Annotated[",
        ),
        # The code that reads it, in a worker.
        Edit(
            "supervisor/ostler/demo/greeting.py",
            """
def greeting(context):
    return f"Hello, {context.settings.greeting}!"
""",
        ),
    ),
    """
import os, subprocess, sys
from pathlib import Path
from types import SimpleNamespace

import msgspec

from ostler.demo.greeting import greeting
from ostler.ipc import messages
from ostler.settings import load

def printed(*flags, **environment):
    command = [sys.executable, "-m", "ostler", "--print-config", *flags, "ostler.demo:app"]
    environment = {**os.environ, **environment}
    text = subprocess.run(command, env=environment, stdout=subprocess.PIPE, text=True, check=True).stdout
    (line,) = (line for line in text.splitlines() if line.startswith("greeting "))
    return line

assert "'stranger'" in printed() and "default" in printed()
assert "'env'" in printed(GREETING="env")
Path("ostler.conf.py").write_text("greeting = 'file'")
assert "'file'" in printed(GREETING="env") and "ostler.conf.py" in printed()
assert "'flag'" in printed("--greeting", "flag") and "command line" in printed("--greeting", "flag")
help = [sys.executable, "-m", "ostler", "--help"]
assert "--greeting TEXT" in subprocess.run(help, stdout=subprocess.PIPE, text=True, check=True).stdout

# As it travels from the supervisor to a fork server, whose workers inherit it.
loaded = load({"greeting": "you"}, {}, None, lambda: 1)
sent = messages.Configure(messages.VERSION, 1, {}, None, "/", loaded)
got = msgspec.msgpack.decode(msgspec.msgpack.encode(sent), type=messages.Configure).known
assert greeting(SimpleNamespace(settings=got.settings)) == "Hello, you!"
""",
)

# Data that no view has yet.
GENERATIONS = (
    Edit(
        "supervisor/ostler/control/views.py",
        """

class GenerationView(msgspec.Struct, frozen=True):
    number: int
    state: str
""",
    ),
    Edit("supervisor/ostler/control/routes.py", "    GenerationView,\n", before="    Login,\n"),
    Edit(
        "supervisor/ostler/control/routes.py",
        """GENERATIONS: Route[None, list[GenerationView]] = Route(
    "generations", "GET", "/v1/generations", "All generations, oldest first", view=list[GenerationView]
)

""",
        before="ROUTES: tuple[",
    ),
    Edit("supervisor/ostler/control/routes.py", "    GENERATIONS,\n", before="    LOGIN_LINK,\n)"),
    Edit("supervisor/ostler/daemon/views/observer.py", "    GenerationView,\n", before="    ReloadView,\n"),
    Edit(
        "supervisor/ostler/daemon/views/observer.py",
        "from ostler.control.routes import GENERATIONS\n",
        before="from ostler.control.views import",
    ),
    Edit(
        "supervisor/ostler/daemon/views/observer.py",
        "                GENERATIONS.shown_by(self.generations),\n",
        before="                CONFIG.shown_by(",
    ),
    Edit(
        "supervisor/ostler/daemon/views/observer.py",
        """    def generations(self) -> list[GenerationView]:
        known = self._ports.state().generations.values()
        return [GenerationView(one.number, one.state.value) for one in known]

""",
        before="    def config(self)",
    ),
)
SERVED = """
import asyncio
from pathlib import Path

from ostler.control import routes
from ostler.control.client import Client, RefusedError
from ostler.control.openapi import document
from ostler.control.server import ControlServer
from ostler.control.views import GenerationView
from tests.unit.control.fake import captured_log
from tests.unit.daemon.views.test_observer import Rig

def serve(ask):
    async def run():
        server = ControlServer(Rig().observer, captured_log()[0])
        await server.start_unix(Path("example.sock"))
        client = Client.unix(Path("example.sock"))
        try:
            return await asyncio.to_thread(ask, client)
        finally:
            client.close()
            await server.close()

    return asyncio.run(run())

"""

ROUTE = Example(
    "An API route",
    GENERATIONS,
    SERVED
    + """
operation = document()["paths"]["/v1/generations"]["get"]
assert operation["operationId"] == "generations" and "GenerationView" in document()["components"]["schemas"]
assert serve(lambda client: client.call(routes.GENERATIONS)) == [GenerationView(1, "up")]
""",
)

ROUTE_WITH_A_PARAMETER = Example(
    "An API route",
    (
        *GENERATIONS,
        Edit(
            "supervisor/ostler/control/routes.py",
            """GENERATION: Route[None, GenerationView] = Route(
    "generation", "GET", "/v1/generations/{number}", "One generation", view=GenerationView, errors=(404,)
)

""",
            before="ROUTES: tuple[",
        ),
        Edit("supervisor/ostler/control/routes.py", "    GENERATION,\n", before="    LOGIN_LINK,\n)"),
        Edit("supervisor/ostler/control/handlers.py", "    GenerationView,\n", before="    ReforkBody,\n"),
        Edit(
            "supervisor/ostler/control/handlers.py",
            "    def generations(self) -> list[GenerationView]: ...\n\n",
            before="    def reload(self)",
        ),
        Edit(
            "supervisor/ostler/control/handlers.py",
            """    async def generation(self, call: Call[None]) -> Answer:
        for one in self._backend.generations():
            if str(one.number) == call.path["number"]:
                return Answer(one)
        raise NotFound("there is no such generation")

""",
            before="    async def scale(",
        ),
    ),
    SERVED
    + """
def ask(client):
    assert client.call(routes.GENERATION, number=1) == GenerationView(1, "up")
    try:
        client.call(routes.GENERATION, number=2)
    except RefusedError as error:
        return str(error)

assert serve(ask) == "there is no such generation"
""",
)

POLICY = Example(
    "A fleet policy",
    (
        Edit(
            "supervisor/ostler/fleet/policies.py",
            """

def errs_too_often(errors: int, limit: int) -> bool:
    \"\"\"Whether a worker has answered so many errors that it is to be replaced; 0: never.\"\"\"
    return 0 < limit < errors
""",
        ),
        Edit(
            "supervisor/ostler/fleet/measurements.py",
            "from ostler.fleet.policies import errs_too_often\n",
            before="from ostler.fleet.step import",
        ),
        Edit(
            "supervisor/ostler/fleet/measurements.py",
            """        limit = state.policy.max_errors if state.policy else 0
        serves = worker.state is WorkerState.READY and worker.leaving is None
        if errs_too_often(load.errors, limit) and serves:
            worker.leaving = Cause.RECYCLE
            step.report_worker("info", "recycle", worker, pid=worker.pid, errors=load.errors)
""",
            before="        _check_memory(step, worker)\n",
        ),
        Edit(
            "supervisor/ostler/fleet/model.py",
            "    max_errors: int = 0\n\n\n",
            before="class Load(Struct, frozen=True):",
        ),
        Edit(
            "supervisor/ostler/settings/table/fleet.py",
            """    max_errors: Annotated[
        int,
        Setting(
            numbers.COUNT,
            "Recycle a worker after so many errors; 0 is never.",
            flags=("--max-errors",),
            takes_effect=LIVE,
            policy="max_errors",
            gunicorn=None,
        ),
    ] = 0
""",
            before="    max_memory: Annotated[",
        ),
    ),
    """
from ostler.daemon.settings_to_policy import fleet_policy
from ostler.settings import load
from tests.kit.play import running, spawn

play = running(workers=2, max_errors=3)
play.measured(1, errors=3).then()
play.measured(1, errors=4).then(spawn(1))
play.reported("recycle", errors=4)

policy = fleet_policy(load({"max_errors": "3"}, {}, None, lambda: 1))
assert policy.max_errors == 3
""",
)

EXAMPLES = (OWN_CLASS, BUILT_IN_CLASS, SETTING, ROUTE, ROUTE_WITH_A_PARAMETER, POLICY)


def _section(heading: str) -> str:
    """A section of the guide."""
    found = re.search(
        rf"^###? {re.escape(heading)}\n(.*?)(?=^##|\Z)", GUIDE.read_text(), re.DOTALL | re.MULTILINE
    )
    assert found, f"CONTRIBUTING.md has no section {heading!r}"
    return found[1]


@pytest.mark.parametrize("example", EXAMPLES, ids=lambda example: example.heading)
def test_four_files_at_most(example: Example) -> None:
    """A recipe takes at most four files besides tests, and the guide names them."""
    assert len(example.files) <= MOST_FILES
    section = _section(example.heading)
    for path in example.files:
        if (ROOT / path).exists():
            assert path.removeprefix("supervisor/ostler/") in section


@pytest.mark.parametrize("example", tiers([(each.heading, each) for each in EXAMPLES], [SETTING.heading]))
def test_the_example_works(example: Example, tmp_path: Path) -> None:
    """What the recipe adds to a copy of the package works everywhere it should."""
    copy, folder = tmp_path / "copy", tmp_path / "folder"
    shutil.copytree(
        ROOT / "supervisor/ostler",
        copy / "supervisor/ostler",
        ignore=shutil.ignore_patterns("__pycache__", "static"),
    )
    folder.mkdir()
    for edit in example.edits:
        _apply(edit, copy)
    path = os.pathsep.join(map(str, (copy / "supervisor", copy, ROOT)))
    done = subprocess.run(
        [sys.executable, "-c", example.proof],
        cwd=folder,
        env={**os.environ, "PYTHONPATH": path, "PYTHONPYCACHEPREFIX": str(tmp_path / "pycache")},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=180,
        check=False,
    )
    assert done.returncode == 0, done.stdout


def _apply(edit: Edit, root: Path) -> None:
    path = root / edit.path
    text = path.read_text() if path.exists() else ""
    if edit.before is None:
        path.write_text(text + edit.text)
        return
    assert edit.before in text, f"{edit.path} has no {edit.before!r} any more"
    path.write_text(text.replace(edit.before, edit.text + edit.before, 1))
