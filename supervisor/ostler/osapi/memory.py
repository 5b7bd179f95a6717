"""How much memory this process and its children may still take."""

from pathlib import Path

from ostler.osapi.cgroup import MEMBERSHIP, ROOT, binding_folders, read_counters

_MEMINFO = Path("/proc/meminfo")


def memory_free(membership: Path = MEMBERSHIP, root: Path = ROOT, meminfo: Path = _MEMINFO) -> int | None:
    """Bytes: the machine's MemAvailable (proc_meminfo(5)), limited by what each cgroup above us leaves.

    A cgroup leaves its limit (v2 `memory.max` and `memory.high`, v1 `memory.limit_in_bytes`) less what it
    uses, without its inactive page cache: the kernel drops that first.

    None if unknown; 0 if a limit is reached.
    """
    left = [_available(meminfo), *(_left(folder) for folder in binding_folders("memory", membership, root))]
    known = [size for size in left if size is not None]
    return max(0, min(known)) if known else None


def _available(meminfo: Path) -> int | None:
    kibibytes = read_counters(meminfo).get("MemAvailable:")
    return None if kibibytes is None else kibibytes * 1024


def _left(folder: Path) -> int | None:
    """Bytes that one cgroup leaves, None if it has no limit."""
    limits = [_number(folder / name) for name in ("memory.max", "memory.high")]
    used, cache = _number(folder / "memory.current"), "inactive_file"
    if used is None:
        # v1, where no limit is a number that no machine reaches.
        limits, used = [_number(folder / "memory.limit_in_bytes")], _number(folder / "memory.usage_in_bytes")
        cache = "total_inactive_file"  # including the groups below it, as the usage does
    known = [limit for limit in limits if limit is not None]
    if used is None or not known:
        return None
    return min(known) - used + read_counters(folder / "memory.stat").get(cache, 0)


def _number(path: Path) -> int | None:
    """The number in a file; None for `max` and for a missing file."""
    try:
        return int(path.read_text())
    except (OSError, ValueError):
        return None
