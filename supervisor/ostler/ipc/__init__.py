"""Typed messages between the supervisor and its children over SOCK_SEQPACKET socket pairs."""
