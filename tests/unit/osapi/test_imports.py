"""Root's imports. Each test is a process of its own, which is root and plants files as another account."""

import importlib.util
import os
import py_compile
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

import ostler

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="gives files to others")

UID = 12345
PACKAGES = str(Path(ostler.__file__).parents[1])


@pytest.fixture
def theirs(tmp_path: Path) -> Path:
    """A folder of another account with a module and a package in it."""
    tmp_path.chmod(0o755)
    folder = tmp_path / "theirs"
    (folder / "ostler_pack").mkdir(parents=True)
    (folder / "ostler_theirs.py").write_text("FROM = __file__\n")
    (folder / "ostler_pack/__init__.py").touch()
    os.chown(folder, UID, UID)
    return folder


@pytest.fixture
def ours(tmp_path: Path) -> Path:
    tmp_path.chmod(0o755)
    folder = tmp_path / "ours"
    folder.mkdir()
    return folder


def run(source: str, *path: Path, **environ: str) -> str:
    """The output of a process with the guard; `path`: its PYTHONPATH."""
    more = {"PYTHONPATH": os.pathsep.join([*map(str, path), PACKAGES]), **environ}
    prelude = "import sys\nfrom ostler.osapi import imports\nimports.guard()\n"
    argv = [sys.executable, "-P", "-c", prelude + source]
    done = subprocess.run(argv, env=os.environ | more, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


TRY = """
def tried(name):
    try:
        return __import__(name).__name__
    except ModuleNotFoundError as error:
        return str(error)
"""


def test_others_modules(theirs: Path) -> None:
    """They are not found, and the message has the reason; once rights are dropped they are found."""
    source = "print(tried('ostler_theirs')); imports.release(); print(tried('ostler_theirs'), sys.path[0])"
    refused, found = run(TRY + source, theirs).splitlines()
    assert refused.startswith("No module named 'ostler_theirs' that root may import: uid 12345 can write")
    assert found == f"ostler_theirs {theirs}"


def test_ours_behind_theirs(ours: Path, theirs: Path) -> None:
    """A module of others does not hide one of ours with the same name."""
    (ours / "ostler_theirs.py").write_text("")
    source = "import ostler_theirs; print(ostler_theirs.__file__)"
    assert run(source, theirs, ours) == str(ours / "ostler_theirs.py")


def test_part_of_a_package(ours: Path) -> None:
    """A package of ours that contains a folder, or a link, of others."""
    (ours / "ostler_mixed/theirs").mkdir(parents=True)
    (ours / "ostler_mixed/__init__.py").touch()
    (ours / "ostler_mixed/theirs/__init__.py").touch()
    os.chown(ours / "ostler_mixed/theirs", UID, UID)
    assert "may import" in run(TRY + "print(tried('ostler_mixed.theirs'))", ours)


def test_bytecode_of_others(ours: Path) -> None:
    """Bytecode that others can write is not read, even if it matches the source beside it."""
    source = ours / "ostler_cached.py"
    source.write_text("print('source')  \n")
    (ours / "evil.py").write_text("print('planted') \n")
    stamp = source.stat()
    os.utime(ours / "evil.py", ns=(stamp.st_atime_ns, stamp.st_mtime_ns))
    script = f"import py_compile; py_compile.compile({str(ours / 'evil.py')!r}, cfile=sys.argv[1])"
    cached = ours / "__pycache__" / f"ostler_cached.{sys.implementation.cache_tag}.pyc"
    subprocess.run([sys.executable, "-c", f"import sys; {script}", str(cached)], check=True)
    assert run("import ostler_cached", ours) == "planted"  # no other account can write it, so it is used
    os.chown(cached.parent, UID, UID)
    assert run("import ostler_cached", ours) == "source"


def test_environment(ours: Path, theirs: Path) -> None:
    """An interpreter that root starts does not look there before rights are dropped."""
    (theirs / "sitecustomize.py").write_text("import os; print('custom', os.environ.get('LATE'), end=' ')\n")
    child = (
        "import os, sys; from ostler.osapi import imports; imports.guard(); os.environ['LATE'] = 'late'; "
        "imports.release(); print(os.environ['PYTHONPATH'], [p for p in sys.path if p.endswith('theirs')])"
    )
    source = (
        "import os, subprocess\n"
        f"os.environ['PYTHONPATH'] = {os.pathsep.join([str(theirs), str(ours), PACKAGES])!r}\n"
        "environ = imports.environment()\n"
        "assert str(sys.argv) and environ['PYTHONPATH'].startswith({!r}), environ\n".format(str(ours))
        + f"subprocess.run([sys.executable, '-P', '-c', {child!r}], env=environ, check=True)\n"
    )
    path = os.pathsep.join([str(theirs), str(ours), PACKAGES])
    assert run(source) == f"custom late {path} {[str(theirs)]}"


def test_folder_of_the_program(theirs: Path, ours: Path) -> None:
    """`python -m` puts the current folder first on the path: not if others can write it."""
    source = (
        f"print([imports.environment(f).get('PYTHONSAFEPATH') for f in ({str(theirs)!r}, {str(ours)!r})])"
    )
    assert run(source) == "['1', None]"


def test_metadata(theirs: Path) -> None:
    """Distributions are looked for in the same places as modules."""
    (theirs / "planted-1.0.dist-info").mkdir()
    (theirs / "planted-1.0.dist-info/METADATA").write_text("Metadata-Version: 2.1\nName: planted\n")
    source = (
        "from importlib import metadata\n"
        "print(len(list(metadata.distributions(name='planted'))), len(list(metadata.distributions())) > 3)"
    )
    assert run(source, theirs) == "0 True"


def test_archive(ours: Path, theirs: Path) -> None:
    """A module in an archive belongs to the accounts that can write the archive."""
    for folder, name in ((ours, "ostler_packed"), (theirs, "ostler_packed_theirs")):
        with zipfile.ZipFile(folder / "x.zip", "w") as archive:
            archive.writestr(f"{name}/__init__.py", "")
            archive.writestr(f"{name}/part.py", "")
    source = "print(tried('ostler_packed.part')); print(tried('ostler_packed_theirs'))"
    found, refused = run(TRY + source, ours / "x.zip", theirs / "x.zip").splitlines()
    assert found == "ostler_packed"
    assert "that root may import: uid 12345 can write" in refused


def test_link_in_the_installation(ours: Path, theirs: Path) -> None:
    """For a link that leads out of the installation, as to an app under development, its target is checked.

    Modules there are imported if they belong to the owner of the whole folder.
    """
    (ours / "ostler_linked").symlink_to(theirs / "ostler_pack")
    (ours / "ostler_link.py").symlink_to(theirs / "ostler_theirs.py")
    (ours / "ostler_own").mkdir()
    (ours / "ostler_own/__init__.py").touch()
    (ours / "ostler_part").mkdir()
    (ours / "ostler_part/__init__.py").touch()
    os.chown(ours / "ostler_part", UID, UID)
    (ours / "ostler_cached.py").touch()
    (ours / "__pycache__").mkdir()
    compiled = importlib.util.cache_from_source(str(ours / "ostler_cached.py"))
    (ours / "ostler_cached.py").write_text("raise ValueError\n")
    py_compile.compile(str(ours / "ostler_cached.py"), compiled, doraise=True)
    stamp = (ours / "ostler_cached.py").stat()
    (ours / "ostler_cached.py").write_text("pass".ljust(stamp.st_size))
    os.utime(ours / "ostler_cached.py", ns=(stamp.st_atime_ns, stamp.st_mtime_ns))
    os.chown(compiled, UID, UID)
    added = (
        "import os.path\n"
        f"imports._INSTALLATION.add({str(ours)!r}); imports._TREES += ({str(ours)!r} + '/',)\n"
        f"imports._REAL_TREES += (os.path.realpath({str(ours)!r}) + '/',)\n"
    )
    for name, found in (
        *(("ostler_linked", False), ("ostler_link", False), ("ostler_part", False)),
        *(("ostler_own", True), ("ostler_cached", True)),
    ):
        said = run(f"{added}{TRY}print(tried({name!r}))", ours)
        assert (said == name) == found, said


def test_another_list_of_finders(theirs: Path) -> None:
    """A configuration that replaces the list keeps its finders, and imports work afterwards."""
    source = (
        "own = type('Own', (), {'find_spec': lambda *_: None})()\n"
        "sys.meta_path = [own]\n"
        "imports.release(); import ostler_theirs; print(sys.meta_path[0] is own, ostler_theirs.FROM)"
    )
    assert run(source, theirs) == f"True {theirs}/ostler_theirs.py"
