"""Shared memory in which workers say what they do: written by one, read by the supervisor at no cost."""
