"""The parts of chaos.py, each with one owner."""
