"""The environ: PEP 3333's keys, and nothing with which a client can impersonate another one."""

import io
import sys
from typing import Any

import pytest

from ostler.http1.request import RequestParser, Rules
from ostler.wsgi.body import BufferedBody
from ostler.wsgi.environ import (
    Environ,
    connection_environ,
    listener_environ,
    request_environ,
    worker_environ,
)
from ostler.wsgi.file_wrapper import FileWrapper

IN_MEMORY = 100_000


def new_body() -> BufferedBody:
    return BufferedBody(IN_MEMORY, None)


LISTENER, PEER = ("127.0.0.1", 8000), ("192.0.2.7", 50123)


TRUSTING = Rules(secure_scheme_headers={b"x-forwarded-proto": b"https"})


def environ_of(
    raw: bytes,
    address: Any = LISTENER,
    peer: Any = PEER,
    multithread: bool = False,
) -> Environ:
    """The environ that an app gets for the bytes of one request."""
    parser = RequestParser(TRUSTING, new_body)
    parser.feed(raw)
    (request,) = parser.requests
    listener = listener_environ(worker_environ(multithread), address)
    return request_environ(connection_environ(listener, peer, {}), request)


def with_fields(*lines: str, target: str = "/") -> Environ:
    head = "".join(f"{line}\r\n" for line in ("Host: x", *lines))
    return environ_of(f"GET {target} HTTP/1.1\r\n{head}\r\n".encode("latin-1"))


def test_all_keys_of_pep_3333() -> None:
    """A plain GET has every key that PEP 3333 asks for, with its type, and the connection's addresses."""
    environ = environ_of(b"GET /a?b=c HTTP/1.1\r\nHost: example.com:80\r\nUser-Agent: t\r\n\r\n")
    body = environ.pop("wsgi.input")
    assert body.read() == b""
    assert environ == {
        "REQUEST_METHOD": "GET",
        "SCRIPT_NAME": "",
        "PATH_INFO": "/a",
        "QUERY_STRING": "b=c",
        "RAW_URI": "/a?b=c",
        "SERVER_NAME": "127.0.0.1",
        "SERVER_PORT": "8000",
        "SERVER_PROTOCOL": "HTTP/1.1",
        "SERVER_SOFTWARE": "ostler",
        "REMOTE_ADDR": "192.0.2.7",
        "REMOTE_PORT": "50123",
        "HTTP_HOST": "example.com:80",
        "HTTP_USER_AGENT": "t",
        "wsgi.version": (1, 0),
        "wsgi.url_scheme": "http",
        "wsgi.errors": sys.stderr,
        "wsgi.multithread": False,
        "wsgi.multiprocess": True,
        "wsgi.run_once": False,
        "wsgi.input_terminated": True,
        "wsgi.file_wrapper": FileWrapper,
    }
    assert type(environ) is dict
    assert all(type(value) is str for key, value in environ.items() if key.isupper())


def test_multithread_and_errors_are_the_worker_s() -> None:
    """Apps read wsgi.multithread to choose their locks; wsgi.errors can be replaced."""
    errors = io.StringIO()
    shared = worker_environ(True, errors=errors)
    assert shared["wsgi.multithread"] is True
    assert shared["wsgi.errors"] is errors


def test_unix_sockets_have_no_addresses() -> None:
    """Without Host, SERVER_NAME and SERVER_PORT are gunicorn's: the path, and nothing."""
    environ = environ_of(b"GET / HTTP/1.0\r\n\r\n", address="/run/x.sock", peer="")
    assert (environ["SERVER_NAME"], environ["SERVER_PORT"]) == ("/run/x.sock", "")
    assert environ_of(b"GET / HTTP/1.0\r\nHost: \r\n\r\n", address=b"\0x", peer="")["SERVER_NAME"] == "@x"
    assert environ["REMOTE_ADDR"] == ""
    assert environ["SERVER_PROTOCOL"] == "HTTP/1.0"


@pytest.mark.parametrize(
    ("host", "scheme", "name", "port"),
    [
        ("example.com", "http", "example.com", "80"),
        ("example.com", "https", "example.com", "443"),
        ("example.com:8443", "https", "example.com", "8443"),
        ("example.com:", "http", "example.com", "80"),
        ("[2001:db8::1]", "https", "[2001:db8::1]", "443"),
        ("[2001:db8::1]:8000", "http", "[2001:db8::1]", "8000"),
    ],
)
def test_unix_sockets_are_called_what_the_client_calls_them(
    host: str, scheme: str, name: str, port: str
) -> None:
    """Behind a proxy that is trusted SERVER_NAME and SERVER_PORT are from Host and the scheme."""
    wire = f"GET / HTTP/1.1\r\nHost: {host}\r\nX-Forwarded-Proto: {scheme}\r\n\r\n".encode()
    environ = environ_of(wire, address="/run/x.sock", peer="")
    assert (environ["SERVER_NAME"], environ["SERVER_PORT"]) == (name, port)
    assert environ["wsgi.url_scheme"] == scheme
    assert environ_of(wire)["SERVER_PORT"] == "8000", "a TCP listener has a port of its own"


