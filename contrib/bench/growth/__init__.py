"""The parts of memory.py, each with one owner."""
