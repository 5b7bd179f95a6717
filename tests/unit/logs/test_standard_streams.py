"""Standard streams that ignore write errors, each in a process of its own."""

import os
import subprocess
import sys
from pathlib import Path

START = "import sys; from ostler.logs.standard_streams import ignore_write_errors; ignore_write_errors()\n"


def run(code: str, **streams: int) -> int:
    return subprocess.run([sys.executable, "-c", START + code], check=False, timeout=20, **streams).returncode


def test_what_is_written_comes_out() -> None:
    """In order and encoding, stderr at once, stdout at the end at the latest."""
    code = "print('caf\xe9'); sys.stderr.write('now'); assert sys.stdout.fileno() == 1; print('end', end='')"
    done = subprocess.run(
        [sys.executable, "-X", "utf8", "-c", START + code], check=True, capture_output=True, timeout=20
    )
    assert done.stdout.decode() == "caf\xe9\nend"
    assert done.stderr == b"now"


def test_a_reader_that_is_gone() -> None:
    """Neither print nor the flush at exit fails; Python itself would exit with 1 or 120."""
    reader, writer = os.pipe()
    os.close(reader)
    code = "print('x' * 100_000, flush=True); print('y'); sys.stderr.write('z\\n'); sys.stderr.flush()"
    try:
        assert run(code, stdout=writer, stderr=writer) == 0
    finally:
        os.close(writer)


def test_a_full_disk() -> None:
    """The same for ENOSPC."""
    with open("/dev/full", "wb") as full:  # noqa: PTH123 - a device
        assert (
            run("print('x', flush=True); sys.stderr.write('y')", stdout=full.fileno(), stderr=full.fileno())
            == 0
        )


def test_streams_without_buffers() -> None:
    """With PYTHONUNBUFFERED output is written at once, as in Python: none is lost with the process."""
    code = "import os; print('printed'); sys.stderr.write('failed\\n'); os._exit(0)"
    done = subprocess.run(
        [sys.executable, "-u", "-c", START + code], check=True, capture_output=True, timeout=20
    )
    assert (done.stdout, done.stderr) == (b"printed\n", b"failed\n")


def test_captured(tmp_path: Path) -> None:
    """Everything that is written to 1 and 2 goes to the file, also from C and from child processes,
    each line at once.
    """
    code = (
        "import os, subprocess\n"
        "from ostler.logs.standard_streams import capture, write_at_once\n"
        "write_at_once(); capture('captured')\n"
        "print('printed'); assert open('captured').read() == 'printed\\n'\n"
        "os.write(2, b'raw\\n'); subprocess.run(['echo', 'child'], check=True)\n"
        "os.rename('captured', 'moved'); print('old'); capture('captured'); print('new')\n"
        "os.mkdir('folder')\n"
        "try:\n    capture('folder')\nexcept OSError:\n    print('stays')\n"
    )
    subprocess.run([sys.executable, "-c", START + code], check=True, cwd=tmp_path, timeout=20)
    assert (tmp_path / "moved").read_text() == "printed\nraw\nchild\nold\n"
    assert (tmp_path / "captured").read_text() == "new\nstays\n"


def test_captured_after_copytruncate(tmp_path: Path) -> None:
    """logrotate's copytruncate: output after the file was emptied is at its beginning."""
    code = (
        "import os\nfrom ostler.logs.standard_streams import capture\ncapture('captured')\n"
        "os.write(1, b'before\\n'); os.truncate('captured', 0); os.write(1, b'after\\n')\n"
    )
    subprocess.run([sys.executable, "-c", START + code], check=True, cwd=tmp_path, timeout=20)
    assert (tmp_path / "captured").read_bytes() == b"after\n"
