"""Where settings come from, in real daemons:
variables, files of all kinds, and the output of --print-config.
"""

import json
import signal
from pathlib import Path

import pytest

from tests.kit.daemon import Daemon, Place
from tests.kit.http_client import ask
from tests.kit.tiers import thorough

pytestmark = pytest.mark.system

LOCAL = ("-b", "127.0.0.1:0")


def origins(daemon: Daemon) -> dict[str, tuple[object, str]]:
    """Value and origin of each setting, by name."""
    rows = json.loads(daemon.ctl("config", "--json").out)["settings"]
    return {row["name"]: (row["value"], row["origin"]) for row in rows}


def printed(out: str) -> dict[str, tuple[str, str]]:
    """The same from the output of --print-config."""
    found = {}
    for line in out.splitlines():
        name, _, rest = line.partition("=")
        value, _, origin = rest.rpartition("#")
        found[name.strip()] = (value.strip(), origin.strip())
    return found


def test_variables_with_arguments(place: Place) -> None:
    """File, GUNICORN_CMD_ARGS, OSTLER_CMD_ARGS, command line:
    each overrides the one before, also at reloads.
    """
    place.add("conf.py", "timeout = 11\nkeepalive = 11\nbacklog = 11\ngraceful_timeout = 11\n")
    daemon = place.start(
        *("-t", "44", "plain:app"),
        GUNICORN_CMD_ARGS="-c conf.py -t 22 --keep-alive 22 --backlog 22 -e 'GREETING=hello you'",
        OSTLER_CMD_ARGS="--timeout=33 --keep-alive=33",
    )
    expected = {
        "timeout": (44.0, "command line"),
        "keepalive": (33.0, "environment OSTLER_CMD_ARGS"),
        "backlog": (22, "environment GUNICORN_CMD_ARGS"),
        "graceful_timeout": (11.0, "conf.py line 4"),
        "raw_env": (["GREETING=..."], "environment GUNICORN_CMD_ARGS"),
    }
    assert expected.items() <= origins(daemon).items()
    place.add("conf.py", "timeout = 12\nkeepalive = 12\nbacklog = 12\ngraceful_timeout = 12\n")
    assert daemon.ctl("reload").code == 0
    assert (expected | {"graceful_timeout": (12.0, "conf.py line 4")}).items() <= origins(daemon).items()


@pytest.mark.thorough
def test_variables_after_an_upgrade(place: Place) -> None:
    """The new program reads them again, beside the command line."""
    daemon = place.start("--canary-time", "0", "plain:app", GUNICORN_CMD_ARGS="-w 2 --timeout 22")
    daemon.settled(2)
    daemon.send(signal.SIGUSR2)
    daemon.event("upgraded")
    daemon.settled(2)
    found = origins(daemon)
    assert found["timeout"] == (22.0, "environment GUNICORN_CMD_ARGS")
    assert found["workers"] == (2, "environment GUNICORN_CMD_ARGS")


def test_mistake_in_a_variable(place: Place) -> None:
    """One line names the variable; the exit code is that of a wrong command line."""
    done = place.run(*LOCAL, "plain:app", GUNICORN_CMD_ARGS="--timeout soon")
    assert done.code == 2
    assert done.error.startswith("ostler: error: GUNICORN_CMD_ARGS: Invalid value for '-t' / '--timeout'")


def test_toml(place: Place) -> None:
    """ostler.toml is found and has precedence over gunicorn.conf.py; its names and lines are printed."""
    place.add("gunicorn.conf.py", "raise SystemExit\n")
    place.add(
        "ostler.toml",
        'wsgi_app = "plain:app"\nbind = ["127.0.0.1:0"]\ntimeouts = 3\n'
        '[secure_scheme_headers]\nX-HTTPS = "on"\n',
    )
    daemon = place.start(bind=None)
    assert daemon.get().text == "one"
    assert origins(daemon)["secure_scheme_headers"] == ({"X-HTTPS": "on"}, "ostler.toml line 4")
    warned = daemon.event("configuration")["problem"]
    assert warned == "ostler.toml: no settings, and without effect: timeouts (line 3): did you mean timeout?"


