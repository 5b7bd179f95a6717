"""The environ that an app gets for requests over a socket."""

import ast
import os
from collections.abc import Callable
from typing import Any

import pytest

from ostler.wsgi.environ import Environ
from tests.unit.workers import rig
from tests.unit.workers.rig import Client, Serve

Start = Callable[..., Any]


def dump(environ: Environ, start_response: Start) -> list[bytes]:
    """Answers with the environ."""
    shown = {key: value for key, value in environ.items() if type(value) in (str, bool, tuple)}
    shown["body"] = environ["wsgi.input"].read()
    shown["exact"] = type(environ) is dict
    shown["others"] = sorted(environ.keys() - shown.keys())
    start_response("200 OK", [])
    return [repr(shown).encode()]


def asked(client: Client, *lines: str, body: bytes = b"") -> Environ:
    """The environ of a request."""
    client.send("".join(f"{line}\r\n" for line in (*lines, "")).encode("latin-1") + body)
    answer = client.answer()
    assert answer.status == "200 OK", answer
    shown = ast.literal_eval(answer.body.decode())
    assert isinstance(shown, dict)
    return shown


@pytest.fixture
def client(serve: Serve) -> Client:
    return serve(dump).client()


def test_everything(serve: Serve) -> None:
    """The keys of PEP 3333 and the usual ones, with the right types, and no others."""
    served = serve(dump)
    client = served.client()
    port = str(client.sock.getsockname()[1])
    assert asked(client, "GET /a%20b/?c=%20 HTTP/1.1", "Host: example.com", "User-Agent: me") == {
        "REQUEST_METHOD": "GET",
        "SCRIPT_NAME": "",
        "PATH_INFO": "/a b/",
        "QUERY_STRING": "c=%20",
        "RAW_URI": "/a%20b/?c=%20",
        "SERVER_NAME": "127.0.0.1",
        "SERVER_PORT": str(served.address[1]),
        "SERVER_PROTOCOL": "HTTP/1.1",
        "SERVER_SOFTWARE": "ostler",
        "REMOTE_ADDR": "127.0.0.1",
        "REMOTE_PORT": port,
        "HTTP_HOST": "example.com",
        "HTTP_USER_AGENT": "me",
        "wsgi.version": (1, 0),
        "wsgi.url_scheme": "http",
        "wsgi.multithread": False,
        "wsgi.multiprocess": True,
        "wsgi.run_once": False,
        "wsgi.input_terminated": True,
        "body": b"",
        "exact": True,
        "others": ["ostler.extend_deadline", "wsgi.errors", "wsgi.file_wrapper", "wsgi.input"],
    }


def test_multithread(serve: Serve) -> None:
    """Apps choose their locks by wsgi.multithread."""
    assert asked(serve(dump, threads=4).client(), "GET / HTTP/1.1", "Host: x")["wsgi.multithread"] is True


@pytest.mark.parametrize(
    ("target", "path", "query"),
    [
        ("/", "/", ""),
        ("/?", "/", ""),
        ("/??a", "/", "?a"),
        ("/a?b?c", "/a", "b?c"),
        ("//a//b", "//a//b", ""),
        ("/a/../b/./c", "/a/../b/./c", ""),
        ("/%2e%2e/%2F", "/..//", ""),
        ("/%41?%41", "/A", "%41"),
        ("/%25%32%35", "/%25", ""),
        ("/%zz%4", "/%zz%4", ""),
        ("/caf%C3%A9", "/caf\xc3\xa9", ""),
        ("/caf\xc3\xa9?\xc3\xa9", "/caf\xc3\xa9", "\xc3\xa9"),
        ("/%0d%0aX:y", "/\r\nX:y", ""),
        ("/a+b?a+b", "/a+b", "a+b"),
        ("/a;b;c", "/a;b;c", ""),
        ("/:80", "/:80", ""),
        ("http://other.example:81/x?y", "/x", "y"),
        ("HTTP://other.example?y", "/", "y"),
    ],
)
@pytest.mark.parametrize("protocol", ["HTTP/1.1", "HTTP/1.0"])
def test_targets(client: Client, target: str, path: str, query: str, protocol: str) -> None:
    """PATH_INFO is decoded once, the query not at all, nothing is normalized, RAW_URI is as sent."""
    environ = asked(client, f"GET {target} {protocol}", "Host: x")
    assert (environ["PATH_INFO"], environ["QUERY_STRING"], environ["RAW_URI"]) == (path, query, target)
    assert environ["SERVER_PROTOCOL"] == protocol


