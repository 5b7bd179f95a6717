"""HTTP/1.1 without I/O: parses requests from bytes and encodes responses (RFC 9110, RFC 9112)."""
