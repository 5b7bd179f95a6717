"""The fleet: a state machine without I/O. Events in, actions out.

The daemon uses `machine.Fleet`, and `health` for a summary. `events` and `actions` are imported as modules.
"""
