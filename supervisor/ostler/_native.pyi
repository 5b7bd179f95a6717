"""The C extension, from supervisor/native. It is optional: see `ostler.native`."""

def fork_orphan(own_group: bool, /) -> int:
    """Fork a process whose parent becomes the next subreaper (prctl(2)) and not this process.

    The functions of `os.register_at_fork`, and handlers of pthread_atfork(3), run once: "before" and
    "after in parent" in this process, "after in child" in the new one.

    own_group: the new process leads a process group of its own.

    Returns 0 in the new process, else its pid. Raises OSError.
    """