def test_project_file(place: Place) -> None:
    """The table [tool.ostler] in pyproject.toml is the last that is looked for."""
    place.add(
        "pyproject.toml", '[project]\nname = "shop"\n[tool.ostler]\nbind = "127.0.0.1:0"\nworkers = 2\n'
    )
    daemon = place.start("plain:app", bind=None)
    daemon.settled(2)
    assert origins(daemon)["workers"] == (2, "pyproject.toml line 5")


@pytest.mark.thorough
def test_module_in_a_package(place: Place) -> None:
    """-c python:PACKAGE.MODULE imports from the folder where Ostler was started."""
    place.add("deploy/__init__.py", "")
    place.add("deploy/web.py", "from deploy import numbers\ntimeout = numbers.LONG\n")
    place.add("deploy/numbers.py", "LONG = 77\n")
    done = place.run("--print-config", "-c", "python:deploy.web", "plain:app")
    assert printed(done.out)["timeout"] == ("77.0", "python:deploy.web line 2")
    done = place.run("--print-config", "-c", "python:deploy.nothing", "plain:app")
    assert done.code == 1
    assert "config: python:deploy.nothing: ModuleNotFoundError" in done.error


@pytest.mark.parametrize("config", ["etc/g.py", "file:etc/g.py", "./etc/g.py"])
def test_file_and_chdir(place: Place, config: str) -> None:
    """A path counts from where we were started, whatever chdir says, and so do the usual files."""
    for name, seconds in (("etc/g.py", 1), ("gunicorn.conf.py", 2), ("deep/gunicorn.conf.py", 3)):
        place.add(name, f"timeout = {seconds}\n")
    (place.app_folder / "deep/etc").mkdir()
    place.add("deep/etc/g.py", "timeout = 4\n")
    done = place.run("--print-config", "--chdir", "deep", "-c", config, "plain:app")
    assert printed(done.out)["timeout"][0] == "1.0"
    done = place.run("--print-config", "--chdir", "deep", "plain:app")
    assert printed(done.out)["timeout"] == ("2.0", "gunicorn.conf.py line 1")


def test_what_has_no_effect(place: Place) -> None:
    """Configurations with obsolete or unknown names start as well;
    one warning of each kind names all of them, once per start.
    """
    place.add(
        "gunicorn.conf.py",
        "import os\n"
        "debug = True\n"
        "logfile = 'debug.log'\n"
        "worker_tmp_dir = '/dev/shm'\n"
        "dirty_workers = 2\n"
        "helper = os.getcwd()\n"
        "print(helper)\n"
        "default_proc_name = 'shop'\n",
    )
    daemon = place.start("--http-parser", "python", "plain:app", "web")
    assert daemon.get().text == "one"
    problems = [event["problem"] for event in daemon.events("configuration")]
    assert problems[0] == "command line: one app is served; ignored: web"
    unknown = (
        "debug (line 2): use loglevel = 'debug', or reload = True for development; logfile (line 3): use"
    )
    assert problems[1] == f"gunicorn.conf.py: no settings, and without effect: {unknown} errorlog"
    parser = "http_parser (command line): requests are parsed by httptools"
    assert problems[2].startswith(f"without effect: {parser}; dirty_workers (gunicorn.conf.py line 5): ")
    assert len(problems) == 3
    assert origins(daemon)["proc_name"] == ("shop", "default_proc_name, gunicorn.conf.py line 8")


def test_port_of_a_platform(place: Place) -> None:
    """PORT without -b binds all interfaces, as in gunicorn."""
    daemon = place.start("plain:app", bind=None, PORT="0")
    assert daemon.urls[0].startswith("http://0.0.0.0:")
    assert ask(f"http://127.0.0.1:{daemon.port}").text == "one"