def test_ipv6_addresses() -> None:
    """Only the address, without flow and scope."""
    environ = environ_of(b"GET / HTTP/1.0\r\n\r\n", ("::1", 8000, 0, 0), ("2001:db8::1", 4000, 0, 0))
    assert (environ["SERVER_NAME"], environ["REMOTE_ADDR"]) == ("[::1]", "2001:db8::1")


def test_ipv4_through_an_ipv6_socket() -> None:
    """The server is named by the IPv4 address that was reached; the client by what the kernel and gunicorn
    call it.
    """
    environ = environ_of(
        b"GET / HTTP/1.0\r\n\r\n", ("::ffff:127.0.0.1", 80, 0, 0), ("::ffff:127.0.0.2", 4, 0, 0)
    )
    assert (environ["SERVER_NAME"], environ["REMOTE_ADDR"]) == ("127.0.0.1", "::ffff:127.0.0.2")


def test_requests_do_not_share_an_environ() -> None:
    """Changes of an app to its environ do not appear in the next request of the connection."""
    parser = RequestParser(Rules(), new_body)
    parser.feed(b"GET / HTTP/1.1\r\nHost: x\r\n\r\nGET / HTTP/1.1\r\nHost: x\r\n\r\n")
    listener = listener_environ(worker_environ(False), LISTENER)
    template = connection_environ(listener, PEER, {})
    first, second = (request_environ(template, request) for request in parser.requests)
    first["app.secret"] = "x"
    assert "app.secret" not in second


# -- the target ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("target", "path", "query"),
    [
        ("/", "/", ""),
        ("/a/b", "/a/b", ""),
        ("/a?b=c?d", "/a", "b=c?d"),
        ("/a?", "/a", ""),
        ("/a%20b%2Fc", "/a b/c", ""),
        ("/a%3Fb?c%3Dd", "/a?b", "c%3Dd"),  # decoded after the split; the query stays as sent
        ("/100%", "/100%", ""),
        ("/%zz", "/%zz", ""),
        ("/%C3%A9", "/\xc3\xa9", ""),  # PEP 3333: bytes as latin-1, whatever their encoding
        ("/%E9", "/\xe9", ""),
        ("/%00", "/\x00", ""),
        ("//a.example/b", "//a.example/b", ""),
        ("/a;b=c", "/a;b=c", ""),
        ("http://a.example/x?y", "/x", "y"),
        ("HTTPS://a.example", "/", ""),
        ("http://a.example?y=z", "/", "y=z"),
        ("http://a.example:8000/?y", "/", "y"),
    ],
)
def test_path_and_query(target: str, path: str, query: str) -> None:
    """RFC 3875 and RFC 9112 section 3.2: the path is decoded, the query is not, absolute form is reduced."""
    environ = with_fields(target=target)
    assert (environ["PATH_INFO"], environ["QUERY_STRING"], environ["RAW_URI"]) == (path, query, target)
    assert environ["SCRIPT_NAME"] == ""


def test_options_of_the_whole_server() -> None:
    """RFC 9110 section 9.3.7: `*` is not a path."""
    environ = environ_of(b"OPTIONS * HTTP/1.1\r\nHost: x\r\n\r\n")
    assert environ["PATH_INFO"] in ("", "*")
    assert environ["RAW_URI"] == "*"


# -- headers ---------------------------------------------------------------------------------------------


def test_names_become_variables() -> None:
    """RFC 3875 section 4.1.18; a name is translated in the same way in any case."""
    environ = with_fields("X-Some-Name: a", "x-other: b", "DNT: 1", "Content-Type: text/x")
    assert environ["HTTP_X_SOME_NAME"] == "a"
    assert environ["HTTP_X_OTHER"] == "b"
    assert environ["HTTP_DNT"] == "1"
    assert environ["CONTENT_TYPE"] == "text/x"
    assert "HTTP_CONTENT_TYPE" not in environ


def test_values_are_latin_1() -> None:
    """PEP 3333: native strings that hold bytes."""
    assert with_fields("X-A: caf\xe9", "X-B: \xc3\xa9")["HTTP_X_A"] == "caf\xe9"


def test_repeated_headers_are_joined() -> None:
    """RFC 9110 section 5.3: in their order, also when they are spelled differently."""
    environ = with_fields("Accept: a", "X-Between: x", "accept: b", "ACCEPT: c")
    assert [part.strip() for part in environ["HTTP_ACCEPT"].split(",")] == ["a", "b", "c"]


