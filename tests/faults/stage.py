"""What honest agents and an honest router have: incidents, registered runs with claims and locks, read grants.

Compromised ones start from it, for nothing is easier to bend than something good.
"""

import hashlib
import json
import uuid
from dataclasses import dataclass, field
from datetime import timedelta
from typing import Any, Final

import grpc.aio
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import load_pem_private_key

from opsmesh.config.v1 import templates_pb2
from opsmesh.guardrails.v1 import guardrails_service_pb2 as pb
from opsmesh.guardrails.v1 import target_lock_service_pb2 as locks_pb
from opsmesh.ingest.v1 import ingest_service_pb2 as ingest_pb
from opsmesh.ingest.v1 import signal_pb2
from opsmesh.router.v1 import identity_pb2
from services.guardrails.identity import PREFIX
from services.local.publish import read_templates
from services.mesh.client import refusal_of
from services.mesh.tools import find_tool
from tests.faults.puppets import END, LOCKS, READS, REGISTER, Context, Puppets, new_id
from tests.faults.reading import Outside
from tests.flows.payloads import alertmanager, now
from tests.flows.world import until

PERSON: Final = "human/operator"
SUBMIT: Final = "opsmesh.ingest.v1.IngestService/SubmitSignals"
# The longest there is: a stage lasts for one round.
TTL: Final = 60
# Who waited in a queue and does not come back is forgotten after this long.
LOCK_SECONDS: Final = 60


@dataclass(frozen=True, slots=True)
class Incident:
    """An open incident about one target; of a chat, with what its token must say."""

    incident_id: str
    target_id: str
    conversation_id: str = ""
    message_digest: bytes = b""


@dataclass(frozen=True, slots=True)
class Actor:
    """A registered run; `fence` is that of its lock, `reads` its read grant, where it has them."""

    run_id: str
    template_id: str
    incident: Incident
    decision_id: str
    fence: int = 0
    reads: bytes = b""

    @property
    def target_id(self) -> str:
        """Return the one target it may work on."""
        return self.incident.target_id

    def context(self, **changes: str) -> Context:
        """Return what it says about itself, with changes."""
        words: dict[str, Any] = {
            "incident_id": self.incident.incident_id,
            "decision_id": self.decision_id,
            "run_id": self.run_id,
            "step_id": "act",
        }
        return Context(**(words | changes))


