"""The daemon as a Unix process: detaching, pid file, signals, the service manager."""