def test_repeated_cookies_are_joined_with_semicolons() -> None:
    """RFC 6265 section 5.4: a comma would be part of a cookie's value."""
    assert with_fields("Cookie: a=b", "cookie: c=d")["HTTP_COOKIE"] == "a=b; c=d"


def test_names_with_underscores_are_dropped() -> None:
    """X_Forwarded_For must not be taken for X-Forwarded-For, alone or beside it."""
    environ = with_fields(
        "X-Forwarded-For: 192.0.2.1", "X_Forwarded_For: 10.0.0.1", "Content_Type: a", "_: b"
    )
    assert environ["HTTP_X_FORWARDED_FOR"] == "192.0.2.1"
    assert "CONTENT_TYPE" not in environ
    assert not {key for key in environ if key.startswith("HTTP_")} - {"HTTP_HOST", "HTTP_X_FORWARDED_FOR"}


@pytest.mark.parametrize("name", ["Proxy", "PROXY", "proxy"])
def test_proxy_is_dropped(name: str) -> None:
    """httpoxy: HTTP_PROXY is a setting of programs that an app may start (CVE-2016-5385)."""
    assert "HTTP_PROXY" not in with_fields(f"{name}: evil.example:8080")


def test_headers_do_not_replace_the_server_s_own_keys() -> None:
    """All fields from a client are under HTTP_, except its two CONTENT_ keys."""
    environ = with_fields(
        "Remote-Addr: 1.2.3.4", "Server-Name: evil", "Wsgi.Url-Scheme: https", "Script-Name: /x"
    )
    assert environ["REMOTE_ADDR"] == "192.0.2.7"
    assert environ["SERVER_NAME"] == "127.0.0.1"
    assert environ["SCRIPT_NAME"] == ""
    assert environ["wsgi.url_scheme"] == "http"


# -- bodies ----------------------------------------------------------------------------------------------

POST = b"POST / HTTP/1.1\r\nHost: x\r\n"


def test_a_body_of_known_length() -> None:
    """wsgi.input is at the body's start, CONTENT_LENGTH is its length."""
    environ = environ_of(POST + b"Content-Length: 7\r\nContent-Type: a/b\r\n\r\na\nbc\nde")
    assert environ["CONTENT_LENGTH"] == "7"
    assert environ["CONTENT_TYPE"] == "a/b"
    body = environ["wsgi.input"]
    with body:
        assert body.read(1) == b"a"
        assert body.readline() == b"\n"
        assert list(body) == [b"bc\n", b"de"]
        assert body.read() == body.readline() == b""
        body.seek(0)
        assert body.readlines() == [b"a\n", b"bc\n", b"de"]


def test_a_chunked_body_has_its_true_length() -> None:
    """Its coding is removed, so the app sees a length and no Transfer-Encoding."""
    environ = environ_of(POST + b"Transfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n2\r\nde\r\n0\r\n\r\n")
    with environ["wsgi.input"] as body:
        assert body.read() == b"abcde"
    assert environ["CONTENT_LENGTH"] == "5"
    assert "HTTP_TRANSFER_ENCODING" not in environ
    assert "HTTP_CONTENT_LENGTH" not in environ


def test_an_empty_body() -> None:
    """CONTENT_LENGTH is `0` if the client sends that, else absent (PEP 3333 allows that)."""
    assert environ_of(POST + b"Content-Length: 0\r\n\r\n")["CONTENT_LENGTH"] == "0"
    assert environ_of(POST + b"Content-Length: 0\r\n\r\n")["wsgi.input"].read() == b""
    assert "CONTENT_LENGTH" not in with_fields()


def test_a_large_body_is_the_same_from_a_file() -> None:
    """Beyond the limit the body is in a file; the app sees no difference."""
    sent = bytes(range(256)) * (IN_MEMORY // 256 + 1)
    environ = environ_of(POST + b"Content-Length: %d\r\n\r\n" % len(sent) + sent)
    with environ["wsgi.input"] as body:
        assert environ["CONTENT_LENGTH"] == str(len(sent))
        assert body.read(10) == sent[:10]
        assert body.read() == sent[10:]
        assert body.read(1) == b""


# -- wsgi.file_wrapper -----------------------------------------------------------------------------------


def test_file_wrapper_yields_blocks_and_closes() -> None:
    """PEP 3333: iterates over the file in blocks; close() closes it."""
    file = io.BytesIO(b"abcde")
    wrapper = FileWrapper(file, 2)
    assert list(wrapper) == [b"ab", b"cd", b"e"]
    wrapper.close()
    assert file.closed


def test_file_wrapper_has_no_close_without_the_file_s() -> None:
    """PEP 3333: close exists only if the file-like object has it."""

    class Endless:
        def read(self, size: int) -> bytes:
            return b"x" * size

    wrapper = FileWrapper(Endless(), 3)  # type: ignore[arg-type]
    assert next(wrapper) == b"xxx"
    assert not hasattr(wrapper, "close")
