"""Packages with connections, threads and files, in workers: without preload, with it, and after a refork.

The table and the recipes of contrib/docs/fork-safety.md are held to this: recipes are read from the document.
"""

import itertools
import json
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from tests.kit.daemon import Place, fork_server
from tests.kit.processes import descriptors
from tests.kit.tiers import tiers
from tests.system.real.collector import Collector
from tests.system.real.fake_postgres import FakePostgres

pytestmark = pytest.mark.system

HERE = Path(__file__).parent
RECIPES = HERE.parents[2] / "contrib/docs/fork-safety.md"
WAYS = ["without preload", "preload", "refork"]
WORKERS = 2
SHARED = "workers would share it and get each other's answers"
_numbers = itertools.count(1)

Answers = list[dict[str, Any]]


class Shop:
    """A daemon whose app is one of this folder's, as the module `shop`.

    Attributes:
        answers: of all requests so far; port: of the stand-in that the app connects to.
    """

    def __init__(
        self, place: Place, app: str, way: str, port: int = 0, recipe: str = "", **environ: str
    ) -> None:
        shutil.copy(HERE / f"apps/fork_{app}.py", place.app_folder / "shop.py")
        self.place = place
        self.port = port
        self.answers: Answers = []
        args = ["-w", str(WORKERS), "--canary-time", "0", "--probation", "0"]
        if way == "preload":
            args.append("--preload")
        if recipe:
            place.add("gunicorn.conf.py", recipe_of(recipe))
        more = {"MADE": "by hooks" if recipe else "when imported", "OPENBLAS_NUM_THREADS": "2"}
        self.daemon = place.start(*args, "shop:app", **more | environ)

    def ask_all(self) -> Answers:
        """One request for each worker: each waits until all others are in the app."""
        daemon = self.daemon
        daemon.settled(WORKERS)
        folder = self.place.folder / f"meeting-{next(_numbers)}"
        folder.mkdir()
        asked = []
        for number in range(1, WORKERS + 1):
            asked.append(daemon.connect().asked(f"/?meeting={folder}&guests={WORKERS}"))
            daemon.until(lambda n=number: len(list(folder.iterdir())) == n, f"{number} in the app")  # type: ignore[misc]
        answers = [connection.answer() for connection in asked]
        daemon.close_connections()
        assert [answer.status for answer in answers] == [200] * WORKERS
        found = [json.loads(answer.body) for answer in answers]
        self.answers += found
        assert {answer["pid"] for answer in found} == set(daemon.pids())
        return found

    def served(self, way: str, disconnects: bool = False) -> Answers:
        """Each worker answers twice, after a refork if that is the way; the last answers.

        disconnects: the app closes its connections when it has used them, which is waited for.
        """
        self.ask_all()
        if way == "refork":
            self.ask_all()
            if disconnects:
                self.daemon.until(self.disconnected, "no worker has a connection")
            done = self.daemon.ctl("refork")
            assert done.code == 0, done.err
            zygote = self.daemon.event("refork_done")["pid"]
            self.daemon.until(lambda: fork_server(self.daemon).pid == zygote, "the zygote as fork server")
            self.ask_all()
        return self.ask_all()

    def disconnected(self) -> bool:
        """No worker is connected to the stand-in."""
        return not any(connections(pid, self.port) for pid in self.daemon.pids())

    def shared(self) -> set[str]:
        """Connections to the stand-in that more than one of the workers and the fork server has."""
        pids = [fork_server(self.daemon).pid, *self.daemon.pids()]
        pairs = itertools.combinations([connections(pid, self.port) for pid in pids], 2)
        return set().union(*(one & other for one, other in pairs))

    def refused(self) -> str:
        """Ask for a refork, which is refused: the reason; the workers stay."""
        before = self.daemon.pids()
        done = self.daemon.ctl("refork")
        assert done.code == 1
        assert self.daemon.pids() == before
        return str(self.daemon.event("refork_refused")["problem"])

    def warned(self) -> str:
        """What the preloaded app has opened, by the log."""
        return str(self.daemon.event("preload_shared", level="warning")["problem"])

    def ends(self, complaints: Sequence[str] = ()) -> None:
        """Stop it; the log has no warnings and errors but these."""
        assert self.daemon.stop() == 0
        found = {e["event"] for e in self.daemon.events() if e.get("level") in ("warning", "error")}
        assert found <= {"refork_warning", *complaints}


