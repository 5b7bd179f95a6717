"""The attacks of the app in `test_channels`: in a worker at a request, in a fork server when a file appears.

It is copied into the app's folder as attack.py; see `tests.kit.hostile.APP`.
"""

import _socket
import _thread
import array
import ctypes
import fcntl
import os
import signal
import socket
import struct
import sys
import threading
import time

import msgspec

MAIN = os.getpid()
FOLDER = os.path.dirname(os.path.abspath(__file__))


def seqpackets():
    found = []
    for name in os.listdir("/proc/self/fd"):
        try:
            # The socket class of eventlet would treat it as AF_INET.
            sock = _socket.socket(fileno=os.dup(int(name)))
        except OSError:
            continue
        if sock.family == socket.AF_UNIX and sock.type == socket.SOCK_SEQPACKET:
            found.append(sock)
        else:
            sock.close()
    return found


def asynchronous(sock):
    """Whether the channel sends a signal when the supervisor is gone,
    which the pair between workers does not.
    """
    return bool(fcntl.fcntl(sock.fileno(), fcntl.F_GETFL) & os.O_ASYNC)


def channel():
    return [sock for sock in seqpackets() if asynchronous(sock)]


def between_workers():
    return [sock for sock in seqpackets() if not asynchronous(sock)]


def message(kind, **fields):
    return msgspec.msgpack.encode({"type": kind, **fields})


def send(*parts, fds=()):
    rights = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", fds))] if fds else []
    for sock in channel():
        sock.settimeout(2.0)
        for part in parts:
            try:
                sock.sendmsg([part], rights, socket.MSG_NOSIGNAL)
            except OSError:
                return


def endless(*parts, socks=None, seconds=20.0, fds=()):
    rights = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", fds))] if fds else []
    until = time.monotonic() + seconds
    socks = socks or channel()
    for sock in socks:
        sock.settimeout(0.05)
    while time.monotonic() < until:
        for sock in socks:
            for part in parts:
                try:
                    sock.sendmsg([part], rights, socket.MSG_NOSIGNAL)
                except TimeoutError:
                    pass
                except OSError:
                    return


def lingering():
    """A connection whose last close waits for ten minutes, unless a process closes it by ending.

    The test has the other end and reads nothing.
    """
    with open(f"{FOLDER}/port") as file:
        sock = socket.create_connection(("127.0.0.1", int(file.read())))
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 600))
    sock.setblocking(False)
    try:
        while True:
            sock.send(b"x" * 65536)
    except BlockingIOError:
        return sock


def give_lingering(socks):
    sock = lingering()
    for other in socks:
        other.settimeout(2.0)
        socket.send_fds(other, [b"m"], [sock.fileno()])
    sock.close()


def stacks_pipe():
    """The pipe to which faulthandler writes: the only write-only pipe except the standard streams."""
    for name in os.listdir("/proc/self/fd"):
        try:
            is_pipe = int(name) > 2 and os.readlink(f"/proc/self/fd/{name}").startswith("pipe:")
            if is_pipe and fcntl.fcntl(int(name), fcntl.F_GETFL) & os.O_ACCMODE == os.O_WRONLY:
                yield int(name)
        except OSError:
            continue


def write_forever():
    until = time.monotonic() + 20
    for fd in stacks_pipe():
        try:
            fcntl.fcntl(fd, 1031, 1 << 20)  # F_SETPIPE_SZ, linux/fcntl.h
        except OSError:
            pass
        while time.monotonic() < until:
            os.write(fd, b"y" * 65536)


def garbage_between_workers():
    null = os.open("/dev/null", os.O_RDONLY)
    listener = socket.create_server(("127.0.0.1", 0))
    pair = socket.socketpair(socket.AF_UNIX, socket.SOCK_DGRAM)
    forged = msgspec.msgpack.encode([os.getpid(), "x", {"wsgi.input": "y"}, 2**64 - 1])
    fine = msgspec.msgpack.encode([os.getpid(), "x", {}, 0])
    for sock in between_workers():
        sock.settimeout(0.2)
        for data, fds in (
            (b"\xff", []),
            (b"", [null]),
            (fine, []),
            (fine, [null]),
            (fine, [listener.fileno()]),
            (fine, [pair[0].fileno()]),
            (forged, [pair[0].fileno()]),
            (b"x" * 60000, [null]),
            (fine, [null] * 253),
        ):
            try:
                rights = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", fds))] if fds else []
                sock.sendmsg([data], rights, socket.MSG_NOSIGNAL)
            except OSError:
                pass


def flood_between_workers():
    endless(b"\xff" * 100, socks=between_workers(), fds=(0,))


def shut_between_workers():
    for sock in between_workers():
        sock.shutdown(socket.SHUT_RDWR)


def orphans():
    """Children that end at once, and whose parent is the supervisor: thousands per second (clone(2))."""
    libc = ctypes.CDLL(None)
    stack = ctypes.create_string_buffer(1 << 16)
    top = ctypes.c_void_p(ctypes.addressof(stack) + (1 << 16) - 64 & ~15)
    flags = 0x100 | 0x4000 | 0x8000 | signal.SIGCHLD  # CLONE_VM, CLONE_VFORK, CLONE_PARENT (linux/sched.h)
    until = time.monotonic() + 3
    for _ in range(6000):
        if libc.clone(libc._exit, top, flags, None) < 0 or time.monotonic() > until:
            return


