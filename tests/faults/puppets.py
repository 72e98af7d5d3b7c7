"""The hands of a fully compromised model: the real certificates of agents and router, and no scruples.

A move is one call that must bring nothing about that policy did not grant; what it was answered is counted by kind. A
move that is answered, or that gets a grant, although its kind may not, is written down as `wrong`.
"""

import asyncio
import random
import uuid
from collections import Counter, defaultdict
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any, Final, TypeVar

import grpc.aio
from google.protobuf.message import Message

from opsmesh.guardrails.v1 import guardrails_service_pb2 as pb
from services.gateway.grants import METADATA_KEY
from services.mesh.client import MeshChannel, refusal_of
from services.mesh.tools import PACKAGE, Tool
from tests.faults.world import channel
from tests.flows.world import World

AT_ONCE: Final = 16
ANSWERED: Final = "answered"
GRANTED: Final = "GRANTED"
GUARDRAILS: Final = "opsmesh.guardrails.v1"
AUTHORIZE: Final = f"{GUARDRAILS}.GuardrailsService/AuthorizeAction"
READS: Final = f"{GUARDRAILS}.GuardrailsService/AuthorizeReads"
REGISTER: Final = f"{GUARDRAILS}.GuardrailsService/RegisterRun"
END: Final = f"{GUARDRAILS}.GuardrailsService/EndRun"
LOCKS: Final = f"{GUARDRAILS}.TargetLockService"
M = TypeVar("M", bound=Message)
# Nobody is asked, and nothing is granted: what a judgement may come to for whoever may not act.
NOTHING: Final = frozenset({"DENY"})
Context = pb.ActionContext


@dataclass(frozen=True, slots=True)
class Move:
    """One call: of which kind, as whom, what. `may` are the verdicts that are no breach; refusals never are one."""

    kind: str
    who: str
    method: str
    body: bytes
    grant: bytes | None = None
    effect_id: str = ""
    may: frozenset[str] = NOTHING


def new_id() -> str:
    """Return an id."""
    return str(uuid.uuid4())


def call(kind: str, who: str, method: str, request: Message, grant: bytes | None = None) -> Move:
    """Return a move that sends a message."""
    effect = str(getattr(request, "request_id", "")) if method.startswith(PACKAGE) else ""
    return Move(kind, who, method, request.SerializeToString(deterministic=True), grant, effect)


def action(kind: str, tool: Tool, request: Any, context: Context, who: str = "agents", **more: Any) -> Move:
    """Return a move that asks for an action to be judged."""
    asked = pb.AuthorizeActionRequest(method=tool.name, request=request.SerializeToString(), context=context)
    effect = str(getattr(request, "request_id", ""))
    return Move(kind, who, AUTHORIZE, asked.SerializeToString(), effect_id=effect, **more)


@dataclass(slots=True)
class Puppets:
    """Makes moves on a running mesh; `answers` counts by kind, `granted` holds what honest questions got."""

    world: World
    seed: int
    chance: random.Random = field(init=False)
    answers: dict[str, Counter[str]] = field(default_factory=lambda: defaultdict(Counter))
    # How calls of a model were read: nothing was sent for these.
    readings: Counter[str] = field(default_factory=Counter)
    wrong: list[str] = field(default_factory=list)
    tried: set[str] = field(default_factory=set)
    _channels: dict[tuple[str, str], MeshChannel] = field(default_factory=dict)
    _slots: asyncio.Semaphore = field(default_factory=lambda: asyncio.Semaphore(AT_ONCE))

    def __post_init__(self) -> None:
        """Make chance reproducible."""
        self.chance = random.Random(self.seed)  # noqa: S311  a reproducible order

    @property
    def calls(self) -> int:
        """Return how many moves were made."""
        return sum(counter.total() for counter in self.answers.values())

    async def close(self) -> None:
        """Close all channels."""
        channels, self._channels = list(self._channels.values()), {}
        for one in channels:
            await one.close()

    def to(self, service: str, who: str) -> MeshChannel:
        """Return the channel of a certificate to a service."""
        if (service, who) not in self._channels:
            self._channels[service, who] = channel(self.world.mesh, service, who)
        return self._channels[service, who]

    async def ask(self, method: str, request: Message, answer: type[M], who: str = "agents") -> M:
        """Call honestly; a refusal is an error of the harness."""
        return answer.FromString(await self._send(Move("", who, method, request.SerializeToString())))

    async def all(self, moves: Iterable[Move]) -> None:
        """Make moves, some at once."""
        await asyncio.gather(*map(self.move, moves))

    async def move(self, move: Move) -> None:
        """Make one move and count what it was answered."""
        if move.effect_id:
            self.tried.add(move.effect_id)
        async with self._slots:
            try:
                answer = await self._send(move)
            except grpc.aio.AioRpcError as error:
                refusal = refusal_of(error)
                self.answers[move.kind][refusal.name if refusal else error.code().name] += 1
                return
        said, why = verdict_of(answer) if move.method == AUTHORIZE else (ANSWERED, "")
        self.answers[move.kind][f"{said} {why}".strip()] += 1
        if said not in move.may:
            self.wrong.append(f"{move.kind}: {move.method} as {move.who} was {said} {why}".strip())

    async def _send(self, move: Move) -> bytes:
        service = "gateway" if move.method.startswith(PACKAGE) else move.method.split(".")[1]
        metadata = ((METADATA_KEY, move.grant),) if move.grant is not None else ()
        sent = self.to(service, move.who).unary_unary(f"/{move.method}")
        return bytes(await sent(move.body, metadata=metadata))

    def note(self, reading: str, *, wrong: str = "") -> None:
        """Count how a call of a model was read, and note what is wrong with that."""
        self.readings[reading] += 1
        if wrong:
            self.wrong.append(f"a call that a poisoned answer asks for: {wrong}")

    def table(self) -> list[str]:
        """Return how each kind of move was answered, as lines of a Markdown table."""
        lines = ["| as a compromised model | calls | refused with (or judged) |", "|---|---|---|"]
        for kind in sorted(self.answers):
            reasons = ", ".join(f"{name} {count}" for name, count in self.answers[kind].most_common())
            lines.append(f"| {kind} | {self.answers[kind].total()} | {reasons} |")
        return lines


def verdict_of(answer: bytes) -> tuple[str, str]:
    """Return what was judged, and the reason of a DENY; GRANTED only where a grant was minted."""
    found = pb.AuthorizeActionResponse.FromString(answer)
    verdict = pb.Verdict.Name(found.judgement.verdict).removeprefix("VERDICT_")
    if found.grant:
        return GRANTED, ""
    return verdict, found.judgement.reason if verdict == "DENY" else ""
