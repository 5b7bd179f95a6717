"""The only raw system calls. Thin, typed, no decisions."""
