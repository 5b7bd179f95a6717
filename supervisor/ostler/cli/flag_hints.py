"""What to write instead of a flag that there is not: of a spelling, and of flags of other servers."""

from collections.abc import Mapping, Sequence

import click

from ostler.settings.table import rows

# By the flag of uvicorn, hypercorn, waitress, uWSGI, Flask or Django: what to write here.
_INSTEAD = {
    "--host": "-b HOST:PORT",
    "--port": "-b HOST:PORT",
    "--listen": "-b HOST:PORT",
    "--http": "-b HOST:PORT",
    "--http-socket": "-b HOST:PORT",
    "--uds": "-b unix:PATH",
    "--unix-socket": "-b unix:PATH",
    "--socket": "-b unix:PATH",
    "--fd": "-b fd://N",
    "--processes": "--workers N",
    "--app": "the app as an argument without a flag, MODULE:APP",
    "--module": "the app as an argument without a flag, MODULE:APP",
    "--wsgi": "the app as an argument without a flag, MODULE:APP",
    "--wsgi-file": "the app as an argument without a flag, MODULE:APP",
    "--callable": "the app as an argument without a flag, MODULE:APP",
    "--factory": "MODULE:FACTORY() as the app",
    "--call": "MODULE:FACTORY() as the app",
    "--app-dir": "--chdir FOLDER",
    "--interface": "-k asgi for ASGI apps",
    "--lifespan": "--asgi-lifespan",
    "--loop": "--asgi-loop",
    "--asgi": "-k asgi",
    "--proxy-headers": "--forwarded-allow-ips NETWORKS",
    "--access-log": "--access-logfile -",
    "--no-access-log": "nothing: there is no access log without --access-logfile",
    "--ssl-keyfile": "--keyfile PATH",
    "--ssl-certfile": "--certfile PATH",
    "--ssl-ca-certs": "--ca-certs PATH",
    "--timeout-keep-alive": "--keep-alive SECONDS",
    "--timeout-graceful-shutdown": "--graceful-timeout SECONDS",
    "--limit-max-requests": "--max-requests N",
    "--limit-concurrency": "--worker-connections N",
    "--ws-max-size": "--websocket-max-message-size BYTES",
    "--reload-dir": "--reload-extra-file PATH",
    "--reload-include": "--reload-extra-file PATH",
    "--debug": "--reload, and --log-level debug",
    "--harakiri": "--timeout SECONDS",
    "--max-worker-lifetime": "--max-age SECONDS",
    "--reload-on-rss": "--max-memory BYTES",
    "--daemonize": "--daemon",
    "--pidfile": "--pid PATH",
    "--master": "nothing: there always is a supervisor",
    "--uid": "--user NAME",
    "--gid": "--group NAME",
}


def for_unknown(flag: str, args: Sequence[str], options: Mapping[str, click.Option]) -> str:
    """A sentence on what to write instead of an unknown flag; empty if there is no guess.

    Args:
        flag: as it was typed, without a value.
        args: the whole command line.
        options: by flag.
    """
    shown = {name: option for name, option in options.items() if not option.hidden}
    begin = [name for name in shown if name.startswith(flag)] if flag[:2] == "--" else []
    if flag not in _INSTEAD and begin:
        value = _value_after(flag, args)
        # The whole word that is nearest in length, if its value can be what stands there.
        first = min(begin, key=len)
        fits = value is not None and _takes(first, value)
        others = [name for name in begin if not fits or name != first]
        if fits:
            more = f" ({', '.join(others)} begin so, too)" if others else ""
            return f"write {first} {value}{more}"
        return f"it could be {' or '.join(others)}"
    instead = _INSTEAD.get(flag)
    if instead is not None:
        return f"write {_with_values(instead, args)}"
    from difflib import get_close_matches  # here, because few command lines need it

    near = get_close_matches(flag, [name for name in shown if name[:2] == "--"], 1, 0.7)
    return f"did you mean {near[0]}?" if near else ""


def for_one_dash(args: Sequence[str], options: Mapping[str, click.Option]) -> str:
    """A sentence on a flag with one dash where two are meant, as `-workers`; empty if there is none."""
    found = next((arg for arg in args if arg[:1] == "-" and f"-{arg.partition('=')[0]}" in options), None)
    return f"did you mean -{found.partition('=')[0]}, with two dashes?" if found is not None else ""


def _value_after(flag: str, args: Sequence[str]) -> str | None:
    """The value that follows a flag on the command line."""
    for place, arg in enumerate(args):
        name, equals, value = arg.partition("=")
        if name == flag:
            if equals:
                return value
            following = args[place + 1 : place + 2]
            return following[0] if following and following[0][:1] != "-" else None
    return None


def _takes(flag: str, value: str) -> bool:
    row = next((row for row in rows().values() if flag in row.flags), None)
    if row is None or not row.kind.metavar:
        return False
    try:
        row.kind.parse([value] if row.kind.several else value)
    except ValueError:
        return False
    return True


def _with_values(instead: str, args: Sequence[str]) -> str:
    """Host and port of an address as they were given."""
    if "HOST:PORT" not in instead:
        return instead
    address = next((found for name in ("--listen", "--http") if (found := _value_after(name, args))), None)
    if address is None:
        host, port = _value_after("--host", args) or "127.0.0.1", _value_after("--port", args) or "8000"
        address = f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
    return instead.replace("HOST:PORT", address)
