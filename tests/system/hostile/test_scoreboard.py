"""An app that writes into its worker's part of the scoreboard: only that worker is affected.

A child of the worker, which shares this memory, writes there some hundred times a second, from
the worker's first request on, until the worker has ended.
"""

import errno
import re
import resource
import sys
import time
from typing import Any

import pytest

from ostler.control.routes import METRICS
from ostler.control.views import Totals
from tests.kit.daemon import Daemon, Place
from tests.kit.hostile import CLASSES, assert_unharmed, each_class
from tests.kit.http_client import ask
from tests.kit.tiers import thorough

pytestmark = [pytest.mark.system, pytest.mark.thorough]

# PAGE, SLOT and the offsets are literal copies of the layout, because the attack is on what is in memory.
ATTACK = """\
import ctypes, os, random, time
usleep = ctypes.CDLL(None).usleep
SLOT, TEXT = 3072, 2112
stamper = None

def cell():
    for line in open("/proc/self/maps"):
        if "ostler-scoreboard" in line:
            start, end = (int(part, 16) for part in line.split()[0].split("-"))
            return start, end - start

def put(where, value):
    ctypes.c_uint64.from_address(where).value = value

def request(path):
    global stamper
    if stamper == os.getpid() or path == "/quiet":
        return
    stamper = worker = os.getpid()
    start, size = cell()
    stamp(start, (size - 4096) // SLOT, 0)
    if os.fork():
        return
    born, rounds = time.monotonic_ns(), 0
    while os.getppid() == worker:
        rounds += 1
        stamp(start, (size - 4096) // SLOT, rounds)
        usleep(2000)
    os._exit(0)

"""
RANDOM = """\
# A worker that adds to 2**64 - 1 dies of it: that is for words to which nothing is added.
WORDS = [0, 1, 2**32, 2**63, 2**64 - 2**32]
JUNK = b"\\x1b[2J\\x00\\x9b31m\\xff\\xe9 \\n"

def stamp(start, slots, rounds):
    now = time.monotonic_ns()
    put(start, random.choice([*WORDS, now, now + 10**12]))
    put(start + 8, random.choice([260, slots, 2**64 - 1]))
    for slot in random.sample(range(slots), min(slots, 8)):
        words = start + 4096 + slot * SLOT
        put(words + 8 * 3, random.choice([now, now - 10**12, *WORDS]))
        for _ in range(30):
            put(words + 8 * random.randrange(232), random.choice([*WORDS, now, random.getrandbits(64)]))
        ctypes.memmove(words + TEXT, JUNK * 40, 400)
    for word in (*range(0, 3), *range(8, 18)):
        put(start + 4096 + (slots - 1) * SLOT + 8 * word, 2**64 - 1)
"""
# All of these values are possible: every slot has a request that began a second ago, always another one.
OVERDUE = """\
first = time.monotonic_ns()

def stamp(start, slots, rounds):
    now = time.monotonic_ns()
    if now - first < 1_200_000_000:
        return
    put(start + 8, slots)
    put(start, now)
    for slot in range(slots):
        words = start + 4096 + slot * SLOT
        ctypes.memmove(words + TEXT, b"GET", 3)
        ctypes.memmove(words + TEXT + 24, b"/lie", 4)
        put(words + 8 * 5, 3)
        put(words + 8 * 6, 4)
        put(words + 8 * 4, random.getrandbits(47))
        put(words + 8 * 3, now - 1_000_000_000 - rounds % 97 - slot)
"""
# 300 MiB of address space for each process.
ADDRESS_SPACE = 300 << 20
# The most lines that are acceptable; with more the app's user could fill the disk.
LINES = 400


def lines(daemon: Daemon) -> int:
    return daemon.log.read_text(errors="replace").count("\n")


def sums(totals: Totals) -> list[int]:
    return [totals.requests, totals.errors, totals.bytes_sent, totals.connections]