def connections(pid: int, port: int) -> set[str]:
    """The TCP connections to a port that a process has open, by inode (proc_net(5))."""
    held = set(descriptors(pid))
    lines = [
        line.split()
        for name in ("tcp", "tcp6")
        for line in Path(f"/proc/net/{name}").read_text().splitlines()[1:]
    ]
    found = {f"socket:[{fields[9]}]" for fields in lines if int(fields[2].rpartition(":")[2], 16) == port}
    return found & held


def recipe_of(heading: str) -> str:
    """The first block of code below a heading of the document."""
    found = re.search(
        rf"^### {heading}\n.*?^```python\n(.*?)^```", RECIPES.read_text(), re.DOTALL | re.MULTILINE
    )
    assert found is not None, heading
    return found[1]


def need(*modules: str) -> None:
    """Skip without these; they are not imported here, as some start threads."""
    from importlib.util import find_spec

    for module in modules:
        try:
            missing = find_spec(module) is None
        except ModuleNotFoundError:
            missing = True
        if missing:
            pytest.skip(f"{module} is not installed: pip install 'ostler[fork-safety]'")


# -- connections to a database -------------------------------------------------------------------------


POOLS = {"sqlalchemy": ("sqlalchemy", "psycopg"), "psycopg_pool": ("psycopg", "psycopg_pool")}


@pytest.fixture
def postgres() -> Iterator[FakePostgres]:
    need("psycopg")
    with FakePostgres() as fake:
        yield fake


def pool(place: Place, name: str, way: str, postgres: FakePostgres, recipe: str = "") -> Shop:
    need(*POOLS[name])
    return Shop(place, name, way, postgres.port, recipe, DATABASE=postgres.url, CONNINFO=postgres.conninfo)


@pytest.mark.thorough
@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize(("name", "recipe"), [("sqlalchemy", "SQLAlchemy"), ("psycopg_pool", "psycopg_pool")])
def test_pools(place: Place, postgres: FakePostgres, name: str, recipe: str, way: str) -> None:
    """With the recipe each worker has connections of its own."""
    shop = pool(place, name, way, postgres, recipe)
    last = shop.served(way)
    assert len({answer["connection"] for answer in last}) == WORKERS
    assert shop.shared() == set()
    shop.ends()


@pytest.mark.thorough
@pytest.mark.parametrize("name", POOLS)
def test_pools_that_are_shared(place: Place, postgres: FakePostgres, name: str) -> None:
    """Without the recipe all workers use the connection of the preloaded app, and the log warns."""
    shop = pool(place, name, "preload", postgres)
    last = shop.served("preload")
    assert {answer["connection"] for answer in last} == {1}
    assert len(shop.shared()) == 1
    warned = shop.warned().split("; ")
    assert warned[-1] == f"connection to 127.0.0.1:{postgres.port}: {SHARED}"
    assert ["pool-1-worker" in line for line in warned].count(True) == (3 if name == "psycopg_pool" else 0)
    shop.ends(["preload_shared"])


@pytest.mark.thorough
@pytest.mark.parametrize("name", POOLS)
def test_pools_without_the_recipe(place: Place, postgres: FakePostgres, name: str) -> None:
    """Without preload each worker has its own connection; a refork is refused, which names it."""
    shop = pool(place, name, "without preload", postgres)
    last = shop.served("without preload")
    assert len({answer["connection"] for answer in last}) == WORKERS
    assert shop.shared() == set()
    refused = shop.refused()
    assert f"connection to 127.0.0.1:{postgres.port}: {SHARED}" in refused
    assert ("thread 'pool-1-worker-0'" in refused) is (name == "psycopg_pool")
    shop.ends(["refork_refused"])


# -- telemetry ------------------------------------------------------------------------------------------


