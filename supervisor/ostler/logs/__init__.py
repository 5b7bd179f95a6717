"""Logs: one line per event, for people or for programs, the same from every process."""