def counters(daemon: Daemon) -> dict[str, float]:
    """All counters of `/metrics`, including those of histograms."""
    text = daemon.client.raw(METRICS).decode()
    kinds = dict(re.findall(r"^# TYPE (\S+) (\S+)$", text, re.MULTILINE))
    found = {}
    for name, labels, value in re.findall(r"^([a-z_]+)(\{.*\})? (\S+)$", text, re.MULTILINE):
        family = re.sub(r"_(bucket|count|sum)$", "", name)
        if "counter" in (kinds.get(name), kinds.get(name.removesuffix("_total"))) or (
            kinds.get(family) == "histogram"
        ):
            found[name + labels] = float(value)
    assert "ostler_sent_bytes_total" in found
    return found


def grown(before: dict[str, float], after: dict[str, float]) -> None:
    """No counter has decreased, and none has an impossible value."""
    assert [name for name, value in before.items() if after[name] < value] == []
    assert [name for name, value in after.items() if value > 1e9 and "bytes" not in name] == []


def calm(daemon: Daemon) -> None:
    """The values that the API returns are possible and printable."""
    for worker in daemon.workers():
        assert 0 <= worker.requests < 10**6
        assert 0 <= worker.connections < 10**6
        assert len(worker.in_flight) <= 1001
        for request in worker.in_flight:
            assert (request.method + request.path).isascii()
            assert (request.method + request.path).isprintable()
            assert 0 <= request.age < 3600


def attacked(place: Place, source: str, *words: str) -> Daemon:
    """A daemon with two workers that attack from their first request on."""
    place.add("attack.py", ATTACK + source)
    daemon = place.start("--preload", "-w", "2", "--canary-time", "0", *words)
    daemon.settled(2)
    return daemon


@each_class
def test_random_words(hostile_place: Place, words: tuple[str, ...]) -> None:
    """Random words: the API, replacement and totals work as usual,
    and each such worker is reported in one line.
    """
    daemon = attacked(hostile_place, RANDOM, *words)
    before, totals = counters(daemon), sums(daemon.status().totals)
    assert daemon.get().status == 200
    assert daemon.event("scoreboard_implausible")["problem"]
    for _ in range(10):
        assert daemon.get().status == 200
        after, now = counters(daemon), sums(daemon.status().totals)
        grown(before, after)
        assert all(low <= high < 10**9 for low, high in zip(totals, now, strict=True))
        before, totals = after, now
        calm(daemon)
    assert_unharmed(daemon, rounds=3)
    reported = [event["pid"] for event in daemon.events("scoreboard_implausible")]
    assert len(reported) == len(set(reported))
    grown(before, counters(daemon))
    assert lines(daemon) < LINES
    assert not daemon.events("internal_error")
    # Without the attack everything works and is counted as before.
    hostile_place.add("attack.py", "")
    assert daemon.ctl("reload", within=90).code == 0
    daemon.settled(2, generation=2)
    answered = daemon.status().totals.requests
    for _ in range(7):
        assert daemon.get().status == 200
    daemon.until(lambda: daemon.status().totals.requests == answered + 7, "seven more are counted")
    assert not any(worker.implausible for worker in daemon.workers())
    assert daemon.stop() == 0


@pytest.mark.thorough
def test_an_upgrade_with_such_workers(hostile_place: Place) -> None:
    """The upgrade succeeds, and no total decreases."""
    daemon = attacked(hostile_place, RANDOM, *CLASSES["sync"])
    assert daemon.get().status == 200
    daemon.event("scoreboard_implausible")
    before = counters(daemon)
    assert daemon.ctl("upgrade", within=90).code == 0
    daemon.event("upgraded")
    daemon.settled(2, generation=2)
    assert daemon.get().status == 200
    grown(before, counters(daemon))
    assert not daemon.events("internal_error")


