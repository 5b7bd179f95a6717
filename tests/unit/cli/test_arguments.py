"""Arguments as gunicorn users write them, on the command line and in variables."""

import argparse
from typing import Any

import click
import pytest
from hypothesis import example
from hypothesis import given as over
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st

from ostler.cli.arguments import VARIABLES, CommandLine, command
from tests.unit.settings.gunicorn27 import SETTINGS

VALUES = {
    "bind": "127.0.0.1:1",
    "worker_class": "gevent",
    "raw_env": "A=1",
    "raw_paste_global_conf": "A=1",
    "proxy_protocol": "v2",
    "cert_reqs": "2",
    "header_map": "refuse",
    "reload_engine": "poll",
    "loglevel": "debug",
    "syslog_addr": "unix:///dev/log#dgram",
    "syslog_facility": "local3",
    "statsd_host": "localhost:8125",
    "asgi_loop": "uvloop",
    "asgi_lifespan": "on",
    "umask": "022",
    "control_socket_mode": "0660",
    "forwarded_allow_ips": "*",
    "proxy_allow_ips": "10.0.0.0/8",
}


@pytest.fixture
def given(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Runs the command line and returns the settings it passes on; variables with arguments by keyword."""

    def run(*args: str, **variables: str) -> CommandLine:
        for name in VARIABLES:
            monkeypatch.delenv(name, raising=False)
        for name, value in variables.items():
            monkeypatch.setenv(name, value)
        taken: list[CommandLine] = []
        command(taken.append).main(list(args), standalone_mode=False)
        return taken[0]

    return run


@pytest.mark.parametrize(
    ("name", "flag", "follows"),
    [(name, flag, follows) for name, flags, follows, _ in SETTINGS for flag in flags.split()],
)
def test_every_flag_of_gunicorns(given: Any, name: str, flag: str, follows: str) -> None:
    """Each is parsed as gunicorn does it: alone, with a value after it, and with `=`."""
    if name in ("config", "check_config", "print_config"):
        found = given(flag, "x.py", "a:a") if follows == "value" else given(flag, "a:a")
        assert getattr(found, name) == ("x.py" if follows == "value" else True)
        assert found.app == "a:a"
        return
    if follows == "switch":
        found = given(flag, "a:a")
        assert (found.values, found.app) == ({name: "false" if name == "sendfile" else True}, "a:a")
        return
    value = VALUES.get(name, "7")
    expected = {name: [value]} if follows == "list" or name == "pythonpath" else {name: value}
    for args in ((flag, value), (f"{flag}={value}",), *([(flag + value,)] if flag[:2] != "--" else [])):
        found = given(*args, "a:a")
        assert (found.values, found.app, found.remarks) == (expected, "a:a", [])
    if follows == "list":
        assert given(flag, value, "a:a", flag, value).values == {name: [value, value]}


@pytest.mark.parametrize(
    ("args", "values"),
    [
        (["--error-log", "-"], {"errorlog": "-"}),
        (["--keep-al=3"], {"keepalive": "3"}),
        (["--max-requests-j", "3"], {"max_requests_jitter": "3"}),
        (["--thr", "3", "--prel"], {"threads": "3", "preload_app": True}),
        # Two settings of Ostler begin like this as well.
        (["--time", "3"], {"timeout": "3"}),
        (["--limit-request-f=1"], None),
        (["--timeout-g", "3"], {"timeout_grace": "3"}),
        (["--work", "3"], None),
        (["--paster", "x.ini"], {"paste": "x.ini"}),
        (["-w=6", "-b=:1"], {"workers": "6", "bind": [":1"]}),
        (["-Rw=6"], {"enable_stdio_inheritance": True, "workers": "6"}),
        (["-DRw6"], {"daemon": True, "enable_stdio_inheritance": True, "workers": "6"}),
        (["-e=A=1"], {"raw_env": ["A=1"]}),
        (["-e", "--time"], None),
        (["-n", "--time"], {"proc_name": "--time"}),
    ],
)
def test_short_ways(given: Any, args: list[str], values: dict[str, Any] | None) -> None:
    """Abbreviated flags are accepted if unambiguous, or unambiguous among gunicorn's; -w=6 is -w 6."""
    if values is None:
        with pytest.raises(click.UsageError):
            given(*args, "a:a")
    else:
        found = given(*args, "a:a")
        assert (found.values, found.app) == (values, "a:a")


@pytest.mark.parametrize("flag", ["-w", "--bind", "-c", "--worker-tmp-dir"])
def test_value_that_is_missing(given: Any, flag: str) -> None:
    """A flag at the end without its value is an error, and does not mean the default."""
    with pytest.raises(click.UsageError, match="requires an argument"):
        given("a:a", flag)


def test_arguments_behind_two_hyphens(given: Any) -> None:
    """Arguments after -- are not parsed as flags."""
    found = given("--time", "3", "--", "--keep-al", "b")
    assert (found.values, found.app) == ({"timeout": "3"}, "--keep-al")
    assert found.remarks == ["command line: one app is served; ignored: b"]


def test_more_arguments_than_the_app(given: Any) -> None:
    """gunicorn ignores them; Ostler reports that it takes none."""
    found = given("a:a", "-w", "2", "web", "b:b")
    assert (found.app, found.values) == ("a:a", {"workers": "2"})
    assert found.remarks == ["command line: one app is served; ignored: web b:b"]


def test_variables(given: Any) -> None:
    """The command line has precedence over OSTLER_CMD_ARGS, which has precedence over gunicorn's variable;
    each value has its origin.
    """
    found = given(
        *("-t", "1", "a:a"),
        OSTLER_CMD_ARGS="-t 2 -b :2 --keep-alive 2",
        GUNICORN_CMD_ARGS="--timeout=3 --keep-alive=3 -b :3 -b :4 --preload -e 'A=1 2' --dirty-workers 3",
    )
    assert found.values == {
        "timeout": "1",
        "bind": [":2"],
        "keepalive": "2",
        "preload_app": True,
        "raw_env": ["A=1 2"],
        "dirty_workers": "3",
    }
    ours, gunicorns = "environment OSTLER_CMD_ARGS", "environment GUNICORN_CMD_ARGS"
    assert found.variables == {
        "bind": ours,
        "keepalive": ours,
        **dict.fromkeys(("preload_app", "raw_env", "dirty_workers"), gunicorns),
    }


def test_configuration_in_variables(given: Any) -> None:
    """-c in a variable counts if the command line has none; the app must be on the command line."""
    variables = {"GUNICORN_CMD_ARGS": "-c g.py b:b", "OSTLER_CMD_ARGS": "-c o.py"}
    assert given("-c", "x.py", "a:a", **variables).config == "x.py"
    assert given("a:a", **variables).config == "o.py"
    found = given("a:a", GUNICORN_CMD_ARGS="-cg.py b:b --check-config")
    assert (found.config, found.app, found.check_config) == ("g.py", "a:a", True)
    assert found.remarks == ["GUNICORN_CMD_ARGS: the app must be named on the command line; ignored: b:b"]
    assert given(GUNICORN_CMD_ARGS="b:b").app is None


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("--nonsense", "GUNICORN_CMD_ARGS: No such option"),
        ("-t soon", "GUNICORN_CMD_ARGS: Invalid value for '-t' / '--timeout': timeout: expected a number"),
        ("-t", "GUNICORN_CMD_ARGS: Option '-t' requires an argument"),
        ("-e 'A=1", "GUNICORN_CMD_ARGS: No closing quotation"),
    ],
)
def test_mistakes_in_variables(given: Any, text: str, problem: str) -> None:
    """The error names the variable."""
    with pytest.raises(click.UsageError) as caught:
        given("a:a", GUNICORN_CMD_ARGS=text)
    assert caught.value.format_message().startswith(problem)


