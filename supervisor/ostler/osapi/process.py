"""Processes: adopting orphans, titles, standard descriptors, signals."""

import ctypes
import mmap
import os
import signal
import sys
from pathlib import Path

from setproctitle import getproctitle, setproctitle

from ostler.osapi.needed import refused
from ostler.text import readable

# Makes a worker's faulthandler write the stacks of all threads. A real-time signal, as others are in use.
DUMP_SIGNAL = signal.SIGRTMIN + 5
# Makes a worker interrupt those of its requests that the supervisor has marked as overdue.
INTERRUPT_SIGNAL = signal.SIGRTMIN + 6

_PR_SET_CHILD_SUBREAPER = 36  # linux/prctl.h
_PR_SET_TIMERSLACK = 29
_PF_EXITING = 0x4  # linux/sched.h

_SIGNAL_STACK = 256 * 1024  # only what is touched takes memory
_MAP_FAILED = ctypes.c_void_p(-1).value


def become_subreaper() -> None:
    """Adopt orphaned descendants instead of leaving them to init (prctl(2), PR_SET_CHILD_SUBREAPER).

    The first process of a container adopts them anyway.

    Raises:
        OstlerError: the kernel refused.
    """
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.prctl(_PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0) != 0 and os.getpid() != 1:
        number = ctypes.get_errno()
        raise refused("prctl(PR_SET_CHILD_SUBREAPER)", OSError(number, os.strerror(number)))


def adopt_no_orphans() -> None:
    """Clear this process's subreaper flag, which the app may have set: orphans go to the supervisor."""
    ctypes.CDLL(None).prctl(_PR_SET_CHILD_SUBREAPER, 0, 0, 0, 0)


# The process that has set its title last, and how that reads.
_title = (0, "")


def set_title(title: str, always: bool = False) -> None:
    """Set the title in ps(1), unless user code has set one in this process.

    Args:
        title: may contain surrogates for bytes: names of apps do.
        always: also if user code has set one.
    """
    global _title
    pid = os.getpid()
    if always or _title[0] != pid or getproctitle() == _title[1]:
        setproctitle(readable(title).replace("\0", ""))
        _title = pid, getproctitle()


_STREAMS = (("stdin", "r"), ("stdout", "w"), ("stderr", "w"))


def fill_standard_descriptors() -> None:
    """Open /dev/null where a standard descriptor is closed.

    Otherwise the next descriptor, e.g. a listener, would get that number and receive the text for stderr, and
    Python's streams would be None.
    """
    for fd in (0, 1, 2):
        try:
            os.fstat(fd)
        except OSError:
            # This is the lowest free number. Inheritable, as standard descriptors are.
            os.set_inheritable(os.open(os.devnull, os.O_RDWR), True)
            name, mode = _STREAMS[fd]
            if getattr(sys, name) is None:
                stream = open(fd, mode, encoding="utf-8", errors="surrogateescape", closefd=False)  # noqa: SIM115
                setattr(sys, name, stream)


def silence(outputs: bool) -> None:
    """Replace the standard input by /dev/null, and with `outputs` the outputs, too.

    They may be a terminal, or a pipe whose reader waits for its end.
    """
    null = os.open(os.devnull, os.O_RDWR | os.O_CLOEXEC)
    for fd in (0, 1, 2) if outputs else (0,):
        os.dup2(null, fd)
    os.close(null)


def set_timer_slack(nanoseconds: int) -> None:
    """Set how late waits of this thread, and of threads that it starts, may end (PR_SET_TIMERSLACK)."""
    ctypes.CDLL(None).prctl(_PR_SET_TIMERSLACK, nanoseconds, 0, 0, 0)


def enlarge_signal_stack() -> None:
    """Give this thread's signal handlers an alternate stack (sigaltstack(2)) with room for all at once.

    faulthandler's stack is small: with the state that current processors save for each handler, some five
    simultaneous signals overflow it, e.g. those that are pending when a stopped process continues.
    """
    libc = ctypes.CDLL(None)
    libc.mmap.restype = ctypes.c_void_p
    libc.mmap.argtypes = (ctypes.c_void_p, ctypes.c_size_t, *(ctypes.c_int,) * 3, ctypes.c_long)
    # Not Python's mmap: signals also come while the interpreter is torn down, which would unmap that.
    place = libc.mmap(
        None, _SIGNAL_STACK, mmap.PROT_READ | mmap.PROT_WRITE, mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS, -1, 0
    )
    if place != _MAP_FAILED:
        libc.sigaltstack(ctypes.byref(_Stack(place, 0, _SIGNAL_STACK)), None)


