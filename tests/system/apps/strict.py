"""Usual cases of PEP 3333 under wsgiref's validator, which raises when server or app breaks a rule."""

from wsgiref.validate import validator


def _app(environ, start_response):
    method, path = environ["REQUEST_METHOD"], environ["PATH_INFO"]
    headers = [("Content-Type", "text/plain")]
    if path == "/echo":
        length = environ.get("CONTENT_LENGTH")
        body = environ["wsgi.input"].read(int(length) if length else -1)
        start_response("200 OK", [*headers, ("Content-Length", str(len(body)))])
        return [body]
    if path == "/lines":
        lines = []
        while line := environ["wsgi.input"].readline(100):
            lines.append(line)
        start_response("200 OK", headers)
        return [str(len(lines)).encode()]
    if path == "/stream":
        start_response("200 OK", headers)
        return (f"part {n}\n".encode() for n in range(50))
    if path == "/write":
        write = start_response("200 OK", headers)
        write(b"written, ")
        return [b"returned"]
    if path == "/":
        body = f"{method} {environ['QUERY_STRING']}".encode()
        start_response("200 OK", [*headers, ("Content-Length", str(len(body)))])
        return [body]
    start_response("404 Not Found", headers)
    return [b"no such page\n"]


app = validator(_app)
