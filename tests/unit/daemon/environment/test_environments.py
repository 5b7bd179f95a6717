"""Which environment new processes are started in, and what root refuses."""

import os
from dataclasses import replace
from pathlib import Path

import pytest

from ostler.daemon.environment.command import TypedCommand
from ostler.daemon.environment.environments import (
    Environments,
    GenerationEnvironment,
    changed_environment,
    checked,
)
from ostler.errors import OstlerError
from ostler.osapi import trust
from tests.kit.accounts import NOBODY
from tests.kit.releases import Releases


@pytest.fixture
def releases(tmp_path: Path) -> Releases:
    made = Releases(tmp_path)
    made.make("1")
    made.deploy("1")
    return made


@pytest.fixture
def environments(releases: Releases) -> Environments:
    """Of a daemon that was started with the command of release 1."""
    found = Environments(TypedCommand("/", "python", f"{releases.current}/.venv/bin/ostler"))
    found._is_installed = True  # the tests' own may be found in another way
    found.own = found.find()
    return found


def test_same_release(releases: Releases, environments: Environments) -> None:
    assert environments.find() is environments.own
    assert environments.own.prefix == str(releases.prefix("1"))
    assert environments.may_move


def test_next_release(releases: Releases, environments: Environments) -> None:
    packages = releases.make("2")
    releases.deploy("2")
    found = environments.find()
    assert found.prefix == str(releases.prefix("2"))
    assert found.python == f"{found.prefix}/bin/python"
    assert found.root == str(packages)
    assert environments.find_program() == (found, f"{found.prefix}/bin/ostler")


def test_without_a_command(releases: Releases) -> None:
    """What can't be repeated leads to the interpreter that runs."""
    found = Environments(None)
    assert found.find() is found.own
    assert not found.may_move


def test_no_ostler(releases: Releases, environments: Environments) -> None:
    releases.make("2", version=None)
    releases.deploy("2")
    prefix = releases.prefix("2")
    with pytest.raises(OstlerError, match=f"^no Ostler is installed in {prefix}; .*pip install ostler=="):
        environments.find()


def test_another_command_than_what_runs(releases: Releases) -> None:
    """A wrapper has started another interpreter than the command names: it is not followed."""
    assert checked(TypedCommand("/", f"{releases.current}/.venv/bin/python")) is None
    assert checked(None) is None


def test_variables(releases: Releases, environments: Environments, monkeypatch: pytest.MonkeyPatch) -> None:
    """Those that name the old environment name the new one; what leads through the link stays."""
    releases.make("2")
    releases.deploy("2")
    old, new = releases.prefix("1"), releases.prefix("2")
    monkeypatch.setenv("VIRTUAL_ENV", str(old))
    monkeypatch.setenv("PYTHONHOME", f"{releases.current}/.venv")
    monkeypatch.setenv("PATH", f"{releases.current}/.venv/bin:{old}/bin:/usr/bin:{old}/bin/more")
    found = environments.variables(environments.find())
    assert found["VIRTUAL_ENV"] == str(new)
    assert found["PYTHONHOME"] == f"{releases.current}/.venv"
    assert found["PATH"] == f"{releases.current}/.venv/bin:{new}/bin:/usr/bin:{old}/bin/more"
    assert environments.variables(environments.own)["VIRTUAL_ENV"] == str(old)


def test_what_changed() -> None:
    before = GenerationEnvironment("/1", "3.11.2", "0.1.0")
    assert changed_environment(before, before) == changed_environment(None, before) == []
    after = GenerationEnvironment("/2", "3.12.1", "0.1.0")
    assert [(view.name, view.before, view.after) for view in changed_environment(before, after)] == [
        ("environment", "/1", "/2"),
        ("Python", "3.11.2", "3.12.1"),
    ]


# -- root ------------------------------------------------------------------------------------------------

as_root = pytest.mark.skipif(os.geteuid() != 0 or trust.is_alone(), reason="needs root and another account")


@as_root
@pytest.mark.parametrize(
    "planted",
    [
        ".venv",
        ".venv/bin",
        ".venv/pyvenv.cfg",
        ".venv/lib/python*/site-packages",
        ".venv/lib/python*/site-packages/plant.pth",
        ".venv/lib/python*/site-packages/ostler/__init__.py",
    ],
)
def test_root_refuses_what_others_can_write(
    releases: Releases, environments: Environments, planted: str
) -> None:
    """A link of the app's user must not make root execute what the user could plant."""
    (releases.make("2") / "plant.pth").touch()
    releases.deploy("2")
    environments.find()
    (path,) = releases.path("2").glob(planted)
    os.chown(path, NOBODY.pw_uid, NOBODY.pw_gid)
    with pytest.raises(OstlerError, match=r"root does not execute .* 'nobody' can write .*let only root"):
        environments.find()


@as_root
def test_root_refuses_a_planted_script(releases: Releases, environments: Environments) -> None:
    """The next program of an upgrade executes the script, a fork server does not."""
    script = releases.prefix("1") / "bin" / "ostler"
    os.chown(script, NOBODY.pw_uid, NOBODY.pw_gid)
    environments.find()
    with pytest.raises(OstlerError, match=r"root does not execute .*/bin/ostler"):
        environments.find_program()


@as_root
def test_accounts_that_could_write_before(releases: Releases, environments: Environments) -> None:
    """The administrator has started, and was warned of, an environment that the same account can write."""
    releases.make("2")
    releases.deploy("2")
    os.chown(releases.prefix("2"), NOBODY.pw_uid, NOBODY.pw_gid)
    environments._known._accounts.add((NOBODY.pw_uid, None))
    assert environments.find().prefix == str(releases.prefix("2"))
    os.chown(releases.prefix("2"), NOBODY.pw_uid + 1, NOBODY.pw_gid)
    with pytest.raises(OstlerError, match="root does not execute"):
        environments.find()


def test_own_is_compared_whole(releases: Releases, environments: Environments) -> None:
    """An environment that was made again in its place, with Ostler elsewhere, is another one."""
    environments.own = replace(environments.own, root="/gone")
    assert environments.find().root != "/gone"
