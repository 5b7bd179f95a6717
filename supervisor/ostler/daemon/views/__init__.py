"""What the API shows of the daemon."""
