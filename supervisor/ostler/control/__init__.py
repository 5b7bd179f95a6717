"""The control plane: one route table over HTTP, on a Unix socket and on loopback TCP."""
