"""Malformed requests, each with its source and the status of the answer.

Sources: section numbers are of RFC 9110 ("9110"), 9112 ("9112"), 9113 ("9113"), 6585 ("6585") and 3986
("3986"). "CL.TE", "TE.CL", "TE.TE", "CL.CL" and "CL.0" are the families of request smuggling (Linhart et al.
2005, Kettle 2019 and 2022), which live from two servers that see different ends of one request. "chunks" are
tricks with bare line ends in and around chunks (Weikop 2025); "CVE" rows were real servers' defects.
"""

import re
from pathlib import Path

import pytest

import ostler
from ostler.http1.request import Rules
from tests.unit.http1.parsing import GET, POST_CHUNKED, bytewise, refused


def line(raw: bytes) -> bytes:
    """A request whose only fault is in its first line."""
    return raw + b"\r\nHost: x\r\n\r\n"


def field(raw: bytes) -> bytes:
    """A request whose only fault is in its fields; a request that could be smuggled follows."""
    return b"POST / HTTP/1.1\r\nHost: x\r\n" + raw + b"\r\n\r\n" + b"0\r\n\r\n" + GET


def host(raw: bytes) -> bytes:
    return b"GET / HTTP/1.1\r\nHost: " + raw + b"\r\n\r\n"


def chunked(raw: bytes) -> bytes:
    """A chunked body with a fault."""
    return POST_CHUNKED + raw


