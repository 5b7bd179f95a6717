"""`reload`: files are saved as editors do it, and the next answer comes from the new code,
or shows what is wrong.
"""

import os
import shutil
import signal
import sys
from pathlib import Path

import pytest

from tests.kit.daemon import Daemon, Place
from tests.kit.http_client import Answer
from tests.kit.processes import Process
from tests.kit.tiers import thorough, tiers
from tests.system.test_signals import page

pytestmark = pytest.mark.system

BROWSER = {"Accept": "text/html,application/xhtml+xml,*/*;q=0.8"}


def dev(place: Place, *args: str, app: str = "page:app", **environ: str) -> Daemon:
    return place.start("--reload", *args, app, **environ)


def answers(daemon: Daemon, text: str, status: int = 200) -> Answer:
    """Wait until the app's answer contains a text."""

    def look() -> Answer | None:
        answer = daemon.get()
        return answer if answer.status == status and text in answer.text else None

    return daemon.until(look, f"an answer {status} with {text!r}")


@pytest.mark.parametrize(
    "more",
    [[], ["--reload-engine", "poll"], *thorough(["--preload"], ["-w", "3", "--threads", "2"])],
)
def test_saved(place: Place, more: list[str]) -> None:
    """Saving a module reloads, with all combinations of other settings; one log line names the file."""
    place.add("page.py", page("one"))
    daemon = dev(place, *more)
    assert daemon.get().text == "one"
    for generation, text in enumerate(("two", "three"), start=2):
        place.add("page.py", page(text))
        answers(daemon, text)
        daemon.event("reload_done", generation=generation)
    assert [event["by"] for event in daemon.events("reload")] == ["file page.py changed"] * 2
    assert daemon.get().text == "three"


def test_ways_to_write(place: Place) -> None:
    """In place, by a temporary file and rename, removed and written again: each reloads. To touch the file,
    or to write the same again, does not.
    """
    path = place.add("page.py", page("one"))
    daemon = dev(place)

    def served(text: str) -> None:
        answers(daemon, text)
        daemon.until(lambda: daemon.status().state == "ready", "the reload has ended")

    path.write_text(page("in place"))
    served("in place")
    place.add("page.py", page("renamed"))
    served("renamed")
    path.unlink()
    path.write_text(page("written again"))
    served("written again")
    before = len(daemon.events("reload"))
    path.touch()
    place.add("page.py", page("written again"))
    path.chmod(0o600)
    place.add("page.py", page("last"))
    served("last")
    assert daemon.events("app_broken") == []
    assert len(daemon.events("reload")) == before + 1


@pytest.mark.thorough
def test_same_second_and_size(place: Place) -> None:
    """Edits of the same size within one second, with Python's bytecode cache on: each is noticed."""
    path = place.app_folder / "page.py"
    at = 1_700_000_000

    def save(text: str, nanoseconds: int) -> None:
        draft = path.with_name("draft")
        draft.write_text(page(text))
        os.utime(draft, ns=(at, at * 1_000_000_000 + nanoseconds))
        draft.replace(path)

    # Future times are in the second of the load or later, on any machine.
    at = 4_000_000_000
    save("one", 0)
    daemon = dev(place, PYTHONDONTWRITEBYTECODE="")
    assert daemon.get().text == "one"
    for number, text in enumerate(("two", "six", "ten"), 1):
        save(text, number)
        answers(daemon, text)


@pytest.mark.thorough
def test_checkout_of_many_files(place: Place) -> None:
    """Many changed, removed and new files at once lead to the newest code of every file."""
    for number in range(60):
        place.add(f"shelf/part{number}.py", "value = 'old'\n")
    place.add("shelf/__init__.py", "")
    source = (
        "import importlib\nparts = [importlib.import_module(f'shelf.part{n}').value for n in range(%d)]\n"
    )
    body = (
        "def app(environ, start_response):\n    start_response('200 OK', [])\n"
        "    return [' '.join(parts).encode()]\n"
    )
    place.add("page.py", source % 60 + body)
    daemon = dev(place)
    assert daemon.get().text == " ".join(["old"] * 60)
    place.add("page.py", source % 50 + body)
    for number in range(60):
        if number < 50:
            place.add(f"shelf/part{number}.py", "value = 'new'\n")
        else:
            (place.app_folder / f"shelf/part{number}.py").unlink()
    daemon.until(lambda: daemon.get().text == " ".join(["new"] * 50), "all parts are new")