@pytest.mark.thorough
def test_print_config_is_whole(place: Place) -> None:
    """Settings, hooks and names without effect, in a stable order; the values of raw_env are not shown."""
    place.add(
        "conf.py",
        "raw_env = ['KEY=s3cret']\n"
        "logconfig_dict = {'version': 1}\n"
        "def ssl_context(config, default): return default()\n"
        "dirty_workers = 2\n",
    )
    args = ("--print-config", "-c", "conf.py", "plain:app")
    done = place.run(*args)
    assert done.code == 0
    found = printed(done.out)
    assert found["raw_env"] == ("('KEY=...',)", "conf.py line 1")
    assert found["logconfig_dict"] == ("{'version': 1}", "conf.py line 2")
    assert found["ssl_context"] == ("hook", "conf.py line 3")
    assert found["dirty_workers"] == ("2", "conf.py line 4, without effect")
    assert "s3cret" not in done.out + done.err
    assert place.run(*args).out == done.out


def test_print_config_of_another_machine(place: Place) -> None:
    """Problems of this machine, like a missing log folder, are reported after the settings, not instead."""
    done = place.run("--print-config", "--error-logfile", "/nowhere/e.log", "-t", "7", "plain:app")
    assert done.code == 1
    assert printed(done.out)["timeout"] == ("7.0", "command line")
    assert done.error.startswith("ostler: error: errorlog (command line): can't open '/nowhere/e.log'")


@pytest.mark.parametrize(
    ("args", "words"),
    [
        (("-b", "no.such.host.invalid:80"), "bind (command line): no.such.host.invalid:80: "),
        (("-b", "unix:/nowhere/a.sock"), "bind (command line): unix:/nowhere/a.sock: No such file or dir"),
        *thorough(
            (("-b", "unix:plain.py/a.sock"), "bind (command line): unix:plain.py/a.sock: Not a directory")
        ),
        *thorough((("-b", "fd://99"), "bind (command line): fd://99: Bad file descriptor")),
        (("-p", "/nowhere/a.pid"), "pidfile (command line): /nowhere: No such file or directory"),
        (("-u", "nobody-of-this-name"), "user (command line): there is no user 'nobody-of-this-name'"),
        *thorough(
            (("-g", "nobody-of-this-name"), "group (command line): there is no group 'nobody-of-this-name'")
        ),
        (("-k", "shop.Worker"), "worker_class (command line): can't import shop.Worker"),
        (("-c", "conf.py"), "bind (conf.py line 1): no.such.host.invalid:80: "),
        *thorough((("--certfile", "none.pem"), "certfile (command line): ")),
        *thorough((("--error-logfile", "/nowhere/x"), "errorlog (command line): can't open")),
    ],
)
def test_check_config_looks_ahead(place: Place, args: tuple[str, ...], words: str) -> None:
    """--check-config finds errors that otherwise only the start would show: one line, exit code 1."""
    place.add("conf.py", "bind = 'no.such.host.invalid:80'\n")
    done = place.run("--check-config", *args, "plain:app")
    assert done.code == 1
    assert done.error.startswith(f"ostler: error: {words}")


@pytest.mark.parametrize("args", [("--statsd-host", "http://a:1"), ("--log-syslog-to", "udp://a:b")])
def test_malformed_addresses(place: Place, args: tuple[str, ...]) -> None:
    """Addresses for metrics and logs are already checked on the command line."""
    done = place.run("--check-config", *args, "plain:app")
    assert done.code == 2
    assert "ostler: error: Invalid value for" in done.error
    assert ": expected a" in done.error


