"""Which control groups bind this process (cgroups(7)), and what they count."""

from pathlib import Path

MEMBERSHIP = Path("/proc/self/cgroup")
ROOT = Path("/sys/fs/cgroup")


def binding_folders(controller: str, membership: Path = MEMBERSHIP, root: Path = ROOT) -> list[Path]:
    """The folders whose limits of `controller` bind us: our cgroup and all above it, of v2 and of v1."""
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
        # In a container the path may be the host's and not exist; its own root then has the limit.
        here = base / path.lstrip("/")
        folders += [folder for folder in (here, *here.parents) if folder.is_relative_to(base)]
    return folders


def read_words(path: Path) -> dict[str, int]:
    """A file of lines with a name and a number each, as the kernel writes its counters."""
    found = {}
    try:
        for line in path.read_text().splitlines():
            name, _, rest = line.partition(" ")
            number, _, _ = rest.strip().partition(" ")
            if number.isdigit():
                found[name] = int(number)
    except OSError:
        pass  # an old kernel, or no /proc: nothing to be learnt
    return found