@pytest.mark.thorough
def test_replaced_folder(place: Place) -> None:
    """When a package's folder is replaced by another one, the new folder is watched."""
    place.add("shelf/__init__.py", page("old"))
    daemon = dev(place, app="shelf:app")
    place.add("fresh/__init__.py", page("new"))
    (place.app_folder / "shelf").rename(place.folder / "gone")
    (place.app_folder / "fresh").rename(place.app_folder / "shelf")
    answers(daemon, "new")
    place.add("shelf/__init__.py", page("newer"))
    answers(daemon, "newer")


def test_late_import(place: Place) -> None:
    """A module that the first request imports is watched as well."""
    place.add("late.py", "text = b'one'\n")
    place.add(
        "page.py",
        "def app(environ, start_response):\n    import late\n    start_response('200 OK', [])\n"
        "    return [late.text]\n",
    )
    daemon = dev(place)
    assert daemon.get().text == "one"
    Path(place.app_folder / "late.py").write_text("text = b'two'\n")
    answers(daemon, "two")


@pytest.mark.thorough
def test_templates_and_extra_files(place: Place) -> None:
    """Templates in the app's packages and beside it, extra files, folders and patterns are watched;
    other files are not.
    """
    place.add("shop/__init__.py", page("x"))
    place.add("shop/part/list.jinja2", "a")
    place.add("templates/deep/base.txt", "a")
    place.add("conf/one.yaml", "a")
    place.add("data/words.txt", "a")
    place.add("shop/notes.txt", "a")
    extra = [f"--reload-extra-file={entry}" for entry in ("conf/*.yaml", "data", "later.json")]
    daemon = dev(place, *extra, app="shop:app")
    problem = daemon.event("configuration")["problem"]
    assert problem == "reload_extra_files: 'later.json' is not there; it counts when it appears"
    for number, (name, silent) in enumerate(
        (
            ("shop/part/list.jinja2", "shop/notes.txt"),
            ("shop/part/new.html", "shop/part/.new.html.swp"),
            ("templates/deep/base.txt", "templates/deep/base.txt~"),
            ("templates/fresh/more.txt", "templates/fresh/.hidden"),
            ("conf/one.yaml", "conf/one.json"),
            ("conf/two.yaml", "conf/two.json"),
            ("data/words.txt", "data/words.txt~"),
            ("data/deeper/more.txt", "unrelated.html"),
            ("later.json", "other.json"),
        ),
        2,
    ):
        place.add(silent, "b")
        place.add(name, "b")
        assert daemon.event("reload", generation=number)["by"] == f"file {name} changed"
        daemon.event("reload_done", generation=number)
    assert len(daemon.events("configuration")) == 1


WRITER = """
import os
import time
from pathlib import Path
Path("made.py").write_text(f"value = {time.time_ns()}")
draft = f"templates/draft{os.getpid()}.html"
Path(draft).write_text(str(time.time_ns()))
os.replace(draft, "templates/made.html")
with open("data/log", "a") as log:
    print(os.getpid(), file=log)
import made
text = b"one"
def app(environ, start_response):
    Path("templates/asked.html").write_text(environ["QUERY_STRING"])
    start_response("200 OK", [])
    return [text]
"""


@pytest.mark.parametrize(
    "more", [[], *thorough(["--preload"], ["-w", "3", "--threads", "2"], ["-k", "gevent"])]
)
def test_app_that_writes_watched_files(place: Place, more: list[str]) -> None:
    """What the app writes itself, when it is loaded or asked, causes no reload: neither modules nor templates
    nor extra files. One line names each file. Edits of other files reload.
    """
    place.add("templates/base.html", "a")
    place.add("data/words", "a")
    place.add("page.py", WRITER)
    daemon = dev(place, "--reload-extra-file=data", *more)
    for number in range(1, 4):
        for query in ("x=1", "x=2"):
            assert daemon.get(f"/?{query}").status == 200
        text = f"text {number}"
        place.add("page.py", WRITER.replace("one", text))
        answers(daemon, text)
        daemon.event("reload_done", generation=number + 1)
    place.add("templates/base.html", "b")
    daemon.event("reload_done", generation=5)
    by = [event["by"] for event in daemon.events("reload")]
    assert by == [*["file page.py changed"] * 3, "file templates/base.html changed"]
    problems = [event["problem"] for event in daemon.events("configuration")]
    assert all("the app itself writes" in problem for problem in problems)
    assert len(problems) == len(set(problems))
    assert any("made.py" in problem for problem in problems)


