"""Every error is an ErrorView, and every change is in the audit log."""

import asyncio

import pytest

from tests.unit.control.conftest import Rig
from tests.unit.control.fake import TOKEN


@pytest.mark.parametrize(
    ("method", "path", "body", "media", "status", "word"),
    [
        ("GET", "/v1/nothing", b"", None, 404, "not_found"),
        ("PUT", "/v1/status", b"", None, 405, "method_not_allowed"),
        ("POST", "/v1/scale", b'{"workers":', "application/json", 400, "bad_request"),
        ("POST", "/v1/scale", b"\xff", "application/json", 400, "bad_request"),
        ("POST", "/v1/login", b'{"code": "\xff"}', "application/json", 400, "bad_request"),
        ("POST", "/v1/scale", b"x" * 70_000, "application/json", 413, "body_too_large"),
        ("POST", "/v1/scale", b"workers=5", "application/x-www-form-urlencoded", 415, "not_json"),
    ],
)
async def test_an_error_is_an_error_view(
    rig: Rig, method: str, path: str, body: bytes, media: str | None, status: int, word: str
) -> None:
    """Refusals of router, body reader and decoder have the same form: a word and a line."""
    headers = {"Content-Type": media} if media else {}
    session = rig.tcp if path == "/v1/login" else rig.unix
    async with session.request(method, path, data=body, headers=headers) as answer:
        assert answer.status == status
        view = await answer.json()
    assert view["error"] == word
    assert view["message"]
    assert "\n" not in view["message"]
    assert rig.backend.submitted == []


@pytest.mark.parametrize(
    "sent",
    [
        b"GARBAGE\r\n\r\n",
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03",  # the beginning of TLS
        b"GET /?\xc3 HTTP/1.1\r\nHost: localhost\r\n\r\n",
    ],
)
async def test_bytes_other_than_http_are_not_logged_as_errors(
    rig: Rig, sent: bytes, caplog: pytest.LogCaptureFixture
) -> None:
    """A broken client gets a 400, and the log at most a debug line, never a traceback."""
    reader, writer = await asyncio.open_unix_connection(rig.path)
    writer.write(sent)
    assert b" 400 " in await asyncio.wait_for(reader.readline(), 10)
    writer.close()
    await writer.wait_closed()
    await rig.server.close()
    assert caplog.records == []
    assert not any("exc_info" in record for record in rig.records)
    assert {record["level"] for record in rig.records if record["event"] == "control_bad_http"} <= {"debug"}


async def test_405_says_what_is_allowed(rig: Rig) -> None:
    """RFC 9110, 15.5.6: a 405 has Allow; two routes on one path are both named."""
    async with rig.unix.delete("/v1/reload") as answer:
        assert set(answer.headers["Allow"].split(", ")) == {"GET", "HEAD", "POST"}


async def test_a_defect_is_a_500_with_its_traceback_in_the_log(
    rig: Rig, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An exception of ours reaches the log with its traceback and the client without it."""
    monkeypatch.setattr(rig.backend, "exits", lambda _limit: 1 / 0)
    async with rig.unix.get("/v1/exits") as answer:
        assert answer.status == 500
        text = await answer.text()
    assert '"internal"' in text
    assert "ZeroDivision" not in text
    (record,) = [r for r in rig.records if r["event"] == "control_request_failed"]
    assert record["exc_info"]
    assert record["what"] == "exits"


async def test_changes_are_audited(rig: Rig) -> None:
    """Each request other than GET, carried out or refused, is one `control_change` with `who`, `what`,
    `outcome`.

    A GET is none.
    """
    await rig.unix.get("/v1/status")
    await rig.unix.post("/v1/scale", json={"delta": 2})
    await rig.unix.post("/v1/workers/9/recycle")
    await rig.tcp.post("/v1/scale", json={"delta": 2})
    first, second, third = rig.changes()
    assert first["who"].startswith("unix uid ")
    assert (first["what"], first["outcome"]) == ("scale delta=2", "200")
    assert (second["what"], second["outcome"]) == ("recycle /v1/workers/9/recycle", "404 not_found")
    assert (third["who"], third["what"], third["outcome"]) == ("127.0.0.1", "scale", "401 unauthorized")


async def test_what_the_fleet_logs_is_logged_once(rig: Rig) -> None:
    """A change that the fleet also logs is a debug line here;
    refused changes, and changes of other parts, are not.
    """
    await rig.unix.post("/v1/scale", json={"delta": 1})
    await rig.unix.post("/v1/scale", json={"workers": 0})
    await rig.unix.post("/v1/login-link")
    assert [record["level"] for record in rig.changes()] == ["debug", "info", "info"]


async def test_no_secret_is_logged(rig: Rig) -> None:
    """Neither the token nor a one-time code, right or wrong, is in any log record."""
    link = rig.server.login_link()
    assert link is not None
    code = link.partition("#login=")[2]
    await rig.tcp.post("/v1/login", json={"code": "wrong-code"})
    await rig.tcp.post("/v1/login", json={"code": code})
    await rig.tcp.post("/v1/login-link", headers=rig.bearer)
    text = repr(rig.records)
    assert len(rig.changes()) == 3
    assert not any(secret in text for secret in (TOKEN, code, "wrong-code"))