@pytest.mark.parametrize("host", ["other.example", "other.example:81", "[::1]:80"])
def test_absolute_form_replaces_the_host(client: Client, host: str) -> None:
    """RFC 9112 section 3.2.2; only for the request that has it."""
    environ = asked(client, f"GET http://{host}/x HTTP/1.1", "Host: example.com")
    assert environ["HTTP_HOST"] == host
    assert asked(client, "GET /x HTTP/1.1", "Host: example.com")["HTTP_HOST"] == "example.com"


@pytest.mark.parametrize(
    "host", ["", "example.com", "example.com:80", "EXAMPLE.com", "[::1]", "a_b", "1.2.3.4"]
)
def test_hosts(client: Client, host: str) -> None:
    """HTTP_HOST is the Host field of the client."""
    assert asked(client, "GET / HTTP/1.1", f"Host: {host}")["HTTP_HOST"] == host


def test_no_host(client: Client) -> None:
    """HTTP/1.0 has none; the URL can then be built from SERVER_NAME."""
    environ = asked(client, "GET / HTTP/1.0")
    assert "HTTP_HOST" not in environ
    assert environ["SERVER_NAME"]


@pytest.mark.parametrize(
    ("lines", "key", "value"),
    [
        (["X-A: b"], "HTTP_X_A", "b"),
        (["x-A:b"], "HTTP_X_A", "b"),
        (["X-A:  b \t"], "HTTP_X_A", "b"),
        (["X-A:"], "HTTP_X_A", ""),
        (["X-A: a  b"], "HTTP_X_A", "a  b"),
        (["X-A: caf\xc3\xa9"], "HTTP_X_A", "caf\xc3\xa9"),
        (["X-A: \xff"], "HTTP_X_A", "\xff"),
        (["X-A: a", "X-B: c", "x-a: b"], "HTTP_X_A", "a,b"),
        (["X-A: a", "X-A:", "X-A: b"], "HTTP_X_A", "a,,b"),
        (["Cookie: a=b", "Cookie: c=d", "cookie: e"], "HTTP_COOKIE", "a=b; c=d; e"),
        (["X-Forwarded-For: 1.1.1.1", "X-Forwarded-For: 2.2.2.2"], "HTTP_X_FORWARDED_FOR", "1.1.1.1,2.2.2.2"),
        (["Content-Type: text/x; a=b"], "CONTENT_TYPE", "text/x; a=b"),
        (["Content-Type:"], "CONTENT_TYPE", ""),
        (["Content-Length: 0"], "CONTENT_LENGTH", "0"),
        (["Authorization: Basic eA=="], "HTTP_AUTHORIZATION", "Basic eA=="),
        (["Connection: keep-alive, x-a", "X-A: b"], "HTTP_X_A", "b"),
        (["X.A: b"], "HTTP_X.A", "b"),
    ],
)
def test_fields(client: Client, lines: list[str], key: str, value: str) -> None:
    """RFC 3875 section 4.1.18: names become variables, several values are joined, bytes are latin-1."""
    assert asked(client, "GET / HTTP/1.1", "Host: x", *lines)[key] == value


@pytest.mark.parametrize(
    ("line", "keys"),
    [
        ("Content-Type: a/b", ["HTTP_CONTENT_TYPE"]),
        ("Content-Length: 0", ["HTTP_CONTENT_LENGTH"]),
        ("Proxy: evil", ["HTTP_PROXY"]),
        ("X_A: b", ["HTTP_X_A"]),
        ("Content_Length: 5", ["CONTENT_LENGTH", "HTTP_CONTENT_LENGTH"]),
        ("Content_Type: a/b", ["CONTENT_TYPE", "HTTP_CONTENT_TYPE"]),
        ("X-A: b", ["CONTENT_TYPE", "CONTENT_LENGTH", "HTTPS"]),
        ("HTTPS: on", ["HTTPS"]),
    ],
)
def test_fields_that_make_no_variable(client: Client, line: str, keys: list[str]) -> None:
    """CONTENT_ keys exist only if the client sent them, none twice, and ambiguous names are dropped."""
    environ = asked(client, "GET / HTTP/1.1", "Host: x", line)
    assert not set(keys) & environ.keys()


