"""The daemon's command line: which settings reach the fork server."""

from typing import Any

import click
import pytest

from ostler.cli import main as cli
from ostler.cli.arguments import CommandLine
from ostler.errors import ExitCode


@pytest.fixture
def parsed(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Runs the command line and gives its settings and its app; no daemon is started."""

    def run(*args: str) -> tuple[dict[str, Any], str | None]:
        taken: list[tuple[dict[str, Any], str | None]] = []

        def take(given: CommandLine) -> None:
            taken.append((given.values, given.app))

        monkeypatch.setattr(cli, "_run", take)
        cli._command().main(list(args), standalone_mode=False)
        return taken[0]

    return run


@pytest.mark.parametrize(
    ("args", "mode", "app"),
    [
        (["--proxy-protocol", "app:app"], "auto", "app:app"),
        (["--proxy-protocol", "v2", "app:app"], "v2", "app:app"),
        (["--proxy-protocol=v1", "app:app"], "v1", "app:app"),
        (["app:app", "--proxy-protocol"], "auto", "app:app"),
        (["--proxy-protocol", "-w", "2", "app:app"], "auto", "app:app"),
        (["--proxy-protocol", "--", "app:app"], "auto", "app:app"),
        (["app:app"], None, "app:app"),
    ],
)
def test_flag_whose_value_may_be_left_out(parsed: Any, args: list[str], mode: str | None, app: str) -> None:
    """--proxy-protocol alone means auto, and does not take the following app as its value."""
    values, given = parsed(*args)
    assert (values.get("proxy_protocol"), given) == (mode, app)


def test_flag_that_turns_off(parsed: Any) -> None:
    """--no-sendfile turns a setting off that is on by default; other switches turn on."""
    assert parsed("--no-sendfile", "--preload", "a:a")[0] == {"sendfile": "false", "preload_app": True}


def test_gunicorns_spellings(parsed: Any) -> None:
    """gunicorn's flags whose names differ from their settings."""
    args = ["--limit-request-field_size", "1", "--proxy-allow-from", "*", "--cert-reqs", "2", "a:a"]
    expected = {"limit_request_field_size": "1", "proxy_allow_ips": "*", "cert_reqs": "2"}
    assert parsed(*args)[0] == expected


def test_mistakes_are_reported_at_once(parsed: Any) -> None:
    """A value is checked as its row says; the error has the setting's name."""
    with pytest.raises(click.BadParameter, match="limit_request_body: expected a number of bytes"):
        parsed("--limit-request-body", "10X", "a:a")


def test_help_shows_defaults_as_one_writes_them() -> None:
    """Sizes have a unit, lists have commas, and switches that are on by default show no default."""
    text = " ".join(cli._command().get_help(click.Context(cli._command())).split())
    for part in (
        "[default: 512K]",
        "[default: SCRIPT_NAME,PATH_INFO]",
        "or the environment's FORWARDED_ALLOW_IPS]",
    ):
        assert part in text
    assert "(sendfile). --header-map" in text


def test_negative_numbers(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    """A number below zero is refused as a value, not as an unknown flag."""
    for args, text in (
        (["-t", "-3"], "'-t' / '--timeout': timeout: expected zero or more seconds, got '-3'"),
        (
            ["--max-requests", "-1"],
            "'--max-requests': max_requests: must be between 0 and 2147483647, got -1",
        ),
    ):
        monkeypatch.setattr("sys.argv", ["ostler", *args, "a:a"])
        with pytest.raises(SystemExit) as end:
            cli.main()
        assert end.value.code == ExitCode.USAGE
        assert capsys.readouterr().err == f"ostler: error: Invalid value for {text} (see ostler --help)\n"
