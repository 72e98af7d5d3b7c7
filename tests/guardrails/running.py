"""Runs for tests: registered, with their claim and lock, and tokens as the router signs them."""

import hashlib
import uuid
from datetime import UTC, datetime, timedelta
from typing import Any

import asyncpg
import grpc.aio
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import load_pem_private_key

from opsmesh.config.v1 import policies_pb2
from opsmesh.guardrails.v1 import guardrails_service_pb2 as pb
from opsmesh.guardrails.v1 import target_lock_service_pb2 as lock_pb
from opsmesh.router.v1 import identity_pb2
from tests.guardrails.world import (
    CHECKOUT,
    RESTART,
    Answer,
    Context,
    House,
    reason_of,
    restart,
)

WORKLOAD = "opsmesh.tools.workload.v1.WorkloadToolService"
GET, HEALTH = f"{WORKLOAD}/GetWorkload", f"{WORKLOAD}/CheckHealth"
PERSON = "human/operator"
PREFIX = b"opsmesh-identity\0"


def allowance(template_id: str, *tools: str, children: tuple[str, ...] = ()) -> policies_pb2.AgentAllowance:
    """Return what runs of a template may call."""
    return policies_pb2.AgentAllowance(template_id=template_id, tools=tools, child_templates=children)


# Three templates: one that repairs and may ask the others, one that only looks, and one that tells people.
AGENTS = (
    allowance("repair", "RestartWorkload", "CheckHealth", GET, children=("look", "repair", "tell")),
    allowance("look", "CheckHealth"),
    allowance("tell", "SendNotice"),
)


def uid() -> str:
    """Return a new id."""
    return str(uuid.uuid4())


async def publish(home: House, *rules: Any, **fields: Any) -> int:
    """Publish a policy set with the tests' templates."""
    return await home.publish(*rules, **({"agents": AGENTS} | fields))


async def register(home: House, incident_id: str, *targets: str, **fields: Any) -> pb.RegisteredRun:
    """Register a run of `repair`, or of whatever `fields` say."""
    wanted = {"request_id": uid(), "run_id": uid(), "template_id": "repair", "incident_id": incident_id} | fields
    request = pb.RegisterRunRequest(target_ids=targets, **wanted)
    return (await home.guardrails("agents").RegisterRun(request)).run


async def owned(home: House, statement: str, *values: Any) -> None:
    """Change the database as nobody of the mesh may."""
    connection = await asyncpg.connect(home.database.dsn("owner"))
    try:
        await connection.execute(statement, *values)
    finally:
        await connection.close()


async def end(home: House, run_id: str) -> None:
    """End a run."""
    await home.guardrails("agents").EndRun(pb.EndRunRequest(request_id=uid(), run_id=run_id))


async def claim(home: House, run_id: str, target_id: str = CHECKOUT) -> str:
    """Claim a target for a run; return in whose name it is claimed."""
    request = lock_pb.AcquireClaimRequest(request_id=uid(), target_id=target_id, run_id=run_id)
    return (await home.locks("agents").AcquireClaim(request)).claim.run_id


async def lock(home: House, run_id: str, target_id: str = CHECKOUT) -> lock_pb.TargetLock:
    """Lock a target for a run."""
    request = lock_pb.AcquireLockRequest(request_id=uid(), target_id=target_id, run_id=run_id)
    return (await home.locks("agents").AcquireLock(request)).lock


async def unlock(home: House, held: lock_pb.TargetLock) -> None:
    """Give the lock of a run back."""
    request = lock_pb.ReleaseLockRequest(
        request_id=uid(), target_id=held.target_id, fence=held.fence, run_id=held.holder
    )
    await home.locks("agents").ReleaseLock(request)


def context(run: pb.RegisteredRun, **fields: Any) -> Context:
    """Return the context of a run's step."""
    return Context(**({"run_id": run.run_id, "incident_id": run.incident_id, "step_id": "step-1"} | fields))


async def working(home: House, *targets: str, **fields: Any) -> pb.RegisteredRun:
    """Register a run on a new incident and take claims and locks of its targets."""
    targets = targets or (CHECKOUT,)
    run = await register(home, home.ingest.open(*targets), *targets, **fields)
    for target in targets:
        await claim(home, run.run_id, target)
        await lock(home, run.run_id, target)
    return run


async def act(home: House, run: pb.RegisteredRun, request: Any = None, **fields: Any) -> Answer:
    """Authorise a restart, or another request, as an agent in a run's name."""
    method = fields.pop("method", RESTART)
    return await home.authorize(request or restart(), context(run, **fields), method=method, name="agents")


async def reads(home: House, name: str = "agents", **fields: Any) -> pb.AuthorizeReadsResponse:
    """Ask for a read grant."""
    return await home.guardrails(name).AuthorizeReads(pb.AuthorizeReadsRequest(**fields))


async def refused(call: Any) -> str:
    """Return the reason of a refusal; an AssertionError when there is none."""
    try:
        await call
    except grpc.aio.AioRpcError as error:
        return reason_of(error)
    raise AssertionError("it was let through")


def chat(home: House, *targets: str, conversation: str = "", text: str = "restart checkout") -> tuple[str, bytes]:
    """Open the incident of a message; return its id and the message's digest."""
    incident_id = home.ingest.open(*(targets or (CHECKOUT,)))
    digest = hashlib.sha256(uid().encode() + b"\0" + text.encode()).digest()
    incident = home.ingest.incidents[incident_id]
    incident.source = "chat"
    incident.labels["conversation_id"] = conversation or uid()
    incident.labels["message_digest"] = digest.hex()
    return incident_id, digest


def token(home: House, incident_id: str, *, key: Ed25519PrivateKey | None = None, **fields: Any) -> bytes:
    """Return a token of PERSON for the message that opened an incident, or a wrong one; `age` is in seconds."""
    labels = home.ingest.incidents[incident_id].labels
    issued = datetime.now(UTC) - timedelta(seconds=fields.pop("age", 0))
    wanted = {
        "person": PERSON,
        "conversation_id": labels["conversation_id"] or uid(),
        "message_digest": bytes.fromhex(labels["message_digest"]) or bytes(32),
    } | fields
    lifetime = timedelta(seconds=wanted.pop("lifetime", 3600))
    identity = identity_pb2.Identity(**wanted)
    identity.issue_time.FromDatetime(issued)
    identity.expire_time.FromDatetime(issued + lifetime)
    raw = identity.SerializeToString(deterministic=True)
    signature = (key or router_key(home)).sign(PREFIX + raw)
    return identity_pb2.SignedIdentity(identity=raw, signature=signature).SerializeToString()


def router_key(home: House) -> Ed25519PrivateKey:
    """Return the key that only the router has."""
    key = load_pem_private_key((home.world.pki / "identity.key").read_bytes(), None)
    assert isinstance(key, Ed25519PrivateKey)
    return key
