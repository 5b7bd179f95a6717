"""Bodies to send, and digests for comparing them."""

import hashlib
from collections.abc import Mapping

_BOUNDARY = "the-end-of-a-part"


def sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def form(fields: Mapping[str, str], files: Mapping[str, tuple[str, bytes]]) -> tuple[bytes, str]:
    """A body as a browser's form encodes it (multipart/form-data, RFC 7578), and its content type.

    Args:
        files: by field, a file name and what is in the file.
    """
    parts = [
        f'--{_BOUNDARY}\r\nContent-Disposition: form-data; name="{name}"\r\n\r\n{value}\r\n'.encode()
        for name, value in fields.items()
    ]
    for name, (filename, data) in files.items():
        head = f'Content-Disposition: form-data; name="{name}"; filename="{filename}"'
        parts.append(f"--{_BOUNDARY}\r\n{head}\r\nContent-Type: application/octet-stream\r\n\r\n".encode())
        parts += [data, b"\r\n"]
    return b"".join([*parts, f"--{_BOUNDARY}--\r\n".encode()]), f"multipart/form-data; boundary={_BOUNDARY}"
