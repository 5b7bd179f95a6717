"""Child processes: their handles, the one registry of them, what they send, how they end."""
