"""What a model is told: each source has its own deadline and asks alone; what is absent is marked absent, with why."""

import asyncio
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final, Protocol

import grpc
import grpc.aio
import structlog
from google.protobuf.message import Message

from opsmesh.ingest.v1 import ingest_service_pb2, signal_pb2
from opsmesh.router.v1 import decision_service_pb2
from services.mesh.errors import Refusal, from_rpc_error
from services.mesh.models.outcomes import Available
from services.mesh.models.tool_schema import Offer
from services.mesh.models.untrusted import Marks

SECONDS: Final = 2.0
# What one source may say; the IDL and the model's own context bound the rest.
SECTION_MAX: Final = 24_000
DETAIL_MAX: Final = 512
log = structlog.get_logger("opsmesh.router.context")


@dataclass(frozen=True, slots=True)
class Section:
    """A part of what a model is told; `text` is fit to be shown: what came from outside is harmless and marked."""

    name: str
    text: str


class Reads(Protocol):
    """Reads through the gateway for one decision. Raises grpc.aio.AioRpcError."""

    async def offers(self) -> Mapping[str, Offer]:
        """Return what may be read, as a model is offered it."""

    async def call(self, name: str, request: Message) -> Any:
        """Read with a tool: its full name, or the bare one where that is unique."""


@dataclass(frozen=True, slots=True)
class About:
    """What the context is for. In a conversation there is no `incident`, no `decision_id`, and nothing to read with."""

    incident: ingest_service_pb2.Incident | None = None
    signals: tuple[signal_pb2.SignalRecord, ...] = ()
    decision_id: str = ""
    reads: Reads | None = None


@dataclass(frozen=True, slots=True)
class Told:
    """What a source knows; empty `text` for nothing. What it offers may be chosen by the model."""

    text: str
    detail: str = ""
    playbooks: tuple[str, ...] = ()
    templates: tuple[str, ...] = ()
    targets: tuple[str, ...] = ()
    reads: Mapping[str, Offer] = field(default_factory=dict)


class Source(Protocol):
    """One thing a model can be told. Raises AioRpcError, Refusal or TimeoutError when it cannot be known now."""

    @property
    def name(self) -> str:
        """Return its name, such as `inventory`."""

    async def tell(self, about: About, marks: Marks) -> Told:
        """Return what it knows, marked."""


@dataclass(frozen=True, slots=True)
class Context:
    """All that a model is told, and from what it may choose; `sources` says what was there and what was not."""

    sections: tuple[Section, ...] = ()
    sources: tuple[decision_service_pb2.ContextSource, ...] = ()
    available: Available = field(default_factory=Available)


async def gather(sources: Sequence[Source], about: About, marks: Marks, seconds: float = SECONDS) -> Context:
    """Ask all sources at once, each for at most `seconds`; none of them fails or delays the others."""
    told = await asyncio.gather(*(_tell(source, about, marks, seconds) for source in sources))
    sections = [
        Section(source.name, found.text[:SECTION_MAX] if found else f"(absent: {why})")
        for source, (found, why) in zip(sources, told, strict=True)
    ]
    return Context(
        tuple(sections),
        tuple(
            decision_service_pb2.ContextSource(
                name=source.name, present=found is not None, detail=(found.detail if found else why)[:DETAIL_MAX]
            )
            for source, (found, why) in zip(sources, told, strict=True)
        ),
        Available(
            playbooks=_all([found.playbooks for found, _ in told if found]),
            templates=_all([found.templates for found, _ in told if found]),
            targets=_all([found.targets for found, _ in told if found]),
            reads={name: one for found, _ in told if found for name, one in found.reads.items()},
        ),
    )


async def _tell(source: Source, about: About, marks: Marks, seconds: float) -> tuple[Told | None, str]:
    """Return what a source knows, or why it is absent."""
    try:
        async with asyncio.timeout(seconds):
            return await source.tell(about, marks), ""
    except TimeoutError:
        why = f"no answer within {seconds:g} s"
    except Refusal as error:
        why = error.name
    except grpc.aio.AioRpcError as error:
        refusal = from_rpc_error(error)
        why = refusal.name if refusal else error.code().name
    except Exception as error:
        # A source is a help: whatever is wrong with it, the decision is made without it.
        log.exception("context source failed", source=source.name)
        why = type(error).__name__
    log.info("context is absent", source=source.name, why=why)
    return None, why


def _all(parts: Sequence[Sequence[str]]) -> tuple[str, ...]:
    """Return what any source offers, once each, in order."""
    return tuple(dict.fromkeys(one for part in parts for one in part))
