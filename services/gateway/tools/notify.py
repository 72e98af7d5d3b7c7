"""Tells people over fixed channels: a local inbox file, or a webhook signed after Standard Webhooks."""

import asyncio
import json
import os
from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Final

import standardwebhooks

from opsmesh.tools.notify.v1 import notify_tool_service_pb2 as pb
from opsmesh.tools.notify.v1 import notify_tool_service_pb2_grpc as rpc
from opsmesh.type.v1 import error_reason_pb2
from services.gateway import domain
from services.gateway.backends import Inbox, Webhook
from services.gateway.domain import Ending, plain
from services.gateway.tools.http import Http, NoAnswerError, NotDeliveredError
from services.gateway.tools.toolbox import EffectFailedError
from services.mesh.call import current
from services.mesh.errors import BootError, Refusal

WEBHOOK_SECONDS: Final = 5.0
ANSWER_BYTES_MAX: Final = 4096
# How much of an inbox's end, in bytes, is searched for a notice sent before: some thousand notices.
TAIL_BYTES: Final = 4 * 1024 * 1024
TITLE_MAX: Final = 200
TEXT_MAX: Final = 1000
HEADLINES: Final = {
    pb.SendNoticeRequest.KIND_PERSON_NEEDED: "A person is needed",
    pb.SendNoticeRequest.KIND_REPAIRED: "Repaired",
    pb.SendNoticeRequest.KIND_FAILED: "A playbook failed",
    pb.SendNoticeRequest.KIND_APPROVAL_REQUESTED: "A person must answer",
    pb.SendNoticeRequest.KIND_APPROVAL_REMINDER: "Nobody has answered yet",
    pb.SendNoticeRequest.KIND_APPROVAL_ANSWERED: "Answered",
    pb.SendNoticeRequest.KIND_APPROVAL_EXPIRED: "No answer counts any more",
    pb.SendNoticeRequest.KIND_KILL_ENGAGED: "Stopped",
    pb.SendNoticeRequest.KIND_KILL_RELEASED: "Let go",
}
# Answers that say "not now": the notice may be sent again under the same id, by which the receiver knows it.
NOT_NOW: Final = frozenset({408, 425, 429})
SERVER_ERROR: Final = 500
SUCCESS: Final = range(200, 300)


class NotifyTools:
    """NotifyToolService on the configured channels."""

    service = pb.DESCRIPTOR.services_by_name["NotifyToolService"]
    add = staticmethod(rpc.add_NotifyToolServiceServicer_to_server)

    def __init__(self, channels: Mapping[str, Inbox | Webhook]) -> None:
        self._channels = channels
        self._http = Http()
        self._signers = {name: _signer(name, one.secret) for name, one in channels.items() if isinstance(one, Webhook)}
        self._writing = asyncio.Lock()

    async def close(self) -> None:
        """Close all connections."""
        await self._http.close()

    async def send_notice(
        self, request: pb.SendNoticeRequest, _precondition: Mapping[str, str]
    ) -> pb.SendNoticeResponse:
        """Send one notice under its request id, by which both kinds of channel know it when it comes again."""
        channel = self._find(request.channel)
        document = notice(request, datetime.now(UTC))
        if isinstance(channel, Inbox):
            async with self._writing:
                await asyncio.to_thread(append_once, channel.path, request.request_id, document)
        else:
            await self._post(channel, request, document)
        return pb.SendNoticeResponse(notice_id=request.request_id)

    async def resolve_send_notice(self, request: pb.SendNoticeRequest, _precondition: Mapping[str, str]) -> Ending:
        """Look into the inbox; a webhook may simply be sent again, the receiver knows it by its id."""
        channel = self._find(request.channel)
        if isinstance(channel, Inbox) and await asyncio.to_thread(contains, channel.path, request.request_id):
            return domain.succeeded(pb.SendNoticeResponse(notice_id=request.request_id).SerializeToString())
        return domain.not_started("", "it may be sent again: the channel knows it by its id")

    async def _post(self, channel: Webhook, request: pb.SendNoticeRequest, document: str) -> None:
        """Post one signed notice."""
        now = datetime.now(UTC)
        headers = {
            "Content-Type": "application/json",
            "webhook-id": request.request_id,
            "webhook-timestamp": str(int(now.timestamp())),
            "webhook-signature": self._signers[request.channel].sign(request.request_id, now, document),
        }
        seconds = min(WEBHOOK_SECONDS, current().remaining)
        try:
            reply = await self._http.request(
                "POST",
                channel.url,
                seconds=seconds,
                limit=ANSWER_BYTES_MAX,
                content=document.encode(),
                headers=headers,
            )
        except (NotDeliveredError, NoAnswerError) as error:
            raise _unavailable(request.channel, str(error)) from error
        if reply.status in NOT_NOW or reply.status >= SERVER_ERROR:
            raise _unavailable(request.channel, f"it answered with HTTP status {reply.status}")
        if reply.status not in SUCCESS:
            raise EffectFailedError(f"channel {request.channel} answered with HTTP status {reply.status}")

    def _find(self, name: str) -> Inbox | Webhook:
        """Return a configured channel, or refuse."""
        if name not in self._channels:
            raise EffectFailedError(f"there is no channel {name} in the gateway's backends file")
        return self._channels[name]


