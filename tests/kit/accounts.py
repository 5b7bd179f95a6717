"""A second account for tests that run as root: the app's user, or another local user.

Files that only root can read, such as an interpreter in its home, are made visible to the other account in a
mount namespace of the daemon's own.
"""

import functools
import os
import pwd
import stat
import subprocess
import sys
from pathlib import Path

import ostler

NOBODY = pwd.getpwnam("nobody")


def _hidden(path: Path) -> Path | None:
    """The outermost folder on the way to `path` that only its owner may enter."""
    for folder in reversed((path, *path.parents)):
        if not folder.stat().st_mode & stat.S_IXOTH:
            return folder
    return None


def shown(*before: str) -> list[str]:
    """Runs a command in a mount namespace where every account reaches Python and the package.

    Args:
        before: runs the command, e.g. `setpriv --reuid nobody`; words for a shell.
    """
    needed = dict.fromkeys(
        Path(path).resolve() for path in (sys.base_prefix, sys.prefix, Path(ostler.__file__).parents[1])
    )
    steps = []
    for folder in {hidden for path in needed if (hidden := _hidden(path)) is not None}:
        inside = [path for path in needed if path.is_relative_to(folder)]
        steps += [
            "d=$(mktemp -d)",
            f'mount --bind "{folder}" "$d"',
            f'mount -t tmpfs -o mode=755 tmpfs "{folder}"',
        ]
        for path in inside:
            steps += [f'mkdir -p "{path}"', f'mount --bind "$d/{path.relative_to(folder)}" "{path}"']
        steps += ['umount -l "$d"', 'rmdir "$d"']
    script = "; ".join(["set -e", *steps, f'exec {" ".join(before)} "$@"'])
    return ["unshare", "--mount", "--propagation", "private", "sh", "-c", script, "sh"]


def as_nobody() -> list[str]:
    """Runs a command as the second account, with no groups but its own."""
    return shown(f"setpriv --reuid {NOBODY.pw_uid} --regid {NOBODY.pw_gid} --clear-groups")


@functools.cache
def second_account() -> bool:
    """Whether we are root and may run Python as the second account."""
    if os.geteuid() != 0:
        return False
    try:
        subprocess.run([*as_nobody(), sys.executable, "-c", "import json"], check=True, capture_output=True)
    except (OSError, subprocess.CalledProcessError):
        return False
    return True
