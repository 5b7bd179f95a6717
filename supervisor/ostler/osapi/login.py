"""What a process inherits from the login session that started it, and gives up with its account.

- The terminal. A process of its session can put characters into its input (TIOCSTI of ioctl_tty(2)), which
  root's shell executes as if typed; a process that has it open for reading gets the typed text.
- The session keyring (session-keyring(7)): a process that has it can use its keys, whatever its uid is.
"""

import ctypes
import os
import platform
from contextlib import suppress

from ostler.osapi.process import has_terminal

_KEYCTL = {"x86_64": 250, "aarch64": 219, "riscv64": 219}  # asm/unistd.h
_JOIN_SESSION_KEYRING = 1  # KEYCTL_JOIN_SESSION_KEYRING of linux/keyctl.h


def leave_login() -> None:
    """Leave the session of the terminal, if there is one, and the keyring. Outputs go where they went.

    Raises:
        OSError: the terminal can't be left.
    """
    terminals = [fd for fd in (0, 1, 2) if os.isatty(fd)]
    if terminals or has_terminal():
        if os.getpgrp() == os.getpid():
            # The leader of a process group can't begin a session (setsid(2)).
            os.setpgid(0, os.getpgid(os.getppid()))
        os.setsid()
    for fd in terminals:
        name, mode = (os.devnull, os.O_RDONLY) if fd == 0 else (f"/proc/self/fd/{fd}", os.O_WRONLY)
        # A terminal of no account in our user namespace can't be opened again: it is not root's.
        with suppress(OSError):
            new = os.open(name, mode | os.O_NOCTTY | os.O_CLOEXEC)
            os.dup2(new, fd)
            os.close(new)
    number = _KEYCTL.get(platform.machine())
    if number is not None:
        # Refused in most containers; their processes have no session keyring of root.
        ctypes.CDLL(None).syscall(ctypes.c_long(number), ctypes.c_long(_JOIN_SESSION_KEYRING), None)