@pytest.mark.thorough
def test_program_that_writes_watched_files(place: Place) -> None:
    """A program that the app starts while it is loaded, and that writes a template which differs each time:
    reloads end, with a line that says so, and edits have their effect.
    """
    place.add("templates/base.html", "a")
    source = (
        "import subprocess\n"
        "subprocess.run('date +%s.%N > templates/made.html', shell=True, check=True)\n" + page("one")
    )
    place.add("page.py", source)
    daemon = dev(place)

    def left_out() -> bool:
        return any("left out" in event["problem"] for event in daemon.events("configuration"))

    daemon.until(left_out, "it is left out")
    daemon.settled(1)
    before = len(daemon.events("reload"))
    place.add("page.py", source.replace("one", "two"))
    answers(daemon, "two")
    daemon.event("reload_done", generation=before + 2)
    assert len(daemon.events("reload")) == before + 1


BROKEN = {
    "syntax": ("def app(:\n", "SyntaxError", "page.py, line 1"),
    "import": ("x = 1\nimport no_such_module\n", "No module named 'no_such_module'", "page.py, line 2"),
    "name": ("\n\nprint(undefined)\n", "NameError", "page.py, line 3"),
    "exit": ("import sys\nsys.exit('<no> & database')\n", "SystemExit: <no> & database", "page.py, line 2"),
    "attribute": ("x = 1\n", "has no 'app'", ""),
}


@pytest.mark.parametrize("preload", tiers({"lazy": [], "preload": ["--preload"]}.items(), ["lazy"]))
def test_error_page(place: Place, preload: list[str]) -> None:
    """After an edit that breaks the app each request gets a 500 with the reason, until the next edit."""
    place.add("page.py", page("old"))
    daemon = dev(place, "-w", "2", *preload)
    # Both with the old code: else the log would have one more failure, that of the second worker.
    daemon.settled(2)
    for number, (source, words, line) in enumerate(BROKEN.values(), 1):
        place.add("page.py", source)
        daemon.event("reload_done", generation=2 * number)
        answer = answers(daemon, words, status=500)
        assert answer.headers["content-type"] == "text/plain; charset=utf-8"
        assert answer.headers["cache-control"] == "no-store"
        assert line in answer.text
        html = daemon.get(headers=BROWSER)
        assert (html.status, html.headers["content-type"]) == (500, "text/html; charset=utf-8")
        assert "<no>" not in html.text
        assert "location.reload" in html.text
        assert daemon.get(method="HEAD").body == b""
        posted = daemon.get(method="POST", body=b"x=1", headers=BROWSER)
        assert "location.reload" not in posted.text
        place.add("page.py", page("mended"))
        daemon.event("reload_done", generation=2 * number + 1)
        assert daemon.get().text == "mended"
    broken = daemon.events("app_broken")
    assert len(broken) == len(BROKEN)  # once for each edit, although there are two workers
    assert "SyntaxError" in broken[0]["traceback"]
    assert daemon.events("worker_boot_failed") == []


@pytest.mark.parametrize("preload", tiers({"lazy": [], "preload": ["--preload"]}.items(), ["lazy"]))
def test_broken_from_the_start(place: Place, preload: list[str]) -> None:
    """An app that does not load at the start does not end the daemon:
    it serves the error page, and the app once it loads.
    """
    daemon = dev(place, *preload, app="fresh.wsgi:app")
    answers(daemon, "no module named 'fresh'", status=500)
    place.add("fresh/__init__.py", "import nothing_yet\n")
    place.add("fresh/wsgi.py", page("here"))
    answers(daemon, "No module named 'nothing_yet'", status=500)
    place.add("nothing_yet.py", "")
    answers(daemon, "here")


@pytest.mark.thorough
def test_broken_in_another_module(place: Place) -> None:
    """The file that fails is not the one that was edited: it is shown, and saving it is enough."""
    place.add("shop/__init__.py", "from shop.models import price\n" + page("ok"))
    place.add("shop/models.py", "price = 1\n")
    daemon = dev(place, app="shop:app")
    place.add("shop/models.py", "def broken():\n    return (\n")
    assert "shop/models.py, line 2" in answers(daemon, "SyntaxError", status=500).text
    place.add("shop/models.py", "price = 2\n")
    answers(daemon, "ok")