TELEMETRY = {
    "opentelemetry": ("opentelemetry.sdk", "opentelemetry.exporter.otlp.proto.http"),
    "sentry": ("sentry_sdk",),
}


@pytest.fixture
def collector() -> Iterator[Collector]:
    with Collector() as collector:
        yield collector


def telemetry(place: Place, name: str, way: str, collector: Collector, recipe: str = "", **more: str) -> Shop:
    need(*TELEMETRY[name])
    url = f"127.0.0.1:{collector.port}"
    environ = {"OTEL_EXPORTER_OTLP_ENDPOINT": f"http://{url}", "SENTRY_DSN": f"http://key@{url}/1"}
    return Shop(place, name, way, collector.port, recipe, **environ | more)


def exported_once(shop: Shop, collector: Collector) -> None:
    """What each request exports arrives, and after the end of all processes it has arrived once."""
    names = {answer["name"] for answer in shop.answers}
    shop.daemon.until(lambda: names <= set(collector.names()), "all is exported")
    shop.ends()
    assert {name: collector.names()[name] for name in names} == dict.fromkeys(names, 1)


@pytest.mark.thorough
@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize(("name", "recipe"), [("opentelemetry", "OpenTelemetry"), ("sentry", "Sentry")])
def test_telemetry(place: Place, collector: Collector, name: str, recipe: str, way: str) -> None:
    """With the recipe each worker's spans or events arrive, once."""
    shop = telemetry(place, name, way, collector, recipe, METRICS="no" if way == "refork" else "yes")
    shop.served(way, disconnects=name == "opentelemetry")
    assert shop.shared() == set()
    exported_once(shop, collector)
    if name == "opentelemetry" and way != "refork":
        assert counted(collector) == len(shop.answers)


def counted(collector: Collector) -> int:
    """The sum of what each instance has last exported of the counter `asked`."""
    from opentelemetry.proto.collector.metrics.v1.metrics_service_pb2 import ExportMetricsServiceRequest

    last: dict[str, int] = {}
    for path, body in collector.received:
        found = ExportMetricsServiceRequest.FromString(body).resource_metrics if path == "/v1/metrics" else ()
        for metrics in found:
            name = str(metrics.resource.attributes)
            points = [p for scope in metrics.scope_metrics for m in scope.metrics for p in m.sum.data_points]
            last[name] = max(last.get(name, 0), *(point.as_int for point in points))
    return sum(last.values())


@pytest.mark.thorough
def test_metrics_after_a_refork(place: Place, collector: Collector) -> None:
    """Workers of a zygote begin with what it has counted, so the document advises against it."""
    shop = telemetry(place, "opentelemetry", "refork", collector, "OpenTelemetry")
    shop.served("refork", disconnects=True)
    exported_once(shop, collector)
    assert counted(collector) > len(shop.answers)


@pytest.mark.thorough
@pytest.mark.parametrize("name", TELEMETRY)
def test_telemetry_that_is_shared(place: Place, collector: Collector, name: str) -> None:
    """Without the recipe workers share the connection of the preloaded app, and the log warns."""
    shop = telemetry(place, name, "preload", collector, METRICS="no")
    shop.daemon.settled(WORKERS)
    assert len(shop.shared()) == 1
    assert shop.warned() == f"connection to 127.0.0.1:{collector.port}: {SHARED}"


@pytest.mark.thorough
@pytest.mark.parametrize("name", TELEMETRY)
def test_telemetry_without_the_recipe(place: Place, collector: Collector, name: str) -> None:
    """Without preload all is exported once; a refork is refused while the connection is open."""
    shop = telemetry(place, name, "without preload", collector, METRICS="no")
    shop.served("without preload")
    names = {answer["name"] for answer in shop.answers}
    shop.daemon.until(lambda: names <= set(collector.names()), "all is exported")
    assert shop.refused() == f"connection to 127.0.0.1:{collector.port}: {SHARED}"
    shop.ends(["refork_refused"])
    assert {collector.names()[name] for name in names} == {1}


