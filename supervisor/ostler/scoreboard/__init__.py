"""Shared memory in which workers show their requests and count; the supervisor reads it."""
