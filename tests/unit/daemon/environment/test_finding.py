"""Finding the interpreter that a command starts, and the Ostler that is installed for it."""

import os
import sys
from pathlib import Path

import pytest

from ostler.daemon.environment.command import TypedCommand
from ostler.daemon.environment.finding import installed, interpreter, prefix_of, site_folders
from ostler.errors import OstlerError


class Layout:
    """`releases/1` with a virtual environment, and the link `current` to it."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder.resolve()
        self.release = self.folder / "releases" / "1"
        self.scripts = self.release / ".venv" / "bin"
        self.scripts.mkdir(parents=True)
        self.python = self.scripts / "python"
        self.python.symlink_to(os.path.realpath(sys.executable))
        self.config("version = 3.11.2\n")
        self.current = self.folder / "current"
        self.current.symlink_to(self.release)

    def config(self, text: str) -> None:
        (self.release / ".venv" / "pyvenv.cfg").write_text(text)

    def packages(self, version: str = "3.11") -> Path:
        folder = self.release / ".venv" / "lib" / f"python{version}" / "site-packages"
        folder.mkdir(parents=True)
        return folder

    def found(self, text: str | None) -> str:
        """The interpreter of a script with this text; None: there is no script."""
        script = self.scripts / "ostler"
        if text is not None:
            script.write_text(text)
        return interpreter(TypedCommand("/", "unused", f"{self.current}/.venv/bin/ostler"))


@pytest.fixture
def layout(tmp_path: Path) -> Layout:
    return Layout(tmp_path)


def package(folder: Path) -> Path:
    (folder / "ostler").mkdir(parents=True)
    (folder / "ostler" / "__init__.py").touch()
    return folder


# -- the interpreter -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "text",
    [
        "#!{}\n",
        "#! {} -s\nimport sys\n",
        "#!/bin/sh\n'''exec' \"{}\" \"$0\" \"$@\"\n' '''\nimport sys\n",
        "#!/bin/sh\n'''exec' '{}' \"$0\" \"$@\"\n' '''\n",
        "#!/bin/sh\n'''exec' {} \"$0\" \"$@\"\n' '''\n",
        "#!/usr/bin/env -S {} -s\n",
    ],
    ids=["plain", "option", "pip", "uv", "no quotes", "env"],
)
def test_named_by_the_script(layout: Layout, text: str) -> None:
    """The interpreter that the script names, without links on the way to its environment."""
    other = layout.folder / "other" / "bin"
    other.mkdir(parents=True)
    (other / "python3").symlink_to(layout.python)
    link = layout.folder / "link"
    link.symlink_to(other.parent)
    assert layout.found(text.format(f"{link}/bin/python3")) == f"{other}/python3"


@pytest.mark.parametrize(
    "text",
    [
        None,
        "",
        "no script",
        "#!/nowhere/to/be/found/python\n",
        "#!/bin/sh\n'''exec' \"$(dirname -- \"$(realpath -- \"$0\")\")\"/'python' \"$0\" \"$@\"\n' '''\n",
        "#!/usr/bin/env no-such-python\n",
        "#!python\n",
    ],
    ids=["no script", "empty", "no #!", "gone", "relocatable", "not on PATH", "relative"],
)
def test_beside_the_script(layout: Layout, text: str | None) -> None:
    """Without an interpreter of that name: the `python` in the script's folder."""
    assert layout.found(text) == str(layout.python)


def test_beside_what_a_link_leads_to(layout: Layout) -> None:
    """As with `/usr/local/bin/ostler`, a link to the script."""
    (layout.scripts / "ostler").write_text("#!/nowhere/python\n")
    link = layout.folder / "ostler"
    link.symlink_to(layout.current / ".venv" / "bin" / "ostler")
    assert interpreter(TypedCommand("/", "unused", str(link))) == str(layout.python)


def test_as_typed(layout: Layout) -> None:
    command = TypedCommand("/", f"{layout.current}/.venv/bin/python")
    assert interpreter(command) == str(layout.python)


def test_on_path(layout: Layout, monkeypatch: pytest.MonkeyPatch) -> None:
    """A name without a slash is looked for again; a relative entry counts from where it was typed."""
    monkeypatch.setenv("PATH", "/nowhere:.venv/bin:/usr/bin")
    assert interpreter(TypedCommand(str(layout.current), "python")) == str(layout.python)
    with pytest.raises(OstlerError, match=r"no-such-python, .* is in no folder of PATH"):
        interpreter(TypedCommand(str(layout.current), "no-such-python"))


def test_nothing_is_there(layout: Layout) -> None:
    """The error names the path."""
    layout.current.unlink()
    script = f"{layout.current}/.venv/bin/ostler"
    with pytest.raises(OstlerError, match=f"^{script}.*No such file"):
        interpreter(TypedCommand("/", "unused", script))
    python = f"{layout.current}/.venv/bin/python"
    with pytest.raises(OstlerError, match=f"^{python}.*No such file"):
        interpreter(TypedCommand("/", python))


def test_script_and_interpreter_are_named(layout: Layout) -> None:
    layout.python.unlink()
    with pytest.raises(OstlerError, match=r"^/gone/python, the interpreter of .*/bin/ostler: No such file"):
        layout.found("#!/gone/python\n")


def test_a_fifo_is_no_script(layout: Layout) -> None:
    """Whoever can write the link must not make the supervisor wait."""
    os.mkfifo(layout.scripts / "ostler")
    layout.python.unlink()
    with pytest.raises(OstlerError, match="FIFO"):
        layout.found(None)


def test_not_executable(layout: Layout) -> None:
    file = layout.folder / "python"
    file.touch(0o600)
    with pytest.raises(OstlerError, match="not executable"):
        interpreter(TypedCommand("/", str(file)))


# -- the environment ---------------------------------------------------------------------------------------


def test_virtual_environment(layout: Layout) -> None:
    packages = layout.packages()
    layout.packages("3.12")
    prefix = prefix_of(str(layout.python))
    assert prefix == str(layout.release / ".venv")
    assert site_folders(str(layout.python), prefix) == [str(packages)]


def test_system_packages(layout: Layout) -> None:
    """Those of the base installation come last, if the environment includes them."""
    packages = layout.packages()
    base = layout.folder / "base"
    shared = base / "lib" / "python3" / "dist-packages"
    shared.mkdir(parents=True)
    layout.config(f"version_info = 3.11.2.final.0\nhome = {base}/bin\ninclude-system-site-packages = TRUE\n")
    folders = site_folders(str(layout.python), str(layout.release / ".venv"))
    assert folders[:2] == [str(packages), str(shared)]


def test_old_python(layout: Layout) -> None:
    layout.config("version = 3.9.18\n")
    with pytest.raises(OstlerError, match=r"has Python 3\.9, and Ostler needs 3\.11 or newer"):
        site_folders(str(layout.python), str(layout.release / ".venv"))


def test_installed(layout: Layout) -> None:
    """In the folder itself, or where a .pth file of it leads to (an editable installation)."""
    packages = layout.packages()
    assert installed([str(packages)]) is None
    source = package(layout.folder / "source")
    (packages / "a.pth").write_text("import os\n# no folder\n/nowhere\n")
    (packages / "b.pth").write_text(f"{source}\n")
    assert installed([str(packages)]) == str(source)
    package(packages)
    assert installed([str(packages)]) == str(packages)