# -- files by pid ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("way", tiers(zip(WAYS, WAYS, strict=True), ["preload"]))
def test_prometheus_client(place: Place, way: str) -> None:
    """Each request is counted once, the import as often as it happened, and the live gauge counts workers."""
    folder = place.folder / "metrics"
    folder.mkdir()
    shop = Shop(place, "prometheus", way, recipe="prometheus_client", PROMETHEUS_MULTIPROC_DIR=str(folder))
    shop.served(way)
    collect = (
        "from prometheus_client import CollectorRegistry, generate_latest, multiprocess\n"
        "registry = CollectorRegistry()\n"
        "multiprocess.MultiProcessCollector(registry)\n"
        "print(generate_latest(registry).decode())\n"
    )

    def metrics() -> dict[str, float]:
        done = place.run("-c", collect, argv=[sys.executable], PROMETHEUS_MULTIPROC_DIR=str(folder))
        assert done.code == 0, done.err
        samples = (line.split() for line in done.out.splitlines() if line and not line.startswith("#"))
        return {name: float(value) for name, value in samples}

    shop.daemon.until(lambda: metrics()["here"] == WORKERS, "the live gauge counts the workers")
    found = metrics()
    assert found["asked_total"] == len(shop.answers)
    # The first workers import it, and the successor of the one that becomes the zygote.
    imports = {"without preload": WORKERS, "preload": 1, "refork": WORKERS + 1}
    assert found["imported_total"] == imports[way]
    shop.ends()


# -- threads of C libraries -----------------------------------------------------------------------------


@contextmanager
def grpc_server() -> Iterator[int]:
    """Its port."""
    need("grpc")
    with subprocess.Popen(
        [sys.executable, HERE / "grpc_server.py"], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout is not None
        try:
            yield int(process.stdout.readline())
        finally:
            process.kill()


def grpc_shop(place: Place, way: str, port: int, recipe: str = "", **environ: str) -> Shop:
    return Shop(place, "grpc", way, port, recipe, GRPC_SERVER=f"127.0.0.1:{port}", **environ)


@pytest.mark.thorough
@pytest.mark.parametrize("recipe", ["grpcio", ""], ids=["recipe", "as it is"])
@pytest.mark.parametrize("way", WAYS)
def test_grpc(place: Place, way: str, recipe: str) -> None:
    """Each worker has a connection of its own; without the recipe a refork is refused."""
    with grpc_server() as port:
        shop = grpc_shop(place, way, port, recipe)
        refused = way == "refork" and not recipe
        last = shop.served("without preload" if refused else way)
        assert len({answer["peer"] for answer in last}) == WORKERS
        assert shop.shared() == set()
        if refused:
            assert "was started by a library, not by Python" in shop.refused()
        if way == "preload" and not recipe:
            assert shop.warned().startswith("connection to ")
        shop.ends(["refork_refused", "preload_shared"])


@pytest.mark.thorough
def test_grpc_without_fork_support(place: Place) -> None:
    """Calls on a channel of the preloaded app hang, whatever their own timeout is; the deadline ends them."""
    with grpc_server() as port:
        place.environ["OSTLER_CMD_ARGS"] = "--timeout 3"
        shop = grpc_shop(place, "preload", port, GRPC_ENABLE_FORK_SUPPORT="0")
        shop.daemon.settled(WORKERS)
        assert shop.daemon.get().status == 504
        assert shop.daemon.event("request_overdue")["setting"] == "timeout"
        assert shop.daemon.stop() == 0


@pytest.mark.thorough
@pytest.mark.parametrize("recipe", ["NumPy", ""], ids=["recipe", "as it is"])
@pytest.mark.parametrize("way", WAYS)
def test_numpy(place: Place, way: str, recipe: str) -> None:
    """Products are right in each worker; random numbers differ with the recipe, else only without a fork."""
    need("numpy")
    shop = Shop(place, "numpy", way, recipe=recipe)
    last = shop.served(way)
    assert all(answer["right"] for answer in shop.answers)
    for drawn in ("drawn", "generated"):
        differ = len({answer[drawn] for answer in last}) == WORKERS
        assert differ is (bool(recipe) or way == "without preload")
    if way == "refork":
        assert shop.daemon.event("refork_warning")["problem"].startswith("numpy.random: ")
    shop.ends()
