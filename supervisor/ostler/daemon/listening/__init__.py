"""Listening sockets."""
