"""Attacks on a running daemon. Each test attacks and says what holds the attack off.

Those that need a second account run as root only; the others run as any user.
"""
