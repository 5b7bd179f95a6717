"""The fork server: one per generation, a fresh interpreter that loads user code and forks workers."""
