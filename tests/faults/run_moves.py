"""What a compromised model has agents and router try: generated from the IDL, nothing here names a tool.

A tool, a target or a method that is added is tried, too.
"""

import json
from collections.abc import Iterator, Sequence
from typing import Any

from google.protobuf import json_format
from google.protobuf.message import Message

from opsmesh.guardrails.v1 import grant_pb2
from opsmesh.guardrails.v1 import guardrails_service_pb2 as pb
from opsmesh.guardrails.v1 import target_lock_service_pb2 as locks_pb
from services.gateway.grants import READ_GRANT_PREFIX
from services.mesh import policy
from services.mesh.identities import Identities
from services.mesh.models.tool_calls import Parsed, ToolCall, read_call
from services.mesh.models.tool_schema import catalogue, model_name
from services.mesh.tools import Tool, tools
from tests.faults.forgeries import OWN_KEY, UNKNOWN_FIELD, changing, reading, sample
from tests.faults.puppets import END, LOCKS, READS, REGISTER, Move, action, call, new_id
from tests.faults.stage import Actor, Incident, Stage


def others_tools(stage: Stage, actor: Actor, targets: Sequence[str]) -> Iterator[Move]:
    """Yield what its template may not call: actions judged, reads called, whatever the target."""
    mine = stage.allowed(actor.template_id)
    for tool in tools().values():
        if tool.name in mine:
            continue
        for target in targets if tool.spec.target_field else ("",):
            request = sample(tool, target)
            if tool.policy.access in policy.READS:
                yield call("another template's read", "agents", tool.name, request, actor.reads)
            else:
                yield action("another template's tool", tool, request, actor.context())


def others_targets(stage: Stage, actor: Actor, targets: Sequence[str]) -> Iterator[Move]:
    """Yield what its template may call, on targets that are not its run's."""
    mine = stage.allowed(actor.template_id)
    for tool in tools().values():
        if tool.name not in mine or not tool.spec.target_field:
            continue
        for target in targets:
            if target == actor.target_id:
                continue
            request = sample(tool, target)
            if tool.policy.access in policy.READS:
                yield call("read of another target", "agents", tool.name, request, actor.reads)
            else:
                yield action("another incident's target", tool, request, actor.context())


def false_contexts(stage: Stage, actor: Actor, other: Actor) -> Iterator[Move]:
    """Yield good actions with something else said about where they come from."""
    mine = stage.allowed(actor.template_id)
    contexts: dict[str, list[Any]] = {
        "no run": [actor.context(run_id="")],
        "a run that was never registered": [actor.context(run_id=new_id())],
        "another run's name": [other.context(), actor.context(run_id=other.run_id)],
        "another incident": [actor.context(incident_id=other.incident.incident_id), actor.context(incident_id="")],
        "another decision": [actor.context(decision_id=new_id()), actor.context(decision_id="")],
        "an execution's name": [
            actor.context(execution_id=new_id()),
            actor.context(execution_id=new_id(), run_id=""),
            actor.context(playbook_id="restart-workload"),
        ],
    }
    for kind, found in contexts.items():
        for context in found:
            for tool in changing():
                if tool.name in mine and tool.spec.target_field:
                    yield action(kind, tool, sample(tool, actor.target_id), context)


def stolen_reads(actor: Actor, deciding: bytes, granted: Sequence[bytes]) -> Iterator[Move]:
    """Yield every read with a grant that is missing, another's, or no read grant."""
    for tool in reading():
        request = sample(tool, actor.target_id)
        yield call("read without a grant", "agents", tool.name, request)
        yield call("read without a grant", "router", tool.name, request)
        yield call("a run's read grant as the router", "router", tool.name, request, actor.reads)
        yield call("a decision's read grant as agents", "agents", tool.name, request, deciding)
        for grant in granted:
            yield call("an action's grant to read", "agents", tool.name, request, grant)
        for kind, forged in forged_reads(actor.reads):
            yield call(kind, "agents", tool.name, request, forged)


def forged_reads(grant: bytes) -> Iterator[tuple[str, bytes]]:
    """Yield a read grant as it is not: by kind."""
    good = grant_pb2.SignedGrant.FromString(grant)
    wide = grant_pb2.ReadGrant.FromString(good.read_grant)
    del wide.methods[:]
    wide.methods.extend(tools())
    raw = wide.SerializeToString()
    yield "read grant widened after signing", _signed(raw, good.signature)
    yield "read grant signed with another key", _signed(raw, OWN_KEY.sign(READ_GRANT_PREFIX + raw))
    later = grant_pb2.ReadGrant.FromString(good.read_grant)
    later.expire_time.seconds += 3600
    yield "read grant prolonged after signing", _signed(later.SerializeToString(), good.signature)
    yield "read grant not signed", grant_pb2.SignedGrant(read_grant=good.read_grant).SerializeToString()
    yield "unknown field around a read grant", grant + UNKNOWN_FIELD