def test_empty_variable(given: Any) -> None:
    """A variable that is set but empty counts as not set."""
    assert given("a:a", GUNICORN_CMD_ARGS="  ").values == {}


def test_unused_flags_are_not_in_the_help() -> None:
    """Flags without effect are accepted, but not listed."""
    text = command(print).get_help(click.Context(command(print)))
    assert "--dirty-workers" not in text
    assert "--workers" in text


def _reference() -> argparse.ArgumentParser:
    """An argparse parser like gunicorn's, with its flags."""
    parser = argparse.ArgumentParser(exit_on_error=False, add_help=False)
    for name, flags, follows, _ in SETTINGS:
        if follows == "file":
            continue
        if follows == "switch":
            value = "false" if name == "sendfile" else True
            parser.add_argument(*flags.split(), dest=name, action="store_const", const=value)
        else:
            parser.add_argument(*flags.split(), dest=name, action="append" if follows == "list" else "store")
    parser.add_argument("apps", nargs="*")
    # It makes abbreviations such as --he ambiguous.
    parser.add_argument("--help", action="store_true", default=None)
    return parser


REFERENCE = _reference()
_FLAGS = [
    (flag, follows, VALUES.get(name, "7"))
    for name, flags, follows, _ in SETTINGS
    for flag in flags.split()
    if name not in ("check_config", "print_config")
]
_SPELLINGS = {flag for flag, _, _ in _FLAGS}


