"""Ostler: a process supervisor daemon with a control API for Python web apps."""

__version__ = "0.1.0"
