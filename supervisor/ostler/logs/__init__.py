"""Logs: one line per event, for people or for programs, in the same form from every process."""
