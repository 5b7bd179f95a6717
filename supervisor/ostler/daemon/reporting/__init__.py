"""What the daemon keeps of what happened: events, and ends of processes."""
