"""Releases with a virtual environment each, and a link `current` to one of them, as people deploy.

An environment is made of links: to the interpreter, to the packages that the tests run with, and to our own
modules. So it costs some milliseconds, and is gone as a whole when its release is removed.
"""

import shutil
import sys
import sysconfig
from pathlib import Path

import ostler

PACKAGE = Path(ostler.__file__).parent
VERSION = f"{sys.version_info.major}.{sys.version_info.minor}"
# It answers with its release, the release of what it depends on, and where it runs.
_APP = """\
import sys
import dependency

def app(environ, start_response):
    start_response("200 OK", [("Content-Type", "text/plain")])
    return ["{name} {{}} {{}}".format(dependency.release, sys.prefix).encode()]
"""


def environment(folder: Path, *, version: str | None = ostler.__version__) -> Path:
    """Make a virtual environment. version: of the Ostler in it; None: there is none.

    Returns:
        Its folder of packages.
    """
    packages = folder / "lib" / f"python{VERSION}" / "site-packages"
    scripts = folder / "bin"
    packages.mkdir(parents=True)
    scripts.mkdir()
    base = Path(sys.executable).resolve()
    for name in ("python", "python3", f"python{VERSION}"):
        (scripts / name).symlink_to(base)
    (folder / "pyvenv.cfg").write_text(f"home = {base.parent}\nversion = {sys.version.split()[0]}\n")
    for path in Path(sysconfig.get_path("purelib")).iterdir():
        if path.suffix != ".pth" and not path.name.startswith(("ostler", "__pycache__")):
            (packages / path.name).symlink_to(path)
    if version is not None:
        install(packages, version)
        script = scripts / "ostler"
        script.write_text(f"#!{scripts}/python\nfrom ostler.__main__ import main\nmain()\n")
        script.chmod(0o755)
    return packages


def install(packages: Path, version: str) -> None:
    """Install our package, or replace it as pip does: its files are new ones."""
    package = packages / "ostler"
    package.mkdir(exist_ok=True)
    for path in PACKAGE.iterdir():
        if path.name not in ("__init__.py", "__pycache__") and not (package / path.name).exists():
            (package / path.name).symlink_to(path)
    draft = package / "draft"
    draft.write_text(f'__version__ = "{version}"\n')
    draft.replace(package / "__init__.py")


class Releases:
    """`shop/releases/N`, with the app `shop:app` in each, and `shop/current`.

    Attributes:
        current: the link.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder.resolve() / "shop" / "releases"
        self.current = self._folder.parent / "current"

    def path(self, name: str) -> Path:
        return self._folder / name

    def prefix(self, name: str) -> Path:
        """The environment of a release."""
        return self.path(name) / ".venv"

    def make(self, name: str, *, version: str | None = ostler.__version__) -> Path:
        """Make a release. version: as for `environment`. Returns its folder of packages."""
        packages = environment(self.prefix(name), version=version)
        (packages / "dependency.py").write_text(f"release = {name!r}\n")
        (self.path(name) / "shop.py").write_text(_APP.format(name=name))
        return packages

    def deploy(self, name: str) -> None:
        """Let `current` lead to a release, at once."""
        link = self.current.with_name("next")
        link.symlink_to(self.path(name))
        link.replace(self.current)

    def remove(self, name: str) -> None:
        shutil.rmtree(self.path(name))

    def answer(self, name: str) -> str:
        """What a release's app answers if code, dependencies and environment are all of that release."""
        return f"{name} {name} {self.prefix(name)}"
