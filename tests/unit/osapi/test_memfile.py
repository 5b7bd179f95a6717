"""Unnamed files in memory, also where the kernel refuses memfd_create(2)."""

import errno
import os
from typing import Any

import pytest

from ostler.osapi.memfile import memory_file


def refuse(number: int, flags: int = 0) -> Any:
    """A system call that fails with one of the flags."""
    call = os.memfd_create

    def refusing(name: str, given: int) -> int:
        if flags and not given & flags:
            return call(name, given)
        raise OSError(number, os.strerror(number))

    return refusing


def works(fd: int) -> None:
    try:
        assert not os.get_inheritable(fd)
        assert os.fstat(fd).st_size == 0
        os.write(fd, b"x")
        assert os.pread(fd, 9, 0) == b"x"
    finally:
        os.close(fd)


def test_a_memfd() -> None:
    """It has the name, and can be sealed."""
    fd = memory_file("ostler-test")
    assert os.readlink(f"/proc/self/fd/{fd}").startswith("/memfd:ostler-test")  # noqa: PTH115
    works(fd)


def test_an_old_kernel(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without MFD_NOEXEC_SEAL."""
    monkeypatch.setattr(os, "memfd_create", refuse(errno.EINVAL, 0x8))
    fd = memory_file("ostler-test")
    assert os.readlink(f"/proc/self/fd/{fd}").startswith("/memfd:")  # noqa: PTH115
    works(fd)


@pytest.mark.parametrize("number", [errno.EPERM, errno.ENOSYS])
def test_refused(monkeypatch: pytest.MonkeyPatch, number: int) -> None:
    """E.g. by a seccomp filter: then it is an unnamed file in /dev/shm."""
    monkeypatch.setattr(os, "memfd_create", refuse(number))
    fd = memory_file("ostler-test")
    assert os.readlink(f"/proc/self/fd/{fd}").startswith("/dev/shm/")  # noqa: PTH115
    assert os.fstat(fd).st_nlink == 0
    works(fd)


def test_all_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    """The error names both calls."""
    monkeypatch.setattr(os, "memfd_create", refuse(errno.EPERM))
    monkeypatch.setattr("ostler.osapi.memfile._SHM", "/nowhere")
    with pytest.raises(PermissionError) as caught:
        memory_file("ostler-test")
    assert caught.value.strerror == (
        "memfd_create: Operation not permitted; "
        "open of an unnamed file in /nowhere: No such file or directory"
    )
