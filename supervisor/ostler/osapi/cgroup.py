"""The control groups that limit this process (cgroups(7)), and their counters."""

from pathlib import Path

MEMBERSHIP = Path("/proc/self/cgroup")
ROOT = Path("/sys/fs/cgroup")


def binding_folders(controller: str, membership: Path = MEMBERSHIP, root: Path = ROOT) -> list[Path]:
    """The folders whose limits of `controller` apply to us: our cgroup and all above it, of v2 and v1."""
    try:
        lines = membership.read_text().splitlines()
    except OSError:
        return [root]
    folders = []
    for line in lines:
        _, controllers, path = line.split(":", 2)
        if controllers == "":
            base = root
        elif controller in controllers.split(","):
            names = (controllers, controller)
            base = next((b for name in names if (b := root / name).is_dir()), root / controller)
        else:
            continue
        # In a container the path may be that of the host and not exist; then the container's root has the
        # limit.
        here = base / path.lstrip("/")
        folders += [folder for folder in (here, *here.parents) if folder.is_relative_to(base)]
    return folders


def read_counters(path: Path) -> dict[str, int]:
    """Counters of the kernel: a file of lines with a name and a number."""
    found = {}
    try:
        for line in path.read_text().splitlines():
            name, _, rest = line.partition(" ")
            number, _, _ = rest.strip().partition(" ")
            if number.isdigit():
                found[name] = int(number)
    except OSError:
        pass  # an old kernel, or no /proc: no counters
    return found
