"""Ostler and supervisord in one environment: their packages share no file, and neither needs the other.

supervisord's import package is `supervisor`, and it is often installed beside an app server.
"""

import signal
import subprocess
import sys
import sysconfig
from pathlib import Path

import pytest

from tests.kit.daemon import Place
from tests.kit.waiting import PATIENCE, until

pytestmark = [pytest.mark.system, pytest.mark.thorough]

ROOT = Path(__file__).parents[2]
CONFIGURATION = """\
[supervisord]
nodaemon=true
logfile={folder}/supervisord.log
pidfile={folder}/supervisord.pid
childlogdir={folder}
[unix_http_server]
file={folder}/supervisord.sock
[rpcinterface:supervisor]
supervisor.rpcinterface_factory = supervisor.rpcinterface:make_main_rpcinterface
[supervisorctl]
serverurl=unix://{folder}/supervisord.sock
[program:sleeper]
command=sleep 1000
"""
OWN = ("ostler", "_editable_impl_ostler", "supervisor", "pip", "setuptools")
PIP = ("-m", "pip", "--quiet", "--disable-pip-version-check", "--no-input")


def run(*argv: str | Path, within: float = 10 * PATIENCE) -> subprocess.CompletedProcess[str]:
    return subprocess.run(argv, capture_output=True, text=True, check=False, timeout=within)


class Environment:
    """A virtual environment that sees all packages of the tests' environment except the two projects."""

    def __init__(self, folder: Path) -> None:
        self.bin = folder / "venv/bin"
        self.python = self.bin / "python"
        made = run(sys.executable, "-m", "venv", folder / "venv")
        assert made.returncode == 0, made.stdout + made.stderr
        others = folder / "others"
        others.mkdir()
        for path in Path(sysconfig.get_path("purelib")).iterdir():
            if not path.name.startswith(
                ("ostler", "_editable_impl_ostler", "supervisor", "pip", "setuptools")
            ):
                (others / path.name).symlink_to(path)
        found = run(self.python, "-c", "import sysconfig; print(sysconfig.get_path('purelib'))")
        (Path(found.stdout.strip()) / "others.pth").write_text(f"{others}\n")

    def install(self, *wheels: Path) -> None:
        done = run(self.python, *PIP, "install", "--no-deps", "--root-user-action=ignore", *wheels)
        assert done.returncode == 0, done.stderr

    def uninstall(self, name: str) -> None:
        done = run(self.python, *PIP, "uninstall", "--yes", "--root-user-action=ignore", name)
        assert done.returncode == 0, done.stderr


def ostler_works(environment: Environment, place: Place) -> None:
    daemon = place.start("plain:app", argv=[str(environment.bin / "ostler")])
    assert daemon.get().text == "one"
    done = run(environment.bin / "ctl", "--socket", daemon.socket, "status")
    assert done.returncode == 0, done.stderr
    assert daemon.stop() == 0


def supervisord_works(environment: Environment, folder: Path) -> None:
    folder.mkdir()
    file = folder / "supervisord.conf"
    file.write_text(CONFIGURATION.format(folder=folder))
    with subprocess.Popen(
        [environment.bin / "supervisord", "-n", "-c", file],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.STDOUT,
    ) as process:
        try:
            control = (environment.bin / "supervisorctl", "-c", file, "status")
            until(lambda: "RUNNING" in run(*control).stdout, "supervisord runs its program")
        finally:
            process.send_signal(signal.SIGTERM)
            process.wait(PATIENCE)


def test_both_in_one_environment(place: Place, tmp_path: Path) -> None:
    """Both start, and after either is uninstalled the other still does."""
    environment = Environment(tmp_path)
    wheels = tmp_path / "wheels"
    found = run(environment.python, *PIP, "download", "--no-deps", "--dest", wheels, "supervisor>=4.2.5")
    if found.returncode:
        pytest.skip(f"supervisord can't be had: {found.stderr.strip().splitlines()[-1]}")
    (supervisord,) = wheels.iterdir()
    built = run(sys.executable, *PIP, "wheel", "--no-deps", "--wheel-dir", wheels, ROOT)
    if built.returncode:
        pytest.skip(f"no wheel can be built: {built.stderr.strip().splitlines()[-1]}")
    (ostler,) = wheels.glob("ostler-*.whl")

    environment.install(supervisord, ostler)
    ostler_works(environment, place)
    supervisord_works(environment, place.folder / "both")
    environment.uninstall("supervisor")
    assert not (environment.bin / "supervisord").exists()
    ostler_works(environment, place)
    environment.install(supervisord)
    environment.uninstall("ostler")
    assert not (environment.bin / "ostler").exists()
    supervisord_works(environment, place.folder / "alone")