MALFORMED = [
    # -- request line -------------------------------------------------------------------------------------
    ("9112 3: no version (HTTP/0.9)", b"GET /\r\n\r\n", 400),
    ("9112 3: nothing but a method", line(b"GET"), 400),
    ("9112 3: no target", line(b"GET HTTP/1.1"), 400),
    ("9112 3: two blanks before the target", line(b"GET  / HTTP/1.1"), 400),
    ("9112 3: two blanks behind the target", line(b"GET /  HTTP/1.1"), 400),
    ("9112 3: a blank in the target", line(b"GET /a b HTTP/1.1"), 400),
    ("9112 3: a blank behind the version", line(b"GET / HTTP/1.1 "), 400),
    ("9112 3: a blank before the method", line(b" GET / HTTP/1.1"), 400),
    ("9112 3: a tab for a blank", line(b"GET\t/ HTTP/1.1"), 400),
    ("9112 3: a tab before the version", line(b"GET /\tHTTP/1.1"), 400),
    ("9112 3: a vertical tab for a blank", line(b"GET\x0b/ HTTP/1.1"), 400),
    ("9112 3: a form feed for a blank", line(b"GET /\x0cHTTP/1.1"), 400),
    ("9112 2.2: bare LF ends the line", b"GET / HTTP/1.1\nHost: x\r\n\r\n", 400),
    ("9112 2.2: bare LF ends every line", b"GET / HTTP/1.1\nHost: x\n\n", 400),
    ("9112 2.2: bare CR ends the line", b"GET / HTTP/1.1\rHost: x\r\r", 400),
    ("9112 2.2: CR CR LF ends the line", b"GET / HTTP/1.1\r\r\nHost: x\r\n\r\n", 400),
    ("9112 2.2: bare LF before the line", b"\n" + GET, 400),
    ("9112 2.2: bare CR before the line", b"\r" + GET, 400),
    ("9112 2.2: empty lines without end", b"\r\n" * 100 + GET, 400),
    ("9112 2.2: NUL in the target", line(b"GET /a\x00b HTTP/1.1"), 400),
    ("9112 2.2: a control character in the target", line(b"GET /a\x01b HTTP/1.1"), 400),
    ("3986 2: DEL in the target", line(b"GET /a\x7fb HTTP/1.1"), 400),
    ("9112 3.2: a fragment", line(b"GET /a#b HTTP/1.1"), 400),
    ("9112 3.2: a fragment alone", line(b"GET # HTTP/1.1"), 400),
    ("9112 3.2: a relative path", line(b"GET a/b HTTP/1.1"), 400),
    ("9112 3.2: a query alone", line(b"GET ?a HTTP/1.1"), 400),
    ("9112 3.2: a backslash path", line(rb"GET \a HTTP/1.1"), 400),
    ("9112 3.2.3: authority-form without CONNECT", line(b"GET x:80 HTTP/1.1"), 400),
    ("9112 3.2.4: asterisk-form without OPTIONS", line(b"GET * HTTP/1.1"), 400),
    ("9112 3.2.4: asterisk and more", line(b"OPTIONS *a HTTP/1.1"), 400),
    ("9112 3.2.2: another scheme", line(b"GET ftp://x/ HTTP/1.1"), 400),
    ("9112 3.2.2: file scheme", line(b"GET file:///etc/passwd HTTP/1.1"), 400),
    ("9112 3.2.2: no scheme", line(b"GET ://x/ HTTP/1.1"), 400),
    ("9110 4.2.1: no host in an http URI", line(b"GET http:///a HTTP/1.1"), 400),
    ("9110 4.2.1: a port without a host", line(b"GET http://:80/ HTTP/1.1"), 400),
    ("9110 4.2.4: userinfo", line(b"GET http://user@x/ HTTP/1.1"), 400),
    ("9110 4.2.4: userinfo that looks like a host", line(b"GET http://good.example:80@evil/ HTTP/1.1"), 400),
    ("3986 3.2.3: a port that is no number", line(b"GET http://x:8a/ HTTP/1.1"), 400),
    ("3986 3.2.3: a port out of range", line(b"GET http://x:65536/ HTTP/1.1"), 400),
    ("3986 3.2.2: an open bracket", line(b"GET http://[::1/ HTTP/1.1"), 400),
    ("3986 3.2.2: a backslash in the authority", line(rb"GET http://x\y/ HTTP/1.1"), 400),
    ("9110 9.3.6: no proxy", line(b"CONNECT x:443 HTTP/1.1"), 501),
    ("9112 3.2.3: CONNECT without a port", line(b"CONNECT x HTTP/1.1"), 400),
    ("9112 3.2.3: CONNECT with a path", line(b"CONNECT / HTTP/1.1"), 400),
    ("9112 3.2.3: CONNECT with a URI", line(b"CONNECT http://x:80/ HTTP/1.1"), 400),
    ("9110 9.1: lower case", line(b"get / HTTP/1.1"), 400),
    ("9110 9.1: mixed case", line(b"Get / HTTP/1.1"), 400),
    ("9110 9.1: no token", line(b"GE(T / HTTP/1.1"), 400),
    ("9110 9.1: quoted", line(b'"GET" / HTTP/1.1'), 400),
    ("9110 9.1: a colon", line(b"GET: / HTTP/1.1"), 400),
    ("9110 9.1: beyond ASCII", line(b"G\xc9T / HTTP/1.1"), 400),
    ("9110 9.1: NUL before the method", line(b"\x00GET / HTTP/1.1"), 400),
    ("9110 9.1: a byte order mark", line(b"\xef\xbb\xbfGET / HTTP/1.1"), 400),
    ("9112 3: a method longer than any", line(b"A" * 21 + b" / HTTP/1.1"), 501),
    ("9112 3: a method without end", b"A" * 1000, 501),
    ("9113 3.4: the preface of HTTP/2", b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", 505),
    ("9110 2.5: HTTP/2.0", line(b"GET / HTTP/2.0"), 505),
    ("9110 2.5: HTTP/3.0", line(b"GET / HTTP/3.0"), 505),
    ("9110 2.5: HTTP/0.9", line(b"GET / HTTP/0.9"), 505),
    ("9110 2.5: HTTP/9.9", line(b"GET / HTTP/9.9"), 505),
    ("9112 2.3: lower case", line(b"GET / http/1.1"), 400),
    ("9112 2.3: two digits", line(b"GET / HTTP/1.10"), 400),
    ("9112 2.3: two leading digits", line(b"GET / HTTP/01.1"), 400),
    ("9112 2.3: no minor version", line(b"GET / HTTP/1"), 400),
    ("9112 2.3: no minor digit", line(b"GET / HTTP/1."), 400),
    ("9112 2.3: a comma", line(b"GET / HTTP/1,1"), 400),
    ("9112 2.3: a blank in the version", line(b"GET / HTTP/1. 1"), 400),
    ("9112 2.3: no slash", line(b"GET / HTTP 1.1"), 400),
    ("9112 2.3: another protocol", line(b"GET / ICAP/1.0"), 400),
    ("9112 2.3: a sign", line(b"GET / HTTP/+1.1"), 400),
    ("9112 2.3: nothing", line(b"GET / "), 400),
    ("a TLS client", b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03", 400),
    ("a SOCKS client", b"\x05\x01\x00", 400),
    ("an SSH client", b"SSH-2.0-OpenSSH_9.9\r\n", 400),
    ("words", b"hello world\r\n\r\n", 400),
    ("9112 4: a response", b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n", 400),
    ("9112 3: too long", line(b"GET /" + b"a" * 5000 + b" HTTP/1.1"), 414),
    ("9112 3: too long, without end", b"GET /" + b"a" * 5000, 414),
    # -- fields -------------------------------------------------------------------------------------------
    ("9112 5.1: a blank before the colon", field(b"X : a"), 400),
    ("9112 5.1: a tab before the colon", field(b"X\t: a"), 400),
    ("9112 5: no colon", field(b"X"), 400),
    ("9112 5: no name", field(b": a"), 400),
    ("9110 5.1: a blank in the name", field(b"X Y: a"), 400),
    ("9110 5.1: parentheses in the name", field(b"(X): a"), 400),
    ("9110 5.1: a slash in the name", field(b"X/Y: a"), 400),
    ("9110 5.1: quotes in the name", field(b'"X": a'), 400),
    ("9110 5.1: a byte beyond ASCII in the name", field(b"X\xe9: a"), 400),
    ("9110 5.1: a control character in the name", field(b"X\x01: a"), 400),
    ("9110 5.1: NUL in the name", field(b"X\x00: a"), 400),
    ("9110 5.1: DEL in the name", field(b"X\x7f: a"), 400),
    ("9112 5.2: obsolete folding", field(b"X: a\r\n b"), 400),
    ("9112 5.2: obsolete folding with a tab", field(b"X: a\r\n\tb"), 400),
    ("9112 2.2: a blank before the first field", b"GET / HTTP/1.1\r\n Host: x\r\n\r\n", 400),
    ("9112 2.2: a blank line before the first field", b"GET / HTTP/1.1\r\n \r\nHost: x\r\n\r\n", 400),
    ("9110 5.5: NUL in a value", field(b"X: a\x00b"), 400),
    ("9110 5.5: CR in a value", field(b"X: a\rb"), 400),
    ("9110 5.5: CR that hides a field", field(b"X: a\rTransfer-Encoding: chunked"), 400),
    ("9110 5.5: CR CR LF behind a value", field(b"X: a\r"), 400),
    ("9110 5.5: a control character in a value", field(b"X: a\x1bb"), 400),
    ("9110 5.5: DEL in a value", field(b"X: a\x7fb"), 400),
    ("9112 2.2: LF that hides a field", field(b"X: a\nContent-Length: 5"), 400),
    ("9112 2.2: LF LF ends the head", b"GET / HTTP/1.1\r\nHost: x\n\n", 400),
    ("9112 2.2: CR LF LF ends the head", b"GET / HTTP/1.1\r\nHost: x\r\n\n", 400),
    ("9112 2.2: LF CR LF ends the head", b"GET / HTTP/1.1\r\nHost: x\n\r\n", 400),
    ("9112 2.2: CR CR and no LF at all", b"GET / HTTP/1.1\r\nHost: x\r\r", 400),
    ("9112 2.2: CR CR ends the head", b"GET / HTTP/1.1\r\nHost: x\r\r\n\r\n", 400),
    ("9110 8.3: two Content-Types", field(b"Content-Type: a/b\r\nContent-Type: c/d"), 400),
    ("9110 8.3: the same Content-Type twice", field(b"Content-Type: a/b\r\ncontent-type: a/b"), 400),
    ("9110 10.1.1: another expectation", field(b"Expect: 200-ok"), 417),
    ("9110 10.1.1: another expectation besides", field(b"Expect: 100-continue, x"), 417),
    ("6585 5: a field too large", field(b"X: " + b"a" * 8200), 431),
    ("6585 5: too many fields", field(b"\r\n".join([b"X: a"] * 100)), 431),
    ("6585 5: fields without end", b"GET / HTTP/1.1\r\n" + b"X: a\r\n" * 20_000, 431),
    ("6585 5: a field without end", b"GET / HTTP/1.1\r\nX: " + b"a" * 70_000, 431),
    # -- Host ---------------------------------------------------------------------------------------------
    ("9112 3.2: no Host", b"GET / HTTP/1.1\r\n\r\n", 400),
    ("9112 3.2: no Host beside an absolute target", b"GET http://x/ HTTP/1.1\r\n\r\n", 400),
    ("9112 3.2: two Hosts", b"GET / HTTP/1.1\r\nHost: x\r\nHost: y\r\n\r\n", 400),
    ("9112 3.2: the same Host twice", b"GET / HTTP/1.1\r\nHost: x\r\nhost: x\r\n\r\n", 400),
    ("9112 3.2: two Hosts in 1.0", b"GET / HTTP/1.0\r\nHost: x\r\nHost: y\r\n\r\n", 400),
    ("9112 3.2: two Hosts, absolute target", b"GET http://x/ HTTP/1.1\r\nHost: x\r\nHost: y\r\n\r\n", 400),
    (
        "9112 3.2: an invalid Host beside an absolute target",
        b"GET http://x/ HTTP/1.1\r\nHost: a b\r\n\r\n",
        400,
    ),
    ("9110 7.2: two hosts in one", host(b"x, y"), 400),
    ("9110 7.2: a blank in it", host(b"x y"), 400),
    ("9110 7.2: a path", host(b"x/admin"), 400),
    ("9110 7.2: a query", host(b"x?y"), 400),
    ("9110 7.2: userinfo", host(b"user@x"), 400),
    ("9110 7.2: a scheme", host(b"http://x"), 400),
    ("3986 3.2.3: a port that is no number", host(b"x:8a"), 400),
    ("3986 3.2.3: a signed port", host(b"x:+80"), 400),
    ("3986 3.2.3: a port out of range", host(b"x:99999"), 400),
    ("3986 3.2.3: a long port", host(b"x:00000000080"), 400),
    ("3986 3.2.2: two colons", host(b"x:80:80"), 400),
    ("3986 3.2.2: an IPv6 address without brackets", host(b"::1"), 400),
    ("3986 3.2.2: letters behind a bracket", host(b"[::1]x"), 400),
    ("3986 3.2.2: empty brackets", host(b"[]"), 400),
    ("3986 2.1: a broken escape", host(b"x%zz"), 400),
    ("3986 2: a byte beyond ASCII", host(b"caf\xe9"), 400),
    ("3986 2: a quote", host(b'x"y'), 400),
    ("3986 2: angle brackets", host(b"<script>"), 400),
    ("3986 2: a backslash", host(rb"x\y"), 400),
    # -- Content-Length -----------------------------------------------------------------------------------
    ("CL.TE", field(b"Content-Length: 5\r\nTransfer-Encoding: chunked"), 400),
    ("TE.CL", field(b"Transfer-Encoding: chunked\r\nContent-Length: 5"), 400),
    ("CL.TE, zero", field(b"Content-Length: 0\r\nTransfer-Encoding: chunked"), 400),
    ("CL.CL: two values", field(b"Content-Length: 5\r\nContent-Length: 6"), 400),
    ("CL.CL: the same twice", field(b"Content-Length: 5\r\nContent-Length: 5"), 400),
    ("CL.CL: zero and five", field(b"Content-Length: 0\r\ncontent-length: 5"), 400),
    ("CL.CL: a list", field(b"Content-Length: 5, 5"), 400),
    ("CL.CL: a list without blank", field(b"Content-Length: 5,6"), 400),
    ("CL.CL: two numbers", field(b"Content-Length: 3 1"), 400),
    ("CL.CL: two numbers and a tab", field(b"Content-Length: 3\t1"), 400),
    ("9110 8.6: empty", field(b"Content-Length:"), 400),
    ("9110 8.6: blank", field(b"Content-Length:  "), 400),
    ("9110 8.6: a word", field(b"Content-Length: five"), 400),
    ("9110 8.6: a plus", field(b"Content-Length: +5"), 400),
    ("9110 8.6: a minus", field(b"Content-Length: -5"), 400),
    ("9110 8.6: minus zero", field(b"Content-Length: -0"), 400),
    ("9110 8.6: hexadecimal", field(b"Content-Length: 0x5"), 400),
    ("9110 8.6: a fraction", field(b"Content-Length: 5.0"), 400),
    ("9110 8.6: an exponent", field(b"Content-Length: 5e1"), 400),
    ("9110 8.6: an underscore, as int() takes it", field(b"Content-Length: 1_0"), 400),
    ("9110 8.6: quoted", field(b'Content-Length: "5"'), 400),
    ("9110 8.6: other digits", field(b"Content-Length: \xb2"), 400),
    ("9110 8.6: more than 64 bits", field(b"Content-Length: 18446744073709551621"), 400),
    ("9110 8.6: more than 63 bits", field(b"Content-Length: 9223372036854775808"), 400),
    ("9110 8.6: a vertical tab", field(b"Content-Length: \x0b5"), 400),
    ("9110 8.6: a semicolon", field(b"Content-Length: 5;"), 400),
    ("CL.0: folded", field(b"Content-Length:\r\n 5"), 400),
    ("CL.0: a blank before the colon", field(b"Content-Length : 5"), 400),
    ("CL.0: a NUL behind the name", field(b"Content-Length\x00: 5"), 400),
    ("CL.0: LF behind another field", field(b"X: y\nContent-Length: 5"), 400),
    # -- Transfer-Encoding --------------------------------------------------------------------------------
    ("TE.TE: twice", field(b"Transfer-Encoding: chunked\r\nTransfer-Encoding: chunked"), 400),
    (
        "TE.TE: chunked, then identity",
        field(b"Transfer-Encoding: chunked\r\nTransfer-Encoding: identity"),
        400,
    ),
    (
        "TE.TE: identity, then chunked",
        field(b"Transfer-Encoding: identity\r\nTransfer-Encoding: chunked"),
        400,
    ),
    ("TE.TE: a list with chunked twice", field(b"Transfer-Encoding: chunked, chunked"), 400),
    ("TE.TE: chunked not last", field(b"Transfer-Encoding: chunked, gzip"), 400),
    ("TE.TE: chunked not last, identity", field(b"Transfer-Encoding: chunked, identity"), 400),
    ("TE.TE: cow", field(b"Transfer-Encoding: chunked, cow"), 400),
    ("9112 6.1: a coding before", field(b"Transfer-Encoding: gzip, chunked"), 501),
    ("9112 6.1: identity before", field(b"Transfer-Encoding: identity, chunked"), 501),
    ("9112 6.3: only gzip", field(b"Transfer-Encoding: gzip"), 400),
    ("9112 6.3: identity", field(b"Transfer-Encoding: identity"), 400),
    ("TE.TE: xchunked", field(b"Transfer-Encoding: xchunked"), 400),
    ("TE.TE: chunkedx", field(b"Transfer-Encoding: chunkedx"), 400),
    ("TE.TE: CVE-2019-18277, a vertical tab before", field(b"Transfer-Encoding: \x0bchunked"), 400),
    ("TE.TE: a form feed before", field(b"Transfer-Encoding:\x0cchunked"), 400),
    ("TE.TE: a vertical tab behind", field(b"Transfer-Encoding: chunked\x0b"), 400),
    ("TE.TE: NUL behind", field(b"Transfer-Encoding: chunked\x00"), 400),
    ("TE.TE: a no-break space", field(b"Transfer-Encoding:\xa0chunked"), 400),
    ("TE.TE: quoted", field(b'Transfer-Encoding: "chunked"'), 400),
    ("TE.TE: single quotes", field(b"Transfer-Encoding: 'chunked'"), 400),
    ("TE.TE: folded", field(b"Transfer-Encoding:\r\n chunked"), 400),
    ("TE.TE: a blank before the name", field(b" Transfer-Encoding: chunked"), 400),
    ("TE.TE: a blank before the colon", field(b"Transfer-Encoding : chunked"), 400),
    ("TE.TE: a tab before the colon", field(b"Transfer-Encoding\t: chunked"), 400),
    ("TE.TE: no colon", field(b"Transfer-Encoding chunked"), 400),
    ("TE.TE: behind a bare LF", field(b"X: y\nTransfer-Encoding: chunked"), 400),
    ("TE.TE: behind a bare CR", field(b"X: y\rTransfer-Encoding: chunked"), 400),
    ("TE.TE: empty", field(b"Transfer-Encoding:"), 400),
    ("TE.TE: a trailing comma", field(b"Transfer-Encoding: chunked,"), 400),
    ("TE.TE: a leading comma", field(b"Transfer-Encoding: ,chunked"), 400),
    ("TE.TE: a parameter", field(b"Transfer-Encoding: chunked;q=1"), 400),
    ("9112 6.1: chunked in 1.0", b"POST / HTTP/1.0\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n", 400),
    # -- chunks -------------------------------------------------------------------------------------------
    ("9112 7.1: no size", chunked(b"\r\nhello\r\n0\r\n\r\n"), 400),
    ("9112 7.1: no digit", chunked(b"x\r\nhello\r\n"), 400),
    ("9112 7.1: a prefix", chunked(b"0x5\r\nhello\r\n"), 400),
    ("9112 7.1: a minus", chunked(b"-5\r\nhello\r\n"), 400),
    ("9112 7.1: a plus", chunked(b"+5\r\nhello\r\n"), 400),
    ("9112 7.1: an underscore, as int() takes it", chunked(b"1_0\r\nhello\r\n"), 400),
    ("9112 7.1: a blank before", chunked(b" 5\r\nhello\r\n"), 400),
    ("9112 7.1: a blank behind", chunked(b"5 \r\nhello\r\n"), 400),
    ("9112 7.1: a blank within", chunked(b"1 0\r\nhello\r\n"), 400),
    ("9112 7.1: a comma", chunked(b"5,5\r\nhello\r\n"), 400),
    ("9112 7.1: 64 bits", chunked(b"FFFFFFFFFFFFFFFF\r\n"), 400),
    ("CVE-2013-2028: a size beyond 64 bits", chunked(b"10000000000000005\r\nhello\r\n"), 400),
    ("9112 7.1: digits without end", chunked(b"0" * 5000), 400),
    ("9112 7.1: NUL in the size", chunked(b"5\x00\r\nhello\r\n"), 400),
    ("9112 7.1: other digits", chunked(b"\xb2\r\nab\r\n"), 400),
    ("chunks: bare LF behind the size", chunked(b"5\nhello\r\n0\r\n\r\n"), 400),
    ("chunks: bare CR behind the size", chunked(b"5\rhello\r\n0\r\n\r\n"), 400),
    ("chunks: bare LF behind the data", chunked(b"5\r\nhello\n0\r\n\r\n"), 400),
    ("chunks: no line end behind the data", chunked(b"5\r\nhello0\r\n\r\n"), 400),
    ("chunks: two other bytes behind the data", chunked(b"5\r\nhelloXX0\r\n\r\n"), 400),
    ("chunks: longer than its size", chunked(b"4\r\nhello\r\n0\r\n\r\n"), 400),
    ("chunks: shorter than its size", chunked(b"6\r\nhello\r\n0\r\n\r\n"), 400),
    ("chunks: bare LF in an extension", chunked(b"5;\nhello\r\n0\r\n\r\n"), 400),
    ("chunks: bare LF behind an extension", chunked(b"5;a=b\nhello\r\n0\r\n\r\n"), 400),
    ("chunks: bare CR in an extension", chunked(b"5;a\rb\r\nhello\r\n0\r\n\r\n"), 400),
    ("chunks: a line end in a quoted extension", chunked(b'5;a="\r\n"\r\nhello\r\n0\r\n\r\n'), 400),
    ("chunks: an empty extension", chunked(b"5;\r\nhello\r\n"), 400),
    ("chunks: an extension without a name", chunked(b"5;=b\r\nhello\r\n"), 400),
    ("chunks: an extension without a value", chunked(b"5;a=\r\nhello\r\n"), 400),
    ("chunks: an open quote", chunked(b'5;a="b\r\nhello\r\n'), 400),
    ("chunks: NUL in an extension", chunked(b"5;a=\x00\r\nhello\r\n"), 400),
    ("CVE-2023-39326: extensions without end", chunked(b"1;" + b"a" * 5000), 400),
    (
        "CVE-2023-39326: extensions larger than the body",
        chunked((b"1;" + b"a" * 900 + b"\r\nx\r\n") * 50),
        400,
    ),
    ("chunks: bare LF behind the last chunk", chunked(b"0\n\r\n"), 400),
    ("chunks: bare LF behind the trailers", chunked(b"0\r\n\n"), 400),
    ("chunks: bare CR behind the trailers", chunked(b"0\r\n\rX\n"), 400),
    # -- trailers -----------------------------------------------------------------------------------------
    ("9110 6.5.1: Content-Length", chunked(b"0\r\nContent-Length: 5\r\n\r\n"), 400),
    ("9110 6.5.1: Transfer-Encoding", chunked(b"0\r\nTransfer-Encoding: chunked\r\n\r\n"), 400),
    ("9110 6.5.1: Host", chunked(b"0\r\nhost: y\r\n\r\n"), 400),
    ("9110 6.5.1: Authorization", chunked(b"0\r\nAuthorization: Basic eA==\r\n\r\n"), 400),
    ("9110 6.5.1: Content-Type", chunked(b"0\r\nCONTENT-TYPE: a/b\r\n\r\n"), 400),
    ("9110 6.5.1: Connection", chunked(b"0\r\nConnection: close\r\n\r\n"), 400),
    ("9110 6.5.1: Cookie", chunked(b"0\r\nX: y\r\nCookie: a=b\r\n\r\n"), 400),
    ("9112 7.1.2: no colon", chunked(b"0\r\nX\r\n\r\n"), 400),
    ("9112 7.1.2: a request for a trailer", chunked(b"0\r\n" + GET), 400),
    ("9112 7.1.2: a blank before the colon", chunked(b"0\r\nX : y\r\n\r\n"), 400),
    ("9112 7.1.2: folded", chunked(b"0\r\nX: y\r\n z\r\n\r\n"), 400),
    ("9112 7.1.2: bare LF", chunked(b"0\r\nX: y\n\r\n"), 400),
    ("9112 7.1.2: NUL", chunked(b"0\r\nX: \x00\r\n\r\n"), 400),
    ("9112 7.1.2: too many", chunked(b"0\r\n" + b"X: y\r\n" * 101), 431),
    ("9112 7.1.2: too long", chunked(b"0\r\nX: " + b"y" * 9000), 431),
    ("9112 7.1.2: too much", chunked(b"0\r\n" + (b"X: " + b"y" * 8000 + b"\r\n") * 3), 431),
]


@pytest.mark.parametrize(("wire", "status"), [pytest.param(w, s, id=i) for i, w, s in MALFORMED])
def test_malformed(wire: bytes, status: int) -> None:
    """It is refused with its status, in one read and byte by byte, and nothing in it becomes a request."""
    for pieces in ([wire], bytewise(wire)):
        violation, before = refused(*pieces)
        assert violation.status.startswith(f"{status} ")
        assert before == []


@pytest.mark.parametrize(("wire", "status"), [pytest.param(w, s, id=i) for i, w, s in MALFORMED])
def test_malformed_behind_a_request(wire: bytes, status: int) -> None:
    """After a valid request it is refused as well, and the valid request is served."""
    violation, before = refused(GET + wire)
    assert violation.status.startswith(f"{status} ")
    assert [got.target for got in before] == [b"/a"]


def test_the_table_names_each_row_once() -> None:
    """A duplicate row would hide that another one is missing."""
    names = [(name, wire) for name, wire, _ in MALFORMED]
    assert len(set(names)) == len(names) >= 120


STRICTER = [
    ("413, by Content-Length", Rules(limit_request_body=4), b"Content-Length: 5\r\n\r\nhello", 413),
    ("413, by the first chunk", Rules(limit_request_body=4), b"Transfer-Encoding: chunked\r\n\r\n5\r\n", 413),
    (
        "413, by the second chunk",
        Rules(limit_request_body=4),
        b"Transfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n2\r\n",
        413,
    ),
    ("414", Rules(limit_request_line=15), b"\r\n", 414),
    ("431, one field too many", Rules(limit_request_fields=1), b"A: b\r\n\r\n", 431),
    ("431, one byte too many", Rules(limit_request_field_size=7), b"A: 34567\r\n\r\n", 431),
    ("an underscore", Rules(header_map="refuse"), b"A_B: c\r\n\r\n", 400),
    (
        "contradicting schemes",
        Rules(secure_scheme_headers={b"x-forwarded-proto": b"https", b"x-forwarded-ssl": b"on"}),
        b"X-Forwarded-Proto: https\r\nX-Forwarded-SSL: off\r\n\r\n",
        400,
    ),
    (
        "the same contradiction in one name",
        Rules(secure_scheme_headers={b"x-forwarded-proto": b"https"}),
        b"X-Forwarded-Proto: http\r\nX-Forwarded-Proto: https\r\n\r\n",
        400,
    ),
]


@pytest.mark.parametrize(("rules", "rest", "status"), [pytest.param(*row[1:], id=row[0]) for row in STRICTER])
def test_stricter_rules(rules: Rules, rest: bytes, status: int) -> None:
    """The rules can refuse requests that are accepted by default."""
    wire = b"POST /4 HTTP/1.1\r\nHost: x\r\n" + rest
    for pieces in ([wire], bytewise(wire)):
        violation, before = refused(*pieces, rules=rules)
        assert violation.status.startswith(f"{status} ")
        assert before == []


def test_patterns_mean_the_same_in_all_pythons() -> None:
    """In Python 3.11.2 (Debian 12) a possessive quantifier behind a group matches too much."""
    sources = sorted(Path(ostler.__file__).parent.glob("http1/*.py"))
    assert len(sources) > 5
    for path in sources:
        assert not re.search(r"\)[*+?]\+(?!,;=)", path.read_text()), path
