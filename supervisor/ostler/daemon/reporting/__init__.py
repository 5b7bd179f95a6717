"""What the daemon reports: events, ends of processes, the views of the API, lines for other loggers."""