@pytest.mark.parametrize("settings", [{}, {"buffer_request": 1}, {"stream_request": True}], ids=str)
def test_chunks_and_trailers(serve: Serve, settings: dict[str, Any]) -> None:
    """The coding is removed; trailers are not fields of the request."""
    environ = asked(
        serve(dump, **settings).client(),
        "POST / HTTP/1.1",
        "Host: x",
        "Transfer-Encoding: chunked",
        "Trailer: X-Late",
        body=b"3;a=b\r\nabc\r\n2\r\nde\r\n0\r\nX-Late: 1\r\n\r\n",
    )
    assert environ["body"] == b"abcde"
    # The length is known before the app is called unless it reads while the body comes.
    assert environ.get("CONTENT_LENGTH") == (None if settings.get("stream_request") else "5")
    assert not {"HTTP_X_LATE", "HTTP_TRANSFER_ENCODING", "HTTP_CONTENT_LENGTH"} & environ.keys()
    assert environ["wsgi.input_terminated"] is True


@pytest.mark.parametrize("method", ["GET", "HEAD", "DELETE", "PROPFIND", "QUERY", "M-SEARCH"])
def test_methods(serve: Serve, method: str) -> None:
    """Any method, and each may have a body."""
    seen: list[tuple[str, bytes]] = []

    def app(environ: Environ, start_response: Start) -> list[bytes]:
        seen.append((environ["REQUEST_METHOD"], environ["wsgi.input"].read()))
        start_response("204 No Content", [])
        return []

    client = serve(app).client()
    client.send(f"{method} / HTTP/1.1\r\nHost: x\r\nContent-Length: 4\r\n\r\nbody".encode())
    assert client.answer(method).status == "204 No Content"
    assert seen == [(method, b"body")]


# -- where the app is mounted ----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("mount", "target", "script", "path"),
    [
        ("/app", "/app", "/app", ""),
        ("/app", "/app/", "/app", "/"),
        ("/app", "/app/x%20y?z", "/app", "/x y"),
        ("/app", "/apple", "/app", "/apple"),
        ("/app", "/other", "/app", "/other"),
        ("/app", "/app/app/x", "/app", "/app/x"),
        ("/app/", "/app/x", "/app", "/x"),
        ("/app/", "/app", "/app", ""),
        ("/", "/x", "", "/x"),
        ("", "/x", "", "/x"),
        ("/a/b", "/a/b/c", "/a/b", "/c"),
        ("/caf\xc3\xa9", "/caf%C3%A9/x", "/caf\xc3\xa9", "/x"),
    ],
)
@pytest.mark.parametrize("how", ["field", "environment", "setting"])
def test_script_name(
    serve: Serve, monkeypatch: pytest.MonkeyPatch, how: str, mount: str, target: str, script: str, path: str
) -> None:
    """SCRIPT_NAME from one of three sources; it is removed from the beginning of the path."""
    fields = []
    settings = {}
    if how == "environment":
        monkeypatch.setenv("SCRIPT_NAME", os.fsdecode(mount.encode("latin-1")))
    elif how == "setting":
        settings["root_path"] = mount.encode("latin-1").decode()
    else:
        fields = [f"SCRIPT_NAME: {mount}"]
    environ = asked(serve(dump, **settings).client(), f"GET {target} HTTP/1.1", "Host: x", *fields)
    assert (environ["SCRIPT_NAME"], environ["PATH_INFO"]) == (script, path)