def test_check_config_does_nothing(place: Place) -> None:
    """No pid file, no socket, no detaching: the check changes nothing."""
    before = set(place.app_folder.rglob("*"))
    logs = ("--access-logfile", "a.log", "--error-logfile", "e.log")
    args = (*logs, "-D", "-p", "a.pid", "-b", "unix:a.sock", "--chdir", ".", "plain:app")
    assert place.run("--check-config", *args, PYTHONDONTWRITEBYTECODE="1") == (0, "", "")
    assert set(place.app_folder.rglob("*")) == before
    assert list(Path(place.runtime).iterdir()) == []


GREETER = """\
import os

def app(environ, start_response):
    start_response("200 OK", [("Content-Type", "text/plain")])
    names = ("GREETING", "NAME", "WHERE", "GONE")
    return [" ".join(f"{name}={os.environ.get(name)}" for name in names).encode()]
"""


def test_env_file(place: Place) -> None:
    """It is read again at each reload, before the configuration file; -e overrides it."""
    place.add("greeter.py", GREETER)
    place.add("conf.py", "import os\nworkers = int(os.environ['WORKERS'])\nenv_file = ['late.env']\n")
    place.add("late.env", "WHERE=there\n")
    place.add("early.env", 'WORKERS=2\nNAME="one two"\nexport GREETING=file\nWHERE=${NAME}\nGONE=not yet\n')
    words = ("-c", "conf.py", "--env-file", "early.env", "-e", "NAME=mine", "greeter:app")
    daemon = place.start(*words, GREETING="environment")
    daemon.settled(2)
    # The command line overrides the file's `env_file`.
    assert ask(daemon.url).body == b"GREETING=file NAME=mine WHERE=one two GONE=not yet"
    place.add("early.env", "WORKERS=1\nWHERE=here\n")
    assert daemon.ctl("reload").code == 0
    daemon.settled(1)
    assert ask(daemon.url).body == b"GREETING=environment NAME=mine WHERE=here GONE=None"
    # A file that can't be used fails the reload in one line; the generation before serves on.
    place.add("early.env", "WORKERS=1\nno assignment\n")
    done = daemon.ctl("reload")
    assert done.code == 1
    assert "env_file (command line): early.env: line 2 is no NAME=VALUE" in done.out + done.err
    assert ask(daemon.url).body == b"GREETING=environment NAME=mine WHERE=here GONE=None"
    assert "not yet" not in daemon.ctl("config", "--json").out


@pytest.mark.parametrize(
    ("content", "problem"),
    [
        (None, "can't read shop.env: No such file or directory"),
        (b"A=\xff\n", "shop.env: it is no UTF-8"),
        (b"A=1\nB=\0\n", "shop.env: line 2 has a NUL character"),
        (b"A\n", "shop.env: line 1 is no NAME=VALUE"),
        (b"A='1\n", "shop.env: line 1 is no NAME=VALUE"),
        (b"A=1\n'B=C'=2\n", "shop.env: line 2 has a name with an equals sign"),
    ],
)
def test_env_file_that_can_not_be_used(place: Place, content: bytes | None, problem: str) -> None:
    if content is not None:
        (place.app_folder / "shop.env").write_bytes(content)
    done = place.run(*LOCAL, "--check-config", "--env-file", "shop.env", "plain:app")
    assert done.code == 1
    assert done.error == f"ostler: error: env_file (command line): {problem}"


def test_env_file_of_the_configuration(place: Place) -> None:
    """Relative paths count from the folder where it was started, also with chdir."""
    place.add("greeter.py", GREETER)
    (place.app_folder / "sub").mkdir()
    place.add("conf.py", "env_file = 'shop.env'\nchdir = 'sub'\npythonpath = '..'\n")
    place.add("shop.env", "WHERE=there\nGUNICORN_CMD_ARGS=-w 3\n")
    daemon = place.start("-c", "conf.py", "greeter:app")
    assert b"WHERE=there" in ask(daemon.url).body
    problem = "env_file (conf.py line 1): shop.env: GUNICORN_CMD_ARGS has no effect in a file"
    assert [event["problem"] for event in daemon.events("configuration")] == [problem]
