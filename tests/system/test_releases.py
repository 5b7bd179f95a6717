"""A virtual environment per release: reloads and upgrades start the one that the command leads to now."""

import os
import signal
from pathlib import Path

import pytest

import ostler
from ostler.control.routes import RELOAD_STATUS
from tests.kit.accounts import NOBODY, second_account
from tests.kit.daemon import Daemon, Place, fork_server
from tests.kit.http_client import ask
from tests.kit.load import Load
from tests.kit.processes import Process
from tests.kit.releases import Releases, install
from tests.kit.tiers import thorough

pytestmark = pytest.mark.system


@pytest.fixture
def releases(place: Place) -> Releases:
    found = Releases(place.folder)
    found.make("1")
    found.deploy("1")
    return found


def start(place: Place, releases: Releases, *args: str, argv: tuple[str, ...] = (), **environ: str) -> Daemon:
    """As a service manager does: by the absolute path, in the folder that the link leads to."""
    argv = argv or (f"{releases.current}/.venv/bin/ostler",)
    popen = {"cwd": releases.current}
    return place.start("--canary-time", "0", *args, "shop:app", argv=argv, popen=popen, **environ)


def test_deploys(place: Place, releases: Releases) -> None:
    """Code, dependencies and environment are the new release's, also when the old one was removed. What can't
    be used fails the reload in one line, and the old generation serves on."""
    daemon = start(place, releases, "--control-bind", "127.0.0.1:0", "--control-token-file", token(place))
    assert daemon.get().text == releases.answer("1")
    releases.make("2")
    releases.deploy("2")
    done = daemon.ctl("reload")
    moved = f"environment {releases.prefix('1')} -> {releases.prefix('2')}"
    assert moved in done.out.splitlines(), done
    assert daemon.event("environment_changed")["changes"] == moved
    (change,) = daemon.client.call(RELOAD_STATUS).environment
    assert (change.name, change.after) == ("environment", str(releases.prefix("2")))
    assert daemon.get().text == releases.answer("2")

    releases.remove("1")
    done = daemon.ctl("reload")
    assert (done.code, "environment" in done.out) == (0, False)
    assert daemon.get().text == releases.answer("2")
    # What the supervisor reads of its own release when it is first asked for.
    url = daemon.event("control")["url"]
    assert ask(url, "/").status == 200
    bearer = {"Authorization": f"Bearer {Path(token(place)).read_text()}"}
    assert "ostler_build_info" in ask(url, "/metrics", headers=bearer).text

    releases.make("3", version=None)
    releases.deploy("3")
    done = daemon.ctl("reload")
    assert f"no Ostler is installed in {releases.prefix('3')}; install it there" in done.error
    releases.make("4", version="9.9.9")
    releases.deploy("4")
    done = daemon.ctl("reload")
    assert f"Ostler 9.9.9 is installed in {releases.prefix('4')}" in done.error
    assert "`ctl upgrade`" in done.error
    releases.current.unlink()
    done = daemon.ctl("reload")
    assert f"{releases.current}/.venv/bin/ostler" in done.error
    assert daemon.get().text == releases.answer("2")


def token(place: Place) -> str:
    path = place.folder / "token"
    if not path.exists():
        path.touch(0o600)
        path.write_text("secret")
    return str(path)


@pytest.mark.thorough
def test_upgrade(place: Place, releases: Releases) -> None:
    """Under load, twice: another version in the next release, whose command is still followed afterwards."""
    # Clients that get no processor time for some seconds would find their idle connections closed.
    daemon = start(place, releases, "-w", "2", "--keep-alive", "60")
    with Load(daemon.address, rate=100, connections=4) as client:
        client.wait_for(20)
        for name, version in (("2", "9.9.8"), ("3", "9.9.9")):
            releases.make(name, version=version)
            releases.deploy(name)
            assert daemon.ctl("reload").code == 1
            done = daemon.ctl("upgrade")
            assert done.code == 0, done.err
            assert f"-> {releases.prefix(name)}, Ostler " in done.out
            assert daemon.get().text == releases.answer(name)
            releases.remove(str(int(name) - 1))
        report = client.finish()
    assert report.failed == report.stale == 0, report.summary()
    assert daemon.status().version == "9.9.9"
    releases.make("4", version="9.9.9")
    releases.deploy("4")
    assert daemon.ctl("reload").code == 0
    assert daemon.get().text == releases.answer("4")