def test_precedence_of_script_name(serve: Serve, monkeypatch: pytest.MonkeyPatch) -> None:
    """A proxy has precedence over the environment, which has precedence over root_path;
    slashes there do not matter.
    """
    served = serve(dump, root_path="b/c/")
    assert asked(served.client(), "GET /b/c/x HTTP/1.1", "Host: x")["SCRIPT_NAME"] == "/b/c"
    assert asked(served.client(), "GET /a/x HTTP/1.1", "Host: x", "SCRIPT_NAME: /a")["SCRIPT_NAME"] == "/a"
    monkeypatch.setenv("SCRIPT_NAME", "/e")
    assert asked(serve(dump, root_path="/b").client(), "GET /e/x HTTP/1.1", "Host: x")["PATH_INFO"] == "/x"


def test_switches_for_malformed_requests(serve: Serve) -> None:
    """Each setting reaches the parser."""
    for setting, line, *fields in (
        ("permit_unconventional_http_method", "get / HTTP/1.1", "Host: x"),
        ("casefold_http_method", "get / HTTP/1.1", "Host: x"),
        ("permit_unconventional_http_version", "GET / HTTP/2.0", "Host: x"),
        ("strip_header_spaces", "GET / HTTP/1.1", "Host : x"),
        ("permit_obsolete_folding", "GET / HTTP/1.1", "Host: x", "X: a", " b"),
    ):
        environ = asked(serve(dump, **{setting: True}).client(), line, *fields)
        assert environ["HTTP_HOST"] == "x", setting


def test_only_trusted_proxies_set_script_name(serve: Serve) -> None:
    """The field is used from trusted proxies only, and not by a name that only looks like it."""
    served = serve(dump, forwarded_allow_ips="192.0.2.1")
    assert asked(served.client(), "GET /a/x HTTP/1.1", "Host: x", "SCRIPT_NAME: /a")["SCRIPT_NAME"] == ""
    assert asked(served.client(), "GET /a/x HTTP/1.1", "Host: x", "Script-Name: /a")["SCRIPT_NAME"] == ""


def test_script_name_of_one_request(client: Client) -> None:
    """The next request of the connection may have another one, or none."""
    for mount, path in (("/a", "/x"), ("/a/x", ""), (None, "/a/x"), ("/a", "/x")):
        fields = [] if mount is None else [f"Script_Name: {mount}"]
        assert asked(client, "GET /a/x HTTP/1.1", "Host: x", *fields)["PATH_INFO"] == path


# -- the scheme, and who asks ----------------------------------------------------------------------------


def test_the_scheme_of_a_proxy(serve: Serve) -> None:
    """From a trusted proxy, for its request only; that from other peers is ignored."""
    client = serve(dump).client()
    field = "X-Forwarded-Proto: https"
    assert asked(client, "GET / HTTP/1.1", "Host: x", field)["wsgi.url_scheme"] == "https"
    assert asked(client, "GET / HTTP/1.1", "Host: x")["wsgi.url_scheme"] == "http"


def test_what_an_app_leaves_behind(serve: Serve) -> None:
    """Changes to an environ are dropped with its request; the access log works with wrong types in it."""

    def app(environ: Environ, start_response: Start) -> list[bytes]:
        left = environ.pop("HTTP_X_A", "missing") + environ.get("mine", "")
        environ["mine"] = "!"
        if environ["PATH_INFO"] == "/clear":
            environ.clear()
        start_response("200 OK", [])
        return [left.encode()]

    served = serve(app, access=True)
    client = served.client()
    for target in ("/", "/clear", "/"):
        assert client.get(target, "X-A: b").body == b"b"
    assert served.log() == ""


def test_all_interfaces(serve: Serve, monkeypatch: pytest.MonkeyPatch) -> None:
    """For a listener on all interfaces SERVER_NAME is the address to which the client has connected."""

    class Everywhere(rig.Listener):
        def bind(self, address: Any) -> None:
            super().bind(("0.0.0.0", 0))

    monkeypatch.setattr(rig, "Listener", Everywhere)
    served = serve(dump)
    monkeypatch.setattr(served, "address", ("127.0.0.1", served.address[1]))
    environ = asked(served.client(), "GET / HTTP/1.0")
    assert (environ["SERVER_NAME"], environ["SERVER_PORT"]) == ("127.0.0.1", str(served.address[1]))