class _Stack(ctypes.Structure):
    """stack_t of sigaltstack(2)."""

    _fields_ = (("ss_sp", ctypes.c_void_p), ("ss_flags", ctypes.c_int), ("ss_size", ctypes.c_size_t))


def has_terminal() -> bool:
    """Whether a terminal controls this process (tty(4): only then can /dev/tty be opened)."""
    try:
        os.close(os.open("/dev/tty", os.O_RDONLY | os.O_NOCTTY | os.O_CLOEXEC))
    except OSError:
        return False
    return True


def number_of_children() -> int:
    """How many children the calling thread has; 0 if the kernel does not say (proc_pid_children(5))."""
    try:
        return len(Path("/proc/thread-self/children").read_bytes().split())
    except OSError:
        return 0


def is_interactive() -> bool:
    """Whether standard input is the terminal that controls this process: a debugger in the app may read it,
    which only the terminal's foreground process group can."""
    return os.isatty(0) and has_terminal()


def is_to_be_reaped(pid: int) -> bool | None:
    """Whether our child `pid` has ended and wait(2) reports it; None: this is no child of ours.

    wait(2) does not report a child that has ended while another process traces it (ptrace(2)).
    """
    try:
        return os.waitid(os.P_PID, pid, os.WEXITED | os.WNOHANG | os.WNOWAIT) is not None
    except (OSError, OverflowError):
        return None


def is_anothers_child(pid: int) -> bool:
    """Whether there is such a process, and it is not our child."""
    return is_to_be_reaped(pid) is None and Path(f"/proc/{pid}").exists()


def is_ending(pid: int) -> bool:
    """Whether a process has ended or is about to; False if that can't be read.

    It loses its descriptors first, and only then becomes a zombie and its children get another parent.
    """
    try:
        # proc_pid_stat(5): the command's name may hold anything; flags is field 9.
        fields = Path(f"/proc/{pid}/stat").read_bytes().rpartition(b")")[2].split()
        return fields[0] in (b"Z", b"X") or bool(int(fields[6]) & _PF_EXITING)
    except (OSError, IndexError, ValueError):
        return False


def zombie_status(pid: int) -> int | None:
    """The wait status of a process that has ended and is not reaped yet; None if it can't be read."""
    try:
        Path(f"/proc/{pid}/cwd").readlink()
    except PermissionError:
        return None  # without the right to trace it (CAP_SYS_PTRACE) exit_code reads as 0
    except OSError:
        pass  # a zombie has none
    try:
        # proc_pid_stat(5): the command's name may hold anything; exit_code is field 52.
        fields = Path(f"/proc/{pid}/stat").read_bytes().rpartition(b")")[2].split()
        return int(fields[49]) if fields[0] in (b"Z", b"X") else None
    except (OSError, IndexError, ValueError):
        return None


def thread_group(tid: int) -> int:
    """The process that a thread belongs to; the number itself if it is gone."""
    try:
        lines = Path(f"/proc/{tid}/status").read_bytes().splitlines()
        return int(next(line for line in lines if line.startswith(b"Tgid:")).split()[1])
    except (OSError, StopIteration, IndexError, ValueError):
        return tid


def signal_main_thread(pid: int, signum: int) -> None:
    """Signal the main thread of a child that has not been reaped (tgkill(2)).

    A signal to the process goes to any thread if the main one has another pending. Python's handler then has
    to wait until the main thread runs Python code again, which a blocking call in it may put off for ever.
    """
    ctypes.CDLL(None).tgkill(pid, pid, signum)


def send_signal(pidfd: int, signum: int) -> bool:
    """Signal the process behind a pidfd (pidfd_send_signal(2)); False if it is gone.

    Raises:
        OSError: the kernel refused.
    """
    try:
        signal.pidfd_send_signal(pidfd, signum)
    except ProcessLookupError:
        return False
    return True
