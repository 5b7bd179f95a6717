"""`req` and `resp` of hooks."""
