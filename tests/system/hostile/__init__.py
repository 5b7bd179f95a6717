"""Attacks on a running daemon. Each test carries out an attack and states which defence it meets.

Those that need a second account run as root only; the others run as any user.
"""