def escaped(value):
    """A message in the form for text that is not UTF-8, which takes long to decode."""
    return b"\xc1" + message("Signalled", signum=15, more=value)


def adopt():
    """Become a subreaper (prctl(2)): forked workers are then not the supervisor's children."""
    ctypes.CDLL(None).prctl(36, 1, 0, 0, 0)


PATH = "/" + "x" * 300
ATTACKS = {
    # From a worker or a fork server.
    "garbage": lambda: send(*[b"\xff\x00garbage"] * 100),  # some of it is unread when it dies
    "no_utf8": lambda: send(b"\x82\xa4type\xaaBootFailed\xa6reason\xa1\xed\xa9traceback\xc0"),
    "deep": lambda: send(b"\x91" * 100_000),
    "wrong_type": lambda: send(message("RecycleDue", requests="many")),
    "huge_number": lambda: send(message("RecycleDue", requests=2**64 - 1)),
    "unknown": lambda: send(message("Configure", version=1)),
    "empty": lambda: send(b""),
    "large": lambda: (
        [s.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 1 << 20) for s in channel()]
        and send(message("BootFailed", reason="x", traceback="y" * 190_000))
    ),
    "descriptors": lambda: send(message("RecycleDue", requests=1), fds=[0] * 253),
    "lingering": lambda: give_lingering(channel()),
    "reload_files": lambda: send(message("Watch", files=[PATH] * 10, folders=["/"], since=0.0)),
    "flood": lambda: endless(message("Signalled", signum=15)),
    "escaped_large": lambda: send(escaped("\0\0" * 75_000)),
    # The most costly message that is accepted (see ipc/wire.py), and more costly ones.
    "escaped_marks": lambda: endless(escaped("\0\0" * 17_000)),
    "escaped_items": lambda: endless(escaped([""] * 70_000)),
    # From a worker.
    "twice_ready": lambda: send(message("Ready", modules=[])),
    "not_booted": lambda: send(message("BootFailed", reason="x\x1b[31m\n" * 200, traceback=None)),
    "zygote": lambda: send(message("ZygoteReady")),
    "audited": lambda: send(message("ZygoteAudited", problems=[], warnings=[])),
    "odd_signal": lambda: send(message("Signalled", signum=-1)),
    "orphans": orphans,
    "write_forever": write_forever,
    "relay_garbage": garbage_between_workers,
    "relay_flood": flood_between_workers,
    "relay_shut": shut_between_workers,
    "relay_lingering": lambda: give_lingering(between_workers()),
    # From a fork server.
    "stop": lambda: os.kill(os.getpid(), signal.SIGSTOP),
    "forked_other": lambda: send(message("Forked", worker_id=10_000, pid=1)),
    "adopts": lambda: os.register_at_fork(before=adopt),
    "hook_done": lambda: send(message("HookDone", name="on_exit")),
    "configured": lambda: send(message("LoadFailed", reason="x", traceback=None)),
}
ENDLESS = {"flood", "escaped_marks", "escaped_items", "orphans", "relay_flood", "write_forever", "relay_shut"}


def in_thread(attack):
    """Run it in a thread of the kernel: as a greenlet it would only keep its own worker from serving."""
    start = _thread.start_new_thread
    if "gevent" in sys.modules:
        start = sys.modules["gevent"].monkey.get_original("_thread", "start_new_thread")
    start(attack, ())


def request(path):
    """`/NAME` attacks; `/NAME/die` ends the process at once afterwards; endless attacks run in a thread."""
    name, _, then = path.strip("/").partition("/")
    if name not in ATTACKS:
        return
    if name in ENDLESS:
        in_thread(ATTACKS[name])
        return
    ATTACKS[name]()
    if then == "die":
        os.kill(os.getpid(), signal.SIGKILL)


def wait_for(folder):
    """In a fork server, if there is a file `waits`: attack when the file `NAME.fork_server` appears."""
    while os.getpid() == MAIN:
        for name in ATTACKS:
            try:
                os.unlink(f"{folder}/{name}.fork_server")
            except OSError:
                continue
            ATTACKS[name]()
        time.sleep(0.02)


def import_attack(folder):
    """The same while the app is loaded."""
    for name in ATTACKS:
        if os.path.exists(f"{folder}/{name}.import"):
            ATTACKS[name]()
            time.sleep(20)


def before_fork():
    """In a worker that others are forked from: the first fork is an attack."""
    if os.getpid() != MAIN and b"fork server" in open("/proc/self/cmdline", "rb").read():
        for name in ATTACKS:
            if os.path.exists(f"{FOLDER}/{name}.zygote"):
                ATTACKS[name]()


import_attack(FOLDER)
os.register_at_fork(before=before_fork)
if os.path.exists(f"{FOLDER}/waits"):
    threading.Thread(target=wait_for, args=(FOLDER,), daemon=True).start()