@st.composite
def _written(draw: st.DrawFn) -> list[str]:
    """One flag in one of its spellings, perhaps abbreviated."""
    flag, follows, value = draw(st.sampled_from(_FLAGS))
    if flag[:2] == "--":
        abbreviated = flag[: draw(st.integers(4, len(flag)))]
        if abbreviated not in _SPELLINGS:  # --reload is no abbreviation of --reload-engine
            flag = abbreviated
    if follows == "switch":
        return [flag]
    return draw(
        st.sampled_from([[flag, value], [f"{flag}={value}"], *([] if flag[:2] == "--" else [[flag + value]])])
    )


@hypothesis_settings(deadline=None)  # a slow example on a busy machine must not fail the test
@over(st.lists(_written(), max_size=5), st.integers(0, 5))
@example([["--str"]], 0)
def test_read_as_by_gunicorns_parser(written: list[list[str]], app_at: int) -> None:
    """Ostler reads gunicorn's flags in any spelling as argparse does."""
    written.insert(min(app_at, len(written)), ["a:a"])
    args = [arg for part in written for arg in part]
    try:
        expected = {
            name: value for name, value in vars(REFERENCE.parse_args(args)).items() if value is not None
        }
    except (argparse.ArgumentError, SystemExit):
        return  # an ambiguous abbreviation
    if expected.keys() & {"check_config", "print_config", "help"}:
        return  # these are not settings of Ostler
    assert expected.pop("apps") == ["a:a"]
    config = expected.pop("config", None)
    if "pythonpath" in expected:
        # Ostler accepts several; in gunicorn the last one counts.
        expected["pythonpath"] = [expected["pythonpath"]]
    taken: list[CommandLine] = []
    with pytest.MonkeyPatch.context() as patch:
        for variable in VARIABLES:
            patch.delenv(variable, raising=False)
        command(taken.append).main(args, standalone_mode=False)
    values = taken[0].values
    if "pythonpath" in values:
        values["pythonpath"] = values["pythonpath"][-1:]
    assert (values, taken[0].config, taken[0].app) == (expected, config, "a:a")


# -- hints ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("args", "words"),
    [
        (["--worker", "3"], "write --workers 3 (--worker-class, --worker-connections begin so, too)"),
        (["--worker=3"], "write --workers 3"),
        (["--worker"], "it could be --workers or --worker-class or --worker-connections"),
        (["--worker-c", "gevent"], "write --worker-class gevent"),
        (["-workers", "3"], "did you mean --workers, with two dashes?"),
        (["--wokers", "3"], "did you mean --workers?"),
        (["--port", "80"], "write -b 127.0.0.1:80"),
        (["--host", "::", "--port", "80"], "write -b [::]:80"),
        (["--host=0.0.0.0"], "write -b 0.0.0.0:8000"),
        (["--listen", "*:80"], "write -b *:80"),
        (["--factory"], "write MODULE:FACTORY() as the app"),
        (["--timeout-keep-alive", "5"], "write --keep-alive SECONDS"),
        (["--no-such-flag-at-all"], "No such option '--no-such-flag-at-all'"),
    ],
)
def test_hints(given: Any, args: list[str], words: str) -> None:
    """An unknown flag: what is meant, with the value that was given."""
    for place in (0, 1):  # before and behind the app
        with pytest.raises(click.UsageError) as caught:
            given(*([*args, "a:a"] if place == 0 else ["a:a", *args]))
        message = caught.value.format_message()
        if args == ["--worker"] and place == 0:
            assert "it could be" in message  # a:a is the value, which is no number
        else:
            assert words in message, message


def test_flags_in_hints() -> None:
    """Every flag that a hint names is one of ours, and no hint stands in for a flag of ours."""
    import re

    from ostler.cli.flag_hints import _INSTEAD

    flags = {flag for param in command(lambda _: None).params for flag in param.opts}
    named = {flag for text in _INSTEAD.values() for flag in re.findall(r"(?<!\S)--?[a-z][-a-z]*", text)}
    assert named - flags == set()
    assert set(_INSTEAD) & flags == set()


def test_help_has_the_exit_codes() -> None:
    """`--help` ends with them."""
    made = command(lambda _: None)
    text = " ".join(made.get_help(click.Context(made, info_name="ostler")).split())
    assert "Exit codes: 0 stopped" in text
    assert "3 the app can't be loaded" in text
