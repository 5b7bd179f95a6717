"""The fleet: a state machine without I/O. Events in, actions out; `machine.Fleet` is all of it."""