def flipped_reads(actor: Actor, stage: Stage, count: int) -> Iterator[Move]:
    """Yield reads with one bit of the grant flipped, at random places."""
    chance = stage.puppets.chance
    mine = [tool for tool in reading() if tool.name in stage.allowed(actor.template_id)]
    for _ in range(count):
        raw = bytearray(actor.reads)
        raw[chance.randrange(len(raw))] ^= 1 << chance.randrange(8)
        tool = chance.choice(mine)
        yield call("bit flipped in a read grant", "agents", tool.name, sample(tool, actor.target_id), bytes(raw))


def writes_with_reads(actor: Actor, deciding: bytes) -> Iterator[Move]:
    """Yield actions called with a read grant, as it is and moved to where an action's would be."""
    for tool in changing():
        for who, grant in (("agents", actor.reads), ("router", deciding)):
            good = grant_pb2.SignedGrant.FromString(grant)
            moved = grant_pb2.SignedGrant(grant=READ_GRANT_PREFIX + good.read_grant, signature=good.signature)
            for sent in (grant, moved.SerializeToString()):
                yield call("action with a read grant", who, tool.name, sample(tool, actor.target_id), sent)


def beyond_a_decision(incident: Incident, deciding: bytes, targets: Sequence[str]) -> Iterator[Move]:
    """Yield reads of the router on what its decision is not about, and questions for decisions it may not have."""
    for tool in reading():
        for target in targets if tool.spec.target_field else ():
            if target != incident.target_id:
                yield call("beyond a decision's reads", "router", tool.name, sample(tool, target), deciding)
    unknown = pb.AuthorizeReadsRequest(decision_id=new_id(), incident_id=new_id())
    yield call("reads for an unknown incident", "router", READS, unknown)
    yield call("reads for no incident", "router", READS, pb.AuthorizeReadsRequest(decision_id=new_id()))


def routers_wishes(actor: Actor, stage: Stage, granted: Sequence[tuple[Tool, Message, bytes]]) -> Iterator[Move]:
    """Yield all that agents may and the router may not."""
    for tool in changing():
        yield action("the router asks for an action", tool, sample(tool, actor.target_id), actor.context(), "router")
        yield call("the router acts", "router", tool.name, sample(tool, actor.target_id))
    for tool, request, grant in granted:
        yield call("the router acts", "router", tool.name, request, grant)
    mine = stage.registration(actor.template_id, actor.incident)
    target, run = actor.target_id, actor.run_id
    for method, request in (
        (REGISTER, mine),
        (END, pb.EndRunRequest(request_id=new_id(), run_id=run)),
        (READS, pb.AuthorizeReadsRequest(run_id=run)),
        (f"{LOCKS}/AcquireLock", locks_pb.AcquireLockRequest(request_id=new_id(), target_id=target, run_id=run)),
        (f"{LOCKS}/AcquireClaim", locks_pb.AcquireClaimRequest(request_id=new_id(), target_id=target, run_id=run)),
    ):
        yield call("the router as an agent", "router", method, request)
    asked = pb.AuthorizeReadsRequest(decision_id=actor.decision_id, incident_id=actor.incident.incident_id)
    yield call("agents ask for a decision's reads", "agents", READS, asked)


def not_theirs(identities: Identities) -> Iterator[Move]:
    """Yield every method of the mesh that agents and router have no permission for, whatever it is."""
    for method, found in policy.table().items():
        described = policy.find_method(method)
        streams = described is None or described.client_streaming or described.server_streaming
        for who in ("agents", "router"):
            # In a tool's case a grant would be missing as well; `the router acts` asks for more.
            if not streams and not identities.allows(f"service/{who}", found.permission):
                yield Move("a method that is not theirs", who, method, b"", may=frozenset())


def poisoned(stage: Stage, actor: Actor, targets: Sequence[str]) -> Iterator[tuple[str, str]]:
    """Yield how a model's calls are read that a poisoned answer has asked for: (answer, what is wrong with it).

    Every tool there is, on every target, as JSON that means exactly that, in the catalogue of the template.
    """
    mine = stage.allowed(actor.template_id)
    offers = catalogue([tool for tool in tools().values() if tool.name in mine], targets=[actor.target_id])
    for tool in tools().values():
        for target in targets if tool.spec.target_field else ("",):
            request = sample(tool, target)
            arguments = json_format.MessageToDict(request, preserving_proto_field_name=True)
            arguments.pop("request_id", None)
            read = read_call(ToolCall("1", model_name(tool), json.dumps(arguments)), offers, new_id())
            if tool.name in mine and target in {"", actor.target_id}:
                continue
            wrong = f"{tool.rpc} on {target or 'nothing'} was understood" if isinstance(read, Parsed) else ""
            yield ("understood" if wrong else f"dropped: {read.fault}" if not isinstance(read, Parsed) else ""), wrong


def _signed(raw: bytes, signature: bytes) -> bytes:
    return grant_pb2.SignedGrant(read_grant=raw, signature=signature).SerializeToString()