def notice(request: pb.SendNoticeRequest, now: datetime) -> str:
    """Fill the fixed template; what outsiders wrote is one bounded line without control characters."""
    kind = pb.SendNoticeRequest.Kind.Name(request.kind).removeprefix("KIND_")
    title, detail = plain(request.title, TITLE_MAX), plain(request.detail, TEXT_MAX)
    lines = [f"{HEADLINES.get(request.kind, kind)}: {title}"]
    lines += [f"Target: {request.target_id}"] if request.target_id else []
    lines += [f"Incident: opsmesh incidents show {request.incident_id}"] if request.incident_id else []
    lines += [f"Approval: opsmesh approvals show {request.approval_id}"] if request.approval_id else []
    lines += [f"Kill: {request.kill_id}"] if request.kill_id else []
    lines += [detail] if detail else []
    document = {
        "notice_id": request.request_id,
        "channel": request.channel,
        "kind": kind,
        "incident_id": request.incident_id,
        "approval_id": request.approval_id,
        "kill_id": request.kill_id,
        "target_id": request.target_id,
        "title": title,
        "detail": detail,
        "text": "\n".join(lines),
        "time": now.isoformat(timespec="milliseconds"),
    }
    return json.dumps(document, ensure_ascii=False)


def append_once(path: Path, notice_id: str, line: str) -> None:
    """Append a line and wait until it is on disk, unless the file's end holds that notice already."""
    if contains(path, notice_id):
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    descriptor = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_NOFOLLOW, 0o600)
    with os.fdopen(descriptor, "ab") as file:
        file.write(line.encode() + b"\n")
        file.flush()
        os.fsync(file.fileno())


def contains(path: Path, notice_id: str) -> bool:
    """Say whether the end of a file holds a notice."""
    try:
        with path.open("rb") as file:
            file.seek(max(0, path.stat().st_size - TAIL_BYTES))
            return f'"notice_id": "{notice_id}"'.encode() in file.read(TAIL_BYTES)
    except FileNotFoundError:
        return False


def _signer(name: str, secret: str) -> standardwebhooks.Webhook:
    """Return the signer of a channel; a BootError when its secret is none."""
    try:
        return standardwebhooks.Webhook(secret)
    except (ValueError, RuntimeError) as error:
        raise BootError(f"the secret of channel {name} is not `whsec_` and base64: {error}") from None


def _unavailable(channel: str, detail: str) -> Refusal:
    """Return the refusal for a channel that does not take the notice now."""
    return Refusal(
        error_reason_pb2.ERROR_REASON_BACKEND_UNAVAILABLE, retry_after=1.0, target=f"channel {channel}", detail=detail
    )
