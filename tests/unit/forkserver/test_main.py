"""The fork server's answers to the messages that make it load."""

from pathlib import Path

from ostler.ipc import messages
from tests.unit.workers.keeper import Keeper

APP = """\
import os
def app(environ, start_response):
    start_response("200 OK", [("Content-Length", "2")])
    return [os.environ.get("COLOUR", "??").encode()]
"""
# Without effect, because there is no certificate; there is a warning.
HOOK = "ssl_context = lambda config, factory: factory()\n"


def conf(folder: Path, text: str) -> None:
    (folder / "gunicorn.conf.py").write_text(text)


def test_a_known_generation_keeps_its_settings(tmp_path: Path) -> None:
    """The file has changed since: it is executed, but its settings are ignored; warnings are not repeated."""
    (tmp_path / "app.py").write_text(APP)
    conf(tmp_path, f"workers = 3\n{HOOK}import os; os.environ['COLOUR'] = 'rd'\n")
    with Keeper(tmp_path, wsgi_app="app:app", threads=2) as keeper:
        first = keeper.start()
        keeper.configure(first)
        before = first.receive(messages.Configured)
        assert (before.loaded.settings.workers, before.loaded.settings.threads) == (3, 2)
        assert before.warnings
        conf(tmp_path, f"workers = 'many'\n{HOOK}import os; os.environ['COLOUR'] = 'bl'\n")
        second = keeper.start()
        keeper.configure(second, known=before.loaded)
        after = second.receive(messages.Configured)
        assert after == messages.Configured(before.loaded, [])
        keeper.load(second)
        worker = keeper.spawn(second)
        assert keeper.get() == ("200 OK", b"bl")
        assert len(worker.thread_ids) == 3  # two that serve and their watcher, as in the earlier settings


def test_a_known_generation_needs_its_file(tmp_path: Path) -> None:
    """A file that can't be evaluated any more is a failure, as it is the first time."""
    conf(tmp_path, "workers = 3\n")
    with Keeper(tmp_path, wsgi_app="app:app") as keeper:
        first = keeper.start()
        keeper.configure(first)
        loaded = first.receive(messages.Configured).loaded
        conf(tmp_path, "workers = 1 / 0\n")
        second = keeper.start()
        keeper.configure(second, known=loaded)
        assert "division by zero" in second.receive(messages.LoadFailed).reason
        second.wait_until_ended()


def test_another_version_is_refused(tmp_path: Path) -> None:
    """A supervisor whose package was replaced on disk while it runs gets an error."""
    with Keeper(tmp_path, wsgi_app="app:app") as keeper:
        server = keeper.start()
        server.send_message(messages.Configure(messages.VERSION + 1, 1, {}, None, str(tmp_path)))
        assert "restart it" in server.receive(messages.LoadFailed).reason


def test_a_closed_channel_ends_it_while_the_app_loads(tmp_path: Path) -> None:
    """Also in the middle of an app that loads for ever."""
    (tmp_path / "app.py").write_text(
        "import pathlib, time\npathlib.Path('loading').touch()\ntime.sleep(1000)\n"
    )
    with Keeper(tmp_path, wsgi_app="app:app", preload_app=True) as keeper:
        server = keeper.start()
        keeper.configure(server)
        server.receive(messages.Configured)
        keeper.ask_to_load(server)
        keeper.until((tmp_path / "loading").exists, "the app is being loaded")
        server.close_channel()
        server.wait_until_ended()
