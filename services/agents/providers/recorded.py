"""Exchanges from files: replayed instead of asking a model, and written while one is asked.

A request is known again by a digest of what the model was shown, in which ids and times are numbered: they change from
day to day. An exchange written by hand is found by role, turn and texts instead. Replies put the ids back; by hand they
may also say `<now>` and `<now-900s>`, for tools that want a time.
"""

import asyncio
import hashlib
import os
import re
from collections.abc import Iterable, Mapping
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Final

import structlog
from google.protobuf import json_format

from opsmesh.config.v1 import models_pb2
from services.agents.domain import (
    Endpoint,
    Finish,
    Question,
    RawReply,
    ToolCall,
    Usage,
    as_plain,
    prompt_digest,
)
from services.agents.providers import Kind, Provider, ProviderError, Why
from services.agents.strict_json import canonical
from services.mesh.config import load_all

UUID: Final = re.compile(r"\b[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12}\b")
TIME: Final = re.compile(r"\b\d{4}-\d\d-\d\d[T ]\d\d:\d\d(:\d\d(\.\d+)?)?(Z|[+-]\d\d:?\d\d)?")
PLACE: Final = re.compile(r"<uuid:(\d{1,4})>")
NOW: Final = re.compile(r"<now(?:-(\d{1,7})s)?>")
log = structlog.get_logger("opsmesh.agents.recorded")


class Recordings:
    """The exchanges of one folder, read once; a ConfigError (a BootError) lists every mistake in its files."""

    def __init__(self, exchanges: Iterable[models_pb2.RecordedExchange] = ()) -> None:
        self._by_digest: dict[str, models_pb2.RecordedExchange] = {}
        self._by_hand: list[models_pb2.RecordedExchange] = []
        for one in exchanges:
            if one.request_digest:
                self._by_digest.setdefault(one.request_digest, one)
            else:
                self._by_hand.append(one)

    @classmethod
    def load(cls, folder: Path) -> "Recordings":
        """Read every *.yaml of a folder."""
        files = load_all(folder, models_pb2.RecordedExchanges).values()
        return cls(one for file in files for one in file.exchanges)

    def find(self, question: Question) -> models_pb2.RecordedExchange | None:
        """Return the exchange for a question: by its digest, else the first by hand that fits."""
        if known := self._by_digest.get(request_digest(question)):
            return known
        turn = sum(bool(one.speaker.value == "assistant") for one in question.messages)
        shown = "\n".join(
            "\n".join([one.text, *(f"{call.name} {call.arguments}" for call in one.tool_calls)])
            for one in question.messages
        )
        for one in self._by_hand:
            fits = one.role in {"", question.role} and one.turn in {-1, turn}
            if fits and all(text in shown for text in one.contains):
                return one
        return None


class Recorded:
    """Replays: no model is asked, which every reply says."""

    def __init__(self, folders: Mapping[str, Recordings]) -> None:
        self._folders = folders

    async def generate(self, endpoint: Endpoint, question: Question) -> RawReply:
        """Answer from the endpoint's folder; raises ProviderError when nothing there fits."""
        found = self._folders[endpoint.replays].find(question)
        if found is None:
            detail = f"no recorded exchange fits request {request_digest(question)}"
            raise ProviderError(Kind.PERMANENT, detail, Why.REFUSED, at_fault=False)
        ids = _ids(_normal(question))
        calls = tuple(ToolCall("", call.name, _filled(call.arguments_json or "{}", ids)) for call in found.tool_calls)
        finish = Finish.LENGTH if found.truncated else Finish.TOOL_CALLS if calls else Finish.STOP
        usage = Usage(found.input_tokens, found.output_tokens) if found.input_tokens else None
        return RawReply(_filled(found.text, ids), calls, finish, usage, recorded=True)


class Recorder:
    """Asks another provider and writes what it answers into the endpoint's folder, if it has one."""

    def __init__(self, provider: Provider) -> None:
        self._provider = provider

    async def generate(self, endpoint: Endpoint, question: Question) -> RawReply:
        """Answer as the provider does; raises what it raises."""
        raw = await self._provider.generate(endpoint, question)
        if endpoint.records:
            await asyncio.to_thread(write, Path(endpoint.records), endpoint, question, raw)
        return raw


def write(folder: Path, endpoint: Endpoint, question: Question, raw: RawReply) -> None:
    """Write one exchange to `DIGEST.yaml`, whole or not at all; a full disk costs the recording, not the reply."""
    ids = _ids(_normal(question))
    digest = request_digest(question)
    made = models_pb2.RecordedExchange(
        request_digest=digest,
        role=question.role,
        text=_numbered(raw.text, ids),
        input_tokens=raw.usage.input_tokens if raw.usage else 0,
        output_tokens=raw.usage.output_tokens if raw.usage else 0,
        model=endpoint.model,
        truncated=raw.finish is Finish.LENGTH,
    )
    for call in raw.tool_calls:
        made.tool_calls.add(name=call.name[:64], arguments_json=_numbered(call.arguments, ids))
    # JSON is YAML: the same reader reads both.
    text = json_format.MessageToJson(
        models_pb2.RecordedExchanges(exchanges=[made]), preserving_proto_field_name=True, ensure_ascii=False
    )
    try:
        folder.mkdir(parents=True, exist_ok=True)
        fresh = folder / f".{digest}.{os.getpid()}"
        fresh.write_text(text + "\n", encoding="utf-8")
        fresh.replace(folder / f"{digest}.yaml")
    except OSError as error:
        log.warning("exchange not recorded", folder=str(folder), digest=digest, error=str(error))
        return
    log.info("exchange recorded", file=f"{digest}.yaml", prompt_digest=prompt_digest(question), role=question.role)


def request_digest(question: Question) -> str:
    """Return the SHA-256, hex, of a question without what changes from day to day."""
    text = _normal(question)
    ids = _ids(text)
    return hashlib.sha256(TIME.sub("<time>", _numbered(text, ids)).encode()).hexdigest()


def _normal(question: Question) -> str:
    """Return the canonical text of a question without call ids and sizes."""
    plain = as_plain(question)
    del plain["max_output_tokens"]
    for message in plain["messages"]:
        message["calls"] = [call[1:] for call in message["calls"]]
        del message["call_id"]
    # What was said first is numbered first, whatever the instructions hold.
    ordered = [plain.pop("messages"), plain]
    return canonical(ordered)


def _ids(text: str) -> list[str]:
    """Return the ids in a text, in the order in which they first appear."""
    return list(dict.fromkeys(UUID.findall(text)))


def _numbered(text: str, ids: list[str]) -> str:
    """Return the text with its ids replaced by their numbers."""
    places = {one: f"<uuid:{number}>" for number, one in enumerate(ids, 1)}
    return UUID.sub(lambda found: places.get(found.group(), found.group()), text)


def _filled(text: str, ids: list[str]) -> str:
    """Return the text with its numbers replaced by the ids of this request and `<now>` by the time.

    An id that the request does not have stays.
    """
    now = datetime.now(UTC)

    def moment(found: re.Match[str]) -> str:
        return (now - timedelta(seconds=int(found.group(1) or 0))).strftime("%Y-%m-%dT%H:%M:%SZ")

    def fill(found: re.Match[str]) -> str:
        number = int(found.group(1))
        return ids[number - 1] if 0 < number <= len(ids) else found.group()

    return NOW.sub(moment, PLACE.sub(fill, text))
