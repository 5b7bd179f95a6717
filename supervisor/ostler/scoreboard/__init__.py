"""Shared memory in which workers show their requests and count; the supervisor reads it.

Workers write, in `accounting`. The supervisor reads, in `reader` and `cell_reader`; it writes one word,
OVERDUE, in `Cell.mark`.
"""
