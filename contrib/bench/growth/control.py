"""Requests to the control API that are answered, refused or cut; the supervisor's memory."""

import socket
import struct
import time

import servers

from growth.app import APP, CLASSES
from growth.client import STUCK
from growth.figures import Figures, sample
from tests.kit.daemon import Place

STATUS_LINE = "GET /v1/status?n=@ HTTP/1.1\r\n"
SCALE = "POST /v1/scale HTTP/1.1\r\nHost: HOST\r\nTOKENContent-Type: application/json\r\n"
CLOSE = "Connection: close\r\n\r\n"

# The answer's status, and what is sent. HOST stands for the listener's name, @ for the request's number.
CONTROL: dict[str, tuple[bytes, str]] = {
    "200": (b"200", f"{STATUS_LINE}Host: HOST\r\nX-@: @\r\nTOKEN{CLOSE}"),
    "401": (b"401", f"{STATUS_LINE}Host: HOST\r\nAuthorization: Bearer @\r\n{CLOSE}"),
    "404": (b"404", f"GET /v1/@ HTTP/1.1\r\nHost: HOST\r\nTOKEN{CLOSE}"),
    "413": (b"413", f"{SCALE}X-@: @\r\nContent-Length: 100000\r\n\r\n"),
    "400": (b"400", "what is @?\r\n\r\n"),
    "bad Host": (b"403", f"{STATUS_LINE}Host: @.example\r\nTOKEN{CLOSE}"),
    "closed early": (b"", f"{STATUS_LINE}Host: HOST\r\nX-@"),
    "closed in a body": (b"", f"{SCALE}Content-Length: 1000\r\n\r\n["),
    "closed": (b"", ""),
}
TCP_ALONE = {"401", "bad Host"}


def title(name: str, tcp: bool) -> str:
    return f"{name}, {'tcp' if tcp else 'unix'}"


def ask(where: tuple[str, int] | str, status: bytes, request: str, numbers: range) -> dict[bytes, int]:
    """Make requests, one after another; returns how many answers had which status.

    Args:
        where: an address, or the path of a Unix socket.
        status: that of the answer; empty: none is waited for.
    """
    found: dict[bytes, int] = {}
    for number in numbers:
        data = request.replace("@", str(number)).encode()
        with socket.socket(socket.AF_UNIX if isinstance(where, str) else socket.AF_INET) as sock:
            if not isinstance(where, str):
                sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            sock.connect(where)  # waits for room in the listen queue, without a time-out
            sock.settimeout(STUCK)
            answer = b""
            try:
                sock.sendall(data)
                while status and (part := sock.recv(1 << 16)):
                    answer = answer or part
                    if status == b"413":
                        break
            except (BrokenPipeError, ConnectionResetError):
                pass
        found[answer[9:12]] = found.get(answer[9:12], 0) + 1
    return found


def run_control(name: str, tcp: bool, count: int) -> Figures:
    """Make so many requests of one kind, by TCP or by the Unix socket, and measure the supervisor."""
    status, template = CONTROL[name]
    with Place() as place:
        place.add("grown.py", APP)
        token = place.folder / "token"
        token.write_text("t" * 40 + "\n")
        token.chmod(0o600)
        port = servers.free_port()
        words = ["--control-bind", f"127.0.0.1:{port}", "--control-token-file", str(token)]
        daemon = place.start(*words, *CLASSES["sync"])
        daemon.settled(1)
        where: tuple[str, int] | str = ("127.0.0.1", port) if tcp else str(daemon.socket)
        given = f"Authorization: Bearer {'t' * 40}\r\n" if tcp else ""
        host = f"127.0.0.1:{port}" if tcp else "localhost"
        request = template.replace("HOST", host).replace("TOKEN", given)
        tenth = count // 10
        ask(where, status, request, range(tenth))
        time.sleep(1.0)
        first, began = sample(daemon, None), time.monotonic()
        found = ask(where, status, request, range(tenth, count))
        seconds = time.monotonic() - began
        time.sleep(1.0)
        problem = ""
        if found.get(status, 0) < 0.9 * (count - tenth):
            problem = f"not answered with {status.decode()}"
        statuses = {answered.decode("latin-1"): number for answered, number in found.items()}
        return Figures(
            "control",
            title(name, tcp),
            count - tenth,
            seconds,
            first,
            sample(daemon, None),
            statuses,
            problem,
        )