@pytest.mark.thorough
@pytest.mark.parametrize("name", ["threads", "gevent"])
def test_requests_that_are_overdue_all_the_time(hostile_place: Place, name: str) -> None:
    """A worker can cause a bounded number of lines about requests that do not exist, and no other effect."""
    daemon = attacked(hostile_place, OVERDUE, "-t", "1", *CLASSES[name])
    assert daemon.get().status == 200
    daemon.event("request_overdue", path="/lie")
    began, before = time.monotonic(), lines(daemon)
    assert_unharmed(daemon, rounds=3)
    # A thousand at once, and then a few per second.
    assert lines(daemon) - before < 1500 + 100 * (time.monotonic() - began)
    assert not daemon.events("internal_error")
    hostile_place.add("attack.py", "")
    assert daemon.ctl("reload", within=90).code == 0
    assert daemon.get().status == 200


# -- what the system grants ------------------------------------------------------------------------------


def limited() -> None:
    resource.setrlimit(resource.RLIMIT_AS, (ADDRESS_SPACE, ADDRESS_SPACE))


@pytest.mark.thorough
@each_class
def test_little_address_space(hostile_place: Place, words: tuple[str, ...]) -> None:
    """300 MiB for each process are enough for all of it, including a reload."""
    daemon = hostile_place.start("-w", "2", "--canary-time", "0", *words, popen={"preexec_fn": limited})
    daemon.settled(2)
    assert daemon.get().status == 200
    assert daemon.ctl("reload", within=90).code == 0
    daemon.settled(2, generation=2)
    assert daemon.get().status == 200
    daemon.until(lambda: daemon.status().totals.requests == 2, "both are counted")
    assert daemon.stop() == 0


REFUSING = """\
import os
call, open_ = os.memfd_create, os.open
def memfd_create(name, flags=0):
    raise OSError({number}, os.strerror({number}))
os.memfd_create = memfd_create
if {shm}:
    def open(path, flags, *more, **named):
        if path == "/dev/shm":
            raise OSError(13, os.strerror(13))
        return open_(path, flags, *more, **named)
    os.open = open
import sys
from ostler.cli.main import main
main()
"""


def refusing(number: int, shm: bool) -> dict[str, Any]:
    return {"argv": (sys.executable, "-c", REFUSING.format(number=number, shm=shm))}


@pytest.mark.parametrize("number", [errno.EPERM, *thorough(errno.ENOSYS)])
def test_memfd_create_is_refused(hostile_place: Place, number: int) -> None:
    """Then unnamed files in /dev/shm are used, also for an upgrade."""
    daemon = hostile_place.start("-w", "2", "attacked:app", **refusing(number, shm=False))
    daemon.settled(2)
    assert daemon.get().status == 200
    daemon.until(lambda: daemon.status().totals.requests == 1, "it is counted")
    assert daemon.ctl("upgrade", within=90).code == 0
    assert daemon.get().status == 200
    assert daemon.stop() == 0


# Such a file can't be sealed.
CUT = """\
import os
def request(path):
    if path == "/cut":
        for name in os.listdir("/proc/self/fd"):
            try:
                if os.readlink(f"/proc/self/fd/{name}").startswith("/dev/shm/"):
                    os.ftruncate(int(name), 0)
            except OSError:
                pass
"""


@pytest.mark.thorough
def test_memory_without_seals_is_cut_off(hostile_place: Place) -> None:
    """A worker that truncates its own memory is killed by that, and the supervisor is not."""
    hostile_place.add("attack.py", CUT)
    daemon = hostile_place.start("-w", "2", "attacked:app", **refusing(errno.EPERM, shm=False))
    daemon.settled(2)
    try:
        ask(daemon.url, "/cut")
    except OSError:
        pass
    assert_unharmed(daemon, rounds=2)
    assert daemon.stop() == 0


@pytest.mark.thorough
def test_no_shared_memory_at_all(hostile_place: Place) -> None:
    """One line says which calls were refused, and the daemon does not stay."""
    done = hostile_place.run("-b", "127.0.0.1:0", "attacked:app", **refusing(errno.EPERM, shm=True))
    assert done.code != 0
    assert "memfd_create: Operation not permitted" in done.error
    assert "/dev/shm: Permission denied" in done.error
