"""The interpreter and the environment that new processes are started in, found by the command as typed."""