@dataclass(slots=True)
class Stage:
    """Sets things up as agents and router do, and takes them down again."""

    puppets: Puppets
    outside: Outside
    templates: dict[str, templates_pb2.AgentTemplate] = field(default_factory=dict)
    actors: list[Actor] = field(default_factory=list)
    _number: int = 0

    def __post_init__(self) -> None:
        """Read the templates of the mesh's configuration: policy allows what they name."""
        found = read_templates(self.puppets.world.mesh.config)
        self.templates = {one.template_id: one for one in found}

    def allowed(self, template_id: str) -> set[str]:
        """Return the tools of a template by full name."""
        return {find_tool(name).name for name in self.templates[template_id].tools}

    async def incident(self, target: str) -> Incident:
        """Have an alert about a target that no rule knows, an incident of its own."""
        self._number += 1
        environment, _, service = target.removeprefix("svc:").partition("/")
        name = f"Puppets{self.puppets.seed}x{self._number}"
        body = alertmanager(now(), name=name, service=service, env=environment)
        signal_id = await self.puppets.world.accepted("alertmanager", body)
        self.outside.accepted.append(signal_id)
        _, incident_id = await self.puppets.world.recorded(signal_id)
        return Incident(incident_id, target)

    async def wish(self, target: str) -> Incident:
        """Have what a person asks for in a chat, told by the router."""
        conversation, message = new_id(), new_id()
        digest = hashlib.sha256(f"{message}\0please".encode()).digest()
        body = {
            "message_id": message,
            "conversation_id": conversation,
            "message_digest": digest.hex(),
            "person": PERSON,
            "time": now().isoformat(),
            "title": "please",
            "targets": [target],
        }
        delivery = ingest_pb.Delivery(
            delivery_id=new_id(), source="chat", body=json.dumps(body).encode(), content_type="application/json"
        )
        delivery.authenticity.CopyFrom(
            signal_pb2.Authenticity(method=signal_pb2.Authenticity.METHOD_MTLS, verified=True)
        )
        delivery.receive_time.GetCurrentTime()
        request = ingest_pb.SubmitSignalsRequest(deliveries=[delivery])
        answer = await self.puppets.ask(SUBMIT, request, ingest_pb.SubmitSignalsResponse, "router")
        (signal_id,) = answer.results[0].signal_ids
        self.outside.accepted.append(signal_id)
        _, incident_id = await self.puppets.world.recorded(signal_id)
        return Incident(incident_id, target, conversation, digest)

    def token(self, incident: Incident, *, person: str = PERSON, key: Ed25519PrivateKey | None = None) -> bytes:
        """Return what the router signs for the message of an incident; with a key of one's own a forgery."""
        identity = identity_pb2.Identity(
            person=person, conversation_id=incident.conversation_id or new_id(), message_digest=incident.message_digest
        )
        identity.message_digest = incident.message_digest or bytes(32)
        identity.issue_time.FromDatetime(now())
        identity.expire_time.FromDatetime(now() + timedelta(minutes=30))
        raw = identity.SerializeToString()
        signing = key or load_pem_private_key((self.puppets.world.mesh.pki / "identity.key").read_bytes(), None)
        if not isinstance(signing, Ed25519PrivateKey):
            raise TypeError("the router's key is no Ed25519 key")
        return identity_pb2.SignedIdentity(identity=raw, signature=signing.sign(PREFIX + raw)).SerializeToString()

    def registration(self, template_id: str, incident: Incident, **changes: Any) -> pb.RegisterRunRequest:
        """Return what registers a new run, with changes."""
        words: dict[str, Any] = {
            "request_id": new_id(),
            "run_id": new_id(),
            "template_id": template_id,
            "incident_id": incident.incident_id,
            "decision_id": str(uuid.uuid5(uuid.UUID(incident.incident_id), "decision")),
            "target_ids": [incident.target_id],
        }
        return pb.RegisterRunRequest(**(words | changes))

    async def registered(self, template_id: str, incident: Incident, **changes: Any) -> Actor:
        """Register a run."""
        asked = self.registration(template_id, incident, **changes)
        await self.puppets.ask(REGISTER, asked, pb.RegisterRunResponse)
        actor = Actor(asked.run_id, template_id, incident, asked.decision_id)
        self.actors.append(actor)
        return actor

    async def claim(self, actor: Actor) -> None:
        """Claim its target."""
        request = locks_pb.AcquireClaimRequest(request_id=new_id(), target_id=actor.target_id, run_id=actor.run_id)
        request.ttl_duration.FromSeconds(TTL)
        await self.puppets.ask(f"{LOCKS}/AcquireClaim", request, locks_pb.AcquireClaimResponse)

    async def lock(self, actor: Actor) -> int:
        """Lock its target, waiting for who is before it in its queue, and return the fence."""
        taken: list[int] = []

        async def take() -> list[int]:
            request = locks_pb.AcquireLockRequest(request_id=new_id(), target_id=actor.target_id, run_id=actor.run_id)
            request.ttl_duration.FromSeconds(TTL)
            try:
                answer = await self.puppets.ask(f"{LOCKS}/AcquireLock", request, locks_pb.AcquireLockResponse)
            except grpc.aio.AioRpcError as error:
                refusal = refusal_of(error)
                if refusal is None or refusal.name != "LOCK_HELD":
                    raise
            else:
                taken.append(answer.lock.fence)
            return taken

        return (await until(take, f"the lock of {actor.target_id}", LOCK_SECONDS))[0]

    async def reads(self, actor: Actor) -> bytes:
        """Have its read grant minted."""
        asked = pb.AuthorizeReadsRequest(run_id=actor.run_id)
        return (await self.puppets.ask(READS, asked, pb.AuthorizeReadsResponse)).grant

    async def deciding(self, incident: Incident) -> bytes:
        """Have the read grant of a decision minted, for the router."""
        asked = pb.AuthorizeReadsRequest(
            decision_id=str(uuid.uuid5(uuid.UUID(incident.incident_id), "decision")), incident_id=incident.incident_id
        )
        return (await self.puppets.ask(READS, asked, pb.AuthorizeReadsResponse, "router")).grant

    async def acting(self, template_id: str, incident: Incident, **changes: Any) -> Actor:
        """Have a run that may act: registered, its target claimed and locked, its reads granted."""
        actor = await self.registered(template_id, incident, **changes)
        await self.claim(actor)
        fence, reads = await self.lock(actor), await self.reads(actor)
        ready = Actor(actor.run_id, template_id, incident, actor.decision_id, fence, reads)
        self.actors[-1] = ready
        return ready

    async def unlock(self, actor: Actor) -> None:
        """Give its lock back."""
        request = locks_pb.ReleaseLockRequest(
            request_id=new_id(), target_id=actor.target_id, run_id=actor.run_id, fence=actor.fence
        )
        await self.puppets.ask(f"{LOCKS}/ReleaseLock", request, locks_pb.ReleaseLockResponse)

    async def leave(self, actor: Actor) -> None:
        """End a run, with its lock and claim given back."""
        self.actors.remove(actor)
        if actor.fence:
            await self.unlock(actor)
        request = locks_pb.ReleaseClaimRequest(request_id=new_id(), target_id=actor.target_id, run_id=actor.run_id)
        await self.puppets.ask(f"{LOCKS}/ReleaseClaim", request, locks_pb.ReleaseClaimResponse)
        ending = pb.EndRunRequest(request_id=new_id(), run_id=actor.run_id)
        await self.puppets.ask(END, ending, pb.EndRunResponse)

    async def clear(self) -> None:
        """Let everything go."""
        for actor in list(self.actors):
            await self.leave(actor)