@pytest.mark.parametrize("argv", thorough("absolute", "relative", "path"))
def test_by_the_interpreter(place: Place, releases: Releases, argv: str) -> None:
    """`python -m ostler`, in each form in which the interpreter can be typed."""
    python = {
        "absolute": f"{releases.current}/.venv/bin/python",
        "relative": ".venv/bin/python",
        "path": "python",
    }[argv]
    path = f"{releases.current}/.venv/bin:{os.environ['PATH']}"
    words = ("sh", "-c", f'exec {python} -m ostler "$@"', "sh")
    daemon = start(place, releases, argv=words, PATH=path, PWD=str(releases.current))
    assert daemon.get().text == releases.answer("1")
    releases.make("2")
    releases.deploy("2")
    releases.remove("1")
    assert daemon.ctl("reload").code == 0
    assert daemon.get().text == releases.answer("2")
    done = daemon.ctl("upgrade")
    assert done.code == 0, done.err
    assert daemon.get().text == releases.answer("2")


@pytest.mark.thorough
def test_variables_of_an_activated_environment(place: Place, releases: Releases) -> None:
    """VIRTUAL_ENV and PATH that name the first release name the next one in its workers."""
    app = 'import os\n\n\ndef app(environ, start_response):\n    start_response("200 OK", [])\n'
    app += '    return [(os.environ["VIRTUAL_ENV"] + " " + os.environ["PATH"]).encode()]\n'
    releases.make("2")
    for name in ("1", "2"):
        (releases.path(name) / "shop.py").write_text(app)
    old, new = releases.prefix("1"), releases.prefix("2")
    daemon = start(place, releases, VIRTUAL_ENV=str(old), PATH=f"{old}/bin:/bin")
    assert daemon.get().text == f"{old} {old}/bin:/bin"
    releases.deploy("2")
    assert daemon.ctl("reload").code == 0
    assert daemon.get().text == f"{new} {new}/bin:/bin"


@pytest.mark.thorough
def test_ostler_is_replaced_in_its_place(place: Place, releases: Releases) -> None:
    """After `pip install -U ostler` a reload says what to do; a fork server that is started again does not
    mix versions, and the workers serve on."""
    daemon = start(place, releases)
    (packages,) = (releases.prefix("1") / "lib").glob("*/site-packages")
    install(packages, "9.9.9")
    done = daemon.ctl("reload")
    assert f"and {ostler.__version__} is running; `ctl upgrade` (or USR2) changes to it" in done.error
    fork_server(daemon).send(signal.SIGKILL)
    assert "`ctl upgrade`" in daemon.event("fork_server_failed", after=1)["reason"]
    assert daemon.get().text == releases.answer("1")
    (packages / "ostler" / "forkserver").unlink()
    done = daemon.ctl("reload")
    assert "Ostler 9.9.9" in done.error
    install(packages, ostler.__version__)
    (packages / "ostler" / "forkserver").unlink()
    done = daemon.ctl("reload")
    assert "can't be imported: ModuleNotFoundError: No module named 'ostler.forkserver'" in done.error


@pytest.mark.thorough
def test_fork_server_dies_after_a_deploy(place: Place, releases: Releases) -> None:
    """It is started again where the link leads, as its code is, and the log says so."""
    daemon = start(place, releases)
    releases.make("2")
    releases.deploy("2")
    releases.remove("1")
    fork_server(daemon).send(signal.SIGKILL)
    moved = f"environment {releases.prefix('1')} -> {releases.prefix('2')}"
    assert daemon.event("environment_changed", level="warning")["changes"] == moved
    (worker,) = daemon.workers()
    assert worker.pid is not None
    Process(worker.pid).send(signal.SIGKILL)
    daemon.until(lambda: releases.answer("2") == daemon.get().text, "the new release serves")


@pytest.mark.thorough
@pytest.mark.skipif(not second_account(), reason="needs root, and the right to mount")
def test_root_starts_nothing_that_was_planted(place: Place, releases: Releases) -> None:
    """The app's user owns the link, and lets it lead to an interpreter of its own."""
    place.open_to_others()
    daemon = start(place, releases)
    planted = place.folder / "planted"
    scripts = planted / ".venv" / "bin"
    scripts.mkdir(parents=True)
    (scripts / "python").write_text(f"#!/bin/sh\ntouch {place.folder}/executed\n")
    (scripts / "python").chmod(0o755)
    (scripts / "ostler").write_text(f"#!{scripts}/python\n")
    (scripts / "ostler").chmod(0o755)
    for path in (planted, scripts, scripts / "python", scripts / "ostler"):
        os.chown(path, NOBODY.pw_uid, NOBODY.pw_gid)
    releases.current.unlink()
    releases.current.symlink_to(planted)
    assert "root does not execute" in daemon.ctl("reload").error
    assert "root does not execute" in daemon.ctl("upgrade").error
    assert not (place.folder / "executed").exists()
    assert daemon.get().text == releases.answer("1")
