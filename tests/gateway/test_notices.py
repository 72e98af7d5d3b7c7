"""Notices: told once per request, over an inbox or a signed webhook, with what outsiders wrote made harmless."""

import asyncio
import json
import uuid
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
import standardwebhooks

from opsmesh.audit.v1 import audit_service_pb2
from opsmesh.gateway.v1 import effect_service_pb2
from opsmesh.tools.notify.v1 import notify_tool_service_pb2 as pb
from services.gateway.backends import ConfiguredUrl, Inbox, Webhook
from services.gateway.domain import State
from services.gateway.tools.notify import NotifyTools, append_once, contains, notice
from services.gateway.tools.toolbox import EffectFailedError
from services.mesh.call import working
from services.mesh.errors import Refusal
from tests.gateway.world import NOTICE, Mesh

Event = audit_service_pb2.AuditEvent
SECRET = "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw"


def a_notice(**changes: Any) -> pb.SendNoticeRequest:
    """Return a new request with changes."""
    values: dict[str, Any] = {
        "request_id": str(uuid.uuid4()),
        "channel": "ops",
        "kind": pb.SendNoticeRequest.KIND_REPAIRED,
        "title": "checkout",
    }
    return pb.SendNoticeRequest(**(values | changes))


def told(path: Path, request: pb.SendNoticeRequest) -> list[dict[str, Any]]:
    """Return the notices of one request in an inbox."""
    lines = [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []
    return [one for one in lines if one["notice_id"] == request.request_id]


class Receiver:
    """A webhook receiver: answers every POST with `status` (0: never), keeps headers and bodies."""

    def __init__(self) -> None:
        self.status = 204
        self.port = 0
        self.received: list[tuple[dict[str, str], str]] = []

    @property
    def url(self) -> ConfiguredUrl:
        """Return where it listens."""
        return ConfiguredUrl(f"http://127.0.0.1:{self.port}/hook")

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        head = (await reader.readuntil(b"\r\n\r\n")).decode().split("\r\n")[1:-2]
        headers = {name.lower(): value for name, _, value in (line.partition(": ") for line in head)}
        body = (await reader.readexactly(int(headers["content-length"]))).decode()
        self.received.append((headers, body))
        if self.status:
            location = f"Location: {self.url}\r\n" if 300 <= self.status < 400 else ""
            writer.write(f"HTTP/1.1 {self.status} X\r\n{location}Content-Length: 0\r\n\r\n".encode())
            await writer.drain()
            writer.close()

    @asynccontextmanager
    async def listening(self) -> AsyncIterator["Receiver"]:
        """Listen on a free port."""
        server = await asyncio.start_server(self._serve, "127.0.0.1", self.port)
        self.port = server.sockets[0].getsockname()[1]
        try:
            yield self
        finally:
            server.close()


async def send(tools: NotifyTools, request: pb.SendNoticeRequest, seconds: float = 5) -> pb.SendNoticeResponse:
    """Send as the pipeline does."""
    with working("service/gateway", NOTICE, seconds):
        return await tools.send_notice(request, {})


async def test_a_notice_is_told_once_and_recorded(mesh: Mesh) -> None:
    """The same request twice: one line in the inbox, one RECORD in audit, the same answer."""
    request = a_notice(target_id="svc:demo/checkout", detail="healthy again")
    grant = mesh.sign(await mesh.mint(request, NOTICE))
    first = await mesh.call(request, grant)
    assert await mesh.call(request, grant) == first
    assert first.notice_id == request.request_id
    (line,) = told(mesh.inbox, request)
    assert line["text"] == "Repaired: checkout\nTarget: svc:demo/checkout\nhealthy again"
    await mesh.until(lambda: mesh.audit.of(request.request_id, Event.PHASE_RECORD))
    (record,) = mesh.audit.of(request.request_id, Event.PHASE_RECORD)
    assert (record.outcome, record.action) == (Event.OUTCOME_SUCCEEDED, NOTICE)
    assert not mesh.audit.of(request.request_id, Event.PHASE_INTENT)


async def test_a_notice_needs_a_grant(mesh: Mesh) -> None:
    """Without one GRANT_MISSING, with a forged one GRANT_INVALID, and nothing is told."""
    request = a_notice()
    with pytest.raises(Refusal, match="GRANT_MISSING"):
        await mesh.call(request, None)
    grant = await mesh.mint(a_notice(), NOTICE)
    with pytest.raises(Refusal, match="GRANT_INVALID"):
        await mesh.call(request, mesh.sign(grant))
    assert not told(mesh.inbox, request)


async def test_a_notice_needs_neither_audit_nor_policy_of_this_moment(mesh: Mesh) -> None:
    """With audit down and under an older policy set it is told; the record is delivered later."""
    request = a_notice()
    mesh.audit.mode = "refuse"
    try:
        grant = await mesh.mint(request, NOTICE, policy_set_version=1, kill_epoch=9)
        assert (await mesh.call(request, mesh.sign(grant))).notice_id
        assert not mesh.audit.of(request.request_id, Event.PHASE_RECORD)
    finally:
        mesh.audit.mode = "keep"
    await mesh.until(lambda: mesh.audit.of(request.request_id, Event.PHASE_RECORD))


@pytest.mark.parametrize("written", [True, False], ids=["line written", "line lost"])
async def test_a_crash_around_the_inbox_tells_it_once(mesh: Mesh, *, written: bool) -> None:
    """A notice left STARTED is SUCCEEDED when its line is there, sent when it is not: one line in the end."""
    request = a_notice()
    grant = mesh.sign(await mesh.mint(request, NOTICE))
    await mesh.call(request, grant)
    if not written:
        mesh.inbox.unlink()
    undo = "UPDATE gateway.effects SET state = 'STARTED', response = NULL WHERE request_id = $1::text::uuid"
    await mesh.execute(undo, request.request_id)
    await mesh.let_pass(request)
    assert (await mesh.call(request, grant)).notice_id == request.request_id
    assert len(told(mesh.inbox, request)) == 1


async def test_an_unknown_channel_is_a_failure(mesh: Mesh) -> None:
    """EFFECT_FAILED names the channel; requests cannot name a place, only a channel."""
    request = a_notice(channel="nowhere")
    with pytest.raises(Refusal, match="EFFECT_FAILED") as caught:
        await mesh.call(request, mesh.sign(await mesh.mint(request, NOTICE)))
    assert "nowhere" in caught.value.metadata["detail"]
    effect = await mesh.effect(request, NOTICE)
    assert effect.state == effect_service_pb2.Effect.STATE_FAILED


def test_a_notice_names_the_approval_it_is_about() -> None:
    """Who reads that something was answered can look it up."""
    approval_id = str(uuid.uuid4())
    kind = pb.SendNoticeRequest.KIND_APPROVAL_ANSWERED
    line = json.loads(notice(a_notice(kind=kind, approval_id=approval_id), datetime.now(UTC)))
    assert line["approval_id"] == approval_id
    assert line["text"] == f"Answered: checkout\nApproval: opsmesh approvals show {approval_id}"


async def test_untrusted_text_is_one_plain_line(tmp_path: Path) -> None:
    """Escape sequences, line breaks, direction marks and NUL are gone; the template's own lines stay."""
    tools = NotifyTools({"ops": Inbox(tmp_path / "inbox.jsonl")})
    request = a_notice(title="a\x1b[31mb\nTarget: svc:other\u202e\x00c", detail="x\u2028y\r\nz")
    await send(tools, request)
    (line,) = told(tmp_path / "inbox.jsonl", request)
    assert line["title"] == "a [31mb Target: svc:other c"
    assert line["text"] == "Repaired: a [31mb Target: svc:other c\nx y z"


async def test_an_inbox_takes_a_notice_once(tmp_path: Path) -> None:
    """The id is found at the end of the file, also while other text mentions it."""
    path, notice_id = tmp_path / "a" / "inbox.jsonl", str(uuid.uuid4())
    assert not contains(path, notice_id)
    append_once(path, "other", json.dumps({"notice_id": "other", "title": f'"notice_id": "{notice_id}"'}))
    assert not contains(path, notice_id)
    for _ in range(2):
        append_once(path, notice_id, json.dumps({"notice_id": notice_id}))
    assert len(path.read_text().splitlines()) == 2
    assert path.stat().st_mode & 0o077 == 0


async def test_a_webhook_is_signed(tmp_path: Path) -> None:
    """The receiver verifies it after Standard Webhooks, under the request's id."""
    async with Receiver().listening() as receiver:
        tools = NotifyTools({"ops": Webhook(receiver.url, SECRET), "inbox": Inbox(tmp_path / "i")})
        request = a_notice(title="grüße")
        await send(tools, request)
        headers, body = receiver.received[0]
        assert standardwebhooks.Webhook(SECRET).verify(body, headers)["title"] == "grüße"
        assert headers["webhook-id"] == request.request_id
        ending = await tools.resolve_send_notice(request, {})
        assert ending.state is State.NOT_STARTED


@pytest.mark.parametrize("status", [500, 503, 429])
async def test_a_webhook_that_cannot_now_may_be_asked_again(status: int) -> None:
    """Server errors and 429 are refused with BACKEND_UNAVAILABLE: nothing is stored as failed."""
    async with Receiver().listening() as receiver:
        receiver.status = status
        with pytest.raises(Refusal, match="BACKEND_UNAVAILABLE"):
            await send(NotifyTools({"ops": Webhook(receiver.url, SECRET)}), a_notice())


@pytest.mark.parametrize("status", [302, 400, 401])
async def test_a_webhook_that_says_no_is_a_failure(status: int) -> None:
    """Other answers fail for good, and a redirect is not followed."""
    async with Receiver().listening() as receiver:
        receiver.status = status
        with pytest.raises(EffectFailedError, match=str(status)):
            await send(NotifyTools({"ops": Webhook(receiver.url, SECRET)}), a_notice())
        assert len(receiver.received) == 1


async def test_a_silent_or_absent_webhook_does_not_hold_the_gateway() -> None:
    """No answer within the deadline, or nobody there: BACKEND_UNAVAILABLE."""
    async with Receiver().listening() as receiver:
        receiver.status = 0
        tools = NotifyTools({"ops": Webhook(receiver.url, SECRET)})
        with pytest.raises(Refusal, match="BACKEND_UNAVAILABLE"):
            await send(tools, a_notice(), seconds=0.3)
    with pytest.raises(Refusal, match="BACKEND_UNAVAILABLE"):
        await send(tools, a_notice(), seconds=0.3)
