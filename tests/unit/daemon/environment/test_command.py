"""The command as it was typed, and the folder by the name that was typed."""

import sys
from pathlib import Path

import pytest

from ostler.daemon.environment import command
from ostler.daemon.environment.command import TypedCommand, as_typed, through_links


@pytest.mark.parametrize(
    ("typed", "python", "script"),
    [
        (["python", "-m", "ostler"], "python", None),
        (["python", "-Im", "ostler"], "python", None),
        ([".venv/bin/python", "-P", "-m", "ostler"], "/srv/shop/current/.venv/bin/python", None),
        (["./python", "-c", "import ostler"], "/srv/shop/current/python", None),
        (["/opt/py", "/srv/bin/ostler"], "/opt/py", "/srv/bin/ostler"),
        (["/opt/py", "-s", "bin/ostler"], "/opt/py", "/srv/shop/current/bin/ostler"),
        (["/opt/py", "../bin/ostler"], "/opt/py", "/srv/shop/current/../bin/ostler"),
    ],
)
def test_as_typed(monkeypatch: pytest.MonkeyPatch, typed: list[str], python: str, script: str | None) -> None:
    """Paths become absolute, and keep their links; arguments of ours do not matter."""
    monkeypatch.setattr(sys, "orig_argv", [*typed, "-w", "2", "-m", "007", "shop:app"])
    monkeypatch.setattr(sys, "argv", ["x", "-w", "2", "-m", "007", "shop:app"])
    folder = "/srv/shop/current"
    assert as_typed(folder) == TypedCommand(folder, python, script)


def test_folder_through_the_links_of_the_command(tmp_path: Path) -> None:
    """Service managers change to the link's target and do not say how it was named; the command does."""
    release = tmp_path / "releases" / "1"
    (release / "src").mkdir(parents=True)
    (release / "bin").mkdir()
    current = tmp_path / "current"
    current.symlink_to(release)
    typed = f"{current}/bin/ostler"
    assert through_links(str(release), typed) == str(current)
    assert through_links(str(release / "src"), typed) == f"{current}/src"
    assert through_links(str(tmp_path), typed) == ""
    assert through_links(str(release), f"{release}/bin/ostler") == ""
    assert through_links(str(release), "python") == ""


def test_folder_by_pwd(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """PWD counts if it is the same folder, else the system's name of the folder."""
    release = (tmp_path / "release").resolve()
    release.mkdir()
    (tmp_path / "current").symlink_to(release)
    monkeypatch.chdir(release)
    link = f"{tmp_path}/current"
    for pwd, name in ((link, link), ("/", str(release)), ("", str(release))):
        monkeypatch.setenv("PWD", pwd)
        assert command.folder() == name