@pytest.mark.thorough
def test_broken_configuration(place: Place) -> None:
    """A configuration file that can't be read any more:
    the old one stays in use, and the next edit fixes it.
    """
    place.add("conf.py", "reload = True\nbind = '127.0.0.1:0'\nimport parts\nworkers = parts.workers\n")
    place.add("parts.py", "workers = 1\n")
    place.add("page.py", page("one"))
    daemon = place.start("-c", "conf.py", "page:app", bind=None)
    place.add("conf.py", "reload = True\nworkers = (\n")
    assert "conf.py line 2" in daemon.event("reload_failed")["reason"]
    assert daemon.get().text == "one"
    place.add("conf.py", "reload = True\nbind = '127.0.0.1:0'\nimport parts\nworkers = parts.workers\n")
    daemon.event("reload_done", generation=3)
    place.add("parts.py", "workers = 2\n")
    assert daemon.event("reload", generation=4)["by"] == "file parts.py changed"
    daemon.settled(2)


@pytest.mark.thorough
def test_no_more_reload(place: Place) -> None:
    """A configuration that no longer sets `reload`:
    no file is watched, and a broken app is refused as usual.
    """
    place.add("conf.py", "reload = True\nbind = '127.0.0.1:0'\n")
    place.add("page.py", page("one"))
    daemon = place.start("-c", "conf.py", "page:app", bind=None)
    place.add("conf.py", "bind = '127.0.0.1:0'\n")
    daemon.event("reload_done", generation=2)
    place.add("page.py", "def app(:\n")
    done = daemon.ctl("reload")
    assert done.code == 1
    assert "SyntaxError" in done.err
    assert daemon.get().text == "one"
    assert [event["by"] for event in daemon.events("reload")] == [
        "file conf.py changed",
        f"api unix uid {os.getuid()}",
    ]


@pytest.mark.thorough
def test_change_during_a_reload(place: Place) -> None:
    """Code that hangs while it is loaded, for instance at a breakpoint, does not block the next edit."""
    place.add("page.py", page("one"))
    daemon = dev(place)
    place.add("page.py", "import time\nopen('loading', 'w')\ntime.sleep(1000)\n" + page("two"))
    daemon.until((place.app_folder / "loading").exists, "the new code is being loaded")
    place.add("page.py", page("three"))
    answers(daemon, "three")
    assert daemon.get().text == "three"


@pytest.mark.thorough
def test_running_request(place: Place) -> None:
    """A request that is in the app when its file changes is answered by the old code."""
    place.add("page.py", (place.app_folder / "plain.py").read_text())
    daemon = dev(place)
    old = Process(daemon.pids()[0])
    slow = daemon.connect().asked("/gate/slow")
    daemon.in_app("/gate/slow")
    place.add("page.py", page("new"))
    answers(daemon, "new")
    (place.app_folder / "slow.open").touch()
    assert slow.answer().text == "slow passed"
    slow.close()
    assert old.ended()


def test_check_says_what_is_wrong(place: Place) -> None:
    """`--check-config` with `reload` fails for a broken app as usual."""
    place.add("page.py", "def app(:\n")
    done = place.run("--check-config", "--reload", "page:app")
    assert done.code == 3
    assert "SyntaxError" in done.err


@pytest.mark.thorough
def test_own_canary_time_counts(place: Place) -> None:
    """A canary time that the user has set also applies with `reload`."""
    place.add("page.py", page("one"))
    daemon = dev(place, "--canary-time", "1000")
    place.add("page.py", page("two"))
    daemon.event("worker_ready", generation=2)
    assert daemon.status().generation == 1
    assert daemon.stop(signal.SIGTERM) == 0


@pytest.mark.thorough
def test_without_watches(place: Place) -> None:
    """When the kernel has no watches left, files are polled instead, with one warning."""
    place.add("page.py", page("one"))
    # Raises what the library raises when inotify's limit is reached, without using up the limit of this
    # machine.
    place.add(
        "sitecustomize.py",
        "import watchfiles.main\n"
        "def refuse(*args):\n    raise OSError(28, 'OS file watch limit reached')\n"
        "watchfiles.main.RustNotify = refuse\n",
    )
    daemon = dev(place, PYTHONPATH=os.pathsep.join([str(place.app_folder), *sys.path]))
    place.add("page.py", page("two"))
    answers(daemon, "two")
    place.add("page.py", page("three"))
    answers(daemon, "three")
    (warning,) = daemon.events("configuration")
    assert "watch limit" in warning["problem"]


@pytest.mark.thorough
def test_folder_gone(place: Place) -> None:
    """The whole app is removed and comes back: an error page meanwhile."""
    place.add("shelf/__init__.py", page("one"))
    daemon = dev(place, app="shelf:app")
    shutil.rmtree(place.app_folder / "shelf")
    answers(daemon, "no module named 'shelf'", status=500)
    place.add("shelf/__init__.py", page("two"))
    answers(daemon, "two")
