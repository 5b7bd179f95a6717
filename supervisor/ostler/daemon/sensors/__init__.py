"""Sensors: they read the scoreboard and the kernel, and turn what they find into events of the fleet."""
