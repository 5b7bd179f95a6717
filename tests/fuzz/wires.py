"""What both fuzzers begin with: requests, and words that mean something in them."""

GET = b"GET /a?b HTTP/1.1\r\nHost: x\r\n\r\n"
POST = b"POST / HTTP/1.1\r\nHost: x\r\n"
SEEDS = (
    GET,
    GET + GET,
    b"GET http://y:80/a HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n",
    b"OPTIONS * HTTP/1.0\r\nConnection: keep-alive\r\n\r\n" + GET,
    b"GET / HTTP/1.1\r\nHost: [::1]:80\r\nX_Y: z\r\nX-Forwarded-Proto: https\r\nCookie: a=b \r\n\r\n",
    POST + b"Content-Length: 5\r\nExpect: 100-continue\r\n\r\nhello" + GET,
    POST
    + b'Transfer-Encoding: chunked\r\n\r\n5;a="b"\r\nhello\r\n00A\r\n0123456789\r\n0\r\nX: y\r\n\r\n'
    + GET,
    POST + b"Connection: Upgrade\r\nUpgrade: h2c\r\nContent-Length: 0\r\n\r\n" + GET,
)
WORDS = (
    *(b"GET ", b"POST ", b"CONNECT ", b"OPTIONS ", b"HTTP/1.1\r\n", b"HTTP/1.0\r\n", b"HTTP/2.0\r\n"),
    *(b"Host: x\r\n", b"Content-Length: ", b"Transfer-Encoding: ", b"chunked", b"gzip", b"Connection: "),
    *(b"close", b"Upgrade: ", b"Expect: ", b"100-continue", b"keep-alive", b"Content-Type: ", b"http://"),
    *(b"\r\n\r\n", b"\r\n", b"0\r\n\r\n", b";a=b", b"\r", b"\n", b"[::1]", b"_", b"%41"),
)
